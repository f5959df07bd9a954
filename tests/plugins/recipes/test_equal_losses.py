"""The same recipe gives the same losses here and in the program that it was written for, step by step in float32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from benchmarks import peers
from benchmarks.sft.inputs import for_transformers_4
from hooktrain import default_cache_dir
from hooktrain.bench.environments import EnvironmentFailed, Peer, ensure
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


def a_recipe_for_arctic(folder: Path) -> dict[str, Any]:
    """Two conversations, both in each step, so that no order matters."""
    datasets.Dataset.from_list(sample_rows(count=2)).save_to_disk(folder / "rows")
    model = for_transformers_4(save_llama(folder / "model"), folder / "model-4")
    roles = {role: f"messages.role.{role}" for role in ("user", "assistant")}  # the order of the turns, there
    return {
        "type": "sft",
        "micro_batch_size": 2,
        "train_iters": 5,
        "epochs": 5,
        "model": {"name_or_path": str(model), "dtype": "fp32", "disable_activation_checkpoint": True},
        "data": {
            "sources": [{"type": "huggingface_instruct", "name_or_path": str(folder / "rows"), "role_mapping": roles}],
            "cache_dir": str(folder / "cache"),
            "num_proc": 1,
            "max_length": 64,
            "div_length": 8,
        },
        "optimizer": {"lr": 0.01, "weight_decay": 0.0},
        "scheduler": {"name": "constant"},
        "deepspeed": {"zero_optimization": {"stage": 0}},
    }


def python_of(peer: Peer, folder: Path) -> Path:
    """The Python of a program's environment, made where it is missing; skips where no package index can be reached."""
    try:
        return ensure(peer, ENVIRONMENTS, only_find=True)
    except EnvironmentFailed:
        probe = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), "packaging"]
        if subprocess.run(probe, capture_output=True, check=False, stdin=subprocess.DEVNULL).returncode:
            pytest.skip("no package index can be reached, so that no other program can be installed")
    return ensure(peer, ENVIRONMENTS)  # a failure from here on is one of the pinned files, or of ours


def losses_of(peer: Peer, program: str, recipe: dict[str, Any], dialect: str, folder: Path) -> tuple[Any, Any]:
    """The losses of a recipe's steps: the other program's, from a process of its own, and ours."""
    python = python_of(peer, folder)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    for name in ("theirs", "ours"):
        (folder / name).mkdir()
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    theirs = finish([str(python), str(PROGRAM), program, str(file)], folder / "theirs", env=quiet)
    assert theirs.status == 0, theirs.output
    (line,) = [each for each in theirs.output.splitlines() if each.startswith("[") and each.endswith("]")]
    command = [sys.executable, "-m", "hooktrain", "train", str(file), "--from", dialect]
    ours = finish([*command, "-o", "run_dir=run", "-o", "log_interval=1"], folder / "ours")
    assert ours.status == 0, ours.output
    made = [each["loss"] for each in ours.of(folder / "ours" / "run").metrics if "loss" in each]
    assert len(made) == 5
    return json.loads(line), made


@pytest.mark.thorough
def test_losses_are_those_of_trl(tmp_path: Path) -> None:
    theirs, ours = losses_of(peers.TRL, "trl", a_recipe_for_trl(tmp_path), "trl", tmp_path)
    assert ours[-1] < ours[0]
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("more", [{}, {"loss_type": ["ipo"]}, {"use_peft": True, "lora_target_modules": "all-linear"}])
def test_losses_of_preferences_are_those_of_trl(tmp_path: Path, more: dict[str, Any]) -> None:
    recipe = {**a_recipe_for_trl(tmp_path), "max_length": 64, "beta": 0.5, "loss_type": ["sigmoid"], **more}
    template = tmp_path / "model" / "chat_template.jinja"  # TRL also trains the line break behind an answer
    template.write_text(template.read_text().replace("<|im_end|>\n", "<|im_end|>"))
    rows = sample_rows(count=10)
    pairs = [
        {"prompt": row["messages"][:1], "chosen": row["messages"][1:], "rejected": rows[at - 1]["messages"][1:]}
        for at, row in enumerate(rows)
    ]
    (tmp_path / "rows" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    theirs, ours = losses_of(peers.TRL, "trl_dpo", recipe, "trl", tmp_path)
    assert ours[-1] != pytest.approx(ours[0], abs=1e-3)
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.thorough
def test_losses_are_those_of_arctic_training(tmp_path: Path) -> None:
    theirs, ours = losses_of(peers.ARCTIC, "arctic", a_recipe_for_arctic(tmp_path), "arctic", tmp_path)
    assert ours[-1] < ours[0]
    assert ours == pytest.approx(theirs, abs=1e-5)
