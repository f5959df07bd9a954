"""The project's own suites, as a plugin: ``hooktrain bench -p benchmarks.suites``, or ``python -m benchmarks``."""

from __future__ import annotations

from benchmarks.checkpoint.suite import SUITE as CHECKPOINT
from benchmarks.dispatch.suite import SUITE as DISPATCH
from benchmarks.gpu.suite import SUITE as GPU
from benchmarks.preference.suite import SUITE as PREFERENCE
from benchmarks.resume.suite import SUITE as RESUME
from benchmarks.sft.suite import SUITE as SFT
from benchmarks.start.suite import SUITE as START
from benchmarks.strategy.suite import SUITE as STRATEGY
from hooktrain import hookimpl
from hooktrain.bench import Suite


@hookimpl
def register_benchmarks() -> list[Suite]:
    return [CHECKPOINT, DISPATCH, GPU, PREFERENCE, RESUME, SFT, START, STRATEGY]
