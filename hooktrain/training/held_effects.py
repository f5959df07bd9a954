"""Held effects: plugins that say that they only observe are checked in every run.

Held are the event hooks and ``collect_metrics`` of each plugin that does not declare ``changes_gradients``. Version
counters are compared around each event, once for all plugins in a row. In checked steps each plugin is checked alone,
the engine's own included, for what version counters do not see as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain.errors import PluginError, failure_of
from hooktrain.plugin.error_policy import MAY_FAIL
from hooktrain.plugin.info import EFFECTS, TRAINING_EFFECTS
from hooktrain.training.run_snapshots import (
    BatchSnapshot,
    ProcessSnapshot,
    TensorWatch,
    batch_differences,
    batch_snapshot,
    process_snapshot,
    same_batch,
)

if TYPE_CHECKING:
    from pluggy import HookImpl

    from hooktrain.training.trainer import Trainer

__all__ = ["HeldEffects", "hold_effects"]

HELD_HOOKS = tuple(hook for hook in MAY_FAIL if hook != "collect_state")
"""The hooks around whose implementations snapshots are taken."""
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
    """

    hook: str
    plugins: tuple[str, ...]
    allowed: tuple[str, ...]
    whole: bool = True


@attrs.frozen
class Row:
    """Implementations of a hook that are called one after another and are all held.

    Attributes:
        alone: each of them, as it is compared in checked steps.
        together: those from ``first`` up to ``last``, without the engine's own before and after them, as they are
            compared in other steps; None where all are the engine's own.
        all: all of them, where they are too many for comparing the process around each; else None.
    """

    alone: tuple[Group, ...]
    together: Group | None
    first: int
    last: int
    all: Group | None


_Seen = tuple[tuple[Any, ...], BatchSnapshot, ProcessSnapshot | None]
"""Snapshots before an event: of the tensors, of its batches, and in checked steps of the process."""


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
        take: takes a snapshot of the tensors.
        same: whether a snapshot of the tensors is the same now.
        each: whether each plugin is checked alone: in checked steps, and once something was changed.
        checked: whether the process is compared too.
    """

    batch_snapshot = staticmethod(batch_snapshot)
    same_batch = staticmethod(same_batch)
    take: Callable[[], tuple[Any, ...]]
    same: Callable[[tuple[Any, ...]], bool]

    def __init__(self, trainer: Trainer) -> None:
        self._host, self._state, self._rank = trainer.host, trainer.state, trainer.world.rank
        self._device, self._horizon = trainer.device, trainer.training_horizon
        self._watch: TensorWatch | None = TensorWatch(trainer.trained, trainer.optimizer)
        self._refresh(may_be_others=True)
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

    def rows(self, hook: str, implementations: Sequence[HookImpl]) -> list[Row | None]:
        """Return the rows of a hook's implementations in the order of calls; None for each that is not held."""
        made: list[Row | None] = []
        row: list[HookImpl] = []
        for found in (*implementations, None):
            if found is not None and hook in HELD_HOOKS and self.held(found) is not None:
                row.append(found)
                continue
            if row:
                made.append(self._row(hook, row))
            if found is not None:
                made.append(None)
            row = []
        return made

    def _row(self, hook: str, row: Sequence[HookImpl]) -> Row:
        few = len(row) <= _ALONE_WHEN_CHECKED
        alone = [Group(hook, (found.plugin_name,), self.held(found) or (), few) for found in row]
        others = [n for n, found in enumerate(row) if not self._host.is_own(found)]
        first, last = (others[0], others[-1] + 1) if others else (0, 0)
        together = _merged(alone[first:last]) if others else None
        return Row(tuple(alone), together, first, last, None if few else _merged(alone))

    # ------------------------------------------------------------------------------------------------- checks

    def begin_step(self) -> None:
        """Decide whether the step that begins is checked."""
        step = self._state.global_step + 1
        checked = not self._began or step >= self._horizon or any(step % every == 0 for every in self._saves)
        if not checked and step % self._logs == 0:
            checked = time.monotonic() >= self._next_check
        self._began = True
        self._refresh(may_be_others=checked)
        if checked:
            self._next_check = time.monotonic() + _CHECKED_EVERY
            if self._watch is not None:
                self._watch.move_sample()
        self._check(checked)

    def begin_save(self) -> None:
        """Check the events of a save, which somebody may have requested in a step that is not checked.

        Raises:
            PluginError: somebody changed the training, and it is not known who.
        """
        self.require_named()
        self._check(True)

    def _check(self, checked: bool) -> None:
        self.checked, self.each = checked, checked or self._naming is not None

    def _refresh(self, *, may_be_others: bool = False) -> None:
        """Take up the tensors of the optimizer's state, which it makes in its first step and may replace later."""
        watch = self._watch
        if watch is not None and (may_be_others or len(watch.optimizer.state) != watch.entries):
            watch.refresh()
            self.take, self.same = watch.take, watch.same

    def require_named(self) -> None:
        """Refuse to end well when somebody changed the training and it is not known who.

        Raises:
            PluginError: with the candidates.
        """
        if self._naming:
            raise PluginError(self._naming)

    def release(self) -> None:
        """Let go of the run's tensors; nothing is compared any more."""
        self._watch = None
        self.take, self.same = tuple, lambda before: True
        self.each = self.checked = False

    def before(self, batches: Sequence[Mapping[str, Any]]) -> _Seen:
        """Take the snapshots before an event, that of the process included."""
        self._refresh()
        process = None if self._watch is None else process_snapshot(self._watch, self._device)
        return self.take(), batch_snapshot(batches), process

    def after(self, seen: _Seen, group: Group, batches: Sequence[Mapping[str, Any]]) -> _Seen:
        """Compare with the snapshots before; returns those to compare with after the plugins that follow.

        Raises:
            PluginError: a plugin changed what it may not.
        """
        watch = self._watch
        if watch is None:
            return seen
        tensors, batch, process = seen
        found = [] if watch.same(tensors) else [*watch.differences(tensors)]
        found += batch_differences(batch, batches)
        if process is not None and (group.whole or self._naming is not None):
            before, process = process, process_snapshot(watch, self._device)
            known = {kind for kind, _ in found}  # a write shows in the checksum too
            found += [(kind, text) for kind, text in before.differences(process) if kind not in known]
        found = [(kind, text) for kind, text in found if kind not in group.allowed]
        if found:
            self._report(group, found)
        return self.take(), batch_snapshot(batches), process

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


def _merged(groups: Sequence[Group]) -> Group:
    names = tuple(name for group in groups for name in group.plugins)
    return Group(groups[0].hook, names, tuple({kind for group in groups for kind in group.allowed}))
