"""``hooktrain chat``: a conversation with a trained model in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from hooktrain.cli.options import source_options

if TYPE_CHECKING:
    from hooktrain.recipe.generation import GenerationSettings

__all__ = ["chat"]

_HELP = "/reset begins anew, /system TEXT sets a system message, Ctrl-C stops an answer, Ctrl-D ends"


@click.command()
@source_options("RUN|MODEL")
@click.option("--best", is_flag=True, help="The checkpoint with the best evaluation, not the newest.")
@click.option("--system", metavar="TEXT", help="System message; the chat template's own by default.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 is the likeliest.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Share of likely tokens.")
@click.option("--seed", type=int, default=0, show_default=True, help="For drawing tokens.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto takes a GPU if any.")
def chat(
    source: str,
    overrides: tuple[str, ...],
    switches: tuple[str, ...],
    best: bool,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    device: str,
) -> None:
    """Talk to a trained model in its own chat template.

    RUN is a run directory or a checkpoint; MODEL is an export, an adapter, a .gguf file or the name of a model. /reset
    begins anew, /system TEXT sets a system message and begins anew. Ctrl-C stops an answer, and the end of the input
    quits. Where the input is no terminal, each line is a message.
    """
    from hooktrain.cli.startup import collect_rarely, sleep_while_waiting
    from hooktrain.recipe.generation import GenerationSettings

    sleep_while_waiting()
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        click.echo(f"loading {source}", err=True)
    with collect_rarely():
        from hooktrain.training.conversation import open_conversation

        talk = open_conversation(source, best=best, device=device, overrides=overrides, switches=switches)
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    talk.begin(system)
    if is_terminal:
        click.echo(f"{talk.name}: {_HELP}", err=True)
    for number, line in enumerate(_lines(is_terminal)):
        command, _, rest = line.partition(" ")
        if command == "/reset":
            talk.begin(system)
        elif command == "/system":
            system = rest.strip() or None
            talk.begin(system)
        elif command.startswith("/") and command.isascii() and command[1:].isalpha():
            click.echo(f"no command is named '{command}'; {_HELP}", err=True)
        elif line.strip():
            _answer(talk, line, settings, seed + number)


def _lines(is_terminal: bool) -> Iterator[str]:
    """Yield what the user writes, a line at a time, until the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and the lines before)
    while True:
        try:
            line = input("> ") if is_terminal else sys.stdin.readline()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:  # takes the line back
            click.echo()
            continue
        if not is_terminal and not line:
            return
        yield line.rstrip("\n")


def _answer(talk: Any, message: str, settings: GenerationSettings, seed: int) -> None:
    """Print an answer as it comes; Ctrl-C keeps what there is of it."""
    from hooktrain.errors import HooktrainError

    pieces = talk.answer(message, settings, seed)
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()
        click.echo(" (stopped)", nl=False, err=True)
    except HooktrainError as problem:
        click.echo(f"hooktrain: {problem}", err=True)
        if not sys.stdin.isatty():
            raise
        return
    click.echo()
