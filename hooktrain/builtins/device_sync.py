"""Device synchronization: operations that make the host wait for the device, as torch's debug mode reports them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["DeviceSyncs"]


class DeviceSyncs:
    """Counts waits for a CUDA device between :meth:`begin` and :meth:`end`, whoever causes them.

    On other devices, and on a processor, where nothing waits, there is nothing to count: the conformance kit's check
    ``device`` finds on any machine what would wait.

    Args:
        seen: called for each wait, in the thread that waits.
        device: where the model computes.
    """

    def __init__(self, seen: Callable[[], None], device: torch.device) -> None:
        self.seen = seen
        self.counted = device.type == "cuda"
        self._show: Any = None

    def begin(self) -> None:
        """Turn torch's reports on."""
        if self.counted and self._show is None:
            warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
            self._show, warnings.showwarning = warnings.showwarning, self._reported  # type: ignore[assignment]
            torch.cuda.set_sync_debug_mode("warn")

    def end(self) -> None:
        """Turn torch's reports off; does nothing when they are."""
        if self._show is not None:
            torch.cuda.set_sync_debug_mode("default")
            self._show, warnings.showwarning = None, self._show

    def _reported(self, message: Warning | str, *more: Any) -> None:
        """Called in the place of ``warnings.showwarning``."""
        if "synchronizing CUDA operation" in str(message):
            self.seen()
        elif self._show is not None:
            self._show(message, *more)
