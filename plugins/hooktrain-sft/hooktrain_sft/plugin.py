"""The plugin: the trainer types ``sft`` and ``causal`` with their data and loss."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from hooktrain import Data, DataEstimate, ExamplePreview, PlacedLoader, Recipe, TrainerType, World, hookimpl
from hooktrain_sft import hookspecs
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig, TokenDataConfig
from hooktrain_sft.loss.config import CrossEntropyConfig, DFTLossConfig, SFTLossConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from hooktrain import Trainer
    from hooktrain_sft.data.formats import Format
    from hooktrain_sft.data.packing import Bins
    from hooktrain_sft.unreached_weights import UnreachedWeights

__all__ = ["SFTPlugin"]


class SFTPlugin:
    """Chat rendering, label masks, packing, batches and the losses of supervised fine-tuning."""

    def __init__(self) -> None:
        self._unreached: UnreachedWeights | None = None
        self._checked: Callable[[], object] = lambda: None

    @hookimpl
    def register_hookspecs(self, pluginmanager: pluggy.PluginManager) -> None:
        pluginmanager.add_hookspecs(hookspecs)
        self._hooks = pluginmanager.hook

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {
            "data": {"sft": SFTDataConfig, "causal": CausalDataConfig},
            "loss": {"sft": SFTLossConfig, "dft": DFTLossConfig},
        }

    @hookimpl
    def register_trainer_types(self) -> Mapping[str, TrainerType]:
        parts: dict[str, Sequence[str]] = {
            "tokenizer": ("huggingface", "*"),
            "source": ("huggingface", "*"),
            "model": ("huggingface", "liger", "*"),
            "optimizer": ("adamw", "*"),
            "scheduler": ("cosine", "*"),
            "strategy": ("torch", "deepspeed", "*"),
            "loss": ("sft", "dft", "*"),
            "checkpoint": ("full", "huggingface", "*"),
        }
        return {
            "sft": TrainerType({**parts, "data": ("sft",)}, "supervised fine-tuning on conversations", default=True),
            "causal": TrainerType({**parts, "data": ("causal",)}, "next-token training on plain text"),
        }

    # imports that need torch or transformers are inside the hooks, because listings load this module too

    @hookimpl
    def make_data(self, config: Any, tokenizer: Any, world: World, hooks: Any, recipe: Recipe) -> Data | None:
        if not isinstance(config, TokenDataConfig):
            return None
        from hooktrain_sft.data.prepare import prepare_data

        return prepare_data(config, tokenizer, world, hooks, hooks.count_positions(config=recipe.model))

    @hookimpl
    def collect_state(self, trainer: Trainer) -> Mapping[str, Any] | None:
        place = trainer.loader.place() if isinstance(trainer.loader, PlacedLoader) else None
        return None if place is None else {"stream": place}

    @hookimpl
    def restore_state(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        if isinstance(trainer.loader, PlacedLoader) and "stream" in state:
            trainer.loader.go_to(state["stream"])

    @hookimpl
    def preview_examples(
        self, config: Any, tokenizer: Any, world: World, hooks: Any, count: int
    ) -> Sequence[ExamplePreview] | None:
        if not isinstance(config, TokenDataConfig):
            return None
        from hooktrain_sft.data.preview_rows import preview_examples

        return preview_examples(config, tokenizer, world, hooks, count)

    @hookimpl
    def estimate_data(self, config: Any, recipe: Recipe, world: World, hooks: Any) -> DataEstimate | None:
        if not isinstance(config, TokenDataConfig):
            return None
        from hooktrain_sft.data.estimate import data

        return data(config, recipe, world, hooks)

    @hookimpl
    def estimate_activations(self, recipe: Recipe, model: Any, sequences: int, tokens: int) -> Mapping[str, int] | None:
        if not isinstance(recipe.loss, CrossEntropyConfig):
            return None
        from hooktrain_sft.data.estimate import logits

        return logits(recipe, model, sequences * tokens)

    @hookimpl
    def make_loss(self, config: Any) -> Callable[..., Any] | None:
        if not isinstance(config, CrossEntropyConfig):
            return None
        from hooktrain_sft.loss.selective_loss import SelectiveLoss

        return SelectiveLoss.of(config, self._hooks.make_head_loss)

    @hookimpl
    def visit_logits(
        self, model: Any, batch: Any, num_target_tokens: int, visit: Callable[[Tensor, Tensor], None]
    ) -> bool | None:
        if not {"labels", "shift_labels"} & batch.keys() or "input_ids" not in batch:
            return None
        from hooktrain_sft.loss.visited_logits import visit_logits

        visit_logits(model, batch, num_target_tokens, visit)
        return True

    @hookimpl
    def unused_hooks(self, recipe: Recipe) -> Sequence[str]:
        used = isinstance(recipe.data, TokenDataConfig)
        return [] if used else ["on_train_start", "on_optimizer_step_start", "on_evaluate_start"]

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        from hooktrain_sft.unreached_weights import UnreachedWeights

        self._check(trainer)
        self._unreached = UnreachedWeights(trainer)

    @hookimpl
    def on_evaluate_start(self, trainer: Trainer) -> None:
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        from hooktrain_sft.model_check import check_model

        if self._checked() is not trainer.model:
            check_model(trainer)
            self._checked = weakref.ref(trainer.model)

    @hookimpl
    def on_optimizer_step_start(self, trainer: Trainer) -> None:
        if self._unreached is not None and trainer.denominator:
            self._unreached.report(trainer)
            self._unreached = None

    @hookimpl(trylast=True)
    def register_formats(self, source: Any, config: Any) -> Mapping[str, Format]:
        from hooktrain_sft.data.converters import own_formats

        return own_formats(source, config)

    @hookimpl(trylast=True)
    def render_example(self, example: Any, tokenizer: Any, config: Any) -> Any:
        from hooktrain_sft.chat.render import render_sft, render_text

        if isinstance(config, SFTDataConfig):
            return render_sft(example, tokenizer, config)
        if isinstance(config, CausalDataConfig):
            return render_text(example, tokenizer, config)
        return None

    @hookimpl(trylast=True)
    def pack_sequences(self, lengths: NDArray[np.int64], max_length: int) -> Bins:
        from hooktrain_sft.data.packing import pack

        return pack(lengths, max_length)
