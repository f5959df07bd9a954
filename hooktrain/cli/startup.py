"""The start and the end of a command: few garbage collections while libraries are imported, and a line on what is done.

Importing torch and transformers makes half a million objects that stay; the collector looks through them again and
again meanwhile, and once more when the interpreter ends. Only the command line does something about it: the thresholds
of a program that imports hooktrain are its own.
"""

from __future__ import annotations

import contextlib
import gc
import getpass
import io
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from hooktrain.compat import call_exit_functions, exit_now, origin_of, thread_frames, wait_for_threads
from hooktrain.errors import HooktrainError
from hooktrain.plugin.blame import owner_of
from hooktrain.training.rank_notes import note_failure

if TYPE_CHECKING:
    from hooktrain.recipe.model import Recipe
    from hooktrain.training.trainer import Trainer

from hooktrain.masking import mask_text

__all__ = [
    "Progress",
    "collect_rarely",
    "end",
    "end_threads",
    "has_console",
    "leave",
    "open_streams",
    "provide_home",
    "remember_run",
    "say_on_terminal",
    "short_path",
    "sleep_while_waiting",
]

_RARELY = (100_000, 50, 100)
"""Thresholds of the collector while libraries are imported and parts are built."""
_THREADS_MAY_TAKE = 30.0
"""Seconds after a run in which threads that are no daemons may end, if ``hang_timeout`` is not shorter."""
_MENTION_AFTER = 3.0
"""Seconds after which the user is told what is waited for."""
_run: list[Trainer] = []


def sleep_while_waiting() -> None:
    """Have threads of OpenMP sleep while they wait for each other, unless the environment says otherwise.

    They spin by default, and take the time of those that have work where another process uses one of the cores: a step
    then takes several times as long. OpenMP reads its variables once, when torch is imported.
    """
    if not {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def open_streams() -> None:
    """Open standard streams that whoever started the process has closed, and let them hold every character.

    The next file or socket would be given the number of a closed one, and receive what is printed. Characters that the
    encoding of a stream does not have are printed as ``\\xe4``.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which is given the lowest number that is free
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # of a place in what was a file; it has been set by then
                stream.reconfigure(errors="backslashreplace")


def provide_home() -> None:
    """Give the process a home folder and a user's name where a container has neither, as libraries ask for them.

    Some would write into a folder called ``~`` otherwise, and others end with an error.
    """
    try:
        Path.home()
    except RuntimeError:
        folder = Path(tempfile.gettempdir()) / f"hooktrain-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # somebody else has made it
            folder = Path(tempfile.mkdtemp(prefix="hooktrain-"))
        os.environ["HOME"] = str(folder)
        click.echo(f"hooktrain: this user has no home folder; caches go to HOME={folder} for now", err=True)
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = str(os.getuid())


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
    end_threads(status)
    leave(status)


def remember_run(trainer: Trainer) -> None:
    """Note the run of this process, whose plugins may leave threads."""
    _run[:] = [trainer]


def end_threads(status: int) -> None:
    """Wait for threads that are no daemons, as Python does; after a run, for half a minute at most.

    Then the process ends with ``status``, or 1, having said which threads of which plugins still run.
    """
    trainer = _run[0] if _run else None
    limit = 0.0 if trainer is None else min(_THREADS_MAY_TAKE, trainer.recipe.hang_timeout)
    ended = threading.Event()

    def watch() -> None:
        assert trainer is not None, "there is no limit without a run"
        if ended.wait(min(_MENTION_AFTER, limit)):
            return
        _say(f"waiting up to {limit:.0f} s for {', '.join(who for who, _ in _left(trainer)) or 'the process to end'}")
        if ended.wait(limit - min(_MENTION_AFTER, limit)):
            return
        left = _left(trainer)
        text = (
            f"{', '.join(who for who, _ in left)}: still running {limit:.0f} s after the run, step"
            f" {trainer.global_step}, rank {trainer.world.rank}; end it in on_teardown, or make it a daemon"
        )
        if not note_failure(text, HooktrainError(text), trace=False):
            _say("\n".join([text, *(stack for _, stack in left)]))
        exit_now(status or 1)

    if limit:
        threading.Thread(target=watch, daemon=True).start()
    wait_for_threads()
    ended.set()


def _left(trainer: Trainer) -> list[tuple[str, str]]:
    """Return each thread that keeps the process alive, in words, with its stack."""
    frames, found = thread_frames(), []
    for thread in threading.enumerate():
        frame = None if thread.ident is None else frames.get(thread.ident)
        if thread.daemon or thread is threading.main_thread() or frame is None:
            continue
        stack = traceback.StackSummary.extract(traceback.walk_stack(frame))
        modules = [str(each.f_globals.get("__name__")) for each, _ in traceback.walk_stack(frame)]
        owner = next(filter(None, (owner_of(trainer.host, module) for module in modules)), "")
        of = f" of plugin '{owner}'" if owner else ""
        found.append((f"thread '{thread.name}'{of}", "".join(reversed(stack.format()))))
    return found


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
        click.echo(f"hooktrain: {text}", err=True)


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
        self.is_main = os.environ.get("RANK", "0") == "0"
        self.shown = self.is_main and has_console(raw, switches)

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

    def say_unsaved(self, recipe: Recipe) -> None:
        """Print that a run saves nothing, where its recipe has no checkpoint."""
        from hooktrain.inspection.plan_text import NOTHING_SAVED

        if not any(config.enabled for config in recipe.checkpoint):
            self.say(NOTHING_SAVED)


def say_on_terminal(source: Path, text: str) -> None:
    """Print a line on the standard error where someone looks at it, for commands whose output is their result."""
    if sys.stderr.isatty():
        click.echo(mask_text(f"{source}: {text}"), err=True)


def has_console(raw: Mapping[str, Any], switches: Sequence[str]) -> bool:
    """Return whether a run of a recipe prints anything on the console."""
    from hooktrain.plugin.config import Switches, plugins_config

    config = Switches.given(switches).applied(plugins_config(raw, []))
    settings = raw.get("console")
    return "console" not in config.block and not (isinstance(settings, Mapping) and settings.get("enabled") is False)


def _parts(recipe: Recipe) -> Iterator[str]:
    """Each part whose loading takes time, as ``model huggingface (folder or name)``, a name at its last part only."""
    kinds = ("strategy", "tokenizer", "data", "model")
    configs = {kind: config for kind in kinds if (config := getattr(recipe, kind)) is not None}
    names = {kind: origin_of(config) for kind, config in configs.items()}
    last = {name: kind for kind, name in names.items()}
    for kind, config in configs.items():
        name = names[kind]
        shown = f" ({short_path(name)})" if name and last[name] == kind else ""
        yield f"{kind} {recipe.types.get(type(config), '')}".rstrip() + shown


def short_path(name: str, most: int = 40) -> str:
    """Return a path from the working directory where it is in it, and its end alone where it is long."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(Path.cwd()) and path != Path.cwd():
        name = str(path.relative_to(Path.cwd()))
    parts = Path(name).parts
    while len(name) > most and len(parts) > 1:
        parts = parts[1:]
        name = os.path.join("...", *parts)
    return name
