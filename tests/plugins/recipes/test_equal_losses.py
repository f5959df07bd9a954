"""The same recipe gives the same losses here and in the program that it was written for, step by step in float32."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from benchmarks import peers
from benchmarks.sft.inputs import for_transformers_4
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


def a_recipe_for_arctic(folder: Path) -> dict[str, Any]:
    """All rows in each step, as its order of rows is another one."""
    datasets.Dataset.from_list(sample_rows(count=6)).save_to_disk(str(folder / "rows"))
    model = for_transformers_4(save_llama(folder / "five"), folder / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    (model / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    roles = {role: f"messages.role.{role}" for role in ("user", "assistant")}
    return {
        "type": "sft",
        "micro_batch_size": 6,
        "epochs": 5,
        "seed": 1,
        "skip_validation": True,
        "model": {
            "name_or_path": str(model),
            "dtype": "fp32",
            "disable_activation_checkpoint": True,
        },
        "data": {
            "sources": [{"type": "huggingface_instruct", "name_or_path": str(folder / "rows"), "role_mapping": roles}],
            "max_length": 128,
            "cache_dir": str(folder / "cache"),
            "num_proc": 1,
        },
        "optimizer": {"learning_rate": 0.01, "weight_decay": 0.0},
        "scheduler": {"name": "constant"},
        "train_log_metrics_path": "metrics.jsonl",
    }


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("peer", "write"), [("TRL", a_recipe_for_trl), ("ARCTIC", a_recipe_for_arctic)], ids=["trl", "arctic"]
)
def test_losses_are_those_of_the_other_program(
    peer: str, write: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    name = peer.lower()
    try:
        python = ensure(getattr(peers, peer), ENVIRONMENTS)
    except EnvironmentFailed as problem:
        pytest.skip(str(problem))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(write(tmp_path)), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "MASTER_PORT": port}
    quiet["TORCH_EXTENSIONS_DIR"] = str(python.parents[1] / "extensions")  # DeepSpeed compiles some in its first run
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        folder.mkdir()
    theirs = finish([str(python), str(PROGRAM), name, str(recipe)], tmp_path / "theirs", env=quiet, timeout=500)
    assert theirs.status == 0, theirs.output
    (line,) = [each for each in theirs.output.splitlines() if each.startswith("[") and each.endswith("]")]
    command = [sys.executable, "-m", "hooktrain", "train", str(recipe), "--from", name]
    ours = finish([*command, "-o", "run_dir=run", "-o", "log_interval=1"], tmp_path / "ours")
    assert ours.status == 0, ours.output
    losses = [each["loss"] for each in ours._replace(folder=tmp_path / "ours" / "run").metrics if "loss" in each]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert losses == pytest.approx(json.loads(line), abs=1e-5)
