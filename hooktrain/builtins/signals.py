"""Signals, and a file with the name ``stop``: how somebody outside ends a run without losing anything."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hooktrain.markers import hookimpl
from hooktrain.plugin.info import PluginInfo

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["Signals"]

_STOPS = ("SIGTERM", "SIGINT")
_PATIENCE = 1.0
"""Seconds in which a second SIGINT is the first one again: a launcher passes on what the terminal sent to all."""

_LOOK_EVERY = 0.1
"""Seconds between two looks for the file at least: each asks the file system, which may be another machine's."""


class Signals:
    """SIGTERM and SIGINT save and end the run after the current step, on all ranks; a second SIGINT ends it at once.

    SIGUSR1 saves and continues. A file ``stop`` in the run directory saves and ends the run; it is removed.
    """

    hooktrain_plugin = PluginInfo(may_change=("signal handlers",))

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._interrupted_at: float | None = None
        self._look_at = 0.0

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        self._interrupted_at = None
        if threading.current_thread() is not threading.main_thread():
            return  # Python hands signals to the main thread only

        def stop(number: int, frame: FrameType | None) -> None:
            name, now = signal.Signals(number).name, time.monotonic()
            if number == signal.SIGINT:
                if self._interrupted_at is not None and now - self._interrupted_at > _PATIENCE:
                    raise KeyboardInterrupt
                self._interrupted_at = now if self._interrupted_at is None else self._interrupted_at
            reason = f"{name}, received by rank {trainer.world.rank}"
            trainer.request_stop(reason, urgent=True, exit_status=128 + number)
            again = "; a second one ends immediately" if number == signal.SIGINT else ""
            print(f"hooktrain: {name}: will save and end after this step{again}", file=sys.stderr, flush=True)

        def save(number: int, frame: FrameType | None) -> None:
            trainer.request_save()

        for name, handler in ((_STOPS[0], stop), (_STOPS[1], stop), ("SIGUSR1", save)):
            if name in signal.Signals.__members__:
                number = signal.Signals[name]
                self._before[number] = signal.signal(number, handler)

    @hookimpl(trylast=True)
    def on_step_end(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY
            if trainer.world.is_main and _taken(trainer.run_dir / "stop"):
                trainer.request_stop("the file 'stop' in the run directory", urgent=True)

    @hookimpl(trylast=True)
    def on_train_end(self, trainer: Trainer) -> None:
        if trainer.world.is_main:
            _taken(trainer.run_dir / "stop")  # or it would end the next run, which resumes from this one
        if trainer.state.stop_reason is not None:
            trainer.strategy.barrier()  # a launcher ends all ranks as soon as one has ended with a status

    @hookimpl(trylast=True)
    def on_teardown(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


def _taken(file: Path) -> bool:
    """Whether the file was there; it no longer is."""
    if not file.exists():
        return False
    file.unlink(missing_ok=True)
    return True
