"""What sums the gradients over the ranks, where a plugin makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import HooktrainError

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["use_communication_hook"]

_HOOK = "make_communication_hook"


def use_communication_hook(trainer: Trainer) -> None:
    """Ask plugins for what sums the gradients, and have the strategy use it.

    Raises:
        HooktrainError: a plugin has one to offer, and the strategy is another one; or what it made is unusable.
    """
    from hooktrain_torch.strategy import TorchStrategy

    offered = trainer.host.implementations(_HOOK)
    if not offered or trainer.world.world_size == 1:
        return
    names = ", ".join(f"'{one.plugin_name}'" for one in offered)
    strategy = trainer.strategy
    if not isinstance(strategy, TorchStrategy):
        raise HooktrainError(
            f"{_HOOK}: plugin {names} sums gradients in its own way, which the strategy {type(strategy).__name__} does"
            " not ask for; write strategy: torch, or leave the plugin out"
        )
    kind = strategy.config.data_parallel
    made = trainer.hooks.make_communication_hook(trainer=trainer, data_parallel=kind)
    if made is None:
        return
    methods = ("allocate", "__call__") if kind == "fsdp2" else ("__call__",)
    if missing := [name for name in methods if name not in dir(made)]:
        expected = "torch's ReduceScatter" if kind == "fsdp2" else "a function of a bucket"
        raise HooktrainError(
            f"{_HOOK}: plugin {names} returned {type(made).__name__}, which has no {' and no '.join(missing)}; expected"
            f" {expected} for data_parallel: {kind}"
        )
    strategy.use_communication_hook(made)
