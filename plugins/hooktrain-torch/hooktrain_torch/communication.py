"""What sums the gradients over the ranks, where a plugin makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hooktrain import HooktrainError, member

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["use_communication_hook"]

_HOOK = "make_communication_hook"


class _Members:
    """What the strategy ``torch`` has for it, also where a plugin wraps the strategy; others have not."""

    use_communication_hook: Callable[[Any], None] | None = None
    data_parallel = ""


def use_communication_hook(trainer: Trainer) -> None:
    """Ask plugins for what sums the gradients, and have the strategy use it.

    Raises:
        HooktrainError: a plugin has one to offer, and the strategy is another one; or what it made is unusable.
    """
    offered = trainer.host.implementations(_HOOK)
    if not offered or trainer.world.world_size == 1:
        return
    names = ", ".join(f"'{one.plugin_name}'" for one in offered)
    strategy = trainer.strategy
    use = member(strategy, _Members, "use_communication_hook")
    if use is None:
        raise HooktrainError(
            f"{_HOOK}: plugin {names} sums gradients in its own way, which the strategy {type(strategy).__name__} does"
            " not ask for; write strategy: torch, or leave the plugin out"
        )
    kind = member(strategy, _Members, "data_parallel")
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
    use(made)
