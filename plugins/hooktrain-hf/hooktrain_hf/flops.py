"""Plugin ``flops``: TFLOP/s and model FLOPs utilization in every log line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import Batch, ModelError, PerSecond, PluginInfo, StrategyDefaults, at_least, field, hookimpl, member

if TYPE_CHECKING:
    from hooktrain import Trainer
    from hooktrain_hf.model_flops import ModelFlops

__all__ = ["FlopsConfig", "FlopsPlugin", "peak_of"]

_PEAKS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.0,
    "MI250X": 191.5,
}
"""TFLOP/s in bf16 and fp16, without sparsity, by a part of the device's name; from the makers' data sheets."""


@attrs.frozen(kw_only=True)
class FlopsConfig:
    """Whether log lines say how much of the device the model uses."""

    enabled: bool = field(default=False, affects_training=False)
    """Whether log lines have ``tflops_per_second`` of a device and, where its peak is known, ``mfu``."""
    peak_tflops: float | None = field(default=None, validator=at_least(1e-9), affects_training=False)
    """TFLOP/s that a device reaches at most, of which ``mfu`` is a share; known for common GPUs in half
    precision."""


class FlopsPlugin:
    """Counts the operations that the micro-batches of this rank need."""

    hooktrain_plugin = PluginInfo(only_observes=True, active_when=lambda recipe: recipe.settings["flops"].enabled)

    def __init__(self) -> None:
        self._model: ModelFlops | None = None
        self._done = 0.0
        self._ranks = 1
        self._peak: float | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"flops": FlopsConfig}}

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        from transformers import PreTrainedModel

        from hooktrain_hf.compat import unwrap_adapters
        from hooktrain_hf.model_flops import ModelFlops

        model: Any = trainer.strategy.unwrap(trainer.model)
        if not isinstance(unwrap_adapters(model), PreTrainedModel):
            raise ModelError(
                f"flops.enabled: given true for a {type(model).__name__}, expected a transformers model, whose config"
                " says how it attends; write flops: {enabled: false}"
            )
        self._model = ModelFlops.of(model)
        config = trainer.recipe.settings["flops"]
        self._peak = config.peak_tflops or peak_of(trainer)
        self._ranks = attrs.asdict(trainer.recipe.strategy, recurse=False).get("sequence_parallel") or 1
        if self._peak is None:
            trainer.say("flops: the peak of this device is not known, so there is no mfu; write flops.peak_tflops")

    @hookimpl
    def on_step_start(self, trainer: Trainer, batches: Sequence[Batch]) -> None:
        assert self._model is not None, "on_train_start has been called"
        for batch in batches:
            counts = trainer.count(batch)
            self._done += self._model.count(counts.tokens, counts.num_target_tokens, _documents(batch)) / self._ranks

    @hookimpl
    def collect_metrics(self) -> Mapping[str, PerSecond]:
        done, self._done = self._done / 1e12, 0.0
        if not done:
            return {}
        share = {"mfu": PerSecond(done / self._peak)} if self._peak else {}
        return {"tflops_per_second": PerSecond(done), **share}


def peak_of(trainer: Trainer) -> float | None:
    """Return TFLOP/s that the run's device reaches at most; None where that is not known."""
    import torch

    dtype = member(trainer.strategy, StrategyDefaults, "dtype")
    if trainer.device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(trainer.device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def _documents(batch: Batch) -> Iterator[int]:
    """Yield the lengths of a micro-batch's documents; it is on the host."""
    if "document_lengths" in batch:
        yield from batch["document_lengths"]
    elif "attention_mask" in batch:
        yield from batch["attention_mask"].sum(-1).tolist()
    else:
        sequences, tokens = batch["input_ids"].shape
        yield from [tokens] * sequences
