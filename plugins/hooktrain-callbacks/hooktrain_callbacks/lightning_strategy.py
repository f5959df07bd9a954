"""Proxy for Lightning's strategy: devices and collectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hooktrain_callbacks.proxy import RunProxy

if TYPE_CHECKING:
    import torch
    from torch import Tensor


__all__ = ["LightningStrategy"]


class LightningStrategy(RunProxy):
    """Devices and collectives of the run's own strategy; as in Lightning, all ranks must call a collective."""

    path = "trainer.strategy"
    launcher = None
    handles_gradient_accumulation = False
    zero_stage_3 = False

    @property
    def root_device(self) -> torch.device:
        device: torch.device = self.run.device
        return device

    @property
    def model(self) -> Any:
        return self.run.model

    @property
    def optimizers(self) -> list[Any]:
        return [self.run.optimizer]

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return whether the decision is true on all ranks, or on any of them. Collective."""
        (yes,) = self.run.strategy.sum_numbers([int(bool(decision))])
        return bool(yes == self.world_size if all else yes > 0)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return a plain value of one rank. Collective."""
        return obj if self.world_size == 1 else self.run.strategy.gather_objects(obj)[src]

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks. Collective."""
        self.run.strategy.barrier()

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str | None = "mean") -> Tensor:
        """Return the sum or mean of a tensor over ranks. Collective."""
        import torch

        tensor = torch.as_tensor(tensor, device=self.root_device)
        total: Tensor = self.run.strategy.sum_tensor(tensor.clone())
        return total / self.world_size if str(reduce_op).lower() in ("mean", "avg") else total

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the tensors of all ranks, in a new first dimension. Collective."""
        import torch

        room = torch.zeros((self.world_size, *tensor.shape), dtype=tensor.dtype, device=self.root_device)
        room[self.global_rank] = tensor
        gathered: Tensor = self.run.strategy.sum_tensor(room)
        return gathered
