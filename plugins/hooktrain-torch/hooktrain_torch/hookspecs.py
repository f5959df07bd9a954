"""The hook ``make_communication_hook``, with which a plugin sums the gradients over the ranks in its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hooktrain import hookspec

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["make_communication_hook"]


@hookspec(firstresult=True)
def make_communication_hook(trainer: Trainer, data_parallel: str) -> Any:
    """Make what sums the gradients over the ranks, as to send them compressed.

    Called: by the strategy ``torch``, once, in its ``on_train_start``, with two ranks or more.
    Ranks: every rank.
    Device: may use it.

    Args:
        trainer: the trainer, with its model, optimizer and strategy.
        data_parallel: ``ddp`` or ``fsdp2``, which decides what is expected.

    Returns:
        For ``ddp`` a function of a bucket, a ``torch.distributed.GradBucket``, that returns a ``torch.futures.Future``
        of its **sum** over the ranks, shape (gradients of the bucket,). Hooks of ``torch.distributed.algorithms``
        return the mean: multiply theirs by the number of ranks. For ``fsdp2`` an object with the methods of torch's
        ``ReduceScatter``, which ``FSDPModule.set_custom_reduce_scatter`` takes. None leaves the work to the next
        plugin. State that it keeps between steps, such as an error that is fed back, belongs into ``collect_state``.

    Default: ``all_reduce`` of each bucket, and torch's own reduce-scatter.
    """
