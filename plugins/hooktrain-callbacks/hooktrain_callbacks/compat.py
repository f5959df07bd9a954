"""Private names of transformers, Lightning, torch and DeepSpeed, and attributes that only some objects have.

Seen to work with transformers 5.23, Lightning 2.6.6 and torch 2.13. ``tests/plugins/callbacks/test_compat.py`` fails
when an upgrade breaks one, and compares the private names in ``lightning_trainer.py`` with Lightning's own trainer.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hooktrain import Trainer, World

__all__ = [
    "arguments_class",
    "close_writer",
    "monitored_metric",
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


def monitored_metric(callback: Any) -> str:
    """Return the metric that an early-stopping callback watches; transformers' watches one of the evaluation."""
    return str(getattr(callback, "monitor", "eval"))


def supports_step_hooks(trainer: Trainer) -> bool:
    """Return whether the optimizer itself can call events: after clipping, and before gradients are cleared."""
    import torch

    optimizer = trainer.optimizer  # DeepSpeed's derive from torch's without its state
    if not (isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks")):
        return False
    # one that has parameters of its own, as under ZeRO, is stepped for each group of them
    own = {id(parameter) for parameter in trainer.strategy.unwrap(trainer.model).parameters()}
    return all(id(one) in own for group in optimizer.param_groups for one in group["params"])
