"""Benchmarks that can be trusted, for plugin authors and for the project itself.

A suite is contributed by a plugin. This one compares two ways of sorting, and may stand in any plugin::

    from hooktrain import hookimpl
    from hooktrain.bench import Case, Suite, Target

    def in_place(n):
        numbers = list(range(n, 0, -1))
        numbers.sort()

    @hookimpl
    def register_benchmarks():
        cases = [
            Case(
                name=f"{n} numbers",
                parameters={"n": n},
                sides={"in place": in_place, "sorted": lambda n: sorted(range(n, 0, -1))},
                baseline="sorted",
                targets=[Target(side="in place", at_most=1.1)],  # times the baseline's seconds
                calls=None,
            )
            for n in (100, 10_000)
        ]
        return [Suite(name="sorting", summary="sorting in place and out of it", cases=cases, over="n")]

``hooktrain bench sorting`` then measures it: every side is warmed up, the sides take turns in the order A B B A, five
rounds of that; the figure is the ratio of the medians with the interval that holds 95% of bootstrap samples, drawn turn
by turn, so that a machine that drifts widens it little; and where the interval holds the limit, or there are too few
runs, the verdict is ``undecided``, with the rounds that might do.

**Sides.** A side is a function, called with the case's parameters, or a *driver*: a module that is run in a process of
its own, perhaps with the Python of a :class:`Peer`'s environment::

    Variant("ours", ours, prepare=make_batches)        # prepare's result comes first, its time does not count
    Variant("ours", ours, isolated=True)               # each run in a new process: imports, caches, memory
    Variant("trl", driver="benchmarks.peers.trl", peer=TRL, specification={"steps": 8})

A function's run is measured from outside: ``seconds``, ``cpu_seconds``, ``peak_mib``; on a GPU, once torch uses it,
also ``device_seconds`` between two events and ``device_peak_mib``. ``calls=None`` repeats a short function until it
fills 50 ms; figures are for one call. A function may return findings of its own, such as ``{"bytes": 1000}``, which
win over those. A driver calls :func:`hooktrain.bench.driver.drive` and mostly times its steps with
:class:`hooktrain.bench.driver.StepClock`; that module imports nothing but the standard library, and is there in a
peer's environment too.

    # ours.py, which the suite names as driver="my_suite.ours"
    from hooktrain.bench.driver import StepClock, drive

    def measure(given):                             # the specification, and threads
        clock = StepClock()
        for _ in range(given["steps"]):
            train_a_step()
            clock.step()
        return clock.findings()

    if __name__ == "__main__":
        drive(measure, "torch")                     # the versions of these are kept

**Metrics** are read off each run: ``Metric("bytes", "MiB", "lower", exact=True)`` takes the finding of that name, the
median of one that is a list (without its first ``warmup_steps``), or whatever ``read=`` makes of the findings.
``scale=`` brings it to the unit. ``exact`` ones repeat from run to run, so that one run is enough for a verdict.

**Targets.** ``Target(side=, at_most= | at_least=, metric=, to=, kind=)`` compares with the baseline or the side ``to``,
as a ``ratio``, a ``difference`` (less the other side's, ``per`` what it is for) or a ``value`` of its own. ``checks``
are functions that say why two sides did not do the same work. Any object with ``name`` and ``judge(case, measured)``
will do as well. Sides without a target are compared with the baseline all the same, unless ``compare=False``.

**Suites.** ``cases`` may be a function of a :class:`Context` (``quick``, ``folder``, ``envs``, ``threads``, ``runner``,
``wants(case)``), often a generator; it runs only when the suite does, and may raise :class:`Skip` to say why it cannot
be measured here. With ``quick`` a suite must finish in seconds. ``over="n"`` draws the metrics over the parameter
``n``. Settings that ``--set`` may give are named in ``options={"steps": "of a run"}``, and read from
``context.options``.

**Results** go to a folder (``--out``): ``results.jsonl`` with a line for each case (machine, versions, commit, recipe,
settings, every run), a PNG for each suite and one HTML page. ``hooktrain bench --compare A B`` sets two of them beside
each other, ``--baseline FILE`` fails on what has become worse beyond noise, ``hooktrain bench plugin NAME`` tells what
an installed plugin costs.

In Python: ``run_suites(suites, quick=True)`` returns the lines.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hooktrain.renamed import old_import

if TYPE_CHECKING:
    from hooktrain.bench.bootstrap import Interval
    from hooktrain.bench.environments import EnvironmentFailed, Peer
    from hooktrain.bench.errors import BenchError
    from hooktrain.bench.model import (
        CPU_SECONDS,
        DEVICE_MEMORY,
        DEVICE_SECONDS,
        PEAK_MEMORY,
        SECONDS,
        Case,
        Comparison,
        Context,
        Findings,
        Measured,
        Metric,
        Skip,
        Suite,
        TargetLike,
        Variant,
    )
    from hooktrain.bench.runner import Settings, run_suites
    from hooktrain.bench.verdicts import Check, Target

_HOMES = {
    "environments": "EnvironmentFailed Peer",
    "bootstrap": "Interval",
    "errors": "BenchError",
    "model": "CPU_SECONDS Case Comparison Context DEVICE_MEMORY DEVICE_SECONDS Findings TargetLike Measured Metric"
    " PEAK_MEMORY SECONDS Variant Skip Suite",
    "runner": "Settings run_suites",
    "verdicts": "Check Target",
}
_HOME = {name: f"hooktrain.bench.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "BenchError",
    "CPU_SECONDS",
    "Case",
    "Check",
    "Comparison",
    "Context",
    "DEVICE_MEMORY",
    "DEVICE_SECONDS",
    "EnvironmentFailed",
    "Findings",
    "Interval",
    "TargetLike",
    "Measured",
    "Metric",
    "PEAK_MEMORY",
    "Peer",
    "SECONDS",
    "Settings",
    "Variant",
    "Skip",
    "Suite",
    "Target",
    "run_suites",
]


def __getattr__(name: str) -> Any:
    # loaded when first used: drivers in other programs' environments import this package, and there is no attrs there
    if name not in _HOME:
        raise old_import("hooktrain.bench", name)
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
