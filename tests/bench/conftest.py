"""The command line with a suite that takes no time, and the results of that suite."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hooktrain.bench import Settings, run_suites
from hooktrain.cli.main import cli
from tests.bench.napping import Napping


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Result]:
    """``bench(word, ...)``: ``hooktrain bench`` with the suite ``napping``, in an empty folder, without matplotlib."""
    _forget_drawing(monkeypatch)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    return _bench(monkeypatch, tmp_path)


@pytest.fixture
def drawing_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Result]:
    """The same with matplotlib, which takes seconds."""
    return _bench(monkeypatch, tmp_path)


def _bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOOKTRAIN_PLUGINS", f"no:*,{Napping.__module__}:Napping")
    return lambda *words: CliRunner().invoke(cli, ["bench", *words])


def _forget_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plots", "page"):
        monkeypatch.delitem(sys.modules, f"hooktrain.bench.{name}", raising=False)


@pytest.fixture(scope="session")
def _measured() -> dict[str, Any]:
    (line,) = run_suites(Napping().register_benchmarks(), Settings())
    return line


@pytest.fixture
def line(_measured: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The results of the suite ``napping``, as in ``results.jsonl``."""
    yield copy.deepcopy(_measured)
