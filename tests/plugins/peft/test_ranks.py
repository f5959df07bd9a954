"""Adapters on several ranks: real processes, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED, "peft")


def test_two_ranks_train_as_one_does_on_all_sequences(
    run: Callable[..., Any], recipe: dict[str, Any], tmp_path: Path
) -> None:
    """With an adapter in each layer, one complete module, activation checkpointing, and the base in the model but frozen."""
    settings = {
        **recipe,
        "model": {**recipe["model"], "activation_checkpointing": True},
        "peft": {"type": "lora", "r": 4, "modules_to_save": ["norm"]},
        "data": {**recipe["data"], "pack_samples": False, "eval_sources": recipe["data"]["sources"]},
        "checkpoint": [
            {"type": "huggingface", "save_end_of_training": True},
            {"type": "full", "save_end_of_training": True},
        ],
        "train_iters": 3,
    }
    alone = run(**{**settings, "gradient_accumulation_steps": 2})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, "run_dir": str(tmp_path / "ranks")}))
    done = subprocess.run(
        [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", "2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone.run_dir, tmp_path / "ranks")
    ]
    for one, two in zip(*lines, strict=True):
        same = [key for key in one if key in ("loss", "grad_norm", "supervised_tokens") or key.startswith("eval/")]
        assert {key: two[key] for key in same} == pytest.approx({key: one[key] for key in same}, rel=1e-5)
    exported = [
        load_file(folder / "export/adapter_model.safetensors") for folder in (alone.run_dir, tmp_path / "ranks")
    ]
    assert exported[0].keys() == exported[1].keys() and "base_model.model.model.norm.weight" in exported[0]
    for name, value in exported[0].items():
        torch.testing.assert_close(exported[1][name], value, rtol=1e-3, atol=1e-5)
    saved = torch.load(tmp_path / "ranks/checkpoints/step-00000003/model-0.pt", weights_only=True)
    assert len(saved) == len(exported[0]), "nothing of the base"


@pytest.mark.parametrize(
    "strategy",
    [pytest.param({"type": "deepspeed", "zero_stage": 3}, marks=pytest.mark.thorough), {"data_parallel": "fsdp2"}],
    ids=["deepspeed", "fsdp2"],
)
def test_an_adapter_is_merged_where_no_rank_has_the_complete_model(
    run: Callable[..., Any], recipe: dict[str, Any], tmp_path: Path, strategy: dict[str, Any]
) -> None:
    """In the middle of the run, so that the live model is trained further, and at its end."""
    settings = {
        **recipe,
        "peft": {"type": "lora", "r": 4, "merge_on_export": True},
        "data": {**recipe["data"], "pack_samples": False, "eval_sources": []},
        "checkpoint": [{"type": "huggingface", "save_every_n_steps": 1, "save_end_of_training": True}],
        "train_iters": 2,
        "eval_interval": 0,
    }
    alone = run(**{**settings, "gradient_accumulation_steps": 2})
    path = tmp_path / "recipe.yaml"
    sharded = {"device": "cpu", "dtype": "fp32", **strategy}
    path.write_text(yaml.safe_dump({**settings, "strategy": sharded, "run_dir": str(tmp_path / "ranks")}))
    done = subprocess.run(
        [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", "2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (load_file(folder / "export/model.safetensors") for folder in (alone.run_dir, tmp_path / "ranks"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.thorough
def test_adalora_moves_the_same_ranks_on_two(run: Callable[..., Any], recipe: dict[str, Any], tmp_path: Path) -> None:
    settings = {
        **recipe,
        "peft": {"type": "adalora", "r": 4, "config": {"target_r": 2}},
        "data": {**recipe["data"], "pack_samples": False},
        "train_iters": 3,
    }
    alone = run(**{**settings, "gradient_accumulation_steps": 2})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, "run_dir": str(tmp_path / "ranks")}))
    done = subprocess.run(
        [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", "2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone.run_dir, tmp_path / "ranks")
    )
    for mine, theirs in zip(one, two, strict=True):
        for name in ("loss", "orthogonality", "grad_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4)
