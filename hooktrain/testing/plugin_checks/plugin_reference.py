"""What is checked: where another process finds the plugin, and the recipe that it is checked with."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import pickle
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from hooktrain.errors import did_you_mean

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost
    from hooktrain.recipe.model import Recipe

__all__ = ["Prepared", "Reference", "Spec", "prepared", "reference_to"]

PARTS = ("type", "strategy", "tokenizer", "data", "loss", "model", "optimizer", "scheduler", "checkpoint")
"""Keys of a recipe that select what the training is made of."""

_ADDED = {"model", "data"}
"""Keys whose settings are added to the recipe's, as these name files."""

_ADJUSTED = {"strategy", "loss", "optimizer", "scheduler"}
"""Keys whose settings, where they have no ``type``, are of the part that the recipe has anyway."""


@attrs.frozen(kw_only=True)
class Reference:
    """Where another process finds a plugin.

    Attributes:
        name: under which it takes part in a run.
        installed: whether it is found by that name, through its entry point.
        module: the module that it comes from.
        file: that module's file, for a module that cannot be imported by name, as a test's.
        attribute: of a class, its name in the module; nothing for the module itself.
        pickled: of an object, the object.
    """

    name: str
    installed: bool = False
    module: str = ""
    file: str = ""
    attribute: str = ""
    pickled: bytes | None = None

    def load(self) -> Any:
        """The plugin, as the engine would get it: a module, or a new instance of a class."""
        module = self._module()
        if self.pickled is not None:
            return pickle.loads(self.pickled)
        found: Any = module
        for step in filter(None, self.attribute.split(".")):
            found = getattr(found, step)
        return found() if inspect.isclass(found) else found

    def _module(self) -> ModuleType:
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as problem:
            if not (self.file and self.module.startswith(problem.name or "?")):
                raise
        spec = importlib.util.spec_from_file_location(self.module, self.file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[self.module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def reference_to(plugin: object) -> Reference:
    """The reference to an installed plugin's name, to ``package.module[:Class]``, to a module, a class or an object.

    Raises:
        TypeError: for what a process of its own cannot find.
        ValueError: for a name that is no plugin's.
    """
    if isinstance(plugin, str):
        return _named(plugin)
    if inspect.ismodule(plugin):
        return Reference(name=plugin.__name__.rpartition(".")[2], module=plugin.__name__, file=plugin.__file__ or "")
    kind = plugin if inspect.isclass(plugin) else type(plugin)
    file = str(getattr(sys.modules.get(kind.__module__), "__file__", None) or "")
    where: dict[str, Any] = {"name": kind.__name__, "module": kind.__module__, "file": file}
    if "<locals>" in kind.__qualname__:
        raise TypeError(
            f"conformance: given {kind.__qualname__}, which is defined inside a function, where the processes of the"
            " checks cannot find it; define the class at the top of a module"
        )
    if inspect.isclass(plugin):
        return Reference(**where, attribute=kind.__qualname__)
    try:
        return Reference(**where, pickled=pickle.dumps(plugin))
    except Exception as problem:
        raise TypeError(
            f"conformance: given an object of {kind.__qualname__}, which the processes of the checks cannot get"
            f" ({problem}); give its class, or a class of your own whose __init__ sets it up"
        ) from problem


def _named(name: str) -> Reference:
    points = {point.name: point for point in importlib.metadata.entry_points(group="hooktrain")}
    if name in points:
        return Reference(name=name, installed=True, module=points[name].module, attribute=points[name].attr or "")
    module, _, attribute = name.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ValueError(
            f"conformance: '{name}' is neither an installed plugin nor a module{did_you_mean(name, points)}; installed"
            f" are {', '.join(points) or 'none'}; install yours with `pip install -e .`, or give the module itself"
        )
    return Reference(name=name, module=module, file=spec.origin or "", attribute=attribute)


@attrs.frozen(kw_only=True)
class Spec:
    """A plugin and what it is checked with.

    Attributes:
        reference: the plugin.
        recipe: runs without the plugin, unless the plugin brings what every run needs.
        settings: top-level keys that put the plugin to use.
        steps: optimizer steps of a run.
    """

    reference: Reference
    recipe: Mapping[str, Any]
    settings: Mapping[str, Any]
    steps: int

    @property
    def selected(self) -> list[str]:
        """The settings that select a part of the plugin's; ``loss: {all_logits: true}`` is another's, and stays."""
        if "type" in self.settings:
            return [key for key in self.settings if key in PARTS]
        return [
            key
            for key, value in self.settings.items()
            if key in PARTS and not (key in _ADJUSTED and isinstance(value, Mapping) and "type" not in value)
        ]

    def raw(self, variation: str) -> dict[str, Any]:
        """The recipe of a variation.

        Args:
            variation: ``with`` the plugin in use; ``beside``, where it is there with its settings, but none of its
                parts is selected; ``idle``, where it is there and the recipe does not mention it; ``without`` it.
        """
        settings = dict(self.settings) if variation != "idle" else {}
        if variation == "beside":
            settings = {key: value for key, value in settings.items() if key not in self.selected}
        elif variation == "without":
            kept = (_engine_keys() | set(PARTS)) - set(self.selected)
            settings = {key: value for key, value in settings.items() if key in kept}
        for key in _ADDED & settings.keys() & self.recipe.keys():
            settings[key] = {**self.recipe[key], **settings[key]}
        made = {**self.recipe, **settings}
        plugins = dict(made.get("plugins", {}))
        if self.reference.installed:
            if variation == "without":
                plugins["block"] = [*plugins.get("block", []), self.reference.name]
            elif plugins.get("only") is not None:
                plugins["only"] = [*plugins["only"], self.reference.name]
        return {**made, "plugins": plugins}


def _engine_keys() -> set[str]:
    """Keys that are the engine's own and select no part."""
    from hooktrain.recipe.model import Recipe

    return {item.name for item in attrs.fields(Recipe)} - {*PARTS, "settings"}


class Prepared(NamedTuple):
    """A recipe with its plugins.

    Attributes:
        recipe: structured.
        host: the plugins.
        name: under which the checked plugin takes part; nothing where it does not.
    """

    recipe: Recipe
    host: PluginHost
    name: str


def prepared(spec: Spec, variation: str, *plugins: object, overrides: Mapping[str, Any] = {}) -> Prepared:
    """The structured recipe and the plugins of a variation, with further plugin objects beside them.

    Raises:
        HooktrainError: as ``hooktrain.load`` does.
    """
    from hooktrain.testing.tiny_plugin import TinyPlugin
    from hooktrain.training.load import load

    given: list[object] = [TinyPlugin(), *plugins]
    own = None if spec.reference.installed or variation == "without" else spec.reference.load()
    if own is not None:
        given.append(own)
    words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    recipe, host = load(spec.raw(variation), overrides=words, plugins=given)
    name = spec.reference.name if spec.reference.installed else str(host.manager.get_name(own)) if own else ""
    return Prepared(recipe, host, "" if variation == "without" else name)
