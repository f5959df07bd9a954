"""glibc settings that keep memory which one training step frees for the next one.

Measured: benchmarks/README.md, "Memory that the allocator keeps".
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping

__all__ = ["keep_freed_memory", "return_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Names of parameters in glibc's ``malloc.h``."""
_NEVER = 2**31 - 1
_STEP = 64 * 2**20
_USUAL = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20, _TOP_PAD: 128 * 2**10, _MMAP_MAX: 2**16}
"""The values that glibc adapts to where large blocks are freed. Once set, they no longer adapt."""


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory instead of returning it to the system and faulting it in again at every step.

    glibc returns every block above some 32 MB, and the end of the heap whenever it is free. A training step on a
    processor frees and allocates the same gigabytes each time, so the peak stays the same. Under ZeRO it does not:
    there the peak rose by a fifth and steps were no quicker.

    Returns:
        Whether the settings were made: not without glibc, and not where the environment configures the allocator.
    """
    return _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _STEP})


def return_freed_memory() -> bool:
    """Restore glibc's behaviour and return free memory to the system, once training has ended in this process.

    Returns:
        Whether it was done, as in :func:`keep_freed_memory`.
    """
    done = _set(_USUAL)
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _set(parameters: Mapping[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc" or _is_configured(os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(name, value) for name, value in parameters.items()])


def _is_configured(environment: Mapping[str, str]) -> bool:
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")
    return any(environment.get(name) for name in names) or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")
