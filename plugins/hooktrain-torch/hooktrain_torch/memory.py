"""How the C library treats memory that a training step frees and the next one wants again."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Names of parameters in glibc's ``malloc.h``."""
_NEVER = 2**31 - 1
_STEP = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, instead of handing it back and taking it anew, page by page, in every step.

    It does so with every tensor above some 32 MB and whenever the heap's end is free. A step of training on a processor
    frees and wants the same gigabytes each time, so that the peak stays what it was.

    Returns:
        Whether it was done: not without glibc, and not where the user has set the allocator up by environment.
    """
    if platform.libc_ver()[0] != "glibc" or _is_set_up(os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _NEVER), mallopt(_TOP_PAD, _STEP)]
    return all(done)


def _is_set_up(environment: os._Environ[str] | dict[str, str]) -> bool:
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")
    return any(environment.get(name) for name in names) or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")
