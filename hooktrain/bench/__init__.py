"""Benchmarks for plugin authors and for the project, with verdicts that account for noise.

A plugin contributes suites. This one compares two ways of sorting::

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
                variants={"in place": in_place, "sorted": lambda n: sorted(range(n, 0, -1))},
                baseline="sorted",
                targets=[Target(variant="in place", at_most=1.1)],  # times the baseline's seconds
                calls=None,
            )
            for n in (100, 10_000)
        ]
        return [Suite(name="sorting", summary="sorting in place and into a new list", cases=cases, over="n")]

``hooktrain bench sorting`` measures it. After a warm-up it runs the variants in the order A B B A, five rounds by
default. The figure is the ratio of the medians, with the interval that holds 95% of bootstrap samples. Runs are drawn
in pairs, so that a change of the machine's speed hardly widens it. Where the interval contains the limit, or there are
too few runs, the verdict is ``undecided``, with the number of rounds that may decide it. The guide
``benchmark-suites`` explains the output.

**Variants.** A variant is a function, called with the case's parameters, or a *driver*: a module that runs in a process
of its own, if necessary with the Python of a :class:`Peer`'s environment::

    Variant("ours", ours, prepare=make_batches)        # called with what prepare returns, which is not timed
    Variant("ours", ours, isolated=True)               # each run in a new process: imports, caches, memory
    Variant("trl", driver="benchmarks.peers.trl", peer=TRL, specification={"steps": 8})

A function is measured from outside: ``seconds``, ``cpu_seconds``, ``peak_mib``; on a GPU, once torch uses it, also
``device_seconds`` between two events and ``device_peak_mib``. ``calls=None`` repeats a short function until it fills
50 ms; figures are for one call. A function may return findings of its own, such as ``{"bytes": 1000}``, which override
those. A driver calls :func:`hooktrain.bench.driver.drive`, and times its steps with
:class:`hooktrain.bench.driver.StepClock`. That module imports only the standard library, so that it works in a peer's
environment too::

    # ours.py, which the suite names as driver="my_suite.ours"
    from hooktrain.bench.driver import StepClock, drive

    def measure(given):                             # the specification, and threads
        clock = StepClock()
        for _ in range(given["steps"]):
            train_a_step()
            clock.step()
        return clock.findings()

    if __name__ == "__main__":
        drive(measure, "torch")                     # records torch's version

**Metrics** are read from each run. ``Metric("bytes", "MiB", "lower", exact=True)`` takes the finding of that name, the
median of one that is a list (without its first ``warmup_steps``), or what ``read=`` makes of the findings. ``scale=``
converts it to the unit. An ``exact`` metric is the same in every run, so that one run is enough for a verdict.

**Targets.** ``Target(variant=, at_most= | at_least=, metric=, to=, kind=)`` compares a variant with the baseline or the
variant ``to``, as a ``ratio``, a ``difference`` (divided by ``per``) or a ``value`` of its own. ``checks`` are
functions that return why two variants did not do the same work. Any object with ``name`` and
``evaluate(case, measured)`` is a target, see :class:`TargetLike`. Variants without a target are compared with the
baseline too, unless ``compare=False``.

**Suites.** ``cases`` may be a function of a :class:`Context` (``quick``, ``folder``, ``envs``, ``threads``, ``runner``,
``wants(case)``), often a generator. It is called only when the suite runs, and may raise :class:`Skip` with the reason
why nothing can be measured on this machine. With ``quick`` a suite must finish in seconds. ``over="n"`` plots the
metrics over the parameter ``n``. Settings for ``--set`` are declared in ``options={"steps": "steps of a run"}``, and
read from ``context.options``.

**Results** are a folder (``--out``): ``results.jsonl`` with a line for each case (machine, versions, commit, recipe,
settings, every run), a PNG for each suite and one HTML page. ``hooktrain bench --compare A B`` compares two of them,
``--baseline FILE`` fails on what is worse beyond noise, ``hooktrain bench plugin NAME`` measures what an installed
plugin costs.

In Python: ``run_suites(suites, Settings(quick=True))`` returns the lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain.exports import lazy_exports

if TYPE_CHECKING:
    from hooktrain.bench.bootstrap import Interval as Interval
    from hooktrain.bench.environments import EnvironmentFailed as EnvironmentFailed
    from hooktrain.bench.environments import Peer as Peer
    from hooktrain.bench.errors import BenchError as BenchError
    from hooktrain.bench.model import CPU_SECONDS as CPU_SECONDS
    from hooktrain.bench.model import DEVICE_MEMORY as DEVICE_MEMORY
    from hooktrain.bench.model import DEVICE_SECONDS as DEVICE_SECONDS
    from hooktrain.bench.model import PEAK_MEMORY as PEAK_MEMORY
    from hooktrain.bench.model import SECONDS as SECONDS
    from hooktrain.bench.model import Case as Case
    from hooktrain.bench.model import Comparison as Comparison
    from hooktrain.bench.model import Context as Context
    from hooktrain.bench.model import Findings as Findings
    from hooktrain.bench.model import Measured as Measured
    from hooktrain.bench.model import Metric as Metric
    from hooktrain.bench.model import Skip as Skip
    from hooktrain.bench.model import Suite as Suite
    from hooktrain.bench.model import TargetLike as TargetLike
    from hooktrain.bench.model import Variant as Variant
    from hooktrain.bench.runner import Settings as Settings
    from hooktrain.bench.runner import run_suites as run_suites
    from hooktrain.bench.verdicts import Check as Check
    from hooktrain.bench.verdicts import Target as Target

# drivers import this package in peers' environments, which have no attrs
__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
