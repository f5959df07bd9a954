"""Report of trained weights that no gradient reaches in the first window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["UnreachedWeights", "groups"]

_SHOWN = 5


class UnreachedWeights:
    """Notes which weights get a gradient on any rank, and reports the others once, before the first update.

    Such weights stay as they are, like a vision tower that is trained on text. A gradient is seen when it arrives, as
    ZeRO keeps none, and afterwards, as FSDP2 computes with other tensors.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._weights = {
            name: weight
            for name, weight in trainer.strategy.unwrap(trainer.model).named_parameters()
            if weight.requires_grad
        }
        self._reached: set[str] = set()
        self._hooks: list[Any] = []
        for name, weight in self._weights.items():
            register: Any = weight.register_hook
            self._hooks.append(register(self._noting(name)))

    def _noting(self, name: str) -> Any:
        def note(gradient: Any) -> None:
            self._reached.add(name)

        return note

    def report(self, trainer: Trainer) -> None:
        """Say which weights have no gradient, by group. Collective."""
        for hook in self._hooks:
            hook.remove()
        mine = [name in self._reached or weight.grad is not None for name, weight in self._weights.items()]
        counts = trainer.strategy.sum_numbers([float(reached) for reached in mine])
        missing = [name for name, count in zip(self._weights, counts, strict=True) if not count]
        if not missing:
            return
        found = groups(missing, self._weights.keys() - set(missing))
        listed = ", ".join(f"{group} ({count})" for group, count in list(found.items())[:_SHOWN])
        trainer.say(
            f"model: no gradient reached {len(missing):,} of {len(self._weights):,} trained weights in the first step:"
            f" {listed}{', ...' if len(found) > _SHOWN else ''}; they stay as they are while the data does not use them"
        )


def groups(missing: Collection[str], reached: Collection[str]) -> Counter[str]:
    """Count names by the outermost module without a reached weight, or by themselves."""
    inside = {name[:at] for name in reached for at in range(len(name)) if name[at] == "."}
    made: Counter[str] = Counter()
    for name in missing:
        ends = (at for at in range(len(name)) if name[at] == "." and name[:at] not in inside)
        made[name[: next(ends, len(name))]] += 1
    return made
