"""Finding, switching and registering plugins, and knowing afterwards who brought what."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
import pluggy
from pluggy import HookImpl

from hooktrain import hookspecs
from hooktrain.dispatch import Hooks, guard_segment
from hooktrain.errors import HooktrainWarning, PluginError, did_you_mean
from hooktrain.hookspecs import SEGMENTS
from hooktrain.records import Offer, PluginRecord, PluginsConfig
from hooktrain.rules import check_signatures, implemented
from hooktrain.state import TrainerType

if TYPE_CHECKING:
    from hooktrain.recipe import Recipe

__all__ = ["GROUP", "PluginHost"]

GROUP = "hooktrain"
"""The entry-point group that plugins are found through."""


class PluginHost:
    """The plugins of one run.

    Args:
        config: which plugins take part.
        builtins: name to plugin object, the engine's own; registered first, so that everyone else comes before them.
        autoload: whether to look for installed plugins at all.
    """

    def __init__(
        self,
        config: PluginsConfig = PluginsConfig(),
        builtins: Mapping[str, object] | None = None,
        discover: bool = True,
    ) -> None:
        self.config = config
        self.records: dict[str, PluginRecord] = {}
        self.offers: dict[str, dict[str, Offer]] = {}
        self.trainer_types: dict[str, tuple[TrainerType, PluginRecord]] = {}
        self.warnings: list[str] = []
        self.manager = pluggy.PluginManager("hooktrain")
        self.manager.add_hookspecs(hookspecs)
        own_version = _own_version()
        for name, plugin in (builtins or {}).items():
            record = PluginRecord(name=name, distribution="hooktrain", version=own_version)
            if name not in config.block:
                self._add(record, plugin)
            elif name == "loop":
                raise PluginError("plugins: 'loop' is the engine's default loop, and cannot be left out")
            else:
                record.state, record.reason = "blocked", self._why_not(name)
                self.records[name] = record
        self.hooks = Hooks(self.manager)
        if discover:
            self._discover()
        for name in config.load:
            if name not in self.records:
                self._load_module(name)

    # ------------------------------------------------------------------------------------------- finding

    def _discover(self) -> None:
        """Load the installed plugins, in the order of their names whatever the file system's."""
        found: dict[str, importlib.metadata.EntryPoint] = {}
        twins: dict[str, str] = {}
        for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
            twin = found.setdefault(point.name, point)
            if twin is not point and (_dist(twin)[0], twin.value) != (_dist(point)[0], point.value):
                twins[point.name] = (
                    f"two installed distributions, {_dist(twin)[0]} and {_dist(point)[0]}, both offer a plugin named"
                    f" '{point.name}'; uninstall one of them"
                )
        for wanted in (*self.config.block, *(self.config.only or ()), *self.config.segments.values()):
            if wanted not in found and wanted not in self.config.load and wanted not in self.records:
                raise PluginError(
                    f"plugins: '{wanted}' is not installed{did_you_mean(wanted, found)}; installed are"
                    f" {', '.join(found) or 'none'}"
                )
        for name, point in found.items():
            distribution, version = _dist(point)
            record = PluginRecord(name=name, distribution=distribution, version=version)
            record.summary, record.author = _about(point)
            reason = self._why_not(name)
            if reason:
                record.state, record.reason = "blocked", reason
                self.records[name] = record
                continue
            if name in twins:  # neither is loaded: a listing says so, and check() stops a run
                self._fail(record, twins[name], PluginError(twins[name]))
                continue
            try:
                plugin = point.load()
            except (Exception, SystemExit) as problem:
                self._fail(record, f"cannot be imported: {type(problem).__name__}: {problem}", problem)
                continue
            self._try(record, plugin)

    def _why_not(self, name: str) -> str:
        if name in self.config.block:
            return "blocked by the recipe, the command line or HOOKTRAIN_PLUGINS"
        if name in self.config.load:
            return ""
        if self.config.only is not None and name not in self.config.only:
            return "not among plugins.only"
        return "" if self.config.autoload else "autoload is off"

    def _load_module(self, name: str) -> None:
        module, _, attribute = name.partition(":")
        record = PluginRecord(name=name, distribution=module.partition(".")[0], version="")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a module beside the recipe is found, as under `python -m`
        try:
            plugin: Any = importlib.import_module(module)
            for step in filter(None, attribute.split(".")):
                plugin = getattr(plugin, step)
        except Exception as problem:
            installed = [known for known, other in self.records.items() if other.distribution != "hooktrain"]
            if not (isinstance(problem, ModuleNotFoundError) and module.startswith(problem.name or "?")):
                raise PluginError(
                    f"plugins: the module '{name}' cannot be imported ({type(problem).__name__}: {problem}); mend it,"
                    " or leave it out"
                ) from problem
            raise PluginError(
                f"plugins: '{name}' is neither an installed plugin nor a module that can be found"
                f"{did_you_mean(name, installed)}; installed are {', '.join(installed) or 'none'}; modules are looked"
                " for in the current folder and on PYTHONPATH"
            ) from problem
        self._try(record, plugin)

    def _try(self, record: PluginRecord, plugin: Any) -> None:
        try:
            self._add(record, plugin() if inspect.isclass(plugin) else plugin)
        except Exception as problem:
            self._fail(record, str(problem) if isinstance(problem, PluginError) else repr(problem), problem)

    def _fail(self, record: PluginRecord, reason: str, cause: BaseException) -> None:
        record.state, record.reason = "failed", reason
        self.records[record.name] = record
        text = reason if reason.startswith("plugin ") else f"{record}: {reason}"
        problem = PluginError(f"{text}; mend or uninstall it, or leave it out with -p no:{record.name}")
        problem.__cause__ = cause
        if record.name in (*self.config.load, *(self.config.only or ()), *self.config.segments.values()):
            raise problem

    # ------------------------------------------------------------------------------------------ registering

    def register(self, plugin: object, name: str | None = None) -> PluginRecord:
        """Add a plugin object (an instance or a module).

        Raises:
            PluginError: when it breaks a rule of the hooks; it is not registered then.
        """
        kind = plugin if inspect.ismodule(plugin) or inspect.isclass(plugin) else type(plugin)
        name = name or str(getattr(plugin, "plugin_name", None) or kind.__name__)
        base, number = name, 2
        while name in self.records:
            name, number = f"{base}-{number}", number + 1
        module = kind.__name__ if inspect.ismodule(plugin) else kind.__module__
        record = PluginRecord(name=name, distribution=module.partition(".")[0], version="")
        self._add(record, plugin() if inspect.isclass(plugin) else plugin)
        return record

    def _add(self, record: PluginRecord, plugin: object) -> None:
        check_signatures(record, plugin)
        names = implemented(plugin)
        if not names:
            raise PluginError(
                f"{record}: implements no hook; mark functions with @hookimpl, or name a class as package.module:Class"
            )
        try:
            if "register_hookspecs" in names:
                plugin.register_hookspecs(self.manager)  # type: ignore[attr-defined]
            self.manager.register(plugin, record.name)
            self._collect(record, plugin, names)
        except BaseException as problem:
            # pluggy leaves a plugin registered that failed its validation (pluggy#463)
            if self.manager.is_registered(plugin):
                self.manager.unregister(plugin)
            for kinds in self.offers.values():
                for name in [name for name, offer in kinds.items() if offer.plugin is record]:
                    del kinds[name]
            if isinstance(problem, pluggy.PluginValidationError):
                raise PluginError(f"{record}: {_arguments(problem)}") from problem
            raise
        for caller in self.manager.get_hookcallers(plugin) or []:
            if caller.name in SEGMENTS and record.distribution != "hooktrain":
                for implementation in caller.get_hookimpls():
                    if implementation.plugin is plugin and not implementation.wrapper:
                        guard_segment(caller.name, implementation)
        record.hooks = sorted(names)
        self.records[record.name] = record
        if hasattr(self, "hooks"):
            self.hooks.refresh()

    def _collect(self, record: PluginRecord, plugin: Any, names: Iterable[str]) -> None:
        """Take up the parts and trainer types of one plugin."""
        if "register_configs" in names:
            for kind, parts in (plugin.register_configs() or {}).items():
                for name, config in parts.items():
                    if not attrs.has(config):
                        raise PluginError(f"{record}: offers {kind} '{name}' with {config!r}, expected an attrs class")
                    twin = self.offers.setdefault(kind, {}).get(name)
                    if twin is not None:
                        raise PluginError(
                            f"{record} and {twin.plugin} both offer the {kind} '{name}'; leave one of them out with"
                            f" plugins: {{block: [{record.name}]}} or {{block: [{twin.plugin.name}]}}"
                        )
                    self.offers[kind][name] = offer = Offer(kind, name, config, record)
                    record.offers += [f"{kind}/{name}"] * offer.listed
        if "register_trainer_types" in names:
            for name, trainer_type in (plugin.register_trainer_types() or {}).items():
                if name in self.trainer_types:
                    raise PluginError(
                        f"{record} and {self.trainer_types[name][1]} both offer the trainer type '{name}'; leave one of"
                        f" them out with plugins: {{block: [{record.name}]}}"
                    )
                self.trainer_types[name] = (trainer_type, record)
                record.offers += [f"type/{name}"] * trainer_type.listed

    # --------------------------------------------------------------------------------------------- checking

    def check(self) -> None:
        """Refuse misspelt hooks, segments that two plugins claim, and names that two plugins offer.

        Raises:
            PluginError: naming everybody involved and what to write in the recipe.
        """
        known = [name for name, caller in vars(self.manager.hook).items() if caller.spec is not None]
        for name, caller in vars(self.manager.hook).items():
            if caller.spec is None:
                for implementation in caller.get_hookimpls():
                    if not implementation.optionalhook:
                        raise PluginError(
                            f"{self.records[implementation.plugin_name]}: implements '{name}', which is no hook"
                            f"{did_you_mean(name, known)}; see `hooktrain hooks`"
                        )
        for record in self.records.values():
            if record.state == "failed" and " both offer " in record.reason:
                raise PluginError(record.reason)
        for name in self.config.segments:
            if name not in SEGMENTS:
                raise PluginError(f"plugins.segments: '{name}' is no segment{did_you_mean(name, SEGMENTS)}")
        for name in SEGMENTS:
            self._settle(name)

    def _settle(self, segment: str) -> None:
        """Leave one claimant of a segment, as the recipe says."""
        claims = [found for found in self.implementations(segment) if not found.wrapper and not self._is_own(found)]
        chosen = self.config.segments.get(segment)
        if chosen is not None:
            if chosen not in [claim.plugin_name for claim in claims]:
                raise PluginError(
                    f"plugins.segments.{segment}: '{chosen}' does not implement it; those that do:"
                    f" {', '.join(claim.plugin_name for claim in claims) or 'none'}"
                )
            for claim in claims:
                if claim.plugin_name != chosen:
                    setattr(claim, "function", _decline)  # noqa: B010 - as in guard_segment
            self.hooks.refresh()
        elif len(claims) > 1:
            listed = " and ".join(str(self.records[claim.plugin_name]) for claim in claims)
            raise PluginError(
                f"{listed} all claim the segment {segment}; say which one runs it:"
                f" plugins: {{segments: {{{segment}: {claims[0].plugin_name}}}}}"
            )

    def _is_own(self, implementation: HookImpl) -> bool:
        return self.records[implementation.plugin_name].distribution == "hooktrain"

    def leave_idle(self, recipe: Recipe) -> None:
        """Take out the implementations that their own plugins have no use for in a run of this recipe.

        Raises:
            PluginError: when a plugin names a hook that it does not implement.
        """
        for found in self.implementations("idle_hooks"):
            named = cast(Iterable[str] | None, found.function(*([recipe] if found.argnames else [])))
            for name in named or ():
                if name not in self.records[found.plugin_name].hooks:
                    raise PluginError(
                        f"{self.records[found.plugin_name]}, hook idle_hooks: given '{name}', which the plugin does not"
                        f" implement{did_you_mean(name, self.records[found.plugin_name].hooks)}"
                    )
                # pluggy takes a plugin out of all hooks or of none in public
                getattr(self.manager.hook, name)._remove_plugin(found.plugin)
        self.hooks.refresh()

    # ---------------------------------------------------------------------------------------------- looking

    def implementations(self, hook: str) -> list[HookImpl]:
        """The implementations of a hook in the order in which they are called, wrappers first."""
        caller = getattr(self.manager.hook, hook, None)
        return [] if caller is None else list(reversed(caller.get_hookimpls()))

    def blame(self, exception: BaseException) -> tuple[str, str] | None:
        """The plugin and the hook in which an exception was raised: the innermost implementation on its traceback."""
        codes = {}
        for name, caller in vars(self.manager.hook).items():
            for found in caller.get_hookimpls():
                function: Any = inspect.unwrap(found.function)
                codes[getattr(function, "__code__", None)] = (found.plugin_name, name)
        blamed, step = None, exception.__traceback__
        while step is not None:
            blamed = codes.get(step.tb_frame.f_code, blamed)
            step = step.tb_next
        return blamed

    def call_each(self, hook: str, **given: Any) -> list[tuple[str, Exception]]:
        """Call a hook plugin by plugin, so that one that raises keeps nobody else from being called.

        Returns:
            The plugins that raised, and what.
        """
        problems = []
        for found in self.implementations(hook):
            try:
                found.function(*(given[name] for name in found.argnames))
            except Exception as problem:
                problems.append((found.plugin_name, problem))
        return problems

    def collect_states(self, trainer: Any) -> dict[str, Any]:
        """What each plugin's ``collect_state`` gives, by plugin name."""
        states = {}
        for found in self.implementations("collect_state"):
            state = found.function(*([trainer] if found.argnames else []))
            if state is not None:
                states[found.plugin_name] = dict(cast(Mapping[str, Any], state))
        return states

    def restore_states(self, trainer: Any, states: Mapping[str, Any]) -> dict[str, Any]:
        """Give each plugin its own state back; returns what belongs to plugins that are not there."""
        left = dict(states)
        for found in self.implementations("restore_state"):
            if found.plugin_name in left:
                given = {"trainer": trainer, "state": left.pop(found.plugin_name)}
                found.function(*(given[name] for name in found.argnames))
        for name in left:
            self.warn(
                f"checkpoint: it holds state of the plugin '{name}', which is not in this run; the state is kept for"
                " the next save"
            )
        return left

    def warn(self, text: str) -> None:
        """Tell the user about something that does not stop the run."""
        self.warnings.append(text)
        warnings.warn(text, HooktrainWarning, stacklevel=2)

    def manifest(self) -> list[dict[str, Any]]:
        """What took part in this run, in the order of registration: plain values for JSON."""
        return [
            {"name": record.name, "distribution": record.distribution, "version": record.version, "hooks": record.hooks}
            for record in self.records.values()
            if record.state == "active"
        ]

    def failed(self) -> list[PluginRecord]:
        """The plugins that could not be loaded."""
        return [record for record in self.records.values() if record.state == "failed"]


def _decline(*_: Any) -> None:
    """Put in the place of a segment's implementation when the recipe chose another plugin's."""


def _arguments(problem: pluggy.PluginValidationError) -> str:
    """pluggy's sentence about an unknown argument, in ours."""
    text = " ".join(str(problem).split())
    return text.partition("reason: ")[2] or text


def _own_version() -> str:
    try:
        return importlib.metadata.version("hooktrain")
    except importlib.metadata.PackageNotFoundError:
        return "0 (not installed)"


def _dist(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of what brought a plugin; its metadata may be damaged or not there."""
    try:
        facts = point.dist.metadata.json if point.dist else {}
    except Exception:
        facts = {}
    return str(facts.get("name") or "unknown"), str(facts.get("version") or "")


def _about(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    try:
        facts = point.dist.metadata.json if point.dist else {}  # what a distribution leaves out is missing here
    except Exception:
        facts = {}
    return str(facts.get("summary", "")), str(facts.get("author", facts.get("author_email", "")))
