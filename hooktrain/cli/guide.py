"""``hooktrain guide``: how to write plugins, in the terminal.

The guides are Markdown in ``guides``, and their code lies in ``guides/code``: plugins of one module each, with their
tests. It is what the guides show, which ``python -m tests.readme`` sees to, and the tests run it.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from hooktrain.errors import HooktrainError, did_you_mean

__all__ = ["FOLDER", "GUIDES", "guide"]

FOLDER = Path(__file__).parents[1] / "guides"

GUIDES = (
    "first-plugin",
    "wrap-a-model",
    "replace-the-step",
    "offer-a-loss",
    "keep-state",
    "own-hooks",
    "add-a-command",
    "test-and-publish",
    "hooks",
)
"""The guides, in the order in which one would read them."""


def text_of(name: str) -> str:
    """A guide as Markdown, without the marks of what is generated.

    Raises:
        HooktrainError: when there is no such guide.
    """
    if name not in GUIDES:
        raise HooktrainError(f"no guide is named '{name}'{did_you_mean(name, GUIDES)}; there are {', '.join(GUIDES)}")
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    return re.sub(r"^<!-- .* -->\n", "", text, flags=re.MULTILINE)


def about(name: str) -> str:
    """A guide's title."""
    return text_of(name).partition("\n")[0].removeprefix("# ")


def files_of(name: str) -> list[Path]:
    """The files whose code a guide shows, and the recipe to run it with."""
    marked = re.findall(r"^<!-- code: (\S+)", (FOLDER / f"{name}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = sorted({FOLDER / "code" / file for file in marked})
    return [*found, *([FOLDER / "code" / "tiny.yaml"] if found else [])]


def write_files(name: str, folder: Path) -> list[Path]:
    """Write a guide's code into a folder; nothing is overwritten.

    Raises:
        HooktrainError: when the guide has no code, a file is there already, or the folder cannot be written.
    """
    sources = list(dict.fromkeys(files_of(name)))
    if not sources:
        raise HooktrainError(f"the guide '{name}' has no code of its own; give another one")
    targets = [folder / source.name for source in sources]
    try:
        for source, target in zip(sources, targets, strict=True):
            if target.exists() and target.read_bytes() != source.read_bytes():
                raise HooktrainError(f"{target}: is there already, and nothing is overwritten; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in zip(sources, targets, strict=True):
            target.write_bytes(source.read_bytes())
    except OSError as problem:
        raise HooktrainError(f"{folder}: cannot be written ({problem.strerror}); give another folder") from problem
    return targets


@click.command()
@click.argument("name", required=False)
@click.option(
    "--write",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the guide's code there: plugin, tests, a recipe to run it with.",
)
def guide(name: str | None, folder: Path | None) -> None:
    """Show how to write plugins; without a NAME, list the guides."""
    if name is None:
        for each in GUIDES:
            click.echo(f"{each:<18}{about(each)}")
        click.echo("\n`hooktrain guide NAME` shows one; with --write DIR its code is yours.")
        return
    text = text_of(name)
    if folder is not None:
        for path in write_files(name, folder):
            click.echo(f"wrote {path}")
        return
    _show(text)


def _show(text: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if not console.is_terminal:
        click.echo(text, nl=False)  # Markdown is what a file or a program wants
        return
    console.print(Markdown(text, code_theme="ansi_dark"), width=min(console.width, 100))
