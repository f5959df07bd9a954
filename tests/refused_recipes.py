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


REFUSED: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    ({"micro_batchsize": 2}, "micro_batchsize", ("'micro_batch_size'",)),
    ({"gas": 4}, "gas", ("'gradient_accumulation_steps'",)),
    ({"lr": 3}, "lr", ("'optimizer.lr'",)),
    ({"optimizer": {"seed": 3}}, "optimizer.seed", ("'seed'", "betas, lr, name")),
    ({"unheard_of": 3}, "unheard_of", ("`hooktrain guide configuration`",)),
    ({"optimizer": {"lrr": 1}}, "optimizer.lrr", ("'lr'", "betas, lr, name")),
    ({"optimizer": {"lr": "fast"}}, "optimizer.lr", ("'fast'", "a number")),
    ({"optimizer": {"lr": True}}, "optimizer.lr", ("true", "a number")),
    ({"optimizer": {"lr": -1}}, "optimizer.lr", ("-1.0", "at least 0")),
    ({"optimizer": {"lr": 1, "learning_rate": 2}}, "optimizer.learning_rate", ("'lr'",)),
    ({"optimizer": {"betas": [0.9]}}, "optimizer.betas", ("given 1", "expected 2")),
    ({"optimizer": {"betas": 0.9}}, "optimizer.betas", ("0.9", "list")),
    ({"micro_batch_size": 2.0}, "micro_batch_size", ("2.0", "whole number")),
    ({"micro_batch_size": None}, "micro_batch_size", ("null", "whole number")),
    ({"micro_batch_size": 0}, "micro_batch_size", ("given 0", "at least 1")),
    ({"eval_at_start": "yes"}, "eval_at_start", ("'yes'", "true or false")),
    ({"epochs": "two"}, "epochs", ("'two'", "whole number")),
    ({"on_nan": "skipp"}, "on_nan", ("'skipp'", "stop, skip", "'skip'")),
    ({"optimizer": {"type": "adam"}}, "optimizer.type", ("'adam'", "'adamw'")),
    ({"optimizer": "lino"}, "optimizer.type", ("'lino'", "adamw (tests)")),
    ({"optimizer": 3}, "optimizer", ("given 3", "mapping")),
    ({"type": "tinny"}, "type", ("'tinny'", "'tiny'", "tiny (hooktrain)")),
    ({"data": "many"}, "data.type", ("'many' (tests)", "trainer type 'tiny'", "supports tiny")),
    ({"console": {"intervall": 3}}, "console.intervall", ("'interval'",)),
    ({"consol": {}}, "consol", ("'console'",)),
    ({"plugins": {"blocked": []}}, "plugins.blocked", ("'block'",)),
    ({"plugins": ["x"]}, "plugins", ("['x']", "block, only, load")),
    ({"settings": {}}, "settings", ("top-level keys",)),
]
"""What is wrong, where its error is, and the facts that this names."""
