"""Names the operation whose gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import attrs
import torch
from hooktrain import PluginInfo, Recipe, Strategy, field, hookimpl
from torch import Tensor


@attrs.frozen(kw_only=True)
class Settings:
    """What a recipe may say under ``anomaly``."""

    enabled: bool = field(default=False, affects_training=False)
    """Whether to look; a step then takes about twice as long."""


def _is_used(recipe: Recipe) -> bool:
    settings: Settings = recipe.settings["anomaly"]
    return settings.enabled


hooktrain_plugin = PluginInfo(only_observes=True, active_when=_is_used)


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"settings": {"anomaly": Settings}}


@hookimpl(wrapper=True)
def make_strategy() -> Generator[None, Strategy, Any]:
    strategy = yield
    return Anomalies(strategy)


class Anomalies:
    """A strategy that looks for anomalies in what another one does."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def __getattr__(self, name: str) -> Any:
        if name == "strategy":  # asked for before __init__, by pickle
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def compute(self, function: Callable[[], Any], last: bool) -> Any:
        with torch.autograd.set_detect_anomaly(True):
            return self.strategy.compute(function, last)

    def backward(self, loss: Tensor, last: bool) -> Tensor:
        with torch.autograd.set_detect_anomaly(True):
            return self.strategy.backward(loss, last)
