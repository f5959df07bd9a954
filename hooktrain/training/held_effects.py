"""Held effects: plugins that say that they only observe are checked in every run.

Held are the event hooks and ``collect_metrics`` of each plugin that does not declare ``changes_gradients``. Version
counters are compared around each event, once for all plugins in a row. In checked steps each plugin is checked alone,
the engine's own included, for what version counters do not see as well; so are the wrappers of a plugin that declares
``only_observes``, before their yield and after it.

An event may be called within another, as ``on_message`` is by a plugin that speaks; so may an evaluation and a save.
What the inner plugins change is theirs: it is compared around them, and excused in the comparison around the outer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain.errors import PluginError, failure_of
from hooktrain.hookspecs import LOOP_HOOKS
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
    from torch import Tensor

    from hooktrain.training.trainer import Trainer

__all__ = ["HeldEffects", "hold_effects"]

HELD_HOOKS = tuple(hook for hook in MAY_FAIL if hook != "collect_state")
"""The hooks around whose implementations snapshots are taken."""
REQUESTED = ("run_evaluate", "save_checkpoint")
"""Loop hooks that an event may have called, with whatever plugins do in them."""
_FOR_GOOD = ("random states", "batch")
"""What no wrapper puts back; it may change anything else before its yield if it does so again after it."""
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


_Seen = tuple[tuple[Any, ...], BatchSnapshot, ProcessSnapshot | None, int]
"""Snapshots before an event: of the tensors, of its batches, and in checked steps of the process; and how much has been
excused until then.
"""
_Found = list[tuple[str, str]]
"""What differs, each as one of ``EFFECTS`` and a phrase that says what was done."""


def hold_effects(trainer: Trainer) -> HeldEffects | None:
    """Check the events of a trainer whose parts are built from now on; None where no plugin is held."""
    effects = HeldEffects(trainer)
    found = [(hook, one) for hook in (*HELD_HOOKS, *LOOP_HOOKS) for one in trainer.host.implementations(hook)]
    if not any(effects.watched(*one) if one[1].wrapper else effects.rows(one[0], [one[1]])[0] for one in found):
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
        depth: the number of events that are in progress, each within the one before.
        excused: what was changed within events in progress by plugins whose own events, wrappers or loop hooks these
            called.
        thread: the thread of the run, in which alone anything is compared.
    """

    batch_snapshot = staticmethod(batch_snapshot)
    same_batch = staticmethod(same_batch)
    take: Callable[[], tuple[Any, ...]]
    same: Callable[[tuple[Any, ...]], bool]
    _optimizer_state: Mapping[Tensor, Any]
    _entries: int

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
        self._breach: PluginError | None = None
        self._next = 0  # the step before which none is checked
        self.depth, self.excused, self.thread = 0, list[str](), threading.get_ident()

    # -------------------------------------------------------------------------------------------- who is held

    def held(self, implementation: HookImpl) -> tuple[str, ...] | None:
        """Return what a plugin may change; None where it is not held."""
        info = self._host.records[implementation.plugin_name].info
        if info.changes_gradients or implementation.wrapper or set(info.may_change) >= set(EFFECTS):
            return None
        return info.may_change

    def watched(self, hook: str, wrapper: HookImpl) -> Group | None:
        """Return a wrapper as it is compared in checked steps; None unless its plugin declares ``only_observes``."""
        info = self._host.records[wrapper.plugin_name].info
        if info.changes_gradients or not info.only_observes or set(info.may_change) >= set(EFFECTS):
            return None
        return Group(hook, (wrapper.plugin_name,), info.may_change)

    def is_excused(self, hook: str, implementations: Sequence[HookImpl]) -> bool:
        """Return whether an event that has a hook called is excused for what is changed in it."""
        return hook in REQUESTED or (hook in HELD_HOOKS and any(self.held(found) is None for found in implementations))

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
        """Decide whether the step that begins is checked.

        Raises:
            PluginError: somebody changed the training, and whoever called its event has ended the error.
        """
        step = self._state.global_step + 1
        if step < self._next and len(self._optimizer_state) == self._entries:
            return  # the usual case, in as few steps as possible
        if self._breach is not None:
            raise self._breach
        if not self.depth:
            self.excused.clear()
            self.thread = threading.get_ident()
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
        if not checked:
            self._next = min(self._horizon, *(step + every - step % every for every in (*self._saves, self._logs)))

    def begin_save(self) -> None:
        """Check the events of a save, which somebody may have requested in a step that is not checked.

        Raises:
            PluginError: somebody changed the training, and it is not known who.
        """
        self.require_named()
        self._check(True)

    def _check(self, checked: bool) -> None:
        self._next = 0
        self.checked, self.each = checked, checked or self._naming is not None

    def _refresh(self, *, may_be_others: bool = False) -> None:
        """Take up the tensors of the optimizer's state, which it makes in its first step and may replace later."""
        watch = self._watch
        if watch is not None and (may_be_others or len(watch.optimizer.state) != watch.entries):
            watch.refresh()
            self.take, self.same = watch.take, watch.same
            self._optimizer_state, self._entries = watch.optimizer.state, watch.entries

    def require_named(self) -> None:
        """Refuse to end well when somebody changed the training and the run has not stopped for it.

        Raises:
            PluginError: with the plugin that did, or with the candidates.
        """
        if self._breach is not None:
            raise self._breach
        if self._naming:
            raise PluginError(self._naming)

    def release(self) -> None:
        """Let go of the run's tensors; nothing is compared any more."""
        self._watch = None
        self._optimizer_state = {}
        self.take, self.same = tuple, lambda before: True
        self.each = self.checked = False

    @property
    def _compares(self) -> bool:
        """Whether this is the run's own thread, before its end; others call events while it trains."""
        return self._watch is not None and threading.get_ident() == self.thread

    def before(self, batches: Sequence[Mapping[str, Any]]) -> _Seen:
        """Take the snapshots before an event, that of the process included where it is checked."""
        if not self._compares:
            return (), ([], []), None, 0
        self._refresh()
        process = process_snapshot(self._watch, self._device) if self._watch is not None and self.each else None
        return self.take(), batch_snapshot(batches), process, len(self.excused)

    def after(self, seen: _Seen, group: Group, batches: Sequence[Mapping[str, Any]]) -> _Seen:
        """Compare with the snapshots before; returns those to compare with after the plugins that follow.

        Raises:
            PluginError: a plugin changed what it may not.
        """
        if not self._compares:
            return seen
        found, process = self.found(seen, group, batches)
        if found:
            self.report(group, found)
        return self.take(), batch_snapshot(batches), process, len(self.excused)

    def failed(self, seen: _Seen, group: Group, batches: Sequence[Mapping[str, Any]]) -> None:
        """Compare after an error in an event that is called within another one, which may end the error.

        A change that is none of the outer plugin's stops the run later, unless the error does.
        """
        if self.depth:
            with contextlib.suppress(Exception):  # as of a broken device; the first error is the one to raise
                self.after(seen, group, batches)

    def requested(
        self, call: Callable[..., Any], arguments: tuple[Any, ...], batches: Sequence[Mapping[str, Any]]
    ) -> Any:
        """Call a hook within an event, and excuse in that event what is changed meanwhile."""
        if not self._compares:
            return call(*arguments)
        seen = self.before(batches)
        try:
            return call(*arguments)
        finally:
            if self._compares:
                self.excused += [kind for kind, _ in self._differences(seen, batches)[0]]

    def watch(
        self, wrapper: Generator[None, Any, Any], group: Group, batches: Sequence[Mapping[str, Any]]
    ) -> WatchedWrapper | Generator[None, Any, Any]:
        """Compare what a wrapper does before its yield and after it."""
        if not self._compares:
            return wrapper
        return WatchedWrapper(self, wrapper, group, batches)

    def found(
        self, seen: _Seen, group: Group, batches: Sequence[Mapping[str, Any]]
    ) -> tuple[_Found, ProcessSnapshot | None]:
        """Return what plugins changed and may not, and the newest snapshot of the process.

        What the plugins of events within this one changed is not theirs, and what they did is excused in the event
        around it.
        """
        inner = set(self.excused[seen[3] :])
        found, process = self._differences(seen, batches, whole=group.whole)
        if self.depth:
            self.excused += [kind for kind, _ in found]
        return [(kind, text) for kind, text in found if kind not in inner and kind not in group.allowed], process

    def _differences(
        self, seen: _Seen, batches: Sequence[Mapping[str, Any]], *, whole: bool = True
    ) -> tuple[_Found, ProcessSnapshot | None]:
        """Return what differs from snapshots, and the newest of the process."""
        watch, (tensors, batch, process, _) = self._watch, seen
        assert watch is not None, "nothing is compared after the run"
        found = [] if watch.same(tensors) else [*watch.differences(tensors)]
        found += batch_differences(batch, batches)
        if process is not None and (whole or self._naming is not None):
            before, process = process, process_snapshot(watch, self._device)
            known = {kind for kind, _ in found}  # a write shows in the checksum too
            found += [(kind, text) for kind, text in before.differences(process) if kind not in known]
        return found, process

    def report(self, group: Group, found: Sequence[tuple[str, str]]) -> None:
        """Name the plugin that changed what it may not, or where it is one of several, have each be checked alone.

        Raises:
            PluginError: it changed the training, or its policy is ``stop``.
        """
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
                self._breach, self._next = problem, 0  # in case that whoever called the event ends the error
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


