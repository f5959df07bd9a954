"""The project's own suites, as a plugin: ``hooktrain bench -p benchmarks.suites``, or ``python -m benchmarks``."""

from __future__ import annotations

from benchmarks.sft.suite import SUITE as SFT
from hooktrain import hookimpl
from hooktrain.bench import Suite


@hookimpl
def register_benchmarks() -> list[Suite]:
    return [SFT]
