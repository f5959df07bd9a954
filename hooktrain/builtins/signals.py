"""Signals, and a file with the name ``stop``: how somebody outside ends a run without losing anything."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hooktrain.compat import module_of, name_of, signal_handler
from hooktrain.errors import described
from hooktrain.markers import hookimpl
from hooktrain.plugin.blame import owner_of
from hooktrain.plugin.info import PluginInfo
from hooktrain.training.rank_notes import note_training
from hooktrain.training.run_files import move_aside

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["Signals"]

_STOPS = ("SIGTERM", "SIGINT", "SIGHUP")
_PATIENCE = 1.0
"""Seconds in which a second SIGINT is the first one again: a launcher passes on what the terminal sent to all."""

_LOOK_EVERY = 0.1
"""Seconds between two looks for the file at least: each asks the file system, which may be another machine's."""
_HANDLERS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)
"""Handlers that are not called when they have taken the place of this module's: they do nothing, or lose the step."""

_Handler = Callable[[int, FrameType | None], object]


class Signals:
    """SIGTERM, SIGINT and SIGHUP save and end the run after the current step, on all ranks.

    A second SIGINT ends it at once. A SIGHUP that was ignored when the process began, as under ``nohup``, stays so.
    SIGUSR1 saves and continues. A file ``stop`` in the run directory saves and ends the run; it is removed. A handler
    that a plugin puts in the place of one of these is called after it, and the user is told.
    """

    hooktrain_plugin = PluginInfo(may_change=("signal handlers",))

    def __init__(self) -> None:
        hangup = signal.Signals.__members__.get("SIGHUP")
        self._ignores_hangup = hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN
        self._before: dict[int, Any] = {}
        self._handlers: dict[int, _Handler] = {}
        self._first: dict[int, _Handler] = {}
        self._passing_on = False
        self._interrupted_at: float | None = None
        self._look_at = 0.0
        self._warned: set[str] = set()

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        self._interrupted_at = None
        if threading.current_thread() is not threading.main_thread():
            return  # Python hands signals to the main thread only

        def stop(number: int, frame: FrameType | None) -> None:
            if self._passing_on:
                return  # a plugin's handler calls the one that it has replaced
            name, now = signal.Signals(number).name, time.monotonic()
            if number == signal.SIGINT:
                if self._interrupted_at is not None and now - self._interrupted_at > _PATIENCE:
                    raise KeyboardInterrupt
                self._interrupted_at = now if self._interrupted_at is None else self._interrupted_at
            reason = f"{name}, received by rank {trainer.world.rank}"
            trainer.request_stop(reason, urgent=True, exit_status=128 + number)
            again = "; a second one ends immediately" if number == signal.SIGINT else ""
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone, which may be what this is about
                print(f"hooktrain: {name}: will save and end after this step{again}", file=sys.stderr, flush=True)

        def save(number: int, frame: FrameType | None) -> None:
            if not self._passing_on:
                trainer.request_save()

        for name in (*_STOPS, "SIGUSR1"):
            number = signal.Signals.__members__.get(name)
            if number is not None and not (name == "SIGHUP" and self._ignores_hangup):
                self._first[number] = self._handlers[number] = save if name == "SIGUSR1" else stop
                self._before[number] = signal.signal(number, self._handlers[number])
        note_training()

    @hookimpl(trylast=True)
    def on_epoch_start(self, trainer: Trainer) -> None:
        self._keep(trainer)

    @hookimpl(trylast=True)
    def on_step_end(self, trainer: Trainer) -> None:
        self._keep(trainer)
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY
            if self._handlers:
                self._unblock(trainer)
            if trainer.world.is_main and _taken(trainer.run_dir / "stop", self._warn_once(trainer)):
                trainer.request_stop("the file 'stop' in the run directory", urgent=True)

    @hookimpl(trylast=True)
    def on_train_end(self, trainer: Trainer) -> None:
        if trainer.world.is_main:
            _taken(
                trainer.run_dir / "stop", self._warn_once(trainer)
            )  # or it would end the next run, which resumes from this one
        if trainer.state.stop_reason is not None:
            trainer.strategy.barrier()  # a launcher ends all ranks as soon as one has ended with a status

    def _warn_once(self, trainer: Trainer) -> Callable[[str], None]:
        def warn(text: str) -> None:
            if text not in self._warned:
                self._warned.add(text)
                trainer.host.warn(text)

        return warn

    @hookimpl(trylast=True)
    def on_teardown(self) -> None:
        self._handlers.clear()
        self._first.clear()
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _keep(self, trainer: Trainer) -> None:
        """Take signals back whose handlers a plugin has replaced."""
        for number, ours in self._handlers.items():
            if signal_handler(number) is not ours:
                self._take_back(trainer, number, signal_handler(number))

    def _take_back(self, trainer: Trainer, number: int, theirs: Any) -> None:
        first = self._first[number]
        self._handlers[number] = first
        if theirs is first:
            return  # a plugin has put back what it had replaced

        def both(number: int, frame: FrameType | None) -> None:
            first(number, frame)
            self._passing_on = True
            try:
                theirs(number, frame)
            except KeyboardInterrupt:
                raise
            except BaseException as problem:
                trainer.host.warn(f"{signal.Signals(number).name}: {said} raised {described(problem)}; the run saves")
            finally:
                self._passing_on = False

        does_nothing = theirs in _HANDLERS
        said = f"the handler {module_of(theirs)}.{name_of(theirs)}"
        if not does_nothing:
            self._handlers[number] = both
        signal.signal(number, self._handlers[number])
        owner = "" if does_nothing else owner_of(trainer.host, module_of(theirs))
        what = (
            "had it ignored" if theirs == signal.SIG_IGN else "put back its default" if does_nothing else f"set {said}"
        )
        then = "" if does_nothing else ", which is called afterwards"
        trainer.host.warn(
            f"{signal.Signals(number).name}: {f'plugin {owner!r}' if owner else 'a plugin or a library'} has {what}"
            f" before step {trainer.global_step} ended, on rank {trainer.world.rank}; hooktrain's own handler, which"
            f" saves and ends the run, is back in its place{then}"
        )

    def _unblock(self, trainer: Trainer) -> None:
        """Unblock signals that a plugin has blocked in this thread."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) & self._handlers.keys()
        if blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
            names = ", ".join(sorted(signal.Signals(number).name for number in blocked))
            trainer.host.warn(
                f"{names}: a plugin or a library has blocked it before step {trainer.global_step} ended, on rank"
                f" {trainer.world.rank}; it is unblocked, so that it saves and ends the run"
            )


def _taken(file: Path, warn: Callable[[str], None]) -> bool:
    """Whether the file was there; it no longer is. A folder of that name is moved aside, and does not end the run."""
    if not os.path.lexists(file):
        return False
    try:
        if file.is_dir() and not file.is_symlink():
            warn(f"{file}: is a folder, and only a file ends the run; it is kept as {move_aside(file).name}")
            return False
        file.unlink(missing_ok=True)
    except OSError as problem:
        warn(f"{file}: cannot be removed ({problem.strerror}); remove it, or it ends the next run too")
        return not file.is_dir()
    return True
