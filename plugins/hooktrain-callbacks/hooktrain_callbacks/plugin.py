"""The plugin ``callbacks``, which reads the recipe, and ``Callbacks``, which takes objects from Python."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain import Complaint, HooktrainError, PluginInfo, hookimpl, save_exports_within
from hooktrain_callbacks.arguments import argument_problems
from hooktrain_callbacks.compat import averages_while_training
from hooktrain_callbacks.config import CallbacksConfig
from hooktrain_callbacks.events import needed_hooks, unused_hooks
from hooktrain_callbacks.loading import LoadResult, add, load, stops_too_late

if TYPE_CHECKING:
    from torch import Tensor

    from hooktrain import Batch, LossSum, Recipe, Trainer, TrainerState

__all__ = ["Callbacks", "CallbacksPlugin"]


class _CallbackHooks:
    """Passes each hook on to the bridges; hooks that no callback needs are removed before the run."""

    # its wrappers of loop hooks only observe; callbacks are other people's code, and may change the model
    hooktrain_plugin = PluginInfo(only_observes=True, may_change=("*",))

    def __init__(self) -> None:
        self.loaded = LoadResult()
        self.bridges: list[Any] = []

    def _open(self, arguments: Mapping[str, Any]) -> None:
        """Build the bridges that the loaded callbacks need."""
        by_package: dict[str, list[Any]] = {}
        for loaded in self.loaded.callbacks:
            by_package.setdefault(loaded.package, []).append(loaded)
        self.bridges = []
        for package, callbacks in by_package.items():
            if package == "transformers":
                from hooktrain_callbacks.transformers_bridge import TransformersBridge

                self.bridges.append(TransformersBridge(callbacks, arguments))
            else:
                from hooktrain_callbacks.lightning_bridge import LightningBridge

                self.bridges.append(LightningBridge(callbacks))

    def _unused(self) -> set[str]:
        found = unused_hooks(
            hook for loaded in self.loaded.callbacks for hook in needed_hooks(loaded.package, loaded.events)
        )
        averages = any(averages_while_training(loaded.callback) for loaded in self.loaded.callbacks)
        return found if averages else {*found, "save_checkpoint"}

    def _call(self, hook: str, *arguments: Any) -> list[Any]:
        methods = (getattr(bridge, hook, None) for bridge in self.bridges)
        return [method(*arguments) for method in methods if method is not None]

    # ------------------------------------------------------------------------------------------------- run, epoch

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        for note in (*self.loaded.notes, *stops_too_late(self.loaded.callbacks, trainer)):
            trainer.host.warn(note)
        self._call("on_train_start", trainer)

    @hookimpl
    def on_epoch_start(self) -> None:
        self._call("on_epoch_start")

    @hookimpl
    def on_epoch_end(self) -> None:
        self._call("on_epoch_end")

    @hookimpl(wrapper=True)
    def run_train(self) -> Generator[None, Any, Any]:
        state: TrainerState = yield
        self._call("on_run_end")
        return state

    @hookimpl
    def on_train_end(self) -> None:
        self._call("on_train_end")

    @hookimpl
    def on_exception(self, exception: BaseException) -> None:
        self._call("on_exception", exception)

    @hookimpl
    def on_teardown(self) -> None:
        self._call("on_teardown")

    # ------------------------------------------------------------------------------------------------------- step

    @hookimpl
    def on_step_start(self) -> None:
        self._call("on_step_start")

    @hookimpl
    def on_step_end(self) -> None:
        self._call("on_step_end")

    @hookimpl
    def on_microbatch_start(self, batch: Batch) -> None:
        self._call("on_microbatch_start", batch)

    @hookimpl
    def on_microbatch_end(self, batch: Batch, loss: LossSum) -> None:
        self._call("on_microbatch_end", batch, loss)

    @hookimpl(wrapper=True)
    def run_backward(self, loss: Tensor) -> Generator[None, Any, Any]:
        self._call("on_backward_start", loss)
        done: Tensor = yield
        self._call("on_backward_end")
        return done

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch) -> Generator[None, Any, Any]:
        self._call("on_loss_start", batch)
        loss: LossSum = yield
        self._call("on_loss_end", batch, loss)
        return loss

    @hookimpl
    def on_optimizer_step_start(self) -> None:
        self._call("on_optimizer_step_start")

    @hookimpl
    def on_optimizer_step_end(self) -> None:
        self._call("on_optimizer_step_end")

    # ---------------------------------------------------------------------------------- evaluation, logs, checkpoints

    @hookimpl
    def on_evaluate_start(self) -> None:
        self._call("on_evaluate_start")

    @hookimpl
    def on_evaluate_end(self, metrics: Mapping[str, float]) -> None:
        self._call("on_evaluate_end", metrics)

    @hookimpl
    def collect_metrics(self) -> Mapping[str, Any]:
        return {name: value for metrics in self._call("collect_metrics") for name, value in metrics.items()}

    @hookimpl
    def on_log(self, metrics: Mapping[str, float]) -> None:
        self._call("on_log", metrics)

    @hookimpl(wrapper=True)
    def save_checkpoint(self, trainer: Trainer) -> Generator[None, Any, Any]:
        """Have exports hold averaged weights, as evaluations do; a checkpoint to resume from holds those trained on."""
        return (yield from save_exports_within(trainer, self._averaged_weights()))

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        with ExitStack() as stack:
            for swapped in self._call("averaged_weights"):
                stack.enter_context(swapped)
            yield

    @hookimpl
    def on_checkpoint_end(self, path: Path) -> None:
        self._call("on_checkpoint_end", path)

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {type(bridge).__name__: bridge.collect_state() for bridge in self.bridges}

    @hookimpl
    def restore_state(self, state: Mapping[str, Any]) -> None:
        for bridge in self.bridges:
            if type(bridge).__name__ in state:
                bridge.restore_state(state[type(bridge).__name__])


class CallbacksPlugin(_CallbackHooks):
    """The callbacks that the recipe names under ``callbacks``."""

    hooktrain_plugin = PluginInfo(
        only_observes=True,
        may_change=("*",),
        active_when=lambda recipe: recipe.settings["callbacks"] != CallbacksConfig(),
    )

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"callbacks": CallbacksConfig}}

    @hookimpl
    def unused_hooks(self, recipe: Recipe) -> Iterable[str]:
        config = recipe.settings["callbacks"]
        self.loaded = load(config.use)
        self._open(config.arguments)
        return self._unused()

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Sequence[Complaint]:
        problems = argument_problems(recipe.settings["callbacks"].arguments)
        arguments = [Complaint(f"callbacks.arguments.{name}".rstrip("."), text) for name, text in problems]
        return [*self.loaded.complaints, *arguments]


class Callbacks(_CallbackHooks):
    """Plugin of callbacks of transformers and Lightning, for a run from Python.

    Args:
        callbacks: instances.
        arguments: fields of transformers' ``TrainingArguments``, as under ``callbacks.arguments`` in a recipe.
        on_error: what happens when one fails: ``stop``, ``disable`` or ``warn``; by default it depends on the class.

    Raises:
        HooktrainError: for callbacks that cannot work here, all of them at once.
    """

    def __init__(
        self, *callbacks: Any, arguments: Mapping[str, Any] | None = None, on_error: str | None = None
    ) -> None:
        super().__init__()
        for number, callback in enumerate(callbacks):
            add(self.loaded, callback, f"Callbacks[{number}]", policy=on_error)
        found = [*map(str, self.loaded.complaints)]
        found += [f"arguments: {name} {text}" for name, text in argument_problems(arguments or {})]
        if found:
            raise HooktrainError("; ".join(found))
        self._open(arguments or {})

    @hookimpl
    def unused_hooks(self) -> Iterable[str]:
        return self._unused()
