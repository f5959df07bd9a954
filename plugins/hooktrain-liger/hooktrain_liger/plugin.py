"""The plugin ``liger`` and its hooks.

Liger and Triton take seconds to import, so they are imported when a model is built.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hooktrain import Complaint, PluginInfo, World, hookimpl
from hooktrain_liger.compat import device_of
from hooktrain_liger.config import LigerModelConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from hooktrain import Trainer

__all__ = ["LigerPlugin"]


class LigerPlugin:
    """Registers the model ``liger``, and provides the cross-entropy for it."""

    hooktrain_plugin = PluginInfo(active_when=lambda recipe: False)  # the model alone decides

    def __init__(self) -> None:
        self._config: LigerModelConfig | None = None
        self._model: Callable[[], Any] = lambda: None
        self._layers: list[str] = []
        self._head: str | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"model": {"liger": LigerModelConfig}}

    @hookimpl
    def check_recipe(self, recipe: Any) -> Iterator[Complaint]:
        model, objectives = recipe.model, recipe.settings.get("objectives")
        if objectives is None or not isinstance(model, LigerModelConfig) or not objectives.conflicts:
            return
        for name in ("fused_linear_cross_entropy", "cross_entropy"):
            if getattr(model, name):
                yield Complaint(
                    "objectives.conflicts",
                    f"needs several backward passes, and Liger's {name} overwrites in the first what the next would"
                    f" read; write model: {{{name}: false}}, or remove it",
                )

    # before hooktrain-hf, whose factory takes the config for one of its own
    @hookimpl(tryfirst=True)
    def make_model(self, config: Any, tokenizer: Any, world: World, recipe: Any) -> PreTrainedModel | None:
        if not isinstance(config, LigerModelConfig):
            return None
        from hooktrain_liger.model import build_liger_model

        model, self._layers = build_liger_model(config, tokenizer, world, device_of(recipe.strategy), recipe)
        self._config, self._model = config, weakref.ref(model)
        return model

    @hookimpl(optionalhook=True)
    def make_head_loss(self, config: Any, transform: Any, model: nn.Module) -> Callable[..., Any] | None:
        if self._config is None or model is not self._model():
            return None
        from hooktrain_liger.loss_selection import head_loss

        made, self._head = head_loss(self._config, config, transform)
        return made

    @hookimpl(trylast=True)  # after the loss has looked at the model
    def on_train_start(self, trainer: Trainer) -> None:
        if self._config is not None:
            names = [*self._layers, *([self._head] if self._head else [])]
            trainer.say(f"liger: {', '.join(names) or 'no kernel is used'}")

    @hookimpl
    def on_step_end(self, trainer: Trainer) -> None:
        if self._config is None or self._head is not None:
            return
        self._head = ""
        for name in ("fused_linear_cross_entropy", "cross_entropy"):
            if getattr(self._config, name):
                trainer.host.warn(
                    f"model.{name}: not used, as the recipe's loss does not use such a kernel with this model; expected"
                    f" one that does; write loss: {{type: sft}}, or {name}: false"
                )
