"""Private names of transformers, Lightning, TRL, torch and DeepSpeed, and attributes that only some objects have.

Seen to work with transformers 5.23, Lightning 2.6.6, TRL 1.16, torch 2.13. ``tests/plugins/callbacks/test_compat.py``
fails when an upgrade breaks one, and compares the private names in ``lightning_trainer.py`` with Lightning's own
trainer.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hooktrain import Trainer, World

BEMA = "trl.trainer.callbacks.BEMACallback"
LIGHTNING_AVERAGE = "callbacks.weight_averaging.WeightAveraging"

__all__ = [
    "adapted",
    "arguments_class",
    "averages_while_training",
    "averages_whole_weights",
    "close_writer",
    "end_as_failed",
    "monitored_metric",
    "stops_early",
    "supports_step_hooks",
]


@cache
def arguments_class() -> type[Any]:
    """Derive a ``TrainingArguments`` that gets devices and ranks from the engine.

    transformers' own would set up accelerate. Three attributes must be set before ``__init__`` is called:
    ``run_device``, ``run_world`` and ``run_recipe``.
    """
    from transformers import TrainingArguments
    from transformers.training_args import ParallelMode

    class RecipeArguments(TrainingArguments):
        run_device: Any
        run_world: World
        run_recipe: dict[str, Any]

        @property
        def _setup_devices(self) -> torch.device:
            self.distributed_state = None
            self._n_gpu = self.n_gpu
            device: torch.device = self.run_device
            return device

        @property
        def n_gpu(self) -> int:
            return int(self.run_device.type == "cuda")

        @property
        def world_size(self) -> int:
            return self.run_world.world_size

        @property
        def process_index(self) -> int:
            return self.run_world.rank

        @property
        def local_process_index(self) -> int:
            return self.run_world.local_rank

        @property
        def parallel_mode(self) -> Any:
            return ParallelMode.DISTRIBUTED if self.world_size > 1 else ParallelMode.NOT_PARALLEL

        def to_dict(self) -> dict[str, Any]:
            """Return the arguments with the whole recipe, which trackers keep with the run."""
            made: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
            return {**made, "recipe": self.run_recipe}

    return RecipeArguments


def close_writer(callback: Any) -> None:
    """Close the writer of transformers' ``TensorBoardCallback``, whose thread would outlive a failed run."""
    writer = getattr(callback, "tb_writer", None)
    if writer is not None:
        writer.close()


def end_as_failed(callback: Any) -> None:
    """End the tracked run of transformers' MLflow or W&B callback as failed, which would stay open in this process."""
    mlflow, wandb = getattr(callback, "_ml_flow", None), getattr(callback, "_wandb", None)
    if mlflow is not None and getattr(callback, "_auto_end_run", False) and mlflow.active_run():
        mlflow.end_run(status="FAILED")
    if wandb is not None and wandb.run is not None and getattr(callback, "_initialized", False):
        wandb.finish(exit_code=1)


def monitored_metric(callback: Any) -> str:
    """Return the metric that an early-stopping callback watches; transformers' watches one of the evaluation."""
    return str(getattr(callback, "monitor", "eval"))


def stops_early(callback: Any) -> bool:
    """Return whether a callback is transformers' early stopping."""
    return "transformers.trainer_callback.EarlyStoppingCallback" in _names(callback)


def averages_while_training(callback: Any) -> bool:
    """Return whether a callback is Lightning's average of weights, of which evaluations and exports are."""
    return any(name.endswith(LIGHTNING_AVERAGE) for name in _names(callback))


def averages_whole_weights(callback: Any) -> bool:
    """Return whether a callback is TRL's or Lightning's average of weights, which needs them complete on each rank."""
    kinds = (BEMA, LIGHTNING_AVERAGE)
    return any(name.endswith(kinds) for name in _names(callback))


def _names(callback: Any) -> list[str]:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(callback).__mro__]


def supports_step_hooks(trainer: Trainer) -> bool:
    """Return whether the optimizer itself can call events: after clipping, and before gradients are cleared."""
    import torch

    optimizer = trainer.optimizer  # DeepSpeed's derive from torch's without its state
    if not (isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks")):
        return False
    # one that has parameters of its own, as under ZeRO, is stepped for each group of them
    own = {id(parameter) for parameter in trainer.strategy.unwrap(trainer.model).parameters()}
    return all(id(one) in own for group in optimizer.param_groups for one in group["params"])


def adapted(callback: Any) -> Any:
    """Return a callback that works with adapters and resumes, where its own class does not: TRL's ``BEMACallback``."""
    if BEMA in _names(callback) and not isinstance(callback, _Bema):
        kind: Any = type(callback)
        callback.__class__ = _with_state(kind)
        callback.kept = None
    return callback


@cache
def _with_state(kind: Any) -> Any:
    from transformers.trainer_callback import ExportableState

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (_Bema, kind, ExportableState), names)


class _Bema:
    """What replaces methods of TRL's ``BEMACallback``.

    That makes its copy of the model from the configuration, which an adapter does not have there, averages frozen
    weights, and keeps nothing for a resume.
    """

    device: Any
    param_names: list[str]
    thetat_params: list[torch.Tensor]
    theta0_params: list[torch.Tensor]
    ema_params: list[torch.Tensor]
    running_model: Any
    kept: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        import torch

        self.running_model = copy.deepcopy(model).to(self.device)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.param_names, self.thetat_params = list(trained), list(trained.values())
        self.theta0_params = [parameter.detach().clone().to(self.device) for parameter in trained.values()]
        self.ema_params = [start.clone() for start in self.theta0_params]
        if self.kept:
            saved, self.kept = self.kept, None
            with torch.no_grad():
                for name, tensors in (("theta0", self.theta0_params), ("ema", self.ema_params), ("bema", self._bema())):
                    for mine, other in zip(tensors, saved[name], strict=True):
                        mine.copy_(other)

    def _bema(self) -> list[torch.Tensor]:
        return [self.running_model.get_parameter(name) for name in self.param_names]

    def _update_bema_weights(self, step: int) -> None:
        beta, alpha = self._ema_beta(step), self._bema_alpha(step)  # type: ignore[attr-defined]
        for now, start, average, made in zip(
            self.thetat_params, self.theta0_params, self.ema_params, self._bema(), strict=True
        ):
            here = now.detach().to(self.device)
            average.mul_(1 - beta).add_(here, alpha=beta)
            made.copy_(average + alpha * (here - start))

    def state(self) -> dict[str, Any]:
        """As transformers' ``ExportableState`` has it."""
        if not self.param_names:
            return {"args": {}, "attributes": {"kept": self.kept}}
        bema = [tensor.detach() for tensor in self._bema()]
        return {
            "args": {},
            "attributes": {"kept": {"theta0": self.theta0_params, "ema": self.ema_params, "bema": bema}},
        }
