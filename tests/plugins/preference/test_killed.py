"""Runs of every trainer type that are killed at random and resumed repeat an undisturbed run bit by bit."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooktrain import Trainer
from tests.killing import killed
from tests.plugins.preference.conftest import PAIRS

LORA = {"peft": {"type": "lora", "r": 4}}
KINDS: dict[str, dict[str, Any]] = {
    "dpo": {"type": "preference"},
    "dpo ahead": {"type": "preference", "models": {"reference": {"precompute": True}}},
    "lora": {"type": "preference", **LORA},
    "kto": {"type": "kto", "log_interval": 2},
    "reward": {"type": "reward"},
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_and_resumed(
    run: Callable[..., Trainer], recipe: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    rows = [{"prompt": f"{prompt}\n", "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    source = tmp_path / "killed-pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes: dict[str, Any] = {
        **KINDS[kind],
        "data": {"sources": [str(source)], "max_length": 96, "cache_dir": str(tmp_path / "cache")},
        "checkpoint": [{"type": "full", "save_every_n_steps": 1, "auto_resume": True, "keep_last": 2}],
        "train_iters": 5,
    }
    undisturbed = run(**changes, run_dir=str(tmp_path / "undisturbed"))
    draw, kills = random.Random(kind), 0
    for _ in range(4):  # each begins where the one before was killed
        at = draw.randint(5, 40)
        kills += killed(
            {**recipe, **changes, "run_dir": str(tmp_path / "killed")}, at, tmp_path / f"process-{kills}-{at}"
        )
    assert kills
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "run_dir: the last run in .* ended without finishing")
        resumed = run(**changes, run_dir=str(tmp_path / "killed"))
    assert resumed.global_step == undisturbed.global_step == 5
    pairs = zip(undisturbed.model.named_parameters(), resumed.model.named_parameters(), strict=True)
    for (name, weight), (_, other) in pairs:
        assert torch.equal(weight, other), name
    names = ("loss", "rewards/chosen", "rewards/margins", "grad_norm")
    lines = [
        {line["step"]: {name: line[name] for name in names} for line in map(json.loads, path.read_text().splitlines())}
        for path in (tmp_path / folder / "metrics.jsonl" for folder in ("undisturbed", "killed"))
    ]
    assert lines[0] == lines[1]
