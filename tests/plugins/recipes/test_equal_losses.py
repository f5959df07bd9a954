"""The same recipe gives the same losses here and in the program that it was written for, step by step in float32."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import peers
from hooktrain import default_cache_dir
from hooktrain.bench.environments import EnvironmentFailed, ensure
from hooktrain.testing import sample_rows, save_llama
from hooktrain.testing.subprocess_runs import finish

PROGRAM = Path(__file__).with_name("peer_losses.py")
ENVIRONMENTS = Path(os.environ.get("HOOKTRAIN_BENCH_ENVS", default_cache_dir() / "peers"))


def a_recipe_for_trl(folder: Path) -> dict[str, Any]:
    """Answers of conversations, two rows a step in their order, with an adapter's rate that changes from step to step."""
    (folder / "rows").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in sample_rows(count=10))
    (folder / "rows" / "train.jsonl").write_text(lines)
    return {
        "model_name_or_path": str(save_llama(folder / "model")),
        "dataset_name": str(folder / "rows"),
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "max_length": 24,
        "per_device_train_batch_size": 2,
        "max_steps": 5,
        "train_sampling_strategy": "sequential",
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.5,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "output_dir": "out",
    }


@pytest.mark.thorough
def test_losses_are_those_of_trl(tmp_path: Path) -> None:
    name = "trl"
    try:
        python = ensure(peers.TRL, ENVIRONMENTS)
    except EnvironmentFailed as problem:
        pytest.skip(str(problem))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(a_recipe_for_trl(tmp_path)), encoding="utf-8")
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        folder.mkdir()
    theirs = finish([str(python), str(PROGRAM), name, str(recipe)], tmp_path / "theirs", env=quiet)
    assert theirs.status == 0, theirs.output
    (line,) = [each for each in theirs.output.splitlines() if each.startswith("[") and each.endswith("]")]
    command = [sys.executable, "-m", "hooktrain", "train", str(recipe), "--from", name]
    ours = finish([*command, "-o", "run_dir=run", "-o", "log_interval=1"], tmp_path / "ours")
    assert ours.status == 0, ours.output
    losses = [each["loss"] for each in ours.of(tmp_path / "ours" / "run").metrics if "loss" in each]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert losses == pytest.approx(json.loads(line), abs=1e-5)
