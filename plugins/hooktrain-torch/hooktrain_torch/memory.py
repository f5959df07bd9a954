"""How the C library treats memory that a training step frees and the next one wants again."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping

__all__ = ["give_freed_memory_back", "keep_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Names of parameters in glibc's ``malloc.h``."""
_NEVER = 2**31 - 1
_STEP = 64 * 2**20
_USUAL = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20, _TOP_PAD: 128 * 2**10, _MMAP_MAX: 2**16}
"""What glibc comes to by itself where large pieces are freed; it can be told, but not to find out by itself again."""


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, instead of handing it back and taking it anew, page by page, in every step.

    It does so with every tensor above some 32 MB and whenever the heap's end is free. A step of training on a processor
    frees and wants the same gigabytes each time, so that the peak stays what it was. Not so under ZeRO, whose peak rose
    by a fifth, and whose steps were no quicker for it (benchmarks/README.md).

    Returns:
        Whether it was done: not without glibc, and not where the user has set the allocator up by environment.
    """
    return _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _STEP})


def give_freed_memory_back() -> bool:
    """Let glibc do as usual again, and hand back what is free: the training of this process is over.

    Returns:
        Whether it was done, as :func:`keep_freed_memory`.
    """
    done = _set(_USUAL)
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _set(parameters: Mapping[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc" or _is_set_up(os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(name, value) for name, value in parameters.items()])


def _is_set_up(environment: os._Environ[str] | dict[str, str]) -> bool:
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")
    return any(environment.get(name) for name in names) or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")
