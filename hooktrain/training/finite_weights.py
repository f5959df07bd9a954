"""Weights are finite before they are saved or exported, so that no checkpoint of NaN ever takes a good one's place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hooktrain.compat import inner_tensors
from hooktrain.errors import NonFiniteError, failure_of

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["FiniteWeights", "is_finite"]


class FiniteWeights:
    """Looks at every weight and buffer that a checkpoint would hold: one pass on the device, and one wait for it.

    A mask may hold an infinity as it was built, and so may weights that nobody trains hold anything. What is NaN or
    infinite at the beginning may stay so, but a weight that is trained is never NaN.

    Attributes:
        as_built: weights that were not finite when the run began, each with ``nan`` or ``inf``; equal on all ranks.
    """

    def __init__(self) -> None:
        self.as_built: Mapping[str, str] | None = None

    def note(self, trainer: Trainer) -> None:
        """Note what is not finite before the first step. Collective."""
        if self.as_built is None:
            trained = {name for name, p in _bare(trainer).named_parameters() if p.requires_grad}
            found = {name: kind for name, (kind, _) in _not_finite(trainer).items()}
            self.as_built = {name: kind for name, kind in found.items() if kind == "inf" or name not in trained}

    def require(self, trainer: Trainer) -> None:
        """Refuse to continue with weights that are not finite. Collective.

        Raises:
            NonFiniteError: on all ranks, naming one of them.
        """
        self.note(trainer)
        before = self.as_built or {}
        found = {
            name: (kind, rank)
            for name, (kind, rank) in _not_finite(trainer).items()
            if name not in before or (kind, before[name]) == ("nan", "inf")
        }
        if not found:
            return
        (name, (kind, rank)), *others = found.items()
        several = f" (and {len(others):,} more weights)" if others else ""
        saved = trainer.saving.last
        good = f"resume from {saved}, which is" if saved else "earlier checkpoints are"
        problem = NonFiniteError(
            f"step {trainer.global_step}: the weight {name}{several} holds {_WORDS[kind]}, expected finite numbers, so"
            f" nothing is saved or exported; {good} as before, lower optimizer.lr, or check the data and the plugins"
            " that change weights"
        )
        failure_of(problem).rank = rank
        raise problem

    def before_save(self, trainer: Trainer) -> None:
        """Call :meth:`require` where a plugin does the work of ``save_checkpoint``.

        The default does so itself, so that what a wrapper exchanges for the save is looked at too.
        """
        found = trainer.host.implementations("save_checkpoint")
        if any(not one.wrapper and not trainer.host.is_own(one) for one in found):
            self.require(trainer)


_WORDS = {"nan": "NaN", "inf": "an infinity"}


def _bare(trainer: Trainer) -> torch.nn.Module:
    return trainer.strategy.unwrap(trainer.trained)


def _not_finite(trainer: Trainer) -> dict[str, tuple[str, int]]:
    """Return the weights and buffers that hold NaN or an infinity, each with which and on which rank. Collective."""
    extremes: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor]]] = {}
    with torch.no_grad():
        for shard in trainer.strategy.trained_state(trainer.trained, trainer.optimizer).model:
            for values in _numbers(shard.values.detach()):
                least_and_most = torch.stack(tuple(torch.aminmax(values)))  # both are NaN where one of them is
                extremes.setdefault((values.device, values.dtype), []).append((shard.name, least_and_most))
    mine: dict[str, str] = {}
    for found in extremes.values():
        pairs = torch.stack([pair for _, pair in found]).tolist()  # the only wait for the device
        for (name, _), pair in zip(found, pairs, strict=True):
            if any(map(math.isnan, pair)):
                mine[name] = "nan"
            elif any(map(math.isinf, pair)):
                mine.setdefault(name, "inf")
    everywhere: dict[str, tuple[str, int]] = {}
    for rank, theirs in enumerate(trainer.strategy.gather_objects(mine)):
        for name, kind in theirs.items():
            if name not in everywhere or (kind, everywhere[name][0]) == ("nan", "inf"):
                everywhere[name] = (kind, rank)
    return everywhere


def is_finite(value: Tensor) -> bool:
    """Return whether a weight or buffer holds neither NaN nor an infinity, which waits for its device."""
    with torch.no_grad():
        return all(bool(torch.stack(torch.aminmax(each)).isfinite().all()) for each in _numbers(value.detach()))


def _numbers(values: Tensor) -> Iterator[Tensor]:
    """Yield the tensors of floating-point numbers that a weight consists of, in types that have a smallest element."""
    inner = inner_tensors(values)
    if inner:
        for part in inner:
            yield from _numbers(part)
    elif values.layout is not torch.strided:
        yield from _numbers((values.coalesce() if values.layout is torch.sparse_coo else values).values())
    elif values.is_meta or not values.numel() or not (values.is_floating_point() or values.is_complex()):
        return
    else:
        values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values.as_subclass(Tensor)
        yield values.float() if values.element_size() == 1 else values
