"""Several optimizers, each over parameters of its own, behind one ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

__all__ = ["CombinedOptimizer"]


class CombinedOptimizer(Optimizer):
    """Steps several optimizers in turn.

    ``param_groups`` are theirs one after another, the same mappings, and ``state`` is one for all of them. So whatever
    sets rates, saves, loads or shards an optimizer does so with each of them.

    Args:
        optimizers: no two have a parameter in common.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for each in self.optimizers for group in each.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        for each in self.optimizers:
            each.step()
        return loss

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(dict(state))
        self._share()  # a loaded state has new mappings

    def _share(self) -> None:
        at = 0
        for each in self.optimizers:
            end = at + len(each.param_groups)
            each.__setstate__({"state": self.state, "param_groups": self.param_groups[at:end]})
            at = end
