"""Errors of ``hooktrain bench``."""

from __future__ import annotations

from hooktrain.errors import HooktrainError

__all__ = ["BenchError"]


class BenchError(HooktrainError):
    """An error in the use of benchmarks that the user can fix."""
