"""The plugin that is checked, as another process can import it, and its recipe."""

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
"""Keys of a recipe that select the parts of the training."""

_MERGED = {"model", "data"}
"""Keys whose settings are merged with the recipe's, which name files."""

_ADJUSTED = {"strategy", "loss", "optimizer", "scheduler"}
"""Keys whose settings, where they have no ``type``, are for the part that the recipe has already."""


@attrs.frozen(kw_only=True)
class Reference:
    """A plugin, as another process can import it.

    Attributes:
        name: its name in a run.
        installed: whether an entry point has that name.
        module: the module that it comes from.
        file: that module's file, for a module that cannot be imported by name, such as a test's.
        attribute: the name of a class in the module; empty for the module itself.
        pickled: the object, where the plugin is one.
    """

    name: str
    installed: bool = False
    module: str = ""
    file: str = ""
    attribute: str = ""
    pickled: bytes | None = None

    def load(self) -> Any:
        """Return the plugin as the engine loads it: a module, or a new instance of a class."""
        module = self.import_module()
        if self.pickled is not None:
            return pickle.loads(self.pickled)
        found: Any = module
        for step in filter(None, self.attribute.split(".")):
            found = getattr(found, step)
        return found() if inspect.isclass(found) else found

    def import_module(self) -> ModuleType:
        """Import the plugin's module, by its name or from its file."""
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
    """Make the reference to an installed plugin, ``package.module[:Class]``, a module, a class or an object.

    Raises:
        TypeError: for a plugin that another process cannot import.
        ValueError: for a name that no plugin has.
    """
    if isinstance(plugin, str):
        return _named(plugin)
    if inspect.ismodule(plugin):
        return Reference(name=plugin.__name__.rpartition(".")[2], module=plugin.__name__, file=plugin.__file__ or "")
    kind = plugin if inspect.isclass(plugin) else type(plugin)
    file = str(vars(sys.modules[kind.__module__]).get("__file__") or "") if kind.__module__ in sys.modules else ""
    where: dict[str, Any] = {"name": kind.__name__, "module": kind.__module__, "file": file}
    if "<locals>" in kind.__qualname__:
        raise TypeError(
            f"conformance: given {kind.__qualname__}, which is defined inside a function, where the processes of the"
            " checks cannot import it; define the class at the top level of a module"
        )
    if inspect.isclass(plugin):
        return Reference(**where, attribute=kind.__qualname__)
    try:
        return Reference(**where, pickled=pickle.dumps(plugin))
    except Exception as problem:
        raise TypeError(
            f"conformance: given an object of {kind.__qualname__}, which cannot be pickled for the processes of the"
            f" checks ({problem}); pass its class, or a class of your own whose __init__ sets it up"
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
            f" are {', '.join(points) or 'none'}; install yours with `pip install -e .`, or pass the module itself"
        )
    return Reference(name=name, module=module, file=spec.origin or "", attribute=attribute)


@attrs.frozen(kw_only=True)
class Spec:
    """A plugin and the recipe that it is checked with.

    Attributes:
        reference: the plugin.
        recipe: the recipe, which runs without the plugin unless the plugin has a part that every run needs.
        settings: top-level keys that use the plugin.
        steps: optimizer steps of a run.
    """

    reference: Reference
    recipe: Mapping[str, Any]
    settings: Mapping[str, Any]
    steps: int

    @property
    def selected(self) -> list[str]:
        """Keys of the settings that select one of the plugin's parts; ``loss: {all_logits: true}`` selects none."""
        if "type" in self.settings:
            return [key for key in self.settings if key in PARTS]
        return [
            key
            for key, value in self.settings.items()
            if key in PARTS and not (key in _ADJUSTED and isinstance(value, Mapping) and "type" not in value)
        ]

    def raw(self, variation: str) -> dict[str, Any]:
        """Return the recipe of a variation.

        Args:
            variation: ``with`` the plugin in use; ``unselected``, where it is loaded with its settings, but none of its
                parts is selected; ``unused``, where it is loaded and the recipe does not mention it; ``without`` it.
        """
        settings = dict(self.settings) if variation != "unused" else {}
        if variation == "unselected":
            settings = {key: value for key, value in settings.items() if key not in self.selected}
        elif variation == "without":
            kept = (_engine_keys() | set(PARTS)) - set(self.selected)
            settings = {key: value for key, value in settings.items() if key in kept}
        for key in _MERGED & settings.keys() & self.recipe.keys():
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
    """Return the keys of the engine that select no part."""
    from hooktrain.recipe.model import Recipe

    return {item.name for item in attrs.fields(Recipe)} - {*PARTS, "settings"}


class Prepared(NamedTuple):
    """A recipe with its plugins.

    Attributes:
        recipe: the structured recipe.
        host: the plugins.
        name: the name of the checked plugin in this run; empty where it is not loaded.
    """

    recipe: Recipe
    host: PluginHost
    name: str


def prepared(spec: Spec, variation: str, *plugins: object, overrides: Mapping[str, Any] = {}) -> Prepared:
    """Load the recipe and the plugins of a variation, with other plugin objects.

    Raises:
        HooktrainError: as ``hooktrain.load`` does.
    """
    from hooktrain.testing.tiny_plugin import TinyPlugin
    from hooktrain.training.load import load

    objects: list[object] = [TinyPlugin(), *plugins]
    own = None if spec.reference.installed or variation == "without" else spec.reference.load()
    if own is not None:
        objects.append(own)
    words = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    recipe, host = load(spec.raw(variation), overrides=words, plugins=objects)
    name = spec.reference.name if spec.reference.installed else str(host.manager.get_name(own)) if own else ""
    return Prepared(recipe, host, "" if variation == "without" else name)
