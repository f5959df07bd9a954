"""Plugin ``peft``; torch and PEFT are imported when there is an adapter, not for listings."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain_hf import HFModelConfig

from hooktrain import Complaint, ConfigDefaults, LossTerm, ModelError, PluginInfo, hookimpl, member
from hooktrain_peft.config import PeftSettings
from hooktrain_peft.deferred_imports import defer_bitsandbytes

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from hooktrain import Recipe, Trainer
    from hooktrain_peft.rank_allocation import RankAllocation

__all__ = ["PeftPlugin"]

defer_bitsandbytes()

_LOW_RATE = 5e-5
_ALLOCATING = (
    *("count_loss_terms", "collect_loss_terms", "collect_state", "restore_state"),
    *("on_optimizer_update_start", "on_zero_grad_start"),
)
"""Hooks that only AdaLoRA needs."""


class PeftPlugin:
    """Puts an adapter on the model, and exports the adapter in the place of the model."""

    hooktrain_plugin = PluginInfo(
        changes_gradients=True,
        loss_terms=["orthogonality"],
        active_when=lambda recipe: (
            _settings(recipe) != PeftSettings() or _is_adapter(recipe.model) or _has_adapter(recipe)
        ),
    )

    def __init__(self) -> None:
        self._ranks: RankAllocation | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"peft": PeftSettings}}

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        from hooktrain_peft.methods import check

        yield from check(_settings(recipe), recipe.model)
        if _settings(recipe).active and isinstance(recipe.model, HFModelConfig) and recipe.model.freeze:
            yield Complaint(
                "model.freeze",
                "has no effect with an adapter, which freezes the complete base; remove it, and choose the layers that"
                " get adapters with peft.layers_to_transform",
            )
        if _settings(recipe).allocates_ranks and member(recipe.strategy, ConfigDefaults, "shards_weights"):
            yield Complaint(
                "peft.type",
                "given adalora with a strategy that shards the weights, which it reads as wholes; choose another"
                " strategy, or type lora",
            )

    @hookimpl(wrapper=True)
    def make_model(self, config: Any, recipe: Recipe) -> Generator[None, Module | None, Module | None]:
        _refuse_adapter_as_model(config)
        model = yield
        settings = _settings(recipe)
        if model is None or not settings.active:
            return model
        from hooktrain_peft.adapter import add_adapter

        return add_adapter(model, settings, config, recipe)

    @hookimpl(wrapper=True)
    def make_meta_model(self, recipe: Recipe) -> Generator[None, Module | None, Module | None]:
        model = yield
        settings = _settings(recipe)
        if model is None or not settings.active:
            return model
        from hooktrain_peft.adapter import adapt_meta_model

        return adapt_meta_model(model, settings, recipe.model)

    @hookimpl(wrapper=True)
    def describe_model(
        self, source: str, recipe: Mapping[str, Any], dtype: str | None
    ) -> Generator[None, Mapping[str, Any] | None, Mapping[str, Any] | None]:
        found = yield
        from hooktrain_peft.adapter import is_adapter
        from hooktrain_peft.saved_adapter import describe_adapter

        folder = Path(source).expanduser()
        if found is None and is_adapter(folder):
            return describe_adapter(folder, recipe, dtype)
        if found is not None and "peft" in recipe:  # a complete model needs no adapter any more
            return {"peft": {}, **found}
        return found

    @hookimpl
    def merge_model(self, module: Module, dtype: str | None) -> Module | None:
        from peft import PeftModel

        if not isinstance(module, PeftModel):
            return None
        from hooktrain_peft.model_merge import merge_model

        return merge_model(module, dtype)

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        if not _settings(trainer.recipe).active:
            return
        from hooktrain_peft.report import describe, unloadable_base

        trainer.say(describe(trainer.strategy.unwrap(trainer.model)))
        if warning := unloadable_base(trainer.recipe, _settings(trainer.recipe)):
            trainer.say(warning)
        rate = trainer.recipe.as_dict().get("optimizer", {}).get("lr", _LOW_RATE)
        if rate < _LOW_RATE:
            trainer.say(
                f"peft: optimizer.lr is {rate:g}, a rate for complete models; adapters need about ten times that"
            )

    @hookimpl
    def unused_hooks(self, recipe: Recipe) -> list[str]:
        return [] if _settings(recipe).allocates_ranks else list(_ALLOCATING)

    @hookimpl
    def count_loss_terms(self) -> Mapping[str, float]:
        return {"orthogonality": 1.0}  # it is one of the weights, in each micro-batch

    @hookimpl
    def collect_loss_terms(self, trainer: Trainer) -> Mapping[str, LossTerm]:
        return {"orthogonality": self._allocation(trainer).term()}

    @hookimpl
    def on_optimizer_update_start(self, trainer: Trainer) -> None:
        self._allocation(trainer).note_update()

    @hookimpl
    def on_zero_grad_start(self, trainer: Trainer) -> None:
        self._allocation(trainer).allocate(trainer.global_step + 1)

    @hookimpl
    def collect_state(self, trainer: Trainer) -> Mapping[str, Any]:
        return self._allocation(trainer).state()

    @hookimpl
    def restore_state(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        self._allocation(trainer).restore(state)

    def _allocation(self, trainer: Trainer) -> RankAllocation:
        if self._ranks is None:
            from hooktrain_peft.rank_allocation import RankAllocation

            model = trainer.strategy.unwrap(trainer.model)
            self._ranks = RankAllocation(model, trainer, _settings(trainer.recipe).config.get("total_step"))
        return self._ranks

    @hookimpl(optionalhook=True)
    def export_model(
        self, module: Module, weights: Mapping[str, Tensor], folder: Path, dtype: Any, tokenizer: Any, recipe: Recipe
    ) -> Mapping[str, Tensor] | None:
        if "peft" not in sys.modules:  # then no model has an adapter
            return None
        from peft import PeftModel

        if not isinstance(module, PeftModel):
            return None
        from hooktrain_peft.export import write_adapter, write_merged

        if _settings(recipe).merge_on_export:
            return write_merged(module, weights, folder, dtype, tokenizer)
        return write_adapter(module, weights, folder, dtype, _settings(recipe).keep)


def _settings(recipe: Recipe) -> PeftSettings:
    found = recipe.settings.get("peft")
    return found if isinstance(found, PeftSettings) else PeftSettings()


def _has_adapter(recipe: Recipe) -> bool:
    """Whether the model is passed from Python with an adapter of PEFT's on it."""
    if recipe.model is None or isinstance(recipe.model, HFModelConfig):
        return False
    return str(recipe.as_dict()["model"].get("built_as", "")).startswith("Peft")


def _is_adapter(config: Any) -> bool:
    """Whether a model's folder contains an adapter and no model."""
    if not isinstance(config, HFModelConfig):
        return False
    folder = Path(config.name_or_path).expanduser()
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _refuse_adapter_as_model(config: Any) -> None:
    if _is_adapter(config):
        name = config.name_or_path
        raise ModelError(
            f"model.name_or_path: given '{name}', which contains an adapter; expected its base, with peft.adapter set"
            f" to this folder; or merge the two with `hooktrain export {name} --merge --output FOLDER` and give that"
        )
