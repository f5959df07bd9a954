"""Adapters on a model with Liger's kernels, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Function
from hooktrain.testing import Recorder, train

calls = []
forward = Function.forward
Function.forward = staticmethod(lambda *args, **more: calls.append(1) or forward(*args, **more))
recipe, adapters = json.loads(sys.argv[1])
for peft in adapters:
    for model in ("huggingface", "liger"):
        recorder = Recorder()
        calls.clear()
        made = {"type": model, **({"rope": False} if model == "liger" else {}), **recipe["model"]}
        trainer = train({**recipe, "model": made, "peft": peft}, recorder)
        weights = sum(float(p.detach().double().abs().sum()) for p in trainer.model.parameters() if p.requires_grad)
        print(json.dumps([[m["loss"] for m in recorder.metrics], weights, len(calls)]))
"""


@pytest.mark.skipif(importlib.util.find_spec("hooktrain_liger") is None, reason="needs hooktrain-liger")
def test_liger_trains_the_adapter_that_huggingface_does(recipe: dict[str, Any], bases: dict[str, Path]) -> None:
    """With a frozen head, which the fused loss takes apart, and with an adapter on it, which must not be passed by."""
    recipe = {**recipe, "train_iters": 2, "model": {"name_or_path": str(bases["untied"])}}
    adapters = [{"type": "lora", "r": 4}, {"type": "lora", "r": 4, "target_modules": ["lm_head"]}]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([recipe, adapters])],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    for (losses, weights, unfused), (other, others, fused) in zip(lines[::2], lines[1::2], strict=True):
        assert other == pytest.approx(losses, rel=1e-5)
        assert others == pytest.approx(weights, rel=1e-5)
        assert unfused == 0 < fused, "Liger is tried before it is used"
    assert lines[1][2] >= lines[3][2] + 2, "two steps with the frozen head in the fused loss; the adapted one is called"
