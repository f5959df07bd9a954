"""``hooktrain lr-find``: a range test that keeps nothing, and proposes a rate that is nearly as good as the best."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from hooktrain import HooktrainError, PluginInfo, find_learning_rate, hookimpl, load
from hooktrain.cli.lr_find import text_plot
from hooktrain.cli.main import cli
from hooktrain.testing import TinyPlugin
from tests.facts import facts

GRID = [10.0**power for power in range(-6, 1)]


@pytest.fixture
def lr_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: dict[str, Any]) -> Any:
    """``lr_find(words..., key=value)``: run the command in this process, on the tiny recipe with keys changed."""
    monkeypatch.chdir(tmp_path)
    plugins = {"load": ["hooktrain.testing.tiny_plugin:TinyPlugin"]}

    def run(*words: str, **more: Any) -> Result:
        raw = {**tiny_recipe, "run_dir": str(tmp_path / "run"), "plugins": plugins, **more}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
        return CliRunner().invoke(cli, ["lr-find", "tiny.yaml", *words], catch_exceptions=True)

    return run


def test_a_range_test_keeps_nothing_and_proposes_a_rate(lr_find, tmp_path):
    result = lr_find("--steps", "60", "--plot", "rates.svg", checkpoint="full", eval_interval=1, epochs=1)
    assert result.exit_code == 0, result.output
    assert "proposal: optimizer.lr: " in result.output and "learning rate" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rates.svg", "tiny.yaml"]
    assert "<svg" in (tmp_path / "rates.svg").read_text()
    assert "hooktrain report" not in result.output and "eval/" not in result.output


def test_for_programs(lr_find):
    result = lr_find("--steps", "40", "--json", "--min", "1e-4", "--max", "10")
    found = json.loads(result.stdout)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"])
    assert found["rates"][0] == pytest.approx(1e-4)
    growth = [math.log(after / before) for before, after in zip(found["rates"], found["rates"][1:], strict=False)]
    assert growth == pytest.approx([growth[0]] * len(growth))


def test_observers_take_no_part_and_groups_keep_their_ratio(tiny_recipe):
    seen: list[Any] = []

    class Watches:
        hooktrain_plugin = PluginInfo(only_observes=True)

        @hookimpl
        def on_log(self, trainer: Any) -> None:
            seen.append(trainer)

    class Rates:
        hooktrain_plugin = PluginInfo(name="rates")

        def __init__(self) -> None:
            self.ratios: set[float] = set()

        @hookimpl
        def on_step_end(self, trainer: Any) -> None:
            rates = [group["lr"] for group in trainer.optimizer.param_groups]
            self.ratios.add(round(min(rates) / max(rates), 6))

    rates = Rates()
    recipe = {**tiny_recipe, "optimizer": {"lr": 1e-2, "groups": [{"match": "embedding", "lr": 1e-3}]}}
    _, host = load(recipe, plugins=[TinyPlugin(), Watches(), rates])
    found = find_learning_rate(host, steps=12)
    assert not seen and len(found.rates) == 12 and rates.ratios == {0.1}


def test_a_loss_that_does_not_fall_gets_no_proposal(lr_find):
    result = lr_find("--steps", "12", "--min", "1e-12", "--max", "1e-11", "--json")
    assert json.loads(result.stdout)["proposal"] is None or "proposal" in result.stdout


def test_rates_that_mean_nothing(lr_find):
    assert isinstance(lr_find("--min", "1", "--max", "0.1").exception, HooktrainError)
    result = lr_find("--plot", "rates.pdf")
    assert isinstance(result.exception, HooktrainError)
    assert ".svg" in str(result.exception)


def test_a_plot_as_text():
    lines = list(text_plot([1e-3, 1e-2, 1e-1], [3.0, 1.0, 9.0]))
    assert facts("6", "1") and lines[0].lstrip().startswith("6") and "1.0e-03" in lines[-1] and "1.0e-01" in lines[-1]
    assert sum("•" in line for line in lines) == 3


@pytest.mark.thorough
def test_the_proposal_ends_within_a_tenth_of_the_best_of_a_grid(run_tiny, tiny_recipe, tmp_path):
    settings = {"data": {"rows": 64, "length": 12}, "micro_batch_size": 8, "epochs": 12}
    _, host = load({**tiny_recipe, **settings}, plugins=[TinyPlugin()])
    proposal = find_learning_rate(host).proposal
    assert proposal is not None

    def loss(rate: float) -> float:
        trainer = run_tiny(optimizer={"lr": rate}, run_dir=str(tmp_path / f"lr-{rate}"), **settings)
        return float(trainer.state.metrics["loss"])

    best = min(loss(rate) for rate in GRID)
    assert loss(proposal) <= 1.1 * best
