"""On a GPU: every kernel compiled, its results, and complete runs compared with those of ``huggingface``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hooktrain_liger.config import LAYER_KERNELS
from hooktrain_liger.head_loss import CrossEntropy, FusedLinearCrossEntropy
from hooktrain_liger.triton_device import failure_of

from tests.plugins.liger.parity_loss import assert_close_in_half, assert_equal, make
from tests.plugins.liger.parity_models import assert_parity

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="Triton compiles for a GPU, and there is none; see test_interpreted.py"
)
TYPES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "granite", "phi3", "olmo2", "smollm3", "glm4", "nemotron"]
EXPERTS = ["mixtral", "qwen3_moe", "hunyuan_v1_moe"]
LOSSES = [FusedLinearCrossEntropy, CrossEntropy]

Train = Callable[..., list[dict[str, float]]]


@pytest.mark.parametrize("kernel", [*LAYER_KERNELS, "fused_linear_cross_entropy", "cross_entropy"])
def test_kernel_compiles(kernel: str) -> None:
    assert failure_of(kernel, torch.device("cuda"), softcap=2.0) is None


@pytest.mark.parametrize("model_type", TYPES)
def test_layers(model_type: str) -> None:
    assert_parity(model_type, "cuda")


@pytest.mark.parametrize("model_type", EXPERTS)
def test_experts(model_type: str) -> None:
    assert_parity(model_type, "cuda", 1e-2)  # Triton's matrix products may round to TF32


@pytest.mark.parametrize("make_loss", LOSSES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_loss(make_loss: Any, bias: bool, softcap: float | None) -> None:
    options = {"softcap": softcap, "multiplier": 0.7, "label_smoothing": 0.1, "z_loss": 1e-2}
    assert_equal(make_loss(**options), make(bias=bias, device="cuda"), 1e-5, **options)


def test_loss_weighted_by_probability() -> None:
    assert_equal(FusedLinearCrossEntropy(token_scaling=True), make(device="cuda"), 1e-5, token_scaling=True)


@pytest.mark.parametrize("make_loss", LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("autocast", [True, False])
def test_loss_in_half_precision(make_loss: Any, dtype: torch.dtype, tolerance: float, autocast: bool) -> None:
    inputs = make(tokens=64, width=32, dtype=torch.float32 if autocast else dtype, device="cuda")
    assert_close_in_half(make_loss(), inputs, dtype, autocast, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
@pytest.mark.parametrize("kernels", [{}, {"fused_linear_cross_entropy": False, "cross_entropy": True}])
def test_runs_agree_with_huggingface(fine_tune: Train, dtype: str, tolerance: float, kernels: dict[str, bool]) -> None:
    ours = fine_tune({"type": "liger", **kernels}, strategy={"dtype": dtype})
    theirs = fine_tune({"type": "huggingface"}, strategy={"dtype": dtype})
    for key in ("loss", "grad_norm"):
        found, expected = [line[key] for line in ours if key in line], [line[key] for line in theirs if key in line]
        assert len(found) == 3 and found == pytest.approx(expected, rel=tolerance if key == "loss" else 5 * tolerance)
