"""Recipes that are refused, and the parts that they name."""

from __future__ import annotations

from typing import Any

import attrs

from hooktrain import at_least, field, hookimpl, part

__all__ = ["REFUSED", "Parts"]


@attrs.frozen(kw_only=True)
class LionConfig:
    lr: float = field(default=1e-4, validator=at_least(0), aliases=("learning_rate",))
    betas: tuple[float, float] = field(default=(0.9, 0.99))
    name: str | None = field(default=None)


@attrs.frozen(kw_only=True)
class FolderConfig:
    shorthand = "path"
    path: str = field()


@attrs.frozen(kw_only=True)
class ManySources:
    sources: tuple[Any, ...] = part("source", many=True)
    vocab: int = field(default=0, inherit="model.vocab")
    length: int | None = field(default=None)


class Parts:
    @hookimpl
    def register_configs(self):
        return {
            "optimizer": {"adamw": LionConfig},
            "source": {"folder": FolderConfig},
            "data": {"many": ManySources},
            "strategy": {"torch": attrs.make_class("StrategyConfig", {}, frozen=True)},
            "scheduler": {"constant": attrs.make_class("SchedulerConfig", {}, frozen=True)},
        }


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"micro_batchsize": 2}, "micro_batchsize: unknown key (did you mean 'micro_batch_size'?); a recipe takes"),
    ({"optimizer": {"lrr": 1}}, "optimizer.lrr: unknown key (did you mean 'lr'?); optimizer takes betas, lr, name"),
    ({"optimizer": {"lr": "fast"}}, "optimizer.lr: given 'fast' (text), expected a number"),
    ({"optimizer": {"lr": True}}, "optimizer.lr: given true (true or false), expected a number"),
    ({"optimizer": {"lr": -1}}, "optimizer.lr: given -1.0, expected at least 0"),
    (
        {"optimizer": {"lr": 1, "learning_rate": 2}},
        "optimizer.learning_rate: given together with 'lr', which means the same",
    ),
    ({"optimizer": {"betas": [0.9]}}, "optimizer.betas: given 1 values, expected 2"),
    ({"optimizer": {"betas": 0.9}}, "optimizer.betas: given 0.9 (a number), expected a list"),
    ({"micro_batch_size": 2.0}, "micro_batch_size: given 2.0 (a number), expected a whole number"),
    ({"micro_batch_size": None}, "micro_batch_size: given null (nothing), expected a whole number"),
    ({"micro_batch_size": 0}, "micro_batch_size: given 0, expected at least 1"),
    ({"eval_at_start": "yes"}, "eval_at_start: given 'yes' (text), expected true or false"),
    ({"epochs": "two"}, "epochs: given 'two' (text), expected a whole number"),
    ({"on_nan": "skipp"}, "on_nan: given 'skipp', expected one of stop, skip (did you mean 'skip'?)"),
    (
        {"optimizer": {"type": "adam"}},
        "optimizer.type: given 'adam', which no plugin offers (did you mean 'adamw'?)",
    ),
    ({"optimizer": "lino"}, "optimizer.type: given 'lino', which no plugin offers; offered are adamw (tests)"),
    ({"optimizer": 3}, "optimizer: given 3, expected a mapping with the keys of the optimizer"),
    (
        {"type": "tinny"},
        "type: given 'tinny', which no plugin offers (did you mean 'tiny'?); expected one of tiny (hooktrain)",
    ),
    (
        {"data": "many"},
        "data.type: given 'many' (tests), which the trainer type 'tiny' does not support; it supports tiny",
    ),
    ({"console": {"intervall": 3}}, "console.intervall: unknown key (did you mean 'interval'?)"),
    ({"consol": {}}, "consol: unknown key (did you mean 'console'?)"),
    ({"plugins": {"blocked": []}}, "plugins.blocked: unknown key (did you mean 'block'?)"),
    ({"plugins": ["x"]}, "plugins: given ['x'], expected a mapping with block, only, load, ..."),
    ({"settings": {}}, "settings: unknown key; a plugin's settings are top-level keys"),
]
"""What is wrong, and how its error begins."""
