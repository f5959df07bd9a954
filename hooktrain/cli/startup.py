"""The start and the end of a command: few garbage collections while libraries are imported, and a line on what is done.

Importing torch and transformers makes half a million objects that stay; the collector looks through them again and
again meanwhile, and once more when the interpreter ends. Only the command line does something about it: the thresholds
of a program that imports hooktrain are its own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from hooktrain.recipe.model import Recipe

from hooktrain.compat import call_exit_functions, exit_now, origin_of, wait_for_threads
from hooktrain.masking import mask_text

__all__ = ["Progress", "collect_rarely", "end", "leave", "sleep_while_waiting"]

_RARELY = (100_000, 50, 100)
"""Thresholds of the collector while libraries are imported and parts are built."""


def sleep_while_waiting() -> None:
    """Have threads of OpenMP sleep while they wait for each other, unless the environment says otherwise.

    They spin by default, and take the time of those that have work where another process uses one of the cores: a step
    then takes several times as long. OpenMP reads its variables once, when torch is imported.
    """
    if not {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextlib.contextmanager
def collect_rarely() -> Iterator[None]:
    """Collect garbage rarely inside; afterwards as often as before."""
    before = gc.get_threshold()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def end(status: int) -> NoReturn:
    """End the process with a status, and leave it to the system to take back what torch and others hold.

    What the interpreter promises is kept: threads are waited for, functions of ``atexit`` are called, and everything is
    written. A debugger, a profiler and ``python -i`` get the ordinary end, and so does a process without torch.
    (Freezing the collector instead would have libraries that look for leaks at the end report all that they hold.)
    """
    watched = sys.gettrace() is not None or sys.getprofile() is not None or sys.flags.inspect
    if watched or "torch" not in sys.modules or threading.current_thread() is not threading.main_thread():
        sys.exit(status)
    wait_for_threads()
    leave(status)


def leave(status: int) -> NoReturn:
    """End the process now: functions of ``atexit`` are called, threads are not waited for."""
    call_exit_functions()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads it any more: Python has a message and a status for that
        sys.exit(status)
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).fflush(None)  # what libraries have printed
    exit_now(status)


class Progress:
    """Lines on the standard output about what is being loaded, before there is a run that could print anything.

    Rank 0 prints them, unless the recipe or a switch turns the console off.

    Args:
        source: what the recipe is called.
        raw: the recipe as it was read, with overrides.
        switches: ``name``, ``no:name`` and ``no:*``, after those of the environment.
    """

    def __init__(self, source: Path, raw: Mapping[str, Any], switches: Sequence[str]) -> None:
        self.source = source
        self.shown = os.environ.get("RANK", "0") == "0" and _has_console(raw, switches)

    def say(self, text: str) -> None:
        """Print a line, unless nobody reads what is printed."""
        if self.shown:
            try:
                click.echo(mask_text(f"{self.source}: {text}"))
            except OSError:
                self.shown = False

    def say_parts(self, recipe: Recipe) -> None:
        """Print which parts a recipe is about to load."""
        self.say(f"loading {', '.join(_parts(recipe))}")


def _has_console(raw: Mapping[str, Any], switches: Sequence[str]) -> bool:
    from hooktrain.plugin.config import Switches, plugins_config

    config = Switches.given(switches).applied(plugins_config(raw, []))
    settings = raw.get("console")
    return "console" not in config.block and not (isinstance(settings, Mapping) and settings.get("enabled") is False)


def _parts(recipe: Recipe) -> Iterator[str]:
    """Each part whose loading takes time, as ``model huggingface (folder or name)``."""
    for kind in ("strategy", "tokenizer", "data", "model"):
        config = getattr(recipe, kind)
        if config is not None:
            name = origin_of(config)
            yield f"{kind} {recipe.types.get(type(config), '')}".rstrip() + (f" ({name})" if name else "")
