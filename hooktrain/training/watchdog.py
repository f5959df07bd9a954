"""The watchdog: reports a run that makes no step, names the hook that is running, and ends it."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from hooktrain.compat import exit_now, thread_frames
from hooktrain.errors import HangError
from hooktrain.plugin.blame import running_in
from hooktrain.training.diagnostics import explain
from hooktrain.training.rank_notes import note_failure

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["MULTIPLES", "Watchdog"]

MULTIPLES = {"step": 1, "evaluation": 5, "save": 5, "end": 1, "": math.inf}
"""How many times ``hang_timeout`` each activity may take; outside of them, as between run and close, any time."""
_GRACE = 5.0
"""Seconds in which the thread of the run may raise the error; it cannot while it waits in C code."""
_MOST_RAISED = 3
"""Plugins at most whose teardown is ended, each after ``hang_timeout``."""
_LONGEST_PERIOD = 5.0
"""Seconds between two looks at most."""
_DEBUGGERS = ("pdb", "bdb", "ipdb", "pydevd", "_pydevd_bundle", "debugpy", "IPython")


class Watchdog:
    """A thread that looks at the number of the step a few times within ``hang_timeout``; a step does nothing for it.

    With ``on_hang: stop`` the run's own thread raises :class:`hooktrain.HangError`, so that plugins are torn down; when
    it cannot, as it waits in C code, the process ends after a few seconds with status 1. Time in which the process is
    stopped (SIGSTOP) or suspended does not count, nor a prompt of a debugger.

    Where C code does not let any thread of Python run, a thread of ``faulthandler`` prints the stacks and ends the
    process after twice the time, and some seconds. That one counts the time of a process that is stopped.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = weakref.ref(trainer)
        self.timeout, self._stops = trainer.recipe.hang_timeout, trainer.recipe.on_hang == "stop"
        self._activity, self._changes = "", 0
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._watched = 0
        self._error: HangError | None = None  # what the run's thread is to raise
        self._reported: HangError | None = None
        self._raised = 0
        self._before: Any = None

    # --------------------------------------------------------------------------------- called by the run's thread

    def start(self) -> None:
        """Begin to watch the current thread; does nothing without ``hang_timeout``."""
        self.enter("step")
        if self.timeout <= 0 or self._thread is not None:
            return
        self._watched = threading.get_ident()
        if threading.current_thread() is threading.main_thread() and "SIGURG" in signal.Signals.__members__:
            self._before = signal.signal(signal.SIGURG, self._raise)  # which nothing else uses, and kills nobody
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, name="hooktrain-watchdog", daemon=True)
        self._thread.start()

    def enter(self, activity: str) -> None:
        """Note what the run does from now on, as one of :data:`MULTIPLES`."""
        self._activity, self._changes = activity, self._changes + 1

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Note what the run does inside."""
        before = self._activity
        self.enter(activity)
        try:
            yield
        finally:
            self.enter(before)

    @contextlib.contextmanager
    def closing(self, *, failed: bool) -> Iterator[list[tuple[str, BaseException]]]:
        """Watch the teardown inside, and end the watch.

        Args:
            failed: whether the run ends with an error anyway.

        Yields:
            A list for the plugins whose teardown has failed, and with what.

        Raises:
            HangError: when it is among these, and the run has not failed.
        """
        problems: list[tuple[str, BaseException]] = []
        self.enter("end")
        try:
            yield problems
        finally:
            self.stop()
        for _, problem in problems:
            if isinstance(problem, HangError) and not failed:
                raise problem

    def stop(self) -> None:
        """End the watch."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()
            if self._before is not None:
                signal.signal(signal.SIGURG, self._before)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        error, self._error = self._error, None
        if error is not None:
            if self._activity == "end" and self._raised < _MOST_RAISED:  # the other plugins are torn down yet
                self._raised, self._changes = self._raised + 1, self._changes + 1
            raise error

    # -------------------------------------------------------------------------------------- the watchdog's thread

    def _watch(self) -> None:
        period = min(_LONGEST_PERIOD, self.timeout / 8)
        seen, still, reported = (-1, -1), 0.0, -1.0
        looked = time.monotonic()
        while not self._ended.wait(period):
            trainer, now = self._trainer(), time.monotonic()
            if trainer is None:
                return
            still += min(now - looked, 2 * period)  # more has passed where the process was stopped or suspended
            looked = now
            place = trainer.global_step, self._changes
            limit = self.timeout * MULTIPLES[self._activity]
            if place != seen:
                seen, still, reported, self._error = place, 0.0, -1.0, None
            self._arm(limit - still)
            if reported < 0 and still >= limit and not self._is_debugged():
                reported = still
                self._report(trainer, still)
            elif self._stops and reported >= 0 and still - reported >= _GRACE:
                self._end(trainer)

    def _arm(self, left: float) -> None:
        """Have a thread that needs no lock of Python print the stacks, unless this one comes by again."""
        if math.isinf(left):
            faulthandler.cancel_dump_traceback_later()
        elif sys.__stderr__ is not None:
            with contextlib.suppress(OSError, ValueError):  # a program without a standard error
                later = max(left, 0.0) + max(self.timeout, _GRACE) + _GRACE
                faulthandler.dump_traceback_later(later, exit=self._stops, file=sys.__stderr__)

    def _report(self, trainer: Trainer, still: float) -> None:
        frames = thread_frames()
        made = HangError(self._describe(trainer, still, frames.get(self._watched)))
        explain(trainer.host, made, trainer.global_step, trainer.world.rank)
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = [f"hooktrain: {made}; the stacks of all threads, the innermost call last:"]
        for thread, frame in frames.items():
            if thread != threading.get_ident():
                lines.append(f"thread {names.get(thread, 'of no name')}:")
                lines += [text.rstrip() for text in traceback.format_stack(frame)]
        _patiently(lambda: print("\n".join(lines), file=sys.stderr, flush=True))
        if not self._stops:
            trainer.host.warn(f"{made}; the run continues to wait (on_hang: warn)")
            return
        self._error = self._reported = made
        if self._before is not None:
            signal.pthread_kill(self._watched, signal.SIGURG)

    def _describe(self, trainer: Trainer, still: float, frame: FrameType | None) -> str:
        """Return what has taken too long, and the innermost hook on the stack of the run's thread."""
        doing = {"step": "no step was finished", "end": "the run did not come to its end"}
        multiple = MULTIPLES[self._activity]
        limit = f"{multiple} x {self.timeout:g} s" if multiple != 1 else f"{self.timeout:g} s"
        what = doing.get(self._activity, f"the {self._activity} was not finished")
        running = running_in(trainer.host, frame)
        where = f"step {trainer.global_step}, rank {trainer.world.rank}"
        if running is not None:
            where = f"plugin '{running[0]}', hook {running[1]}, {where}"
        waiting = trainer.world.world_size > 1 and (running is None or running[0] == "loop" or _in_collective(frame))
        others = ", waiting for other ranks" if waiting else ""
        return f"hang_timeout: {what} within {limit}{others}; it is in {where}"

    def _end(self, trainer: Trainer) -> None:
        """End the process, since the run's thread raises nothing."""
        assert self._reported is not None, "it is reported first"
        text = f"{self._reported}; its thread raises no error, so the process ends"
        if not note_failure(text, self._reported, trace=False):
            _patiently(lambda: print(f"hooktrain: {text}", file=sys.stderr, flush=True))
        _patiently(sys.stdout.flush)
        exit_now(1)

    def _is_debugged(self) -> bool:
        frame = thread_frames().get(self._watched)
        while frame is not None:
            if str(frame.f_globals.get("__name__")).partition(".")[0] in _DEBUGGERS:
                return True
            frame = frame.f_back
        return False


def _patiently(work: Callable[[], Any]) -> None:
    """Do something that may wait, as for a reader of what is printed, for two seconds at most."""

    def suppressed() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=suppressed, daemon=True)
    thread.start()
    thread.join(2)


def _in_collective(frame: FrameType | None) -> bool:
    for _ in range(8):
        if frame is not None and "torch/distributed" in frame.f_code.co_filename:
            return True
        frame = None if frame is None else frame.f_back
    return False
