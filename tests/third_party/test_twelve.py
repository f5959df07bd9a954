"""Twelve packages of different authors in one environment, each installed or in use, under several commands."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hooktrain.testing import save_llama, write_rows
from tests.environments import Environment, build_wheels, make_environment, shared, unpack, write_recipe
from tests.third_party.conftest import PACKAGES
from tests.third_party.runs import done, numbers, step

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]

LOOP = ("centralize", "damp", "lookahead", "sam")
"""Packages that implement ``run_step``."""
TEXT: Mapping[str, Mapping[str, Any]] = {
    "confidence": {"confidence": {"enabled": True}},
    "robust-loss": {"loss": {"type": "robust", "q": 0.5, "chunk_size": 16}},
    "transcripts": {"data": {"sources": [{"type": "transcripts", "collection": "small_talk"}]}},
}
"""What uses the packages that need a language model."""
USED: Mapping[str, Mapping[str, Any]] = {
    "beacon": {"beacon": {"url": "URL"}},
    "beacon-host": {},  # which Beacon calls
    "centralize": {"centralize": {"enabled": True}},
    "damp": {"damp": {"factor": 0.5}},
    "ema": {"ema": {"decay": 0.6}},
    "gradient-noise": {"gradient_noise": {"scale": 0.01}},
    "lion": {"optimizer": {"type": "lion", "lr": 0.001}},
    "lookahead": {"lookahead": {"every": 2}},
    "sam": {"sam": {"rho": 0.05}},
    **TEXT,
}
"""The twelve packages, and the keys of a recipe that use each."""
COMMANDS = ("run", "resume", "verify", "plan")


def covering_rows() -> list[dict[str, Any]]:
    """Rows in which each two of the packages and the command meet with every pair of their values."""
    factors: dict[str, tuple[Any, ...]] = {**dict.fromkeys(USED, (False, True)), "command": COMMANDS}
    pairs = {
        frozenset(((one, x), (two, y)))
        for one, two in itertools.combinations(factors, 2)
        for x in factors[one]
        for y in factors[two]
    }
    chance, rows = random.Random(5), []
    while pairs:
        drawn = [{name: chance.choice(values) for name, values in factors.items()} for _ in range(300)]
        covered = [{frozenset(pair) for pair in itertools.combinations(row.items(), 2)} & pairs for row in drawn]
        best = max(range(len(drawn)), key=lambda number: len(covered[number]))
        pairs -= covered[best]
        rows.append(drawn[best])
    return rows


ROWS = covering_rows()


def module_of(package: str) -> str:
    return package.replace("-", "_")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of the twelve."""
    sources = [PACKAGES / f"hooktrain-{name}" for name in USED]
    return shared(tmp_path_factory, "twelve-built", lambda folder: build_wheels(folder, sources)) / "wheels"


