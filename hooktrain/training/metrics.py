"""Sums between two log lines. They stay on the device; :meth:`Meter.read` is the only place that waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hooktrain.protocols import Strategy
from hooktrain.types import PerSecond, StepOutput

__all__ = ["OWN_METRICS", "Meter"]

OWN_METRICS = frozenset(
    "step epoch loss lr grad_norm tokens supervised_tokens tokens_per_second step_seconds skipped_steps".split()  # noqa: SIM905
)
"""What the engine logs itself."""

_MOST = 1024
"""Steps after which the losses are added up without being read."""


class Meter:
    """Sums since the last log line.

    Attributes:
        totals: each step's undivided loss on this rank, shape (), on the device; added up only when
            read, since an addition a step would cost a small model more than keeping them.
        sums: what else the losses of this rank's micro-batches had to log, kept in the same way.
        denominator: what the sums are divided by, of all ranks.
        denominators: what those of terms of the loss are divided by that have a denominator of their own.
        tokens: tokens of all ranks, padding excluded.
        steps: optimizer steps.
        grad_norm: of the latest step.
        times: names of metrics that depend on the time that steps took.
    """

    def __init__(self) -> None:
        self.times = {"tokens_per_second", "step_seconds"}
        self.reset()

    def reset(self) -> None:
        """Begin anew, after a log line."""
        self.totals: list[Tensor] = []
        self.sums: dict[str, list[Tensor]] = {}
        self.denominator = 0.0
        self.denominators: dict[str, float] = {}
        self.tokens = self.steps = 0
        self.grad_norm: Tensor | float | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time before now is not training time."""
        self.paused = 0.0
        self.started = time.perf_counter()

    def unlogged(self, strategy: Strategy) -> dict[str, Any]:
        """Return the sums since the last log line as plain values, which waits for the device. Collective.

        They are added up on the way, so that a run that is not disturbed adds in the same order as one that resumes.
        """
        if not self.totals:
            return {}
        self.totals, self.sums = [_added(self.totals)], {name: [_added(found)] for name, found in self.sums.items()}
        mine = _stacked([self.totals[0], *(found[0] for found in self.sums.values())], strategy).tolist()
        norm = self.grad_norm.item() if isinstance(self.grad_norm, Tensor) else self.grad_norm
        found = {"names": list(self.sums), "ranks": strategy.gather_objects(mine), "grad_norm": norm}
        return {**found, "denominator": self.denominator, "denominators": dict(self.denominators)}

    def take_up(self, unlogged: Mapping[str, Any], strategy: Strategy) -> None:
        """Go on from what :meth:`unlogged` returned in the run that is resumed, on any number of ranks."""
        self.reset()
        if not unlogged:
            return
        ranks, world = unlogged["ranks"], strategy.world
        if len(ranks) == world.world_size:
            mine = ranks[world.rank]
        else:
            mine = [sum(values) if world.is_main else 0.0 for values in zip(*ranks, strict=True)]
        total, *sums = torch.tensor(mine, device=strategy.device).unbind()
        self.totals, self.denominator = [total], unlogged["denominator"]
        self.denominators = dict(unlogged.get("denominators", {}))
        self.sums = {name: [value] for name, value in zip(unlogged["names"], sums, strict=True)}
        self.grad_norm = unlogged["grad_norm"]

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside (evaluating, saving, logging) is not training time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - began

    def add(
        self,
        output: StepOutput,
        denominator: float,
        tokens: int,
        sums: Sequence[Mapping[str, Tensor]] = (),
        denominators: Mapping[str, float] = {},
    ) -> None:
        """Take up one step; a step that was left out adds time and tokens but no loss."""
        self.steps += 1
        self.tokens += tokens
        if output.stepped:
            self.totals.append(output.total)
            if len(self.totals) == _MOST:
                self.totals = [_added(self.totals)]
            for found in sums:
                for name, value in found.items():
                    kept = self.sums.setdefault(name, [])
                    kept.append(value)
                    if len(kept) == _MOST:
                        self.sums[name] = [_added(kept)]
            self.denominator += denominator
            for name, number in denominators.items():
                self.denominators[name] = self.denominators.get(name, 0.0) + number
            self.grad_norm = output.grad_norm

    def added(self) -> dict[str, Tensor]:
        """Return the sums of this rank since the last log line, shape () each, on the device."""
        self.sums = {name: [_added(values)] for name, values in self.sums.items()}
        return {name: values[0] for name, values in self.sums.items()}

    def total(self, strategy: Strategy) -> Tensor:
        """Undivided loss of this rank since the last log line, shape (), on the device."""
        if not self.totals:
            return torch.zeros((), device=strategy.device)
        return _added(self.totals)

    def read(self, strategy: Strategy, extra: Mapping[str, Any]) -> dict[str, float]:
        """Bring everything to the host, waiting for the device once.

        Args:
            strategy: sums over ranks.
            extra: other metrics: numbers, tensors of shape () and amounts :class:`~hooktrain.PerSecond`.

        Returns:
            ``loss`` and the other means, ``grad_norm``, ``tokens_per_second``, ``step_seconds``
            and the extra ones as floats; a mean or norm that there is none of is left out.
        """
        waiting: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        means = {"loss": self.total(strategy), **{name: _added(values) for name, values in self.sums.items()}}
        if strategy.world.world_size > 1:
            means = dict(zip(means, strategy.sum_tensor(_stacked(means.values(), strategy)), strict=True))
        found = {**(means if self.denominator else {}), "grad_norm": self.grad_norm, **extra}
        for name, value in found.items():
            if isinstance(value, PerSecond):
                continue
            if isinstance(value, Tensor):
                if value.is_cpu:
                    numbers[name] = float(value.item())
                else:
                    waiting[name] = value
            elif value is not None:
                numbers[name] = float(value)
        if waiting:
            numbers.update(zip(waiting, _stacked(waiting.values(), strategy).tolist(), strict=True))
        for name in means.keys() & numbers.keys():
            divisor = self.denominators.get(name, self.denominator)
            if divisor:
                numbers[name] /= divisor
            else:
                del numbers[name]
        if self.steps:
            seconds = time.perf_counter() - self.started - self.paused
            numbers["tokens_per_second"] = self.tokens / seconds
            numbers["step_seconds"] = seconds / self.steps
            amounts = {name: value.amount for name, value in extra.items() if isinstance(value, PerSecond)}
            numbers.update({name: amount / seconds for name, amount in amounts.items()})
            self.times.update(amounts)
        return numbers


def _added(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum()


def _stacked(values: Iterable[Tensor], strategy: Strategy) -> Tensor:
    """Values of shape () as one tensor on the strategy's device."""
    return torch.stack([value.detach().float().reshape(()).to(strategy.device) for value in values])
