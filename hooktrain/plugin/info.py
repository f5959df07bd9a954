"""Declarations of a plugin beyond its hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from hooktrain.errors import did_you_mean

if TYPE_CHECKING:
    from hooktrain.recipe.model import Recipe

__all__ = [
    "API_VERSION",
    "EFFECTS",
    "POLICIES",
    "TRAINING_EFFECTS",
    "PluginInfo",
    "about",
    "declared_name",
    "written_for_another",
]

API_VERSION = "2.0"
"""Version of the hooks and of what ``hooktrain`` exports: the first number changes when a plugin may have to."""

POLICIES = ("stop", "disable", "warn")
"""What may happen when a hook of a plugin raises, as :attr:`PluginInfo.on_error`."""

TRAINING_EFFECTS = (
    "parameters",
    "gradients",
    "optimizer state",
    "batch",
    "grad mode",
    "default dtype",
    "training mode",
    "random states",
)
"""What changes how a run trains; a plugin that is held and changes it stops the run."""
EFFECTS = (*TRAINING_EFFECTS, "current directory", "signal handlers", "sys.stdout")
"""What a plugin is held to leave as it is, as :attr:`PluginInfo.may_change` names it."""


def _is_range(instance: Any, attribute: Any, value: str) -> None:
    try:
        SpecifierSet(value)
    except (InvalidSpecifier, TypeError):
        raise ValueError(f"api is {value!r}, expected versions such as '>=2.0,<3'") from None


def _are_plugins(instance: Any, attribute: Any, value: Iterable[str]) -> None:
    for each in value:
        try:
            Requirement(each)
        except (InvalidRequirement, TypeError):
            raise ValueError(
                f"{attribute.name} holds {each!r}, expected a plugin's name, with versions where they matter, such as"
                " 'sft' or 'sft>=0.1'"
            ) from None


def _is_policy(instance: Any, attribute: Any, value: str) -> None:
    if value not in POLICIES:
        raise ValueError(f"on_error is {value!r}, expected one of {', '.join(POLICIES)}")


def _is_function(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"active_when is {value!r}, expected a function of the recipe that returns True or False")


def _are_effects(instance: Any, attribute: Any, value: Iterable[str]) -> None:
    for each in value:
        if each not in EFFECTS:
            raise ValueError(f"may_change holds {each!r}{did_you_mean(each, EFFECTS)}, expected {', '.join(EFFECTS)}")


def _several(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _effects(value: Any) -> tuple[str, ...]:
    found = _several(value)
    return EFFECTS if "*" in found else found


@attrs.frozen(kw_only=True)
class PluginInfo:
    """Declarations of a plugin: the attribute ``hooktrain_plugin`` of its module or class.

    All of it is checked before the model is built.

    .. code-block:: python

        hooktrain_plugin = hooktrain.PluginInfo(api=">=2.0,<3", requires=["sft"], changes_gradients=True)

    Raises:
        ValueError: for a range, name or policy that is none.
    """

    name: str = ""
    """Name of a plugin that is passed as an object, its class's when omitted; an entry point has its own."""
    api: str = attrs.field(default="", validator=_is_range)
    """Versions of ``hooktrain.API_VERSION`` that it was written for; any when omitted."""
    requires: tuple[str, ...] = attrs.field(default=(), converter=_several, validator=_are_plugins)
    """Plugins that it does not work without, by name or distribution: ``sft``, ``sft>=0.1``."""
    excludes: tuple[str, ...] = attrs.field(default=(), converter=_several, validator=_are_plugins)
    """Plugins that it does not work beside."""
    needs_logits: bool = False
    """Whether it looks at logits that the model returns, so that a loss that never makes them is refused alongside
    it."""
    needs_outputs: tuple[str, ...] = attrs.field(default=(), converter=_several)
    """What its ``collect_loss_terms`` needs of the model's forward pass: ``last_hidden_state``, ``hidden_states``
    (those of all layers), ``router_logits``; a loss that does not provide one of them is refused alongside it."""
    loss_terms: tuple[str, ...] = attrs.field(default=(), converter=_several)
    """Names of all terms that it adds to the loss, for ``hooktrain plan`` and for an error before the model is built
    where another plugin has one of that name; when omitted, they are known in the first step."""
    changes_gradients: bool = False
    """Whether a run trains differently with it, so that one that continues without it is refused."""
    only_observes: bool = False
    """Whether its loop hooks and wrappers leave the training as it is, so that a run may resume without it."""
    may_change: tuple[str, ...] = attrs.field(default=(), converter=_effects, validator=_are_effects)
    """What its event hooks and ``collect_metrics`` change on purpose, although it does not declare
    ``changes_gradients``: ``signal handlers``, ``sys.stdout``, or ``parameters`` that another of its events puts back;
    ``*`` is everything, for one that calls other people's code. Anything else that they change stops the run."""
    in_manifest: bool = True
    """Whether manifests and locks name it; not where the recipe turns it on and it changes nothing."""
    commands: Mapping[str, str] = attrs.field(factory=dict)
    """Commands that a module without metadata adds to ``hooktrain``: ``{"lowest": "module:command"}``. A distribution
    names them in the entry-point group ``hooktrain.commands`` instead."""
    active_when: Callable[[Recipe], bool] | None = attrs.field(default=None, validator=_is_function)
    """A function of the resolved recipe that says whether a run uses the plugin; None for one that every run uses. A
    plugin that is not used costs nothing, clashes with nothing and ties no checkpoint to itself. One of which the
    recipe chooses a part or the trainer type is used by that alone."""
    on_error: str = attrs.field(default="stop", validator=_is_policy)
    """What happens when one of its ``on_*`` hooks, ``collect_metrics``, ``collect_state``, ``count_loss_terms`` or
    ``collect_loss_terms`` raises, or returns what it must not: ``stop`` the run, ``disable`` the plugin on all ranks,
    or ``warn`` and continue; a recipe may say otherwise in ``plugins.on_error``."""

    @on_error.validator
    def _can_go_on(self, attribute: Any, value: str) -> None:
        if self.changes_gradients and value != "stop":
            raise ValueError(f"on_error is '{value}', but what changes gradients must stop the run; remove it")


def about(plugin: object) -> PluginInfo:
    """Return a plugin's declarations; the defaults when it declares nothing.

    Raises:
        TypeError: its attribute ``hooktrain_plugin`` is something else.
    """
    info = inspect.getattr_static(plugin, "hooktrain_plugin", None)
    if info is None:
        return PluginInfo()
    if not isinstance(info, PluginInfo):
        raise TypeError(f"hooktrain_plugin is {info!r}, expected hooktrain.PluginInfo(...)")
    return info


def declared_name(plugin: object) -> str:
    """The name that a plugin declares; empty when it declares none, or something that :func:`about` refuses."""
    info = inspect.getattr_static(plugin, "hooktrain_plugin", None)
    return info.name if isinstance(info, PluginInfo) else ""


def written_for_another(info: PluginInfo) -> str:
    """Return why a plugin does not fit this version of the hooks; empty when it does."""
    if not info.api or SpecifierSet(info.api).contains(API_VERSION, prereleases=True):
        return ""
    return (
        f"was written for hooktrain's hooks {info.api}, and these are {API_VERSION}; install a version of it for"
        f" {API_VERSION}, or a hooktrain that fits"
    )
