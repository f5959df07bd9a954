"""What a benchmark can fail with."""

from __future__ import annotations

from hooktrain.errors import HooktrainError

__all__ = ["BenchError"]


class BenchError(HooktrainError):
    """Something about benchmarks that the user can mend."""
