"""Further models of a run, as plugins describe them in ``make_models``: built, checked and prepared with its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.nn import Module

from hooktrain.errors import HooktrainError, failure_of
from hooktrain.protocols import Strategy, StrategyDefaults, member
from hooktrain.types import ExtraModel

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost

__all__ = ["ExtraModels", "TrainedModels", "build_extra_models", "build_meta_models"]


class TrainedModels(Module):
    """A run's model as ``model``, and the trainable models of ``make_models`` under their names.

    Strategies and optimizers get it in the place of the model, so that they need not know of several. Nobody calls it,
    but the models in it.
    """

    def __init__(self, model: Module, others: Mapping[str, Module]) -> None:
        super().__init__()
        self.model = model
        for name, other in others.items():
            self.add_module(name, other)


@attrs.frozen
class ExtraModels:
    """The models of ``make_models``, built and not yet prepared.

    Attributes:
        described: what the plugins returned, by name.
        built: the modules, by name; frozen ones are in evaluation mode, and none of their weights is trained.
    """

    described: Mapping[str, ExtraModel]
    built: Mapping[str, Module]

    def trained_with(self, model: Module) -> Module:
        """Return a module of the run's model and the trainable ones; the model itself where there are none."""
        trainable = {name: self.built[name] for name, extra in self.described.items() if extra.trainable}
        return TrainedModels(model, trainable) if trainable else model

    def prepared(self, trained: Module, strategy: Strategy) -> tuple[Module, Mapping[str, Module]]:
        """Hand the frozen models to the strategy. Collective.

        Args:
            trained: what the strategy made of what :meth:`trained_with` returned.
            strategy: of the run.

        Returns:
            The run's model, and all others by name.

        Raises:
            HooktrainError: the strategy cannot keep such models.
        """
        kind, made = type(strategy).__name__, {}
        prepare = member(strategy, StrategyDefaults, "prepare_frozen_model")
        for name, extra in self.described.items():
            if extra.trainable and not isinstance(trained, TrainedModels):
                raise HooktrainError(
                    f"models.{name}: is trainable, but {kind}.prepare_model returned another module than it was given,"
                    " expected the same one; choose another strategy, or set trainable=False"
                )
            if not extra.trainable and prepare is None:
                raise HooktrainError(
                    f"models.{name}: is frozen, but {kind} has no prepare_frozen_model, expected a method that places"
                    " such a model; choose another strategy, or add the method"
                )
            made[name] = self.built[name] if extra.trainable else prepare(self.built[name], extra)
        return (trained.model if isinstance(trained, TrainedModels) else trained), MappingProxyType(made)


def build_extra_models(
    host: PluginHost, seed: int, context: Callable[[], AbstractContextManager[Any]], **arguments: Any
) -> ExtraModels:
    """Ask all plugins for further models, and build them.

    Args:
        host: the plugins.
        seed: the recipe's, with which each build begins.
        context: of the strategy, in which they are built.
        arguments: of ``make_models``.

    Raises:
        HooktrainError: a model cannot be built, or shares weights with another one.
    """
    described, built = _described(host, arguments), {}
    owners = dict.fromkeys(map(id, arguments["model"].parameters()), "the run's model")
    for name, extra in described.items():
        torch.manual_seed(seed)  # weights do not depend on what was built before
        with context():
            built[name] = module = _built(host, name, extra, extra.build)
        shared = next((owners[id(weight)] for weight in module.parameters() if id(weight) in owners), "")
        if shared:
            raise _wrong(
                host,
                name,
                f"shares weights with {shared}, expected a module of its own; build it anew, or return"
                " copy.deepcopy(...)",
            )
        owners |= dict.fromkeys(map(id, module.parameters()), f"the model '{name}'")
    return ExtraModels(described, built)


def build_meta_models(host: PluginHost, **arguments: Any) -> ExtraModels:
    """Build the models without their weights, for a plan; arguments are those of ``make_models``."""
    described = _described(host, arguments)
    with torch.device("meta"):
        built = {name: _built(host, name, each, each.build_meta or each.build) for name, each in described.items()}
    for name, extra in described.items():
        built[name] = built[name].to(dtype=extra.torch_dtype)
    return ExtraModels(described, built)


def _described(host: PluginHost, arguments: Mapping[str, Any]) -> dict[str, ExtraModel]:
    host.model_owners.clear()
    found = host.hooks.make_models(hooks=host.hooks, **arguments)
    return {name: extra for models in found for name, extra in models.items()}


def _built(host: PluginHost, name: str, extra: ExtraModel, build: Callable[[], Module]) -> Module:
    try:
        module = build()
    except BaseException as problem:
        failure_of(problem).raised_in = host.model_owners[name], "make_models"
        raise
    if not isinstance(module, Module):
        raise _wrong(host, name, f"is a {type(module).__name__}, expected that its build() returns a torch module")
    return module if extra.trainable else module.eval().requires_grad_(False)


def _wrong(host: PluginHost, name: str, problem: str) -> HooktrainError:
    owner = host.model_owners[name]
    made = HooktrainError(f"plugin '{owner}', hook make_models: the model '{name}' {problem}")
    failure_of(made).raised_in = owner, "make_models"
    return made
