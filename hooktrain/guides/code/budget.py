"""Ends a run when it has been trained on enough tokens."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from hooktrain import Trainer, at_least, field, hookimpl


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``budget``."""

    tokens: int = field(default=0, validator=at_least(0))
    """Supervised tokens after which the run ends; 0 sets no limit."""


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"budget": Settings}}


@hookimpl
def on_step_end(trainer: Trainer) -> None:
    limit = trainer.recipe.settings["budget"].tokens
    if limit and trainer.state.supervised_tokens >= limit:
        trainer.request_stop(f"the budget of {limit} tokens is spent")


@hookimpl
def collect_metrics(trainer: Trainer) -> Mapping[str, float]:
    limit = trainer.recipe.settings["budget"].tokens
    if not limit:
        return {}
    return {"budget/spent": trainer.state.supervised_tokens / limit}
