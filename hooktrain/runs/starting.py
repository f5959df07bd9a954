"""A mark in a run directory that a process is about to resume the run, so that nobody takes its old end for the new."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from hooktrain.training.run_record import FILE, RunRecord

__all__ = ["is_starting", "mark_start"]

_MARK = ".starting.json"


@contextlib.contextmanager
def mark_start(folder: Path) -> Iterator[None]:
    """Mark a run directory that has a record, until the process has one of its own there or has given up."""
    mark = folder / _MARK
    with contextlib.suppress(OSError):  # the run says later that it cannot write
        if (folder / FILE).is_file():
            content = {"process": os.getpid(), "host": socket.gethostname(), "started": time.time()}
            mark.write_text(json.dumps(content), encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)


def is_starting(folder: Path, record: RunRecord) -> bool:
    """Return whether a process of this host has marked a run directory since its record was written, and lives."""
    try:
        found = json.loads((folder / _MARK).read_text(encoding="utf-8"))
        if found["started"] < record.written or found["host"] != socket.gethostname():
            return False
        os.kill(int(found["process"]), 0)
    except PermissionError:  # another user's
        return True
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return False
    return True
