"""The plugin: the trainer types ``preference`` and ``dpo`` with their data, losses and reference."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
from hooktrain_hf import FrozenModelConfig, models_of

from hooktrain import Complaint, Data, ExtraModel, PluginInfo, Recipe, TrainerType, World, hookimpl
from hooktrain_preference.config import (
    CPOLossConfig,
    DPOLossConfig,
    ORPOLossConfig,
    PairLossConfig,
    PreferenceDataConfig,
    SimPOLossConfig,
)

if TYPE_CHECKING:
    from hooktrain_sft import Format, Rendered
    from torch.nn import Module

    from hooktrain import Batch, LossSum, Trainer

__all__ = ["PreferencePlugin"]


def _is_used(recipe: Recipe) -> bool:
    return isinstance(recipe.loss, PairLossConfig) or models_of(recipe).reference != FrozenModelConfig()


class PreferencePlugin:
    """Pairs of answers, the losses that compare them, and their reference."""

    hooktrain_plugin = PluginInfo(changes_gradients=True, active_when=_is_used)

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        losses = {"dpo": DPOLossConfig, "simpo": SimPOLossConfig, "orpo": ORPOLossConfig, "cpo": CPOLossConfig}
        return {
            "data": {"preference": PreferenceDataConfig},
            "loss": losses,
        }

    @hookimpl
    def register_trainer_types(self) -> Mapping[str, TrainerType]:
        parts: dict[str, Sequence[str]] = {
            "tokenizer": ("huggingface", "*"),
            "data": ("preference",),
            "source": ("huggingface", "*"),
            "model": ("huggingface", "liger", "*"),
            "optimizer": ("adamw", "*"),
            "scheduler": ("cosine", "*"),
            "strategy": ("torch", "deepspeed", "*"),
            "loss": ("dpo", "simpo", "orpo", "cpo", "*"),
            "checkpoint": ("full", "huggingface", "*"),
        }
        return {
            "preference": TrainerType(parts, "training on pairs of a preferred and another answer"),
            "dpo": TrainerType(parts, "another name of `preference`"),
        }

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        needs = isinstance(recipe.loss, PairLossConfig) and recipe.loss.needs_reference
        if models_of(recipe).reference != FrozenModelConfig() and not needs:
            yield Complaint("models.reference", "has no effect, since the loss compares with no reference; remove it")
        if isinstance(recipe.loss, PairLossConfig) and not isinstance(recipe.data, PreferenceDataConfig):
            yield Complaint("loss.type", "needs pairs; write `type: preference`, or choose another loss")

    # imports that need torch are inside the hooks, because listings load this module too

    @hookimpl(wrapper=True)
    def make_data(self, config: Any) -> Generator[None, Data | None, Data | None]:
        made = yield
        if made is None or not isinstance(config, PreferenceDataConfig):
            return made
        from hooktrain_preference.collate import collate_pairs

        return attrs.evolve(made, collate=collate_pairs)

    @hookimpl(optionalhook=True)  # of hooktrain-sft, which a run may block
    def register_formats(self, config: Any) -> Mapping[str, Format] | None:
        if not isinstance(config, PreferenceDataConfig):
            return None
        from hooktrain_preference.formats import preference_format

        return {"preference": preference_format()}

    @hookimpl(optionalhook=True)  # of hooktrain-sft, which a run may block
    def render_example(self, example: Any, tokenizer: Any, config: Any) -> Rendered | None:
        if not isinstance(config, PreferenceDataConfig):
            return None
        from hooktrain_preference.formats import render_pair

        return render_pair(example, tokenizer, config)

    @hookimpl
    def make_loss(self, config: Any) -> Callable[..., LossSum] | None:
        if not isinstance(config, PairLossConfig):
            return None
        from hooktrain_preference.pair_loss import PairLoss
        from hooktrain_preference.pair_losses import LOSSES

        return PairLoss(partial(LOSSES[type(config)], config), config.chunk_size)

    @hookimpl
    def make_models(
        self, model: Module, recipe: Recipe, tokenizer: Any, world: World, hooks: Any
    ) -> Mapping[str, ExtraModel] | None:
        if not isinstance(recipe.loss, PairLossConfig) or not recipe.loss.needs_reference:
            return None
        from hooktrain_preference.reference import NAME, make_reference

        config = models_of(recipe).reference
        made = make_reference(config, model, recipe, hooks=hooks, tokenizer=tokenizer, world=world)
        return None if made is None else {NAME: made}

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        if not isinstance(trainer.recipe.loss, PairLossConfig) or not trainer.recipe.loss.needs_reference:
            return
        from hooktrain_hf import describe_frozen_model

        from hooktrain_preference.reference import NAME

        config, model = models_of(trainer.recipe).reference, trainer.models.get(NAME)
        trainer.say(describe_frozen_model(NAME, config, model))

    @hookimpl(wrapper=True)
    def compute_loss(
        self, trainer: Trainer, model: Module, batch: Batch, denominator: float
    ) -> Generator[None, LossSum, LossSum]:
        if isinstance(trainer.recipe.loss, PairLossConfig) and trainer.recipe.loss.needs_reference:
            from hooktrain_preference.pair_loss import REFERENCE, PairLoss

            if isinstance(trainer.loss, PairLoss):
                batch[REFERENCE] = self._reference(trainer, trainer.loss, model, batch, denominator)
        return (yield)

    @staticmethod
    def _reference(trainer: Trainer, loss: Any, model: Module, batch: Batch, denominator: float) -> Any:
        """Return the reference's log-probabilities of the answers, shape (2 * pairs,)."""
        import torch
        from hooktrain_hf import without_adapter
        from hooktrain_sft import are_padded, innermost, pad_documents

        from hooktrain_preference.reference import NAME

        reference = trainer.models.get(NAME)
        with torch.no_grad():
            if reference is None:
                with without_adapter(model):
                    return loss.answers(model, batch, denominator)
            if are_padded(innermost(model)) and not are_padded(innermost(reference)):
                pad_documents(innermost(reference))  # its documents would see each other as well
            return loss.answers(reference, batch, denominator)
