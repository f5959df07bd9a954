"""Optimizers of ``torch.optim``, with weight decay where it belongs."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import HooktrainError, at_least, did_you_mean, field, require_trusted
from hooktrain_torch.compat import full_shape

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer

__all__ = ["AdamConfig", "AdamWConfig", "AnyConfig", "SGDConfig", "decay_groups", "make_optimizer", "require_betas"]


def require_betas(instance: Any, attribute: Any, value: tuple[float, float]) -> None:
    """Refuse decay rates of Adam that are not from 0 to below 1; a validator of attrs."""
    if not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"given {list(value)}, expected two numbers from 0 to below 1")


@attrs.frozen(kw_only=True)
class AdamWConfig:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    lr: float = field(default=2e-5, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    weight_decay: float = field(default=0.1, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = field(default=(0.9, 0.999), validator=require_betas)
    """Decay rates of the running means of gradient and squared gradient."""
    eps: float = field(default=1e-8, validator=at_least(0))
    """Added to the denominator."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""


@attrs.frozen(kw_only=True)
class AdamConfig(AdamWConfig):
    """Adam with weight decay added to the gradient (Kingma & Ba, 2015)."""

    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""


@attrs.frozen(kw_only=True)
class SGDConfig:
    """Stochastic gradient descent."""

    lr: float = field(default=1e-2, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    momentum: float = field(default=0.0, validator=at_least(0))
    """Share of the last update that is kept."""
    weight_decay: float = field(default=0.0, validator=at_least(0))
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    decay_vectors: bool = field(default=False)
    """Whether to decay biases, norms and other vectors as well."""


@attrs.frozen(kw_only=True)
class AnyConfig:
    """Any optimizer class, by its name in ``torch.optim`` or its dotted path."""

    name: str = field()
    """Such as ``Adafactor``, or ``package.module.Class``."""
    lr: float = field(default=1e-3, validator=at_least(0), aliases=("learning_rate",))
    """Learning rate."""
    arguments: Mapping[str, Any] = field(factory=dict)
    """Further keyword arguments of the class."""


def make_optimizer(config: Any, model: Module) -> Optimizer:
    """Make the optimizer of a config, over the model's trainable parameters.

    Raises:
        HooktrainError: when nothing can be trained, or a class cannot be found or made.
    """
    import torch  # which a recipe is read without

    trained = _trained(model)
    if isinstance(config, AnyConfig):
        return _any(config, trained)
    groups = decay_groups(model, config.weight_decay, config.decay_vectors)
    if isinstance(config, SGDConfig):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.Adam if isinstance(config, AdamConfig) else torch.optim.AdamW
    # one kernel for all parameters: on a GPU and on a CPU alike the quickest of torch's implementations
    fused = all(parameter.is_floating_point() and not parameter.is_meta for parameter in trained)
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def _any(config: AnyConfig, trained: list[Parameter]) -> Optimizer:
    from torch.optim import Optimizer

    kind = _find(config.name)
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise HooktrainError(
            f"optimizer.name: given '{config.name}', which is no torch optimizer; give a class that is one"
        )
    if inspect.signature(kind.step).parameters["closure"].default is inspect.Parameter.empty:
        raise HooktrainError(
            f"optimizer.name: {config.name} computes the loss several times a step, which a run here does once; choose"
            " another one"
        )
    try:
        return kind(trained, lr=config.lr, **config.arguments)  # type: ignore[call-arg]
    except (TypeError, ValueError) as problem:
        raise HooktrainError(
            f"optimizer: {config.name} refuses its arguments ({problem}); correct optimizer.arguments"
        ) from problem


def _trained(model: Module) -> list[Parameter]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise HooktrainError("optimizer: no parameter of the model takes gradients; unfreeze some, or add an adapter")
    return trained


def decay_groups(model: Module, decay: float, decay_vectors: bool) -> list[dict[str, Any]]:
    """Return the groups of trainable parameters: matrices with decay, and vectors without.

    Args:
        model: has the parameters.
        decay: ``weight_decay`` of the first group.
        decay_vectors: whether vectors are in it as well.

    Raises:
        HooktrainError: when nothing can be trained.
    """
    matrices: list[Parameter] = []
    vectors: list[Parameter] = []
    for parameter in _trained(model):
        dimensions = len(full_shape(parameter))
        (matrices if dimensions >= 2 or decay_vectors else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    home = None
    require_trusted(module or "torch.optim", "optimizer.name")
    try:
        home = importlib.import_module(module or "torch.optim")
        return getattr(home, attribute)
    except (ImportError, AttributeError) as problem:
        hint = "" if home is None else did_you_mean(attribute, [n for n in dir(home) if n[0].isupper()])
        raise HooktrainError(
            f"optimizer.name: '{name}' cannot be found ({problem}){hint}; give a class of torch.optim or a dotted path"
        ) from problem
