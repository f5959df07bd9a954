"""``hooktrain evaluate``: the figures that the run logged, without training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hooktrain import HooktrainError
from hooktrain.cli.main import cli
from tests.facts import facts
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

Run = Callable[..., Any]
FULL = {"type": "full", "save_every_n_steps": 2}
EXPORT = {"type": "huggingface", "save_end_of_training": True}
METRICS = {"eval_metrics": ["exact_match", "perplexity"], "eval_generation": {"max_new_tokens": 8}}


def evaluate(*words: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, words)], catch_exceptions=True)


def figures(*words: object) -> dict[str, Any]:
    result = evaluate(*words, "--json")
    assert result.exit_code == 0, result.exception
    found: dict[str, Any] = json.loads(result.output)
    return found


def logged(trainer: Any, step: int) -> dict[str, float]:
    lines = [line for line in trainer.history if line["step"] == step]
    return {name: value for line in lines for name, value in line.items() if name.startswith("eval/")}


def refused(*words: object) -> str:
    result = evaluate(*words)
    problem = result.exception.__cause__ or result.exception if result.exception else None  # a run's own is carried
    assert isinstance(problem, HooktrainError), result.output
    return str(problem)


def test_the_figures_are_those_of_the_run(run_chat: Run) -> None:
    """Of the newest checkpoint, of an earlier one, and of the export, with metrics; nothing is written."""
    trainer = run_chat(checkpoint=[FULL, EXPORT], eval_interval=2, **METRICS)
    run_dir = trainer.run_dir
    before = sorted(str(path) for path in run_dir.rglob("*"))
    found = figures(run_dir)
    assert found["metrics"] == logged(trainer, 4) and found["step"] == 4
    assert {"eval/rows/loss", "eval/rows/exact_match", "eval/rows/perplexity"} <= found["metrics"].keys()
    assert figures(run_dir / "checkpoints/step-00000002")["metrics"] == logged(trainer, 2) != logged(trainer, 4)
    assert figures(run_dir / "export")["metrics"] == logged(trainer, 4)
    assert sorted(str(path) for path in run_dir.rglob("*")) == before
    table = evaluate(run_dir).output
    assert re.search(rf"step 4\n.*eval/rows/loss +{logged(trainer, 4)['eval/rows/loss']:.6g}", table, re.DOTALL)


def test_an_adapter_and_its_merge(run_chat: Run, tmp_path: Path) -> None:
    trainer = run_chat(checkpoint=[EXPORT], eval_interval=4, peft={"type": "lora", "r": 4})
    expected = logged(trainer, 4)["eval/rows/loss"]
    assert figures(trainer.run_dir)["metrics"]["eval/rows/loss"] == pytest.approx(expected, abs=1e-6)
    merged = trainer.run_dir / "merged"
    assert CliRunner().invoke(cli, ["export", str(trainer.run_dir), "--merge", "--output", str(merged)]).exit_code == 0
    assert figures(merged)["metrics"]["eval/rows/loss"] == pytest.approx(expected, abs=1e-5)


def test_other_sets_and_other_recipes(
    run_chat: Run, chat_recipe: dict[str, Any], tiny_llama: Path, write_rows: Run, tmp_path: Path
) -> None:
    trainer = run_chat(checkpoint=[FULL], train_iters=2)
    other = write_rows("alpaca", "other.jsonl")
    found = figures(trainer.run_dir, "-o", f"data.eval_sources=[{other}]", "-o", "eval_metrics=[perplexity]")
    assert found["metrics"].keys() >= {"eval/other/loss", "eval/other/perplexity"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(chat_recipe))
    before = figures(tiny_llama, "--recipe", recipe)
    assert before["step"] is None and before["metrics"]["eval/rows/loss"] > 0
    assert re.search(facts(f"'{tiny_llama}'", "no run", "--recipe"), refused(tiny_llama))
    assert re.search(facts("no evaluation set", "eval_sources"), refused(trainer.run_dir, "-o", "data.eval_sources=[]"))
    assert re.search(facts("--best", f"'{tiny_llama}'"), refused(tiny_llama, "--best", "--recipe", recipe))


DOUBLED = """
from hooktrain import hookimpl


class Doubled:
    steps = 0

    @hookimpl
    def on_step_end(self):
        self.steps += 1

    @hookimpl
    def collect_state(self):
        return {"steps": self.steps}

    @hookimpl
    def restore_state(self, state):
        self.steps = state["steps"]

    @hookimpl(wrapper=True)
    def run_evaluate(self):
        found = yield
        return {name: value * 2**self.steps for name, value in found.items()}
"""


def test_states_of_plugins_are_restored(run_chat: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On which an evaluation may depend, as with averaged weights; here the loss doubles with each step."""
    (tmp_path / "doubled_losses.py").write_text(DOUBLED)
    monkeypatch.syspath_prepend(str(tmp_path))
    trainer = run_chat(checkpoint=[FULL], train_iters=2, plugins={"load": ["doubled_losses:Doubled"]})
    assert figures(trainer.run_dir)["metrics"] == logged(trainer, 2)


STRATEGIES = {
    "ddp": {"data_parallel": "ddp"},
    "fsdp2": {"data_parallel": "fsdp2"},
    **{f"zero{stage}": {"type": "deepspeed", "zero_stage": stage} for stage in (0, 1, 2, 3)},
}


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_of_any_strategy(run_cli: Run, chat_recipe: dict[str, Any], strategy: str) -> None:
    """Metrics over logits and answers; evaluated by two ranks again, and by one."""
    recipe = {
        **chat_recipe,
        **METRICS,
        "checkpoint": [FULL],
        "eval_interval": 2,
        "strategy": {**STRATEGIES[strategy], "dtype": "fp32", "device": "cpu"},
        "data": {**chat_recipe["data"], "pack_samples": False},
    }
    done = run_cli("train", recipe, "--nproc", "2")
    assert done.status == 0, done.output
    expected = {name: value for name, value in done.metrics[-1].items() if name.startswith("eval/")}
    assert "eval/rows/exact_match" in expected
    both = run_cli("evaluate", chat_recipe["run_dir"], "--json", "--nproc", "2")
    assert both.status == 0, both.output
    assert json.loads(both.stdout)["metrics"] == pytest.approx(expected, abs=1e-6)
    one = run_cli("evaluate", chat_recipe["run_dir"], "--json")
    assert one.status == 0, one.output
    assert json.loads(one.stdout)["metrics"] == pytest.approx(expected, abs=1e-4)
