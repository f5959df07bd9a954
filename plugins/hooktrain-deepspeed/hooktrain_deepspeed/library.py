"""DeepSpeed itself, imported late and quietly: its import costs seconds and prints."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

__all__ = ["deepspeed_for"]


def deepspeed_for(device: torch.device) -> Any:
    """The module ``deepspeed``, set up for a device.

    Args:
        device: what the run computes on; DeepSpeed decides when it is imported, by itself only by what it finds.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    level = logging.getLogger("DeepSpeed").level
    import deepspeed
    from deepspeed.utils import logger

    if level == logging.NOTSET and "DEEPSPEED_LOG_LEVEL" not in os.environ:
        logger.setLevel(logging.WARNING)  # at its own level it prints a page of settings on every start
    return deepspeed
