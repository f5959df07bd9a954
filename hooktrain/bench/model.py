"""The parts of a benchmark suite: cases, variants, metrics, targets, and the results of comparing them."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import attrs

from hooktrain.bench.environments import Peer
from hooktrain.bench.errors import BenchError
from hooktrain.protocols import missing_members, renamed_member
from hooktrain.renamed import new_name, no_attribute

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
"""Findings of one run of a variant, by name.

A run that failed has ``error``, a message, and nothing else to compare; with ``not_installed``, where its peer is
missing. The harness adds ``others``, see :class:`hooktrain.bench.subprocesses.Runner`.
"""

Measured = Mapping[str, Sequence[Findings]]
"""Findings of each run, by variant."""

T = TypeVar("T")


def tell_new_names(cls: type[T]) -> type[T]:
    """Make a class name the new attribute or argument in the error for an old one."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        for name in named:
            if renamed := new_name("attribute", f"{cls.__name__}.{name}"):
                raise TypeError(f"{cls.__name__}() has no argument '{name}'{renamed}")
        init(self, *arguments, **named)

    def __getattr__(self: Any, name: str) -> Any:
        raise no_attribute(cls.__name__, name)

    for function in (__init__, __getattr__):
        setattr(cls, function.__name__, function)
    return cls


class Skip(Exception):
    """Raise this in a suite that cannot be measured on this machine; the message is the reason, in one line."""


@attrs.frozen
class Metric:
    """A number read from the findings of each run.

    Attributes:
        name: name in tables, and the key of the finding unless ``read`` is set.
        unit: unit as printed, such as ``s``, ``tok/s``, ``MiB``.
        better: ``lower`` or ``higher``; None for a number that is neither.
        read: function of a run's findings and the number of warm-up steps that returns the number. By default, a
            finding that is a list, one entry per step, is reduced to its median without the warm-up steps.
        scale: factor for the number, such as 1e6 to print seconds as µs.
        exact: whether the number is the same in every run (a count, a size), so that one run is enough for a verdict.
        undisturbed: the same metric by processor time, reported in addition when other programs disturbed a timing.
    """

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = "lower"
    read: Callable[[Findings, int], float] | None = attrs.field(default=None, eq=False, kw_only=True)
    scale: float = attrs.field(default=1.0, kw_only=True)
    exact: bool = attrs.field(default=False, kw_only=True)
    undisturbed: Metric | None = attrs.field(default=None, eq=False, kw_only=True)

    def of(self, findings: Findings, warmup_steps: int = 0) -> float:
        """Return the number of one run.

        Raises:
            KeyError: when the findings do not have it.
        """
        if self.read is not None:
            return self.read(findings, warmup_steps) * self.scale
        found = findings[self.name]
        if isinstance(found, list | tuple):
            found = statistics.median(found[warmup_steps:] or found)
        return float(found) * self.scale

    def has(self, findings: Findings) -> bool:
        """Return whether a run's findings have it."""
        return self.read is not None or findings.get(self.name) is not None


CPU_SECONDS = Metric("cpu_seconds", "s")
"""Processor time of a call; of a driver, the median over its steps."""
SECONDS = Metric("seconds", "s", undisturbed=CPU_SECONDS)
"""Wall time of a call; of a driver, the median over its steps."""
DEVICE_SECONDS = Metric("device_seconds", "s")
"""Time between two events on the GPU's stream, recorded before and after the work."""
PEAK_MEMORY = Metric("peak_mib", "MiB")
"""Peak memory of the process."""
DEVICE_MEMORY = Metric("device_peak_mib", "MiB")
"""Peak GPU memory allocated by torch."""


