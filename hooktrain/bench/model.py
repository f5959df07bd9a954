"""What a suite is made of: cases, their sides, the metrics that are read off a run, and what is to be reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

from hooktrain.bench.environments import Peer

if TYPE_CHECKING:
    from hooktrain.bench.bootstrap import Interval
    from hooktrain.bench.subprocesses import Runner

__all__ = [
    "CPU_SECONDS",
    "DEVICE_MEMORY",
    "DEVICE_SECONDS",
    "PEAK_MEMORY",
    "SECONDS",
    "Case",
    "Comparison",
    "Context",
    "Findings",
    "TargetLike",
    "Measured",
    "Metric",
    "Variant",
    "Skip",
    "Suite",
]

Findings = dict[str, Any]
"""What one run of a side found; or ``failed``, why there is nothing, with ``absent`` where it could not be tried, as a
peer is not installed; and ``others``, see :class:`Runner`."""

Measured = Mapping[str, Sequence[Findings]]
"""What was found in each run of each side."""


class Skip(Exception):
    """Raised by a suite that cannot be measured here; says why in one line."""


@attrs.frozen
class Metric:
    """A number that is read off each run of a side.

    Attributes:
        name: what it is called, and the key of the findings that holds it unless ``read`` is given.
        unit: as it is printed, such as ``s``, ``tok/s``, ``MiB``.
        better: whether ``lower`` or ``higher`` is better; None for a number that is neither.
        read: given the findings of a run and how many first steps are thrown away, returns the number. When left out, a
            list with an entry for each step is reduced to the median of what is left after those steps.
        scale: what the number is multiplied with, such as 1e6 for seconds printed in µs.
        exact: whether it repeats from run to run (a count, a size), so that one run is enough for a verdict.
        undisturbed: the same by processor time, which is told as well where other programs disturbed a timing.
    """

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = "lower"
    read: Callable[[Findings, int], float] | None = attrs.field(default=None, eq=False, kw_only=True)
    scale: float = attrs.field(default=1.0, kw_only=True)
    exact: bool = attrs.field(default=False, kw_only=True)
    undisturbed: Metric | None = attrs.field(default=None, eq=False, kw_only=True)

    def of(self, findings: Findings, warmup_steps: int = 0) -> float:
        """The number of one run.

        Raises:
            KeyError: when the findings do not hold it.
        """
        if self.read is not None:
            return self.read(findings, warmup_steps) * self.scale
        found = findings[self.name]
        if isinstance(found, list | tuple):
            found = statistics.median(found[warmup_steps:] or found)
        return float(found) * self.scale

    def has(self, findings: Findings) -> bool:
        """Whether a run found it."""
        return self.read is not None or findings.get(self.name) is not None


CPU_SECONDS = Metric("cpu_seconds", "s")
"""Processor time of a call, or the median over a driver's steps."""
SECONDS = Metric("seconds", "s", undisturbed=CPU_SECONDS)
"""Wall time of the same."""
DEVICE_SECONDS = Metric("device_seconds", "s")
"""Time between two events on the GPU's stream, the first before and the second after."""
PEAK_MEMORY = Metric("peak_mib", "MiB")
"""The most memory that the process held; of a side in a process of its own, unless the case says otherwise."""
DEVICE_MEMORY = Metric("device_peak_mib", "MiB")
"""The most memory of the GPU that torch had given out."""


@attrs.frozen
class Variant:
    """A set-up that is compared with others: a function, or a driver in a process of its own.

    Attributes:
        name: unique in its case.
        function: called with the case's parameters as keywords, preceded by what ``prepare`` returned. What it takes is
            measured from outside. It may return findings of its own, which win over those.
        prepare: called with the parameters before each run; its time does not count.
        isolated: whether each run of the function has a process of its own, where it is imported anew by name.
        driver: a module to be run in a process of its own, see ``hooktrain.bench.driver``.
        specification: what the driver reads.
        peer: the environment to run the driver in; None for hooktrain's own.
        after: another side, whose caches a driver finds; caches are empty otherwise.
        environment: variables for the process.
    """

    name: str
    function: Callable[..., Mapping[str, Any] | None] | None = None
    prepare: Callable[..., Any] | None = attrs.field(default=None, kw_only=True)
    isolated: bool = attrs.field(default=False, kw_only=True)
    driver: str | None = attrs.field(default=None, kw_only=True)
    specification: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    peer: Peer | None = attrs.field(default=None, kw_only=True)
    after: str | None = attrs.field(default=None, kw_only=True)
    environment: Mapping[str, str] = attrs.field(factory=dict, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if (self.function is None) == (self.driver is None):
            given = "both" if self.driver else "neither"
            raise ValueError(f"side '{self.name}': given {given} a function and a driver, expected one of them")
        if self.isolated and self.function is not None:
            name = getattr(self.function, "__qualname__", "?")
            if "<" in name or "." in name or self.prepare is not None:
                raise ValueError(
                    f"side '{self.name}': an isolated function is imported by name in another process, given {name}"
                    f"{' with prepare' if self.prepare else ''}; move it to the top of a module, and prepare inside it"
                )


class TargetLike(Protocol):
    """What is to be reached in a case; :class:`hooktrain.bench.Target` compares one side with another or a limit."""

    @property
    def name(self) -> str:
        """Unique in the case."""

    def judge(self, case: Case, measured: Measured) -> Comparison:
        """Compare what was measured."""


def _as_sides(given: Any) -> tuple[Variant, ...]:
    if isinstance(given, Mapping):
        return tuple(side if isinstance(side, Variant) else Variant(name, side) for name, side in given.items())
    return tuple(given)


def _as_metrics(given: Iterable[Metric]) -> tuple[Metric, ...]:
    return tuple(given)


def _as_targets(given: Iterable[TargetLike]) -> tuple[TargetLike, ...]:
    return tuple(given)


@attrs.frozen(kw_only=True)
class Case:
    """Sides that take turns, forth and back.

    Attributes:
        name: unique in its suite.
        sides: a tuple of sides, or a mapping of names to functions.
        parameters: what the functions get as keywords, and what a plot may be drawn over.
        baseline: the side that the others are compared with; the last one when left out.
        metrics: what is read off each run.
        targets: what is to be reached.
        rounds: each side runs twice in one, forth and back; the command line's ``--rounds`` wins, and 5 is the default.
        warmup: how often each function is called before anything counts; drivers warm up inside.
        warmup_steps: the first entries of a driver's lists that do not count.
        calls: how often a function is called in one run, whose figure is the mean; None for as many as fill 50 ms.
        compare: whether every side is compared with the baseline in every metric, besides the targets.
        recipe: what is trained, for the record.
        about: a line on what is compared.
    """

    name: str
    sides: tuple[Variant, ...] = attrs.field(converter=_as_sides)
    parameters: Mapping[str, Any] = attrs.field(factory=dict)
    baseline: str = attrs.field(default="")
    metrics: tuple[Metric, ...] = attrs.field(default=(SECONDS,), converter=_as_metrics)
    targets: tuple[TargetLike, ...] = attrs.field(default=(), converter=_as_targets)
    rounds: int | None = None
    warmup: int = 1
    warmup_steps: int = 0
    calls: int | None = 1
    compare: bool = True
    recipe: Mapping[str, Any] | None = None
    about: str = ""

    def __attrs_post_init__(self) -> None:
        names = [side.name for side in self.sides]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"case '{self.name}': given the sides {names}, expected at least one, with different names"
            )
        if not self.baseline:
            object.__setattr__(self, "baseline", names[-1])
        if self.baseline not in names:
            raise ValueError(f"case '{self.name}': the baseline '{self.baseline}' is no side of it; there are {names}")