class WatchedWrapper:
    """A wrapper's generator, of which both parts are compared.

    Args:
        effects: of the run.
        wrapper: the generator.
        group: the plugin, and what it may change.
        batches: of the hook.
    """

    def __init__(
        self,
        effects: HeldEffects,
        wrapper: Generator[None, Any, Any],
        group: Group,
        batches: Sequence[Mapping[str, Any]],
    ) -> None:
        self._effects, self._wrapper, self._group, self._batches = effects, wrapper, group, batches
        self._left: _Found | None = None
        self.close = wrapper.close

    def __next__(self) -> None:
        self._compared(self._wrapper.__next__)

    def send(self, result: Any) -> None:
        """Continue after the yield."""
        self._compared(self._wrapper.send, result)

    def throw(self, problem: BaseException) -> None:
        """Continue after the yield with an error."""
        self._compared(self._wrapper.throw, problem)

    def _compared(self, part: Callable[..., None], *given: Any) -> None:
        effects = self._effects
        seen = effects.before(self._batches)
        effects.depth += 1
        try:
            part(*given)
        except StopIteration:
            effects.depth -= 1
            self._compare(seen)
            raise
        except BaseException:
            effects.depth -= 1
            raise
        effects.depth -= 1
        self._compare(seen)

    def _compare(self, seen: _Seen) -> None:
        found, _ = self._effects.found(seen, self._group, self._batches)
        others = [one for one in found if one[0] in _FOR_GOOD]
        lasting = [one for one in found if one[0] not in _FOR_GOOD]
        if self._left is None:  # this was the part before the yield
            self._left = lasting
        else:
            before, now = ({kind for kind, _ in some} for some in (self._left, lasting))
            others += [one for one in (*self._left, *lasting) if one[0] not in before & now]
        if others:
            self._effects.report(self._group, others)


def _merged(groups: Sequence[Group]) -> Group:
    names = tuple(name for group in groups for name in group.plugins)
    return Group(groups[0].hook, names, tuple({kind for group in groups for kind in group.allowed}))
