"""Held effects: plugins that say that they only observe are checked in every run.

Held are the event hooks and ``collect_metrics`` of each plugin that does not declare ``changes_gradients``, the
engine's own included, and the wrappers of one that declares ``only_observes``. Version counters are compared around
each event, once for all plugins in a row. In checked steps each plugin is checked alone, for what version counters do
not see as well.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from hooktrain.errors import PluginError, failure_of
from hooktrain.plugin.error_policy import MAY_FAIL
from hooktrain.plugin.info import EFFECTS, TRAINING_EFFECTS
from hooktrain.training.run_snapshots import ProcessSnapshot, TensorSnapshot, TensorWatch, process_snapshot

if TYPE_CHECKING:
    from pluggy import HookImpl

    from hooktrain.training.trainer import Trainer

__all__ = ["HeldEffects", "hold_effects"]

HELD_HOOKS = tuple(hook for hook in MAY_FAIL if hook != "collect_state")
"""The hooks around whose implementations snapshots are taken."""
_ALONE = 3
"""Plugins in a row that are checked one by one in every step."""
_ALONE_WHEN_CHECKED = 16
"""Plugins in a row around each of which checked steps look at the process too; around more of them, once."""
_CHECKED_EVERY = 10.0
"""Seconds between two checked steps at least that are checked because of their log line."""


@attrs.frozen
class Group:
    """Held implementations of a hook between two snapshots.

    Attributes:
        hook: the hook.
        plugins: their plugins, by name.
        allowed: what they may change.
        whole: whether the process is compared in checked steps.
        starts: whether the implementation is the first of those in a row.
    """

    hook: str
    plugins: tuple[str, ...]
    allowed: tuple[str, ...]
    whole: bool = True
    starts: bool = False


class Seen(NamedTuple):
    """Snapshots before an event, and those of the process where they are taken."""

    tensors: TensorSnapshot
    process: ProcessSnapshot | None


def hold_effects(trainer: Trainer) -> HeldEffects | None:
    """Check the events of a trainer whose parts are built from now on; None where no plugin is held."""
    effects = HeldEffects(trainer)
    held = any(effects.held(found) is not None for hook in HELD_HOOKS for found in trainer.host.implementations(hook))
    if not held:
        return None
    trainer.host.hooks.hold(effects)
    return effects


class HeldEffects:
    """Compares snapshots around the events of a run, and says which plugin changed what.

    Args:
        trainer: with all parts built.

    Attributes:
        each: whether each plugin is checked alone: in checked steps, and once something was changed.
        checked: whether the process is compared too.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = weakref.ref(trainer)  # a trainer that nobody holds lets go of its folder at once
        self._host, self._state, self._rank = trainer.host, trainer.state, trainer.world.rank
        self._device, self._horizon = trainer.device, trainer.training_horizon
        self._watch: TensorWatch | None = TensorWatch(trainer.model, trainer.optimizer)
        saves = (engine.config.save_every_n_steps for engine in trainer.checkpoint_engines if engine.config.enabled)
        self._saves, self._logs = tuple(filter(None, saves)), trainer.recipe.log_interval
        self.each = self.checked = True
        self._began, self._next_check = False, time.monotonic() + _CHECKED_EVERY
        self._naming: str | None = None

    # -------------------------------------------------------------------------------------------- who is held

    def held(self, implementation: HookImpl) -> tuple[str, ...] | None:
        """Return what a plugin may change; None where it is not held."""
        info = self._host.records[implementation.plugin_name].info
        if info.changes_gradients or implementation.wrapper or set(info.may_change) >= set(EFFECTS):
            return None
        return info.may_change

    def groups(self, hook: str, implementations: Sequence[HookImpl]) -> list[list[Group]]:
        """Return for each implementation of a hook the groups that end with it; none where it is not held.

        The first group of a list is of the implementation alone. A second one is of all those in a row, where they are
        too many to be checked alone in every step.
        """
        if hook not in HELD_HOOKS:
            return [[] for _ in implementations]
        made: list[list[Group]] = []
        start = 0
        while start < len(implementations):
            allowed, end = self.held(implementations[start]), start + 1
            while allowed is not None and end < len(implementations) and self.held(implementations[end]) == allowed:
                end += 1
            names = [found.plugin_name for found in implementations[start:end]]
            if allowed is None:
                made.append([])
            else:
                alone = len(names) <= _ALONE_WHEN_CHECKED
                made += [[Group(hook, (name,), allowed, alone, n == 0)] for n, name in enumerate(names)]
                if len(names) > _ALONE:
                    made[-1].append(Group(hook, tuple(names), allowed))
            start = end
        return made

    # ------------------------------------------------------------------------------------------------- checks

    def begin_step(self) -> None:
        """Decide whether the step that begins is checked."""
        step = self._state.global_step + 1
        checked = not self._began or step >= self._horizon or any(step % every == 0 for every in self._saves)
        if not checked and step % self._logs == 0:
            checked = time.monotonic() >= self._next_check
        self._began = True
        self.check(checked)

    def check(self, checked: bool = True) -> None:
        """Begin or end a checked step."""
        if checked:
            self._next_check = time.monotonic() + _CHECKED_EVERY
            if not self.checked and self._watch is not None:
                self._watch.move_sample()
        self.checked, self.each = checked, checked or self._naming is not None

    def require_named(self) -> None:
        """Refuse to save or to end well when somebody changed the training and it is not known who.

        Raises:
            PluginError: with the candidates.
        """
        if self._naming:
            raise PluginError(self._naming)

    def release(self) -> None:
        """Let go of the run's tensors; nothing is compared any more."""
        self._watch = None

    def before(self, batches: Sequence[Mapping[str, Any]]) -> Seen | None:
        """Take the snapshots before an event."""
        watch = self._watch
        if watch is None:
            return None
        watch.refresh(self._state.global_step)
        whole = self.checked or self._naming is not None
        return Seen(watch.take(batches), process_snapshot(watch, self._device) if whole else None)

    def after(self, seen: Seen | None, group: Group, batches: Sequence[Mapping[str, Any]]) -> Seen | None:
        """Compare with the snapshots before; returns those to compare with after the plugins that follow.

        Raises:
            PluginError: a plugin changed what it may not.
        """
        watch = self._watch
        if seen is None or watch is None:
            return None
        now, process = watch.take(batches), seen.process
        found = [] if now.numbers == seen.tensors.numbers else [*watch.differences(seen.tensors, now)]
        if process is not None and (group.whole or self._naming is not None):
            new = process_snapshot(watch, self._device)
            if not any(kind == "parameters" for kind, _ in found):
                found += process.differences(new)
            else:
                found += [(kind, text) for kind, text in process.differences(new) if kind != "parameters"]
            process = new
        found = [(kind, text) for kind, text in found if kind not in group.allowed]
        if found:
            self._report(group, found)
        return Seen(now, process)

    def _report(self, group: Group, found: Sequence[tuple[str, str]]) -> None:
        kinds = [kind for kind, _ in found]
        what = ", and ".join(text for _, text in found)
        host, step, rank = self._host, self._state.global_step, self._rank
        when = f"hook {group.hook}, step {step}, rank {rank}"
        if len(group.plugins) == 1:
            (name,) = group.plugins
            record = host.records[name]
            problem = PluginError(f"{record}, {when}: {what}, {self._rule(record, kinds)}")
            failure_of(problem).raised_in = name, group.hook
            self._naming, self.each = None, self.checked
            if any(kind in TRAINING_EFFECTS for kind in kinds) or host.policy_of(record) == "stop":
                raise problem
            host.error_policy.failed(name, group.hook, problem)
            return
        shown = ", ".join(f"'{name}'" for name in group.plugins[:5])
        more = f" and {len(group.plugins) - 5} more" if len(group.plugins) > 5 else ""
        text = f"plugins, {when}: one of {shown}{more} {what}, and none of them may; remove the one that does it"
        if self._naming is None:
            self._naming, self.each = text if any(kind in TRAINING_EFFECTS for kind in kinds) else "", True
            host.warn(f"{text}; each is checked alone from here on")

    def _rule(self, record: Any, kinds: Sequence[str]) -> str:
        process = [kind for kind in kinds if kind not in TRAINING_EFFECTS]
        said = "declares only_observes" if record.info.only_observes else "does not declare changes_gradients"
        fix = "work on copies (tensor.detach().clone()), or declare PluginInfo(changes_gradients=True)"
        if len(process) == len(kinds):
            fix = f"put it back, or declare PluginInfo(may_change={process!r})"
        elif set(kinds) == {"random states"}:
            fix = "draw from a generator of its own (random.Random, torch.Generator)"
            fix += ", or declare PluginInfo(changes_gradients=True)"
        return f"but the plugin {said}; {fix}"
