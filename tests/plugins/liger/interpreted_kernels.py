"""Liger's kernels in the layers of one model, all of them run in Triton's interpreter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hooktrain_liger.compat import supported_types
from hooktrain_liger.config import LAYER_KERNELS
from hooktrain_liger.kernels import apply_kernels
from hooktrain_liger.triton_device import failure_of

from tests.plugins.liger.parity_models import all_on, assert_parity, build, run

pytestmark = pytest.mark.usefixtures("full_interpreter")

TYPES = [
    *("llama", "qwen2", "qwen3", "qwen3_5_text", "gemma2", "gemma3_text", "granite", "phi3", "olmo2", "smollm3"),
    *("glm4", "nemotron", "gpt_oss", "llama4_text", "falcon_h1"),
]
"""Types whose kernels all run in the interpreter; experts of mixtures ask for a GPU's driver."""
DEFAULT = ("llama", "gemma2", "olmo2")
"""Each kind of norm and of multilayer perceptron; the other types are thorough."""


@pytest.mark.parametrize(
    "model_type",
    [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.thorough) for name in TYPES],
)
def test_same_logits_and_gradients_and_nothing_else_changes(model_type: str) -> None:
    assert_parity(model_type)


@pytest.mark.parametrize("kernel", ["rope", "rms_norm", "swiglu"])
def test_each_kernel_alone(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is on runs, and those that are off do not."""
    from liger_kernel import ops

    functions = {
        "rope": ops.LigerRopeFunction,
        "rms_norm": ops.LigerRMSNormFunction,
        "swiglu": ops.LigerSiLUMulFunction,
    }
    calls: dict[str, int] = dict.fromkeys(functions, 0)

    def counted(name: str, forward: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return forward(*arguments)

        return staticmethod(call)

    for name, function in functions.items():
        monkeypatch.setattr(function, "forward", counted(name, function.forward))
    model = build("llama")
    apply_kernels(model, "llama", {kernel: True})
    run(model)
    assert calls == {**dict.fromkeys(functions, 0), kernel: {"rope": 2, "rms_norm": 5, "swiglu": 2}[kernel]}


def test_a_second_model_may_have_other_kernels() -> None:
    one, other = build("llama"), build("llama")
    apply_kernels(one, "llama", all_on("llama"))
    apply_kernels(other, "llama", {"swiglu": True})
    names = {type(m).__name__ for m in other.modules() if "forward" in vars(m)}
    assert names == {"LlamaMLP"}
    assert {type(m).__name__ for m in one.modules() if "forward" in vars(m)} == {
        *("LlamaMLP", "LlamaRMSNorm", "LlamaAttention")
    }


def test_a_second_model_and_the_module_of_transformers_stay_unchanged() -> None:
    from transformers.models.llama import modeling_llama

    one, other = build("llama"), build("llama")
    logits, before = run(other)[0], dict(vars(modeling_llama))
    apply_kernels(one, "llama", all_on("llama"))
    assert dict(vars(modeling_llama)) == before
    assert not [layer for layer in other.modules() if "forward" in vars(layer)]
    assert torch.equal(run(other)[0], logits) and not torch.equal(run(one)[0], logits)


def test_activation_checkpointing_runs_the_same_kernels() -> None:
    model = build("llama")
    apply_kernels(model, "llama", all_on("llama"))
    logits, gradients = run(model)
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    again, recomputed = run(model)
    assert torch.equal(again, logits)
    for name, gradient in gradients.items():
        assert torch.equal(recomputed[name], gradient), name


def test_a_copy_of_the_model_runs_on_its_own_weights() -> None:
    model = build("llama")
    apply_kernels(model, "llama", all_on("llama"))
    logits, _ = run(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(run(twin)[0], logits)


def test_supported_types_are_causal_language_models() -> None:
    types = supported_types()
    assert set(TYPES) <= set(types) and "qwen2_vl" not in types and types == sorted(types)


@pytest.mark.parametrize("kernel", [*LAYER_KERNELS, "fused_linear_cross_entropy", "cross_entropy"])
def test_trials_run_every_kernel(kernel: str) -> None:
    assert failure_of(kernel, torch.device("cpu"), softcap=2.0) is None
