"""The pytest plugin ``hooktrain.testing``: fixtures for tests of plugins, found through an entry point.

Every pytest of an environment with hooktrain imports this file, so it imports nothing that takes time; fixtures load
what they need when a test uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hooktrain.testing.subprocess_runs import Run
    from hooktrain.training.trainer import Trainer

__all__ = [
    "chat_recipe",
    "rank_notes",
    "run_chat",
    "run_cli",
    "run_ranks",
    "run_tiny",
    "tiny_llama",
    "tiny_recipe",
    "write_rows",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hooktrain", "tests of hooktrain's plugins")
    group.addoption(
        "--hooktrain-timeout",
        type=float,
        default=100.0,
        metavar="SECONDS",
        help="kill a process that run_cli or run_ranks started after so long (default: 100)",
    )
    group.addoption(
        "--hooktrain-time",
        action="store_true",
        help="check times in conformance checks too: budget= and import_seconds=; on a machine that is not busy",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "hooktrain_conformance: a check of hooktrain's conformance kit")
    config.addinivalue_line("markers", "thorough: exhaustive and long; `-m 'not thorough'` skips these tests")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the measurements of the conformance kit, and whether times were checked."""
    lines = [
        str(value)
        for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("skipped"))
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == "hooktrain"
    ]
    if lines and terminalreporter.config.getoption("verbose") >= 0:
        terminalreporter.section("hooktrain conformance")
        for line in lines:
            terminalreporter.write_line(line)
        if not terminalreporter.config.getoption("--hooktrain-time"):
            terminalreporter.write_line("times were not checked; --hooktrain-time checks budget= and import_seconds=")


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> dict[str, Any]:
    """A recipe of type ``tiny`` that runs in milliseconds and keeps its files in ``tmp_path``."""
    return {
        "type": "tiny",
        "run_dir": str(tmp_path / "run"),
        "micro_batch_size": 2,
        "optimizer": {"lr": 1e-2},
        "model": {"dropout": 0.0},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
    }


@pytest.fixture
def run_tiny(tiny_recipe: dict[str, Any]) -> Callable[..., Trainer]:
    """``run_tiny(plugin, ..., key=value)``: run the tiny recipe with plugins and changed top-level keys."""
    return _running(tiny_recipe)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of a few thousand weights and a chat tokenizer, for ``model.name_or_path``."""
    from hooktrain.testing.tiny_llama import save_llama

    return save_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """``write_rows(rows, name="rows.jsonl")``: write examples as JSON lines; a format's name writes samples."""
    from hooktrain.testing.tiny_llama import write_rows as write_to

    def write(rows: Any = "messages", name: str = "rows.jsonl") -> Path:
        return write_to(tmp_path / name, rows)

    return write


@pytest.fixture
def chat_recipe(tmp_path: Path, tiny_llama: Path, write_rows: Callable[..., Path]) -> dict[str, Any]:
    """A recipe of type ``sft``: four steps of ``tiny_llama`` on six conversations, packed two to a sequence."""
    rows = str(write_rows())
    return {
        "type": "sft",
        "run_dir": str(tmp_path / "run"),
        "train_iters": 4,
        "model": {"name_or_path": str(tiny_llama)},
        "data": {"sources": [rows], "eval_sources": [rows], "max_length": 96, "pack_samples": True},
        "optimizer": {"lr": 1e-2},
        "scheduler": {"type": "constant"},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
    }


@pytest.fixture
def run_chat(chat_recipe: dict[str, Any]) -> Callable[..., Trainer]:
    """``run_chat(plugin, ..., key=value)``: run the chat recipe with plugins and changed top-level keys."""
    return _running(chat_recipe)


@pytest.fixture
def run_cli(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Run]:
    """``run_cli("train", recipe, "--json", source="...")``: run ``hooktrain`` in a process of its own.

    Returns ``status``, ``stdout``, ``stderr``, ``seconds`` and ``metrics``. A recipe may be a mapping; ``source`` is a
    plugin as text.
    """
    from hooktrain.testing.subprocess_runs import run_cli as run

    return partial(run, tmp_path, timeout=_time_limit(request))


@pytest.fixture
def run_ranks(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Run]:
    """``run_ranks(2, source, key=value)``: run the tiny recipe in several processes; returns what ``run_cli`` does."""
    from hooktrain.testing.subprocess_runs import run_ranks as run

    return partial(run, tmp_path, timeout=_time_limit(request))


@pytest.fixture
def rank_notes(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """``rank_notes(rank)``: read what ``note(key=value)`` wrote in a plugin that ``run_ranks`` got as text."""
    from hooktrain.testing.subprocess_runs import rank_notes as read

    return partial(read, tmp_path)


def _time_limit(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--hooktrain-timeout"))


def _running(recipe: dict[str, Any]) -> Callable[..., Trainer]:
    def run(*plugins: object, trainer: Mapping[str, Any] | None = None, **changes: Any) -> Trainer:
        from hooktrain.testing.in_process import train

        return train({**recipe, **changes}, *plugins, **(trainer or {}))

    return run
