"""Packages of other authors (``tests/packages``), installed, and recipes that use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hooktrain.testing import save_llama, write_rows
from tests.environments import Environment, build_wheels, make_environment, shared, unpack, write_recipe
from tests.third_party.beacon_server import Server
from tests.third_party.runs import BAD, GOOD

PACKAGES = Path(__file__).parents[1] / "packages"


def _build(folder: Path) -> None:
    wheels = build_wheels(folder, sorted(PACKAGES.glob("hooktrain-*")))
    for name, packages in (("good", GOOD), ("bad", BAD)):
        for package in packages:
            unpack(wheels.glob(f"hooktrain_{package.replace('-', '_')}-*.whl"), folder / name)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of all packages in ``wheels``, unpacked in ``good`` and ``bad``, and their ``sources``."""
    return shared(tmp_path_factory, "packages", _build)


@pytest.fixture(scope="session")
def environments(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with virtual environments: ``good``, and ``crowded``, which has the bad packages as well."""

    def fill(folder: Path) -> None:
        wanted = [f"hooktrain-{name}" for name in GOOD if name != "beacon"]  # which beacon-host brings along
        good = make_environment(folder / "good", built / "wheels", wanted)
        make_environment(folder / "crowded", built / "wheels", [f"hooktrain-{name}" for name in BAD], beside=good)

    return shared(tmp_path_factory, "environments", fill)


@pytest.fixture(scope="session", params=["unpacked", pytest.param("installed", marks=pytest.mark.thorough)])
def how(request: pytest.FixtureRequest) -> str:
    """How packages are installed: unpacked in a folder on the path, or by pip in a virtual environment."""
    return str(request.param)


def _environment(request: pytest.FixtureRequest, how: str, name: str, sites: tuple[str, ...]) -> Environment:
    if how == "installed":
        found = Environment(request.getfixturevalue("environments") / name / "bin" / "python")
    else:
        found = Environment.of(*(request.getfixturevalue("built") / site for site in sites))
    return Environment(found.python, {**found.variables, "NO_PROXY": "127.0.0.1"})


@pytest.fixture
def good(request: pytest.FixtureRequest, how: str) -> Environment:
    """An environment with packages that work together."""
    return _environment(request, how, "good", ("good",))


@pytest.fixture
def installed(environments: Path) -> Environment:
    """A virtual environment in which pip has installed packages that work together."""
    return Environment(environments / "good" / "bin" / "python")


@pytest.fixture
def crowded(request: pytest.FixtureRequest, how: str) -> Environment:
    """The same, with packages that do not work, clash, or were written for other hooks."""
    return _environment(request, how, "crowded", ("good", "bad"))


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """``tiny(key=value)``: write a recipe of 8 steps on random sequences."""

    def write(name: str = "tiny", **changes: Any) -> Path:
        recipe = {
            "type": "tiny",
            "run_dir": f"runs/{name}",
            "micro_batch_size": 4,
            "train_iters": 8,
            "data": {"rows": 32},
            "model": {"dropout": 0.0},
            "optimizer": {"type": "lion", "lr": 0.01, "weight_decay": 0.1},
            "strategy": {"dtype": "fp32", "device": "cpu"},
            **changes,
        }
        recipe["plugins"] = {"load": ["hooktrain.testing:TinyPlugin"], **changes.get("plugins", {})}
        return write_recipe(tmp_path / f"{name}.yaml", recipe)

    return write


@pytest.fixture
def chat(tmp_path: Path) -> Callable[..., Path]:
    """``chat(key=value)``: write a recipe that uses every good package."""
    save_llama(tmp_path / "llama")
    dialog = "user: Is it forty-two?\nassistant: It is.\n  What?"
    write_rows(
        tmp_path / "rows.jsonl", [{"id": number, "transcript": f"{dialog}{'?' * number}"} for number in range(5)]
    )

    def write(name: str = "chat", **changes: Any) -> Path:
        recipe = {
            "type": "sft",
            "run_dir": f"runs/{name}",
            "train_iters": 4,
            "micro_batch_size": 2,
            "model": {"name_or_path": "llama"},
            "data": {
                "sources": ["rows.jsonl", {"type": "transcripts", "collection": "small_talk"}],
                "eval_sources": [{"type": "transcripts", "collection": "arithmetic", "name": "sums"}],
                "max_length": 96,
            },
            "loss": {"type": "robust", "q": 0.001, "chunk_size": 16},
            "optimizer": {"type": "lion", "lr": 0.001},
            "scheduler": {"type": "constant"},
            "strategy": {"dtype": "fp32", "device": "cpu"},
            "ema": {"decay": 0.6},
            "confidence": {"enabled": True},
            **changes,
        }
        return write_recipe(tmp_path / f"{name}.yaml", recipe)

    return write


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """``serve(...)``: start a Beacon server that runs until the test ends, or until it dies."""
    servers: list[Server] = []

    def start(**how: Any) -> Server:
        servers.append(Server(**how))
        return servers[-1]

    yield start
    for server in servers:
        server.end()
