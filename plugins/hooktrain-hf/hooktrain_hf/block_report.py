"""Plugin ``blocks``: what compiled blocks and offloaded activations do in a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hooktrain import PluginInfo, hookimpl
from hooktrain_hf.block_settings import compilation_of
from hooktrain_hf.model import HFModelConfig

if TYPE_CHECKING:
    from hooktrain import Recipe, Trainer
    from hooktrain_hf.activation_offload import HostActivations

__all__ = ["BlockReportPlugin"]

_FIRST_STEPS = 2
"""Steps in which graphs are expected: the first micro-batch of all, and the first of another number of tokens."""


def _has_something_to_report(recipe: Recipe) -> bool:
    return isinstance(recipe.model, HFModelConfig) and bool(recipe.model.compile or recipe.model.activation_offload)


class BlockReportPlugin:
    """Counts the graphs of compiled blocks, and the bytes of activations that are moved to the host."""

    hooktrain_plugin = PluginInfo(only_observes=True, active_when=_has_something_to_report)

    def __init__(self) -> None:
        self._model: Any = None
        self._steps = self._before = self._graphs = self._late = 0
        self._compiles = False
        self._host: HostActivations | None = None

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        from hooktrain_hf.activation_checkpointing import host_activations
        from hooktrain_hf.compat import unwrap_adapters

        self._compiles = bool(compilation_of(trainer.recipe.model))
        self._model = unwrap_adapters(trainer.strategy.unwrap(trainer.model))
        self._host = host_activations(self._model)

    @hookimpl
    def on_step_start(self, trainer: Trainer) -> None:
        if self._compiles:
            from hooktrain_hf.compiled_blocks import counted_since_compiling

            self._before, _ = counted_since_compiling(self._model)

    @hookimpl
    def on_step_end(self, trainer: Trainer) -> None:
        self._steps += 1
        if self._compiles:
            self._count_graphs(trainer)
        if self._host is not None and self._steps == 1:
            trainer.say(
                f"model.activation_offload: {self._host.moved:,} bytes of activations waited on the host in the first"
                f" step, {self._host.stayed:,} stayed on the device"
            )

    def _count_graphs(self, trainer: Trainer) -> None:
        from hooktrain_hf.compiled_blocks import counted_since_compiling

        self._graphs, breaks = counted_since_compiling(self._model)
        made = self._graphs - self._before
        if breaks and self._steps == 1:
            why = breaks[0].strip().splitlines()[0]
            trainer.host.warn(
                "model.compile: blocks are compiled in pieces, which is slower, since torch.compile cannot follow"
                f" everything in them ({why})"
            )
        if made and self._steps > _FIRST_STEPS:
            self._late += made
            if self._late == made:
                trainer.host.warn(
                    f"model.compile: {made} graph{'s' if made > 1 else ''} had to be compiled again in step"
                    f" {trainer.global_step}; the environment variable TORCH_LOGS=recompiles shows why"
                )

    @hookimpl
    def collect_metrics(self) -> Mapping[str, float]:
        return {"compiled_graphs": self._graphs, "late_recompilations": self._late} if self._compiles else {}
