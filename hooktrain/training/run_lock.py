"""One run at a time in a run directory: two would remove each other's half-written checkpoints."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from hooktrain.errors import HooktrainError

__all__ = ["RunLock"]

_PATIENCE = 20.0
"""Seconds in which the ranks of a run that was killed may end, so that a supervisor can start it again at once."""


class RunLock:
    """Holds a folder until it is released, or the process ends in whatever way.

    A process may hold a folder several times; children that outlive it do not hold it.

    Args:
        folder: an existing one.
        patience: seconds to wait for the process that holds it; 20 when omitted.
        say: called once with what is waited for.

    Raises:
        HooktrainError: when another process holds it for longer.
        OSError: when the file system has no locks.
    """

    def __init__(
        self, folder: Path, *, patience: float | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        patience = _PATIENCE if patience is None else patience
        self._lock = FileLock(folder.resolve() / ".lock", thread_local=False, is_singleton=True, fallback_to_soft=False)
        holder = folder / ".lock.holder"
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if say is not None:
                say(f"run_dir: '{folder}' is in use by another run ({_read(holder)}); waiting up to {patience:.0f} s")
            try:
                self._lock.acquire(timeout=patience, poll_interval=0.1)
            except Timeout:
                raise HooktrainError(
                    f"run_dir: '{folder}' is in use by another run ({_read(holder)}); wait for its end, or give this"
                    " one another run_dir"
                ) from None
        with contextlib.suppress(OSError):  # a disk that is full
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def release(self) -> None:
        """Release the folder."""
        self._lock.release()


def _read(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "another process"
