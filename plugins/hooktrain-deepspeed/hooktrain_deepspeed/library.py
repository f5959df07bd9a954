"""DeepSpeed itself, imported late and quietly: its import costs seconds and prints."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["deepspeed_for", "let_go", "quietly"]


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
    if device.type == "cpu":
        # it would compile a kernel that only inference calls, behind a lock file: a run that is killed meanwhile leaves
        # the lock, and every later run waits for ever (the module's name as an attribute is torch itself)
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None
    warnings.filterwarnings("ignore", "`torch.distributed..*` is deprecated", FutureWarning, "torch.distributed")
    return deepspeed


def let_go() -> None:
    """Take the modules of an engine that is done from DeepSpeed's lists, which keep all of it: weights, threads.

    Stage 3 has two: the modules whose forward is on its way, where the outermost one stays for ever, and a cache of
    which weights a module may release.
    """
    offload: Any = importlib.import_module("deepspeed.runtime.zero.parameter_offload")
    offload.FWD_MODULE_STACK.clear()
    coordinator: Any = importlib.import_module("deepspeed.runtime.zero.partitioned_param_coordinator")
    for found in vars(coordinator.PartitionedParameterCoordinator).values():
        for cell in getattr(found, "__closure__", None) or ():  # the cache is inside a decorator that measures
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep to itself what DeepSpeed prints; on an exception it is printed after all."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except BaseException:
        print(printed.getvalue(), end="")
        raise