@pytest.fixture(scope="session")
def twelve(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A virtual environment in which pip has installed the twelve."""

    def fill(folder: Path) -> None:
        make_environment(folder / "environment", wheels, [f"hooktrain-{name}" for name in USED if name != "beacon"])

    python = shared(tmp_path_factory, "twelve", fill) / "environment" / "bin" / "python"
    return Environment(python, {"NO_PROXY": "127.0.0.1"})


@pytest.fixture
def recipe_of(tmp_path: Path, serve: Callable[..., Any]) -> Callable[..., Path]:
    """``recipe_of("name", "sam", "ema", key=value)``: write a recipe of a chat that uses these packages."""
    save_llama(tmp_path / "llama")
    write_rows(tmp_path / "rows.jsonl", "messages")

    def write(name: str, *used: str, **changes: Any) -> Path:
        recipe: dict[str, Any] = {
            "type": "sft",
            "run_dir": f"runs/{name}",
            "train_iters": 4,
            "micro_batch_size": 2,
            "model": {"name_or_path": "llama"},
            "data": {"sources": ["rows.jsonl"], "eval_sources": ["rows.jsonl"], "max_length": 96},
            "loss": {"all_logits": True},
            "optimizer": {"type": "adamw", "lr": 0.001},
            "scheduler": {"type": "constant"},
            "strategy": {"dtype": "fp32", "device": "cpu"},
            "checkpoint": [{"type": "full", "save_every_n_steps": 2}],
            "plugins": {},
        }
        for package in used:
            for key, value in USED[package].items():
                recipe[key] = {**recipe[key], **value} if key == "data" else dict(value)
        if "beacon" in used:
            recipe["beacon"]["url"] = serve().url
            recipe["plugins"]["block"] = [] if "beacon-host" in used else ["beacon_host"]
        rivals = [name for name in LOOP if name in used]
        if len(rivals) > 1:
            recipe["plugins"]["order"] = rivals
        return write_recipe(tmp_path / f"{name}.yaml", {**recipe, **changes})

    return write


def check_states(states: Mapping[str, str], used: tuple[str, ...]) -> None:
    """Check which plugins are active; those that only register parts are, whether they are chosen or not."""
    for name in USED.keys() - {"beacon", "beacon-host", "lion", "robust-loss", "transcripts"}:
        assert states[module_of(name)] == ("active" if name in used else "unused"), name


@pytest.mark.parametrize("row", ROWS, ids=[f"{number}-{row['command']}" for number, row in enumerate(ROWS)])
def test_each_two_of_them_installed_or_in_use_under_each_command(twelve, recipe_of, tmp_path, row):
    used = tuple(name for name in USED if row[name])
    passed = [name for name in LOOP if name in used][1:]
    recipe = recipe_of("pairs", *used)
    if row["command"] == "plan":
        plan = json.loads(done(twelve.hooktrain(tmp_path, "plan", recipe, "--json")).stdout)
        check_states({fact["name"]: fact["state"] for fact in plan["plugins"]}, used)
        return
    if row["command"] == "verify":
        done(twelve.hooktrain(tmp_path, "verify-resume", recipe))
        return
    run = done(twelve.hooktrain(tmp_path, "train", recipe))
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4]
    acted = {each["name"] for each in json.loads((run.folder / "plugins.json").read_text())["plugins"]}
    check_states({name: "active" if name in acted else "unused" for name in map(module_of, USED)}, used)
    for name in passed:
        assert f"'{name}'" in run.output and "passes over" in run.output
    if row["command"] == "resume":
        again = done(twelve.hooktrain(tmp_path, "train", recipe_of("again", *used), "--resume", step(run, 2)))
        assert numbers(again.metrics) == numbers(run.metrics)[2:]


def test_all_twelve_at_once(twelve, recipe_of, tmp_path):
    run = done(twelve.hooktrain(tmp_path, "train", recipe_of("all", *USED)))
    again = done(twelve.hooktrain(tmp_path, "train", recipe_of("again", *USED), "--resume", step(run, 2)))
    assert len(run.metrics) == 4 and numbers(again.metrics) == numbers(run.metrics)[2:]


@pytest.mark.parametrize("package", ["sam", "lion"])
def test_eleven_unused_ones_leave_the_losses_as_they_are(twelve, wheels, recipe_of, tmp_path, package):
    """Bit by bit those of an environment in which they are not installed."""
    site = unpack(wheels.glob(f"hooktrain_{module_of(package)}-*.whl"), tmp_path / "site")
    alone = done(Environment.of(site).hooktrain(tmp_path, "train", recipe_of("alone", package)))
    together = done(twelve.hooktrain(tmp_path, "train", recipe_of("together", package)))
    assert numbers(alone.metrics) == numbers(together.metrics)
    assert len({line["loss"] for line in alone.metrics}) == 4


@pytest.mark.parametrize("package", USED)
def test_the_cost_of_each_alone(twelve, recipe_of, tmp_path, serve, package):
    settings: Mapping[str, Any] = USED["beacon"] if package == "beacon-host" else USED[package]
    words: list[str | Path] = [recipe_of("bench", checkpoint=[])] if package in TEXT else []
    for key, value in settings.items():
        if "type" in value:
            words += ["--settings", f"{key}={json.dumps(value)}"]
            continue
        for name, each in value.items():
            words += ["--settings", f"{key}.{name}={json.dumps(serve().url if each == 'URL' else each)}"]
    measured = ("bench", "plugin", module_of(package), *words, "--quick", "--steps", "4", "--json")
    line = json.loads(done(twelve.hooktrain(tmp_path, *measured)).stdout)
    assert not line["unused"], line["unused"]
    assert all("error" not in variant for variant in line["variants"].values()), line["variants"]
    changes = package not in ("beacon", "beacon-host", "confidence", "ema")
    assert ("bitwise equal" in line["losses"]) is not changes, line["losses"]
