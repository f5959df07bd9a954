"""What a recipe says about the ``torch`` strategy; imported without torch."""

from __future__ import annotations

import attrs

from hooktrain import at_least, field, one_of

__all__ = ["TorchConfig"]


@attrs.frozen(kw_only=True)
class TorchConfig:
    """Plain PyTorch on one device per process."""

    dtype: str = field(
        default="auto", validator=one_of("auto", "fp32", "bf16", "fp16"), inherit="model.dtype", affects_training=True
    )
    """Precision of the computation, weights and optimizer staying in float32; ``auto`` is bf16 where the processor has
    it and fp32 elsewhere."""
    device: str = field(default="auto")
    """Such as ``cuda``, ``cuda:1`` or ``cpu``; ``auto`` takes a GPU where there is one."""
    find_unused_parameters: bool = field(default=False)
    """With several ranks, whether to search each step for parameters that take no part in it; costs time, and is only
    needed by models and losses that leave some out."""
    data_parallel: str = field(default="ddp", validator=one_of("ddp", "fsdp2"))
    """With several ranks: ``ddp``, each holds the whole model, or ``fsdp2``, weights, gradients and optimizer are
    spread over them and each block's weights are gathered while it computes."""
    sequence_parallel: int = field(default=1, validator=at_least(1))
    """How many ranks share the tokens of each row, each computing a stretch of it and a share of the attention's heads;
    for rows that are too long for one."""
    timeout: float = field(default=1800.0, validator=at_least(1))
    """Seconds that a rank waits for the others before the run is ended; more than the longest thing that one does
    alone."""
