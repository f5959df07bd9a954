"""One run at a time in a run directory: two would remove each other's half-written checkpoints."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from hooktrain.errors import HooktrainError

__all__ = ["RunLock"]

_NAME = ".lock"
_PATIENCE = 20.0
"""Seconds in which the ranks of a run that was killed may end, so that a supervisor can start it again at once."""


class RunLock:
    """Holds a folder until it is let go, or the process ends in whatever way.

    A lock of the process, as POSIX has them: children that outlive it do not hold it, and it is seen from other hosts
    where the file system is shared. Where there are no such locks, nothing is locked.

    Args:
        folder: an existing one.
        patience: seconds to wait for the one that holds it; 20 when left out.
        say: told, once, that there is something to wait for.

    Raises:
        HooktrainError: when another process holds it for longer.
    """

    def __init__(
        self, folder: Path, *, patience: float | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self._handle: int | None = None
        patience = _PATIENCE if patience is None else patience
        try:
            import fcntl
        except ImportError:
            return
        handle = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
                if time.monotonic() > until:
                    os.close(handle)
                    raise HooktrainError(
                        f"run_dir: '{folder}' is in use by another run ({holder}); wait for its end, or give this one"
                        " another run_dir"
                    ) from None
                if say is not None:
                    say(f"run_dir: '{folder}' is in use by another run ({holder}); waiting up to {patience:.0f} s")
                    say = None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                os.close(handle)
                return
        with contextlib.suppress(OSError):  # a disk that is full
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._handle = handle

    def release(self) -> None:
        """Let go of the folder; the file stays, as one that is removed could be locked twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
