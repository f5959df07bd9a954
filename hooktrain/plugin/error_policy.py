"""The error policy: plugins whose failures do not end the run, as they or the recipe say with ``on_error``.

Only event hooks, ``collect_metrics``, ``collect_state`` and the hooks of loss terms may fail; an error in a loop hook,
a factory or a wrapper always stops the run.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pluggy import HookImpl

from hooktrain.errors import HangError, PluginError, described, did_you_mean
from hooktrain.hookspecs import EVENTS
from hooktrain.plugin.info import POLICIES

if TYPE_CHECKING:
    from hooktrain.plugin.manager import PluginHost
    from hooktrain.training.trainer import Trainer

__all__ = ["MAY_FAIL", "ErrorPolicy"]

_ALONE = ("on_exception", "on_teardown")  # are called plugin by plugin, and guarded for everyone
_KEPT = ("collect_state", *_ALONE)
"""Hooks that a plugin keeps when it is disabled: its state belongs into checkpoints, and it may have files to close."""
MAY_FAIL = (
    *(name for name in EVENTS if name not in _ALONE),
    *("collect_metrics", "collect_state", "count_loss_terms", "collect_loss_terms"),
)


class ErrorPolicy:
    """The failures of plugins that do not end the run.

    Args:
        host: the plugins.

    Attributes:
        uncollected: plugins whose ``collect_state`` failed when it was last called.
        swallowed: the hook, the plugin whose wrapper has ended an error in it, and the error with its place, in words.
    """

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._failures: dict[str, Counter[str]] = {}
        self._silent: dict[str, str] = {}
        self.uncollected: set[str] = set()
        self.swallowed: tuple[str, str, str] | None = None
        self._bound: Callable[[], Trainer | None] = lambda: None

    def guard(self) -> None:
        """Let the hooks of plugins fail whose policy says so.

        Raises:
            PluginError: the recipe gives a policy to a plugin that is not there, one that there is not, or one under
                which the run would continue training another way.
        """
        host = self._host
        for name, policy in host.config.on_error.items():
            if name not in host.records:
                raise PluginError(
                    f"plugins.on_error: '{name}' is not there{did_you_mean(name, host.records)}; there are"
                    f" {', '.join(host.records)}"
                )
            if policy not in POLICIES:
                raise PluginError(
                    f"plugins.on_error.{name}: given '{policy}'{did_you_mean(policy, POLICIES)}, expected one of"
                    f" {', '.join(POLICIES)}"
                )
            if policy != "stop" and host.records[name].info.changes_gradients:
                raise PluginError(
                    f"plugins.on_error.{name}: given '{policy}', but the plugin changes gradients, and a run without it"
                    " would train another way; remove it"
                )
        for record in host.records.values():
            if host.policy_of(record) != "stop":
                for hook in set(record.hooks) & set(MAY_FAIL):
                    for found in host.implementations(hook):
                        if found.plugin_name == record.name and not found.wrapper:
                            self._guard(hook, found)
        host.hooks.refresh()

    def bind(self, trainer: Trainer) -> None:
        """Say when something failed, and have the ranks agree on who is left out."""
        self._bound = weakref.ref(trainer)  # a trainer that nobody holds lets go of its folder at once

    def leave_out(self, names: tuple[str, ...]) -> None:
        """Disable plugins, after the same step on all ranks."""
        trainer = self._bound()
        for name in names:
            record = self._host.records[name]
            if record.state != "disabled":
                step = "" if trainer is None else f" after step {trainer.global_step}"
                record.state, record.reason = "disabled", f"disabled{step}, on all ranks"
                for hook in (set(record.hooks) & set(MAY_FAIL)) - set(_KEPT):
                    self._host.remove(hook, name)
        self._host.hooks.refresh()

    def note_swallowed(self, hook: str, plugin: str, problem: BaseException) -> None:
        """Remember that a wrapper has ended an error; as text, since an error holds what its frames do."""
        trainer, blamed = self._bound(), self._host.blame(problem)
        step = "" if trainer is None else f"step {trainer.global_step}, rank {trainer.world.rank}"
        where = step if blamed is None or blamed[0] == "loop" else f"plugin '{blamed[0]}', hook {blamed[1]}, {step}"
        self.swallowed = hook, plugin, f"{described(problem)} [{where}]"

    def summary(self) -> list[str]:
        """A line about each plugin that has failed more often than was told, for the end of the run."""
        lines = []
        for name, hooks in self._failures.items():
            count = sum(hooks.values())
            if count > len(hooks):
                where = ", ".join(f"{hook} {times}" for hook, times in hooks.most_common())
                lines.append(f"{self._host.records[name]}: failed {count} times on this rank ({where})")
        return lines

    def checked_state(
        self, name: str, state: Mapping[str, Any], check: Callable[[Any, str], object]
    ) -> Mapping[str, Any] | None:
        """Return a plugin's state; None where it cannot be saved and the plugin may fail.

        With the policy ``stop`` it is returned as it is: who saves it refuses it, on all ranks.
        """
        if self._host.policy_of(self._host.records[name]) == "stop":
            return state
        try:
            check(state, f"plugins.{name}")
        except Exception as problem:
            self.uncollected.add(name)
            self.failed(name, "collect_state", problem)
            return None
        return state

    def _guard(self, hook: str, implementation: HookImpl) -> None:
        if "hooktrain_guarded" in vars(implementation.function):
            return
        function, name = implementation.function, implementation.plugin_name

        def guarded(*arguments: Any) -> Any:
            if name in self._silent and hook not in _KEPT:
                return None
            if hook == "collect_state":
                self.uncollected.discard(name)
            try:
                return function(*arguments)
            except (KeyboardInterrupt, SystemExit, HangError):
                raise
            except BaseException as problem:
                if hook == "collect_state":
                    self.uncollected.add(name)
                self.failed(name, hook, problem)
                return None

        guarded.__wrapped__ = function  # type: ignore[attr-defined]
        guarded.hooktrain_guarded = True  # type: ignore[attr-defined]
        setattr(implementation, "function", guarded)  # noqa: B010 - as in guard_loop_hook

    def failed(self, name: str, hook: str, problem: BaseException) -> None:
        """Count a failure of a plugin whose policy is not ``stop``; warn of the first, or disable it."""
        host, trainer = self._host, self._bound()
        hooks = self._failures.setdefault(name, Counter())
        hooks[hook] += 1
        record = host.records[name]
        disables = host.policy_of(record) == "disable" and hook not in _KEPT
        if hooks[hook] == 1:
            when = "" if trainer is None else f", step {trainer.global_step}, rank {trainer.world.rank}"
            then = "it is disabled from here on" if disables else "the run continues, and further failures are counted"
            host.warn(f"{record}, hook {hook}{when}: {described(problem)}; {then}")
        if disables and name not in self._silent:
            self._silent[name] = hook
            if trainer is not None:
                trainer.request_disable(name)
