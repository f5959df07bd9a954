"""Drivers of benchmarks as forks of the session's server, where ``hooktrain bench`` starts an interpreter for each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hooktrain.bench import subprocesses as processes
from hooktrain.testing.fork_server import IMPORT_VARIABLES

__all__ = ["fork_drivers"]

_start = processes._within


def fork_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give drivers this process's values of the variables that are read at a start, so that they can be forked.

    For tests of what drivers measure. What a driver's process is given is tested in ``tests/bench/test_drivers.py``.
    """

    def start(
        seconds: float, words: list[str], folder: Path, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str] | None:
        made = {name: value for name, value in environment.items() if not _is_read_at_the_start(name)}
        made |= {name: value for name, value in os.environ.items() if _is_read_at_the_start(name)}
        return _start(seconds, words, folder, made)

    monkeypatch.setattr(processes, "_within", start)


def _is_read_at_the_start(name: str) -> bool:
    return name in IMPORT_VARIABLES or (name.startswith("PYTHON") and name != "PYTHONPATH")
