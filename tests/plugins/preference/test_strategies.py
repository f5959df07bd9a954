"""Every trainer type trains on two ranks, under every strategy, as it does on one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hooktrain import Trainer
from hooktrain.testing import Recorder
from tests.plugins.preference.conftest import PAIRS

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"type": "torch", "dtype": "fp32", "device": "cpu"},
    "fsdp2": {"type": "torch", "data_parallel": "fsdp2", "dtype": "fp32", "device": "cpu"},
    "zero2": {"type": "deepspeed", "zero_stage": 2, "dtype": "fp32"},
    "zero3": {"type": "deepspeed", "zero_stage": 3, "dtype": "fp32"},
}
KINDS: dict[str, dict[str, Any]] = {
    "dpo": {"type": "preference"},
    "dpo ahead": {"type": "preference", "models": {"reference": {"precompute": True}}},
    "kto": {"type": "kto", "loss": {"loss_type": "apo_zero_unpaired"}},
    "reward": {"type": "reward"},
}
"""KTO without its estimate, which depends on the answers of a micro-batch."""


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one_does(
    run: Callable[..., Trainer], recipe: dict[str, Any], tmp_path: Path, kind: str, strategy: str
) -> None:
    rows = [{"prompt": f"{prompt}\n", "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    source = tmp_path / "strategy-pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sources": [str(source)], "max_length": 96, "shuffle": False, "cache_dir": str(tmp_path / "cache")}
    changes = {**KINDS[kind], "data": data, "train_iters": 3}
    recorder = Recorder()
    run(recorder, **changes, run_dir=str(tmp_path / "alone"))
    path = tmp_path / "strategy.yaml"
    more = {"micro_batch_size": 2, "run_dir": str(tmp_path / "ranks"), "strategy": STRATEGIES[strategy]}
    path.write_text(yaml.safe_dump({**recipe, **changes, **more}))
    command = [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = list(map(json.loads, (tmp_path / "ranks/metrics.jsonl").read_text().splitlines()))
    assert len(lines) == len(recorder.metrics) == 3
    for line, other in zip(lines, recorder.metrics, strict=True):
        for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert line[name] == pytest.approx(other[name], abs=2e-5), (line["step"], name)
