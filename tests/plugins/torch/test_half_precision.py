"""Half precision on a processor without instructions for it: the warning, with the factor measured here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from hooktrain_torch.half_precision import describe_slow_half, slowdown
from hooktrain_torch.ranks import native_half

from hooktrain import HooktrainWarning, World
from hooktrain.testing.tiny_plugin import TinyPlugin

HOST = torch.device("cpu")
SLOW = not native_half(torch.float16) and slowdown(torch.float16) > 2
"""Whether this processor computes fp16 more slowly than float32, as most do."""


@pytest.mark.parametrize(
    ("name", "device"), [("auto", HOST), ("fp32", HOST), ("fp16", torch.device("cuda")), ("bf16", torch.device("cuda"))]
)
def test_nothing_is_said_where_nothing_is_slow(name, device):
    assert describe_slow_half(name, device) == ""


@pytest.mark.skipif(not SLOW, reason="this processor multiplies fp16")
def test_a_run_and_its_plan_warn_with_the_factor(run_tiny, tmp_path):
    from hooktrain.inspection.estimate import estimate
    from hooktrain.training.load import load

    slow = {"dtype": "fp16", "device": "cpu"}
    with pytest.warns(HooktrainWarning, match=r"strategy\.dtype: given fp16 .* takes \d+ times .* write fp32"):
        run_tiny(strategy=slow, train_iters=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HooktrainWarning)
        run_tiny(strategy={"dtype": "auto", "device": "cpu"}, train_iters=1, run_dir=str(tmp_path / "auto"))
    made, host = load({"type": "tiny", "run_dir": str(tmp_path / "plan"), "strategy": slow}, plugins=[TinyPlugin()])
    notes = estimate(made, host, World(), [])["memory"]["notes"]
    assert any(re.search(r"given fp16 .* takes \d+ times", note) for note in notes)


@pytest.mark.thorough
def test_bf16_as_on_a_processor_of_avx2(tmp_path):
    """A process of its own, as torch and oneDNN read what they may use once."""
    code = (
        "import torch\nfrom hooktrain_torch.half_precision import *\n"
        "print(describe_slow_half('bf16', torch.device('cpu')))"
    )
    limited = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=limited, capture_output=True, text=True, check=True)
    factor = re.search(r"given bf16 .* takes ([\d,]+) times", done.stdout)
    assert factor and int(factor[1].replace(",", "")) >= 2, done.stdout