@attrs.frozen
class Variant:
    """One of the set-ups that a case compares: a function, or a driver that runs in a process of its own.

    Attributes:
        name: unique in its case.
        function: called with the case's parameters as keywords, after what ``prepare`` returned. Time and memory are
            measured from outside. A mapping that it returns is added to the findings and overrides them.
        prepare: called with the parameters before each run; not timed.
        isolated: whether each run of the function has a process of its own, which imports the function by name.
        driver: module to run in a process of its own, see ``hooktrain.bench.driver``.
        specification: JSON for the driver.
        peer: environment that runs the driver; None for hooktrain's own.
        after: name of another variant, whose caches the driver finds; by default, caches are empty.
        environment: environment variables of the process.
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

    @property
    def has_process(self) -> bool:
        """Whether each run has a process of its own."""
        return self.driver is not None or self.isolated

    def __attrs_post_init__(self) -> None:
        if (self.function is None) == (self.driver is None):
            given = "both" if self.driver else "neither"
            raise ValueError(f"variant '{self.name}': given {given} a function and a driver, expected one of them")
        if self.isolated and self.function is not None:
            name = self.function.__qualname__ if isinstance(self.function, FunctionType) else repr(self.function)
            if "<" in name or "." in name or self.prepare is not None:
                raise ValueError(
                    f"variant '{self.name}': an isolated function is imported by name in another process, given {name}"
                    f"{' with prepare' if self.prepare else ''}; define it at the top of a module, preparing inside it"
                )


class TargetLike(Protocol):
    """A goal of a case; :class:`hooktrain.bench.Target` compares a variant with another one or with a limit."""

    @property
    def name(self) -> str:
        """Name in tables, unique in the case."""

    def evaluate(self, case: Case, measured: Measured) -> Comparison:
        """Compare the measurements with the goal."""


def _as_variants(given: Any) -> tuple[Variant, ...]:
    if isinstance(given, Mapping):
        given = (each if isinstance(each, Variant) else Variant(name, each) for name, each in given.items())
    return tuple(given)


def _as_metrics(given: Iterable[Metric]) -> tuple[Metric, ...]:
    return tuple(given)


def _as_targets(given: Iterable[TargetLike]) -> tuple[TargetLike, ...]:
    return tuple(given)


@tell_new_names
@attrs.frozen(kw_only=True)
class Case:
    """Variants that are measured alternately, in the order A B B A.

    Attributes:
        name: unique in its suite.
        variants: a tuple of variants, or a mapping of names to functions.
        parameters: keywords for the functions; a plot may be drawn over one of them.
        baseline: name of the variant that the others are compared with; by default the last one.
        metrics: numbers that are read from each run.
        targets: goals.
        rounds: rounds to measure; a round runs each variant twice, in the order A B B A. ``--rounds`` overrides it;
            the default is 5.
        warmup: calls of each function before the first run; drivers warm up themselves.
        warmup_steps: entries at the start of a driver's lists that are dropped.
        calls: calls of a function per run, whose figure is their mean; None for as many as fill 50 ms.
        compare: whether each variant is compared with the baseline in each metric, in addition to the targets.
        recipe: recipe that is trained, for the record.
        about: one line on what is compared.
        skip: why the case cannot be measured on this machine, in one line; empty where it can.
    """

    name: str
    variants: tuple[Variant, ...] = attrs.field(converter=_as_variants)
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
    skip: str = ""

    def __attrs_post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"case '{self.name}': given the variants {names}, expected at least one, with different names"
            )
        if not self.baseline:
            object.__setattr__(self, "baseline", names[-1])
        if self.baseline not in names:
            raise ValueError(
                f"case '{self.name}': given the baseline '{self.baseline}', expected one of its variants: {names}"
            )
        for target in self.targets:
            for member in missing_members(TargetLike, target):
                old = renamed_member(TargetLike, member, target)
                raise ValueError(
                    f"case '{self.name}': the target {target!r} has no '{member}'"
                    + (f", but '{old}', which is now '{member}'" if old else "; expected what TargetLike declares")
                )


@attrs.frozen(kw_only=True)
class Context:
    """The settings of a measurement, passed to the function that makes a suite's cases.

    Attributes:
        quick: whether to make everything as small and short as possible, only to show that it works.
        folder: folder for files; it is deleted afterwards.
        envs: folder with peers' environments and other downloads.
        threads: cores that are used, and threads that drivers should use.
        runner: runs a driver before anything is measured, to prepare inputs.
        selected: names of the selected cases; None for all.
        options: the suite's own settings, from ``--set KEY=VALUE``.
        made: names of the cases that the suite made, selected or not.
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
        """Return a setting that is a count.

        Raises:
            BenchError: when it is something else.
        """
        given = self.options.get(option, str(default))
        if not given.isdecimal():
            raise BenchError(f"--set {option}: given '{given}', expected a whole number, such as {default}")
        return int(given)

    def wants(self, case: str) -> bool:
        """Return whether a case is selected; a suite need not prepare what only other cases need."""
        return self.selected is None or case in self.selected


@attrs.frozen(kw_only=True)
class Suite:
    """A set of cases that a plugin contributes through ``register_benchmarks``.

    Attributes:
        name: name on the command line.
        summary: one line.
        cases: the cases, or a function of a :class:`Context` that makes them, which is called when the suite runs. A
            generator may prepare the inputs of each case just before it. Raise :class:`Skip` in it when nothing can be
            measured on this machine.
        over: name of the parameter on the x-axis of the plots; by default they show ratios to the baseline.
        options: settings that ``--set`` accepts, each with a line of description.
    """

    name: str
    summary: str
    cases: Sequence[Case] | Callable[[Context], Iterable[Case]]
    over: str | None = None
    options: Mapping[str, str] = attrs.field(factory=dict)

    def make(self, context: Context) -> Iterator[Case]:
        """Yield the selected cases."""
        for case in self.cases(context) if callable(self.cases) else self.cases:
            context.made.add(case.name)
            if context.wants(case.name):
                yield case


@tell_new_names
@attrs.frozen(kw_only=True)
class Comparison:
    """The result of comparing a variant with another one or with a limit: one line of a table.

    Attributes:
        name: name of the target, or of the variant.
        metric, unit: the metric that is compared.
        variant, to: names of the variants; ``to`` is empty where the variant's own number counts.
        ours, theirs: medians over the runs, in ``unit``; None where there is none.
        kind: meaning of ``figure``: ``ratio`` of ours to theirs, ``difference`` (ours less theirs) or ``value``.
        figure: the figure with the interval that holds 95% of bootstrap samples.
        limit: the target's limit, such as ``<= 1.10``; empty without one.
        verdict: with a limit ``passed`` or ``failed``; without one ``better``, ``worse``, ``alike`` or, for a metric
            that has no better, ``differs``. ``undecided`` where the interval is too wide, ``error`` where a run or a
            check failed, ``not installed`` where a peer is missing.
        why: reason for a verdict that is none of the first six, and what might help.
        noisy: whether other programs used the machine meanwhile.
        notes: further remarks.
    """

    name: str
    metric: str
    unit: str = ""
    variant: str
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
