"""Finding, switching and registering plugins, and knowing afterwards who brought what."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import attrs
import pluggy
from pluggy import HookImpl

from hooktrain import hookspecs
from hooktrain.compat import remove_from_hook
from hooktrain.config import working_folder
from hooktrain.errors import HooktrainWarning, NameTakenError, PluginError, described, did_you_mean, text_of
from hooktrain.hookspecs import LOOP_HOOKS
from hooktrain.plugin.blame import raised_in
from hooktrain.plugin.checking import check_installed, check_used
from hooktrain.plugin.config import PluginsConfig, Switches
from hooktrain.plugin.digests import digest_of
from hooktrain.plugin.discovery import aside, import_named, installed, own_version, record_of
from hooktrain.plugin.error_policy import ErrorPolicy
from hooktrain.plugin.hook_caller import Hooks, guard_loop_hook
from hooktrain.plugin.info import about, declared_name, written_for_another
from hooktrain.plugin.records import PluginRecord, RegisteredPart
from hooktrain.plugin.results import guard_result
from hooktrain.plugin.validation import PluginManager, check_signatures, implemented, parameters, pluggy_silent
from hooktrain.renamed import RENAMED, new_name, no_attribute, old_names_of
from hooktrain.types import TrainerType

if TYPE_CHECKING:
    from hooktrain.builtins.hook_timer import HookTimer
    from hooktrain.recipe.model import Recipe
    from hooktrain.training.gradient_conflicts import GradientConflicts
    from hooktrain.training.loss_terms import LossTerms

__all__ = ["PluginHost"]

_LOST = {"hooktrain": "collect_state failed"}
"""Stands in a checkpoint for the state of a plugin that could not give it."""


class PluginHost:
    """The plugins of one run.

    Args:
        config: which plugins are active, as the recipe says.
        builtins: name to plugin object, the built-in ones, registered first so that all others are called before them.
        discover: whether to look for installed plugins at all.
        switches: words that change what the recipe says.
        problems: errors about the plugins that the run names are collected here; None raises the first.
    """

    def __init__(
        self,
        config: PluginsConfig = PluginsConfig(),
        builtins: Mapping[str, object] | None = None,
        discover: bool = True,
        switches: Switches = Switches(),
        problems: list[PluginError] | None = None,
    ) -> None:
        self.config = switches.applied(config)
        self.switches = switches
        self.problems = problems
        patterns = {name for name in self.config.listed if set(name) & set("*?[")}
        for name in sorted(patterns):
            self._refuse(
                f"plugins: given '{name}', and names are no patterns; name each plugin in full; only -p 'no:*' is"
                " understood, and leaves out all that are installed, as plugins: {autoload: false} does in a recipe"
            )
        self._handed: set[str] = set()
        self.records: dict[str, PluginRecord] = {}
        self.parts: dict[str, dict[str, RegisteredPart]] = {}
        self.trainer_types: dict[str, tuple[TrainerType, PluginRecord]] = {}
        self.warnings: list[str] = []
        self.passed_over: dict[str, str] = {}  # what is said of it at the start of a run
        self.metric_owners: dict[str, str] = {}  # of the current log line, the engine's names among them
        self.model_owners: dict[str, str] = {}  # of what make_models returned
        self.loss_terms: LossTerms | None = None  # which checks the terms that plugins return
        self.conflicts: GradientConflicts | None = None  # which compares their gradients
        self.recipe_source = "recipe"  # what errors call it
        self.given_recipe: Mapping[str, Any] = {}  # what was written of it, without defaults
        self.manager = PluginManager("hooktrain")
        self.manager.add_hookspecs(hookspecs)
        self.start_folder = working_folder()  # which a plugin may change when it is imported
        self.error_policy = ErrorPolicy(self)
        self.hooks = Hooks(self.manager, self.error_policy.note_swallowed)
        version = own_version()
        for name, plugin in (builtins or {}).items():
            record = PluginRecord(name=name, distribution="hooktrain", version=version)
            if name not in self.config.block:
                self._add(record, plugin)
            elif name == "loop":
                self._refuse("plugins: 'loop' is the engine's default loop, and cannot be left out")
                self._add(record, plugin)
            else:
                record.state, record.reason = "blocked", self._why_not(name)
                self.records[name] = record
        if discover:
            self._discover(config, patterns)
        for name in self.config.load:
            if name not in self.records and name not in patterns:
                self._load_module(name)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute("PluginHost", name)

    # ------------------------------------------------------------------------------------------- finding

    def _discover(self, recipe: PluginsConfig, patterns: Collection[str]) -> None:
        found, twins = installed()
        # a module that is named by one and left out by a later one takes no part, and there is nothing to block
        unloaded = {*recipe.load, *self.switches.environment, *self.switches.line} - {*found, *self.records}
        self.config = attrs.evolve(self.config, block=tuple(name for name in self.config.block if name not in unloaded))
        for wanted in (*self.config.block, *(self.config.only or ())):
            if not {wanted} & {*found, *self.config.load, *self.records, *patterns}:
                self._refuse(
                    f"plugins: '{wanted}' is not installed{did_you_mean(wanted, found)}; installed are"
                    f" {', '.join(found) or 'none'}"
                )
        for name, point in found.items():
            record = record_of(point)
            if name in self.records:  # states, settings and metrics go by name, so that there cannot be two
                record.name = f"{record.distribution}:{name}"
                reason = f"its name '{name}' is that of a plugin built into the engine; its author has to rename it"
                self._fail(record, reason, PluginError(reason))
                continue
            reason = self._why_not(name)
            if reason:
                record.state, record.reason = "blocked", reason
                self.records[name] = record
                continue
            if name in twins:  # neither is loaded: a listing says so, and check() stops a run
                self._fail(record, twins[name], NameTakenError(twins[name]))
                continue
            try:
                with aside():
                    plugin = point.load()
            except KeyboardInterrupt:
                raise
            except BaseException as problem:
                self._fail(record, f"cannot be imported: {described(problem)}", problem)
                continue
            self._try(record, plugin)

    def _why_not(self, name: str) -> str:
        if name in self.config.block:
            return f"blocked by {self.switches.said(f'no:{name}') or 'plugins.block of the recipe'}"
        if name in self.config.load:
            return ""
        if self.config.only is not None and name not in self.config.only:
            return "not among plugins.only"
        if self.config.autoload:
            return ""
        return f"autoload is off, by {self.switches.said('no:*') or 'plugins.autoload of the recipe'}"

    def _load_module(self, name: str) -> None:
        record = PluginRecord(name=name, distribution=name.partition(":")[0].partition(".")[0], version="")
        known = [known for known, other in self.records.items() if other.distribution != "hooktrain"]
        try:
            plugin = import_named(name, known, asked=bool(self.switches.said(name)))
        except PluginError as problem:
            self._refuse(problem)
        else:
            self._try(record, plugin)

    def _try(self, record: PluginRecord, plugin: Any) -> None:
        try:
            with aside():
                made = plugin() if inspect.isclass(plugin) else plugin
            self._add(record, made)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            self._fail(record, text_of(problem) if isinstance(problem, PluginError) else described(problem), problem)

    def _fail(self, record: PluginRecord, reason: str, cause: BaseException) -> None:
        record.state, record.reason, record.clashes = "failed", reason, isinstance(cause, NameTakenError)
        self.records[record.name] = record
        text = reason if reason.startswith("plugin ") else f"{record}: {reason}"
        if record.name in self.config.named or record.name in self._handed:
            problem = PluginError(f"{text}; {self._advice(record)}")
            problem.__cause__ = cause
            self._refuse(problem)

    def _refuse(self, problem: PluginError | str) -> None:
        """Raise an error about a plugin that the run names, or collect it."""
        problem = PluginError(problem) if isinstance(problem, str) else problem
        if self.problems is None:
            raise problem
        self.problems.append(problem)

    def _advice(self, record: PluginRecord) -> str:
        if record.name in self._handed:
            return "fix it, or remove it from the plugins that are passed from Python"
        fix = "fix or uninstall it" if record.version else "fix it"
        word, config = self.switches.said(record.name), self.config
        also = {"loop_hooks": config.loop_hooks.values(), "order": config.order}
        keys = [f"plugins.{key}" for key, names in also.items() if record.name in names]
        leave = f"do not name it ({word})" if word else f"block it with -p no:{record.name}"
        return " and ".join([f"{fix}, or {leave}", *(f"take it out of {key}" for key in keys)])

    def drop(self, record: PluginRecord, reason: str) -> None:
        """Take out a plugin that has been registered, as one that has failed.

        Raises:
            PluginError: when the run names it.
        """
        self._forget(record, self.manager.get_plugin(record.name))
        self._fail(record, reason, PluginError(reason))
        self.hooks.refresh()

    def leave_out(self, record: PluginRecord, reason: str) -> None:
        """Take the hooks of a plugin out of a run that does not use it; what it registers stays known."""
        self.manager.unregister(name=record.name)
        record.state, record.reason = "unused", reason

    def _forget(self, record: PluginRecord, plugin: object) -> None:
        """Leave nothing of a plugin; another one that has its name, or itself under another, stays."""
        if self.manager.get_plugin(record.name) is plugin:  # pluggy keeps one that failed its validation (pluggy#463)
            self.manager.unregister(plugin)
        for kinds in self.parts.values():
            for name in [name for name, offer in kinds.items() if offer.plugin is record]:
                del kinds[name]
        for name in [name for name, (_, owner) in self.trainer_types.items() if owner is record]:
            del self.trainer_types[name]

    # ------------------------------------------------------------------------------------------ registering

    def register(self, plugin: object, name: str | None = None) -> PluginRecord:
        """Add a plugin object (an instance or a module).

        Raises:
            PluginError: when it breaks a rule of the hooks; it is not registered then.
        """
        if isinstance(plugin, (str, bytes)):
            raise PluginError(f"plugins: given {plugin!r}, expected an object; names go to switches=[{plugin!r}]")
        kind = plugin if inspect.ismodule(plugin) or inspect.isclass(plugin) else type(plugin)
        name = name or declared_name(plugin) or kind.__name__
        base, number = name, 2
        while name in self.records:
            name, number = f"{base}-{number}", number + 1
        module = kind.__name__ if inspect.ismodule(plugin) else kind.__module__
        record = PluginRecord(name=name, distribution=module.partition(".")[0], version="")
        self._add(record, plugin() if inspect.isclass(plugin) else plugin)
        self._handed.add(name)
        return record

    def _add(self, record: PluginRecord, plugin: object) -> None:
        if self.manager.is_registered(plugin):
            raise PluginError(f"{record}: is already active as '{self.manager.get_name(plugin)}'; name it once")
        try:
            record.info = about(plugin)
        except TypeError as problem:
            raise PluginError(f"{record}: {problem}") from None
        another = written_for_another(record.info)
        if another:  # said before whatever else is wrong with it, as this may be why
            old = old_names_of(plugin, parameters(plugin))
            raise PluginError(f"{record}: {another}" + (f"; of what it uses, {', '.join(old)}" if old else ""))
        for name in RENAMED["plugin attribute"]:
            if name in dir(plugin):
                raise PluginError(f"{record}: has the attribute '{name}'{new_name('plugin attribute', name)}")
        check_signatures(record, plugin)
        names = implemented(plugin)
        if not names and not record.info.commands:
            raise PluginError(
                f"{record}: implements no hook; mark functions with @hookimpl, or name a class as package.module:Class"
            )
        try:
            with pluggy_silent():
                if "register_hookspecs" in names:
                    plugin.register_hookspecs(self.manager)  # type: ignore[attr-defined]
                self.manager.register(plugin, record.name)
            self._collect(record, plugin, names)
        except BaseException as problem:
            self._forget(record, plugin)
            if isinstance(problem, pluggy.PluginValidationError):
                raise PluginError(f"{record}{self._wrong_parameter(plugin) or f': {problem}'}") from problem
            raise
        for caller in self.manager.get_hookcallers(plugin) or []:
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and not implementation.wrapper:
                    guard_result(self, caller.name, implementation)
                    if caller.name in LOOP_HOOKS and record.distribution != "hooktrain":
                        guard_loop_hook(caller.name, implementation)
        record.hooks = sorted(names)
        self.records[record.name] = record
        self.hooks.refresh()

    def _wrong_parameter(self, plugin: object) -> str:
        """Return the rest of the error for the first parameter that a hook does not have; empty where there is none."""
        for hook, names in parameters(plugin).items():
            caller = vars(self.manager.hook).get(hook)
            known = () if caller is None or caller.spec is None else caller.spec.argnames
            for name in names:
                if known and name not in known:
                    meant = new_name("parameter", f"{hook}({name})") or did_you_mean(name, known)
                    return f", hook {hook}: has no parameter '{name}'{meant}; it has {', '.join(known)}"
        return ""

    def _collect(self, record: PluginRecord, plugin: Any, names: Iterable[str]) -> None:
        """Take up the parts and trainer types of one plugin."""
        if "register_configs" in names:
            for kind, parts in (plugin.register_configs() or {}).items():
                for name, config in parts.items():
                    if not attrs.has(config):
                        raise PluginError(
                            f"{record}: registers {kind} '{name}' with {config!r}, expected an attrs class"
                        )
                    twin = self.parts.setdefault(kind, {}).get(name)
                    if twin is not None:
                        raise NameTakenError(
                            f"{record} and {twin.plugin} both register the {kind} '{name}'; block one of them with"
                            f" plugins: {{block: [{record.name}]}} or {{block: [{twin.plugin.name}]}}"
                        )
                    self.parts[kind][name] = offer = RegisteredPart(kind, name, config, record)
                    record.registers += [f"{kind}/{name}"] * offer.listed
        if "register_trainer_types" in names:
            for name, trainer_type in (plugin.register_trainer_types() or {}).items():
                if name in self.trainer_types:
                    raise NameTakenError(
                        f"{record} and {self.trainer_types[name][1]} both register the trainer type '{name}'; block one"
                        f" of them with plugins: {{block: [{record.name}]}}"
                    )
                self.trainer_types[name] = (trainer_type, record)
                record.registers += [f"type/{name}"] * trainer_type.listed

    # --------------------------------------------------------------------------------------------- checking

    def check(self, recipe: Recipe | None = None) -> None:
        """Refuse misspelt hooks, loop hooks that two plugins implement, and names that two plugins register.

        Args:
            recipe: plugins and hooks that it does not use are left out first; None takes all as used.

        Raises:
            PluginError: naming everybody involved and what to write in the recipe.
        """
        check_installed(self)
        for problem in check_used(self, recipe):
            raise problem

    def is_own(self, implementation: HookImpl) -> bool:
        """Whether an implementation is the engine's."""
        return self.records[implementation.plugin_name].distribution == "hooktrain"

    def policy_of(self, record: PluginRecord) -> str:
        """Return the error policy of a plugin: the recipe's, or else its own."""
        return self.config.on_error.get(record.name, record.info.on_error)

    def remove(self, hook: str, name: str) -> None:
        """Take a plugin out of one hook; ``hooks.refresh()`` is to be called when all is done."""
        for found in self.implementations(hook):
            if found.plugin_name == name:
                remove_from_hook(getattr(self.manager.hook, hook), found.plugin)

    def remove_unused_hooks(self, recipe: Recipe) -> None:
        """Take out the implementations that their own plugins have no use for in a run of this recipe.

        Raises:
            PluginError: when a plugin names a hook that it does not implement.
        """
        for found in self.implementations("unused_hooks"):
            named = cast(Iterable[str] | None, found.function(*([recipe] if found.argnames else [])))
            for name in named or ():
                if name not in self.records[found.plugin_name].hooks:
                    raise PluginError(
                        f"{self.records[found.plugin_name]}, hook unused_hooks: given '{name}', which the plugin does"
                        f" not implement{did_you_mean(name, self.records[found.plugin_name].hooks)}"
                    )
                self.remove(name, found.plugin_name)
        self.hooks.refresh()

    def measure(self, timer: HookTimer) -> None:
        """Have a timer charge every implementation of every hook with what it takes."""
        for name, caller in vars(self.manager.hook).items():
            for implementation in caller.get_hookimpls():
                timer.measure(name, implementation)
        self.hooks.refresh()

    # ---------------------------------------------------------------------------------------------- looking

    def implementations(self, hook: str) -> list[HookImpl]:
        """The implementations of a hook in the order in which they are called, wrappers first."""
        caller = getattr(self.manager.hook, hook, None)
        return [] if caller is None else list(reversed(caller.get_hookimpls()))

    def blame(self, exception: BaseException) -> tuple[str, str] | None:
        """The plugin and the hook in which an exception was raised: the innermost implementation on its traceback."""
        return raised_in(self, exception)

    def call_each(self, hook: str, **given: Any) -> list[tuple[str, BaseException]]:
        """Call a hook plugin by plugin, so that one that raises keeps nobody else from being called.

        Returns:
            The plugins that raised, and what.
        """
        problems: list[tuple[str, BaseException]] = []
        for found in self.implementations(hook):
            try:
                found.function(*(given[name] for name in found.argnames))
            except KeyboardInterrupt:
                raise
            except BaseException as problem:
                problems.append((found.plugin_name, problem))
        return problems

    def collect_states(self, trainer: Any, check: Callable[[Any, str], object] | None = None) -> dict[str, Any]:
        """Return the state of each plugin that has one, by plugin name.

        Args:
            trainer: passed to the plugins.
            check: called with a state and its path, for plugins that may fail; raises where it cannot be saved.
        """
        states = {}
        for found in self.implementations("collect_state"):
            name = found.plugin_name
            state = cast(Mapping[str, Any] | None, found.function(*([trainer] if found.argnames else [])))
            if state is not None and check is not None:
                state = self.error_policy.checked_state(name, state, check)
            if state is not None:
                states[name] = dict(state)
            elif name in self.error_policy.uncollected:
                states[name] = dict(_LOST)
        return states

    def restore_states(
        self, trainer: Any, states: Mapping[str, Any], by_rank: Mapping[str, Sequence[Any]]
    ) -> dict[str, Any]:
        """Give each plugin its own state back; returns what belongs to plugins that are not there.

        Args:
            trainer: passed to the plugins.
            states: of plugins whose states were equal on all ranks.
            by_rank: of all others, the state of each rank that saved, or None where it had none.
        """
        world, saved = trainer.world, {name: [state] for name, state in states.items()} | dict(by_rank)
        states = {name: each[world.rank if len(each) == world.world_size else 0] for name, each in saved.items()}
        left = {name: state for name, state in states.items() if state is not None and state != _LOST}
        for name in sorted(name for name, state in states.items() if state == _LOST):
            if self.records.get(name) is not None:
                self.warn(
                    f"checkpoint: it holds no state of the plugin '{name}', whose collect_state failed when it was"
                    " saved; the plugin begins anew"
                )
        for found in self.implementations("restore_state"):
            name = found.plugin_name
            if name in by_rank and len(by_rank[name]) != world.world_size and "states" not in found.argnames:
                self.warn(
                    f"checkpoint: the state of the plugin '{name}' differs by rank and was saved on"
                    f" {len(by_rank[name])} ranks, and there are {world.world_size} now, which all get that of rank 0;"
                    " a restore_state with the parameter states gets those of all ranks"
                )
            if name in left:
                given = {"trainer": trainer, "state": left.pop(name), "states": saved[name]}
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
        """Return the active plugins in the order of registration, the last being called first, as plain values.

        A plugin that declares ``in_manifest=False`` is skipped.
        """
        found = [(record, self.manager.get_plugin(record.name)) for record in self.records.values()]
        return [
            {
                "name": record.name,
                "distribution": record.distribution,
                "version": record.version,
                "digest": digest_of(plugin, distributed=bool(record.version)),
                "hooks": record.hooks,
            }
            for record, plugin in found
            if record.state in ("active", "disabled") and record.info.in_manifest
        ]

    def failed(self) -> list[PluginRecord]:
        """The plugins that could not be loaded."""
        return [record for record in self.records.values() if record.state == "failed"]
