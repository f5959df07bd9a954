"""One run at a time in a run directory or output folder: two would remove each other's half-written checkpoints."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from hooktrain.errors import HooktrainError

__all__ = ["RunLock", "is_held"]

_PATIENCE = 20.0
"""Seconds in which the ranks of a run that was killed may end, so that a supervisor can start it again at once."""


class RunLock:
    """Holds a folder until it is released, or the process ends in whatever way.

    A process may hold a folder several times; children that outlive it do not hold it.

    Args:
        folder: an existing one, or the file of the lock, which need not exist.
        patience: seconds to wait for the process that holds it; 20 when omitted.
        say: called once with what is waited for.
        key: the recipe's key for the folder.
        shown: the folder that is locked, where ``folder`` is a file.

    Raises:
        HooktrainError: when another process holds it for longer.
        OSError: when the file system has no locks.
    """

    def __init__(
        self,
        folder: Path,
        *,
        patience: float | None = None,
        say: Callable[[str], None] | None = None,
        key: str = "run_dir",
        shown: Path | None = None,
    ) -> None:
        patience = _PATIENCE if patience is None else patience
        file, shown = _file(folder), shown or folder
        self._lock = FileLock(file, thread_local=False, is_singleton=True, fallback_to_soft=False)
        holder = Path(f"{file}.holder")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if say is not None:
                say(f"{key}: '{shown}' is in use by another run ({_read(holder)}); waiting up to {patience:.0f} s")
            try:
                self._lock.acquire(timeout=patience, poll_interval=0.1)
            except Timeout:
                raise HooktrainError(
                    f"{key}: '{shown}' is in use by another run ({_read(holder)}); wait for its end, or give this"
                    f" one another {key.rpartition('.')[2]}"
                ) from None
        with contextlib.suppress(OSError):  # a disk that is full
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def release(self) -> None:
        """Release the folder."""
        self._lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process holds a run directory; asking for a shared lock needs no right to write.

    Raises:
        OSError: the file system has no locks.
    """
    import fcntl  # not on Windows

    try:
        handle = os.open(_file(folder), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _file(folder: Path) -> Path:
    return folder.resolve() / ".lock" if folder.is_dir() else folder


def _read(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "another process"
