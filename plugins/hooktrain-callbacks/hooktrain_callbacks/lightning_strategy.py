"""What stands for Lightning's strategy: devices and collectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hooktrain_callbacks.standin import StandIn

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hooktrain import Trainer
    from hooktrain_callbacks.slots import Slots

__all__ = ["LightningStrategy"]


class LightningStrategy(StandIn):
    """Collectives go through the run's own strategy; as in Lightning, all ranks must take part."""

    path = "trainer.strategy"
    launcher = None
    handles_gradient_accumulation = False
    zero_stage_3 = False
    _run: Any = None

    def __init__(self, slots: Slots, run: Trainer) -> None:
        super().__init__(slots)
        self._put(_run=run)

    @property
    def root_device(self) -> torch.device:
        device: torch.device = self._run.device
        return device

    @property
    def model(self) -> Any:
        return self._run.model

    @property
    def optimizers(self) -> list[Any]:
        return [self._run.optimizer]

    @property
    def is_global_zero(self) -> bool:
        return bool(self._run.world.is_main)

    @property
    def global_rank(self) -> int:
        return int(self._run.world.rank)

    @property
    def local_rank(self) -> int:
        return int(self._run.world.local_rank)

    @property
    def world_size(self) -> int:
        return int(self._run.world.world_size)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all ranks say yes, or any of them. Collective."""
        (yes,) = self._run.strategy.sum_numbers([int(bool(decision))])
        return bool(yes == self.world_size if all else yes > 0)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """A plain value of one rank. Collective."""
        return obj if self.world_size == 1 else self._run.strategy.gather_objects(obj)[src]

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks. Collective."""
        self._run.strategy.barrier()

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str | None = "mean") -> Tensor:
        """Sum or mean of a tensor over ranks. Collective."""
        import torch

        tensor = torch.as_tensor(tensor, device=self.root_device)
        total: Tensor = self._run.strategy.sum_tensor(tensor.clone())
        return total / self.world_size if str(reduce_op).lower() in ("mean", "avg") else total

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """The tensor of every rank, with a new first dimension. Collective."""
        import torch

        room = torch.zeros((self.world_size, *tensor.shape), dtype=tensor.dtype, device=self.root_device)
        room[self.global_rank] = tensor
        gathered: Tensor = self._run.strategy.sum_tensor(room)
        return gathered
