"""The plugin objects: one that reads the recipe, and one for callbacks that are there already."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain import Complaint, HooktrainError, PluginInfo, hookimpl
from hooktrain_callbacks.arguments import argument_problems
from hooktrain_callbacks.config import CallbacksConfig
from hooktrain_callbacks.loading import Loaded, load, never_stopping, place
from hooktrain_callbacks.mapping import hooks_of

if TYPE_CHECKING:
    from torch import Tensor

    from hooktrain import Batch, LossSum, Recipe, Trainer, TrainerState

__all__ = ["Callbacks", "CallbacksPlugin"]

_OWN = frozenset({"register_configs", "check_recipe", "unused_hooks"})


class _Driving:
    """Passes each hook on to the bridges; hooks that no callback needs are taken out before the run."""

    # in the loop hooks that are wrapped; what callbacks do to the model is theirs
    hooktrain_plugin = PluginInfo(only_observes=True)

    def __init__(self) -> None:
        self.loaded = Loaded()
        self.bridges: list[Any] = []

    def _open(self, arguments: Mapping[str, Any]) -> None:
        """Build the bridges that the loaded callbacks need."""
        by_package: dict[str, list[Any]] = {}
        for slot in self.loaded.slots:
            by_package.setdefault(slot.package, []).append(slot)
        self.bridges = []
        for package, slots in by_package.items():
            if package == "transformers":
                from hooktrain_callbacks.transformers_bridge import TransformersBridge

                self.bridges.append(TransformersBridge(slots, arguments))
            else:
                from hooktrain_callbacks.lightning_bridge import LightningBridge

                self.bridges.append(LightningBridge(slots))

    def _idle(self) -> set[str]:
        needed: set[str] = set()
        for slot in self.loaded.slots:
            needed |= hooks_of(slot.package, slot.events)
        hooks = {name for name in dir(type(self)) if hasattr(getattr(type(self), name), "hooktrain_impl")}
        return hooks - needed - _OWN

    def _pass(self, hook: str, *given: Any) -> None:
        for bridge in self.bridges:
            heard = getattr(bridge, hook, None)
            if heard is not None:
                heard(*given)

    # ------------------------------------------------------------------------------------------------- run, epoch

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        for note in (*self.loaded.notes, *never_stopping(self.loaded.slots, trainer)):
            trainer.host.warn(note)
        self._pass("on_train_start", trainer)

    @hookimpl
    def on_epoch_start(self) -> None:
        self._pass("on_epoch_start")

    @hookimpl
    def on_epoch_end(self) -> None:
        self._pass("on_epoch_end")

    @hookimpl(wrapper=True)
    def run_train(self) -> Generator[None, Any, Any]:
        state: TrainerState = yield
        self._pass("on_run_end")
        return state

    @hookimpl
    def on_train_end(self) -> None:
        self._pass("on_train_end")

    @hookimpl
    def on_exception(self, exception: BaseException) -> None:
        self._pass("on_exception", exception)

    @hookimpl
    def on_teardown(self) -> None:
        self._pass("on_teardown")

    # ------------------------------------------------------------------------------------------------------- step

    @hookimpl
    def on_step_start(self) -> None:
        self._pass("on_step_start")

    @hookimpl
    def on_step_end(self) -> None:
        self._pass("on_step_end")

    @hookimpl
    def on_microbatch_start(self, batch: Batch) -> None:
        self._pass("on_microbatch_start", batch)

    @hookimpl
    def on_microbatch_end(self, batch: Batch, loss: LossSum) -> None:
        self._pass("on_microbatch_end", batch, loss)

    @hookimpl(wrapper=True)
    def run_backward(self, loss: Tensor) -> Generator[None, Any, Any]:
        self._pass("on_backward_start", loss)
        done: Tensor = yield
        self._pass("on_backward_end")
        return done

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch) -> Generator[None, Any, Any]:
        self._pass("on_loss_start", batch)
        loss: LossSum = yield
        self._pass("on_loss_end", batch, loss)
        return loss

    @hookimpl
    def on_optimizer_step_start(self) -> None:
        self._pass("on_optimizer_step_start")

    @hookimpl
    def on_optimizer_step_end(self) -> None:
        self._pass("on_optimizer_step_end")

    # ---------------------------------------------------------------------------------- evaluation, logs, checkpoints

    @hookimpl
    def on_evaluate_start(self) -> None:
        self._pass("on_evaluate_start")

    @hookimpl
    def on_evaluate_end(self, metrics: Mapping[str, float]) -> None:
        self._pass("on_evaluate_end", metrics)

    @hookimpl
    def collect_metrics(self) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        for bridge in self.bridges:
            if hasattr(bridge, "collect_metrics"):
                found.update(bridge.collect_metrics())
        return found

    @hookimpl
    def on_log(self, metrics: Mapping[str, float]) -> None:
        self._pass("on_log", metrics)

    @hookimpl
    def on_checkpoint_end(self, path: Path) -> None:
        self._pass("on_checkpoint_end", path)

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {type(bridge).__name__: bridge.collect_state() for bridge in self.bridges}

    @hookimpl
    def restore_state(self, state: Mapping[str, Any]) -> None:
        for bridge in self.bridges:
            if type(bridge).__name__ in state:
                bridge.restore_state(state[type(bridge).__name__])


class CallbacksPlugin(_Driving):
    """What the recipe names under ``callbacks``."""

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"callbacks": CallbacksConfig}}

    @hookimpl
    def unused_hooks(self, recipe: Recipe) -> Iterable[str]:
        config = recipe.settings["callbacks"]
        self.loaded = load(config.use)
        self._open(config.arguments)
        return self._idle()

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Sequence[Complaint]:
        problems = argument_problems(recipe.settings["callbacks"].arguments)
        arguments = [Complaint(f"callbacks.arguments.{name}".rstrip("."), text) for name, text in problems]
        return [*self.loaded.complaints, *arguments]


class Callbacks(_Driving):
    """Callbacks of transformers and Lightning, as a plugin object for a run from Python.

    Args:
        callbacks: instances.
        arguments: fields of transformers' ``TrainingArguments``, as under ``callbacks.arguments`` in a recipe.
        on_error: what happens when one fails: ``stop``, ``disable`` or ``warn``; each kind's own when left out.

    Raises:
        HooktrainError: naming everything that cannot be mapped.
    """

    def __init__(
        self, *callbacks: Any, arguments: Mapping[str, Any] | None = None, on_error: str | None = None
    ) -> None:
        super().__init__()
        for number, callback in enumerate(callbacks):
            place(self.loaded, callback, f"Callbacks[{number}]", policy=on_error)
        found = [*map(str, self.loaded.complaints)]
        found += [f"arguments: {name} {text}" for name, text in argument_problems(arguments or {})]
        if found:
            raise HooktrainError("; ".join(found))
        self._open(arguments or {})

    @hookimpl
    def unused_hooks(self) -> Iterable[str]:
        return self._idle()