@attrs.frozen(kw_only=True)
class Context:
    """What the cases of a suite are made for.

    Attributes:
        quick: whether only to show that everything works: as small and short as can be.
        folder: for what is written; it is deleted afterwards.
        envs: where peers' environments and other downloads are kept.
        threads: cores that are used, and threads that drivers should use.
        runner: runs a driver before anything is measured, to prepare what is measured with.
        selected: names of the cases that were asked for; None for all.
        options: ``--set key=value`` words of the command line, for a suite's own settings; those that the suite names.
        made: names of the cases that the suite made, asked for or not.
    """

    quick: bool
    folder: Path
    envs: Path
    threads: int
    runner: Runner
    selected: frozenset[str] | None = None
    options: Mapping[str, str] = attrs.field(factory=dict)
    made: set[str] = attrs.field(factory=set, init=False)

    def whole_number(self, option: str, default: int) -> int:
        """A setting that is a count.

        Raises:
            BenchError: when it was given as something else.
        """
        from hooktrain.bench.errors import BenchError

        given = self.options.get(option, str(default))
        if not given.isdecimal():
            raise BenchError(f"--set {option}: given '{given}', expected a whole number, such as {default}")
        return int(given)

    def wants(self, case: str) -> bool:
        """Whether a case was asked for; what is dear to prepare for another one need not be."""
        return self.selected is None or case in self.selected


@attrs.frozen(kw_only=True)
class Suite:
    """What a plugin contributes through ``register_benchmarks``.

    Attributes:
        name: as it is asked for on the command line.
        summary: one line.
        cases: the cases, or a function that makes them, given a :class:`Context`; called only when the suite runs. A
            generator may prepare what each case needs just before it. :class:`Skip` raised in it says why nothing can
            be measured.
        over: the parameter over which the plot draws lines; without it the plot shows ratios to the baseline.
        options: settings of its own that ``--set`` may give, each with a line on what it is.
    """

    name: str
    summary: str
    cases: Sequence[Case] | Callable[[Context], Iterable[Case]]
    over: str | None = None
    options: Mapping[str, str] = attrs.field(factory=dict)

    def make(self, context: Context) -> Iterator[Case]:
        """The cases that were asked for."""
        for case in self.cases(context) if callable(self.cases) else self.cases:
            context.made.add(case.name)
            if context.wants(case.name):
                yield case


@attrs.frozen(kw_only=True)
class Comparison:
    """One line of a table: a side beside another one, or beside a limit.

    Attributes:
        name: of the target, or of the side.
        metric, unit: what was read off the runs.
        side, to: who is compared; ``to`` is empty where the side's own number is what counts.
        ours, theirs: medians over the runs, in ``unit``; None where there is none.
        kind: what ``figure`` is: a ``ratio`` of ours to theirs, a ``difference`` (ours less theirs) or the ``value``.
        figure: with the interval that holds 95% of bootstrap samples.
        limit: what is to be reached, such as ``<= 1.10``; empty where nothing is.
        verdict: of a target ``reached`` or ``missed``; without one ``better``, ``worse``, ``alike`` or, where a metric
            has no better, ``differs``; ``undecided`` where the interval is too wide to say, ``failed`` where there is
            nothing to compare or a check did not hold, ``absent`` where a side could not be tried.
        why: what keeps a verdict from being given, and what might help.
        noisy: whether other programs took part of the machine.
        notes: what else there is to know.
    """

    name: str
    metric: str
    unit: str = ""
    side: str
    to: str = ""
    ours: float | None = None
    theirs: float | None = None
    kind: str = "ratio"
    figure: Interval | None = None
    limit: str = ""
    verdict: str
    why: str = ""
    noisy: bool = False
    notes: tuple[str, ...] = ()
