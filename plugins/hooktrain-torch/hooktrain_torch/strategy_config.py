"""Configuration of the ``torch`` strategy; imported without torch."""

from __future__ import annotations

import attrs

from hooktrain import Seconds, at_least, field, one_of

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
    """With several ranks, whether to search each step for parameters that it does not use. It costs time, and only
    models and losses that skip some need it."""
    data_parallel: str = field(default="ddp", validator=one_of("ddp", "fsdp2"))
    """With several ranks: ``ddp``, each holds the full model, or ``fsdp2``, weights, gradients and optimizer are
    sharded over them and each block's weights are gathered while it computes."""
    sequence_parallel: int = field(default=1, validator=at_least(1))
    """How many ranks share the tokens of each sequence, each computing a part of it and some of the attention's heads;
    for sequences that are too long for one rank."""
    timeout: Seconds = field(default=1800.0, validator=at_least(1))
    """Seconds that a rank waits for the others before the run ends. Set more than the longest work that one rank does
    alone takes."""

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds only its shards of the weights."""
        return self.data_parallel == "fsdp2"
