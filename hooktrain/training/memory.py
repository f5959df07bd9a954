"""Memory that this process has and has had. Imports nothing heavy."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

__all__ = ["peak_of_process", "process_memory"]


def process_memory() -> int:
    """Return the bytes of memory that this process has now; where the system does not tell, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # not Linux
        return peak_of_process()
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_of_process() -> int:
    """Return the most bytes of memory that this process has had."""
    try:  # ru_maxrss begins with that of the process that has started this one
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
