"""Lion, EvoLved Sign Momentum (Chen et al., 2023, arXiv 2302.06675, algorithm 2), as an optimizer of hooktrain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from hooktrain import HooktrainError, PluginInfo, at_least, field, hookimpl
from torch.nn import Module

__all__ = ["Lion", "LionConfig"]

hooktrain_plugin = PluginInfo(api=">=2.0,<3")


def _below_one(instance: Any, attribute: Any, value: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"given {list(value)}, expected two numbers from 0 to below 1")


@attrs.frozen(kw_only=True)
class LionConfig:
    """Sign of an interpolated momentum, with decoupled weight decay."""

    lr: float = field(default=1e-5, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate: how far each weight moves in a step."""
    betas: tuple[float, float] = field(default=(0.9, 0.99), validator=_below_one)
    """Share of the momentum in the update, and share of it that a step leaves."""
    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""


class Lion(torch.optim.Optimizer):
    """Args: parameters or groups, and what :class:`LionConfig` says. The state is ``exp_avg``, of the weight's shape."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            used, kept = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                momentum = state["exp_avg"]
                update = momentum.lerp(gradient, 1 - used).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
                momentum.lerp_(gradient, 1 - kept)
        return loss


@hookimpl
def register_configs() -> Mapping[str, Mapping[str, type]]:
    return {"optimizer": {"lion": LionConfig}}


@hookimpl
def make_optimizer(config: Any, model: Module) -> Lion | None:
    if not isinstance(config, LionConfig):
        return None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise HooktrainError("optimizer: no weight of the model takes gradients; unfreeze some, or add an adapter")
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return Lion([group for group in groups if group["params"]], config.lr, config.betas)
