"""Merging, for any LoRA on any of a model's layers."""

from __future__ import annotations

import torch
from hooktrain_peft.adapter import add_adapter
from hooktrain_peft.config import PeftSettings
from hooktrain_peft.weight_merge import copy_for_merge, merge_adapter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hooktrain.testing import make_llama, make_tokenizer
from tests.plugins.peft.conftest import difference, logits

TOKENIZER = make_tokenizer()
MODULES = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens", "lm_head"]


PLAIN = {"rank": 4, "alpha": 8, "dora": False, "rslora": False, "tied": False, "half": False, "seed": 0}


@settings(max_examples=30, deadline=None)
@example(modules=["lm_head"], saved=[], **{**PLAIN, "tied": True})
@example(modules=["embed_tokens"], saved=[], **{**PLAIN, "tied": True, "dora": True})
@example(modules=["q_proj"], saved=["lm_head"], **{**PLAIN, "half": True})
@given(
    modules=st.lists(st.sampled_from(MODULES), min_size=1, unique=True),
    saved=st.lists(st.sampled_from(["norm", "embed_tokens", "lm_head"]), unique=True),
    rank=st.integers(1, 20),
    alpha=st.integers(1, 64),
    dora=st.booleans(),
    rslora=st.booleans(),
    tied=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_merged_weights_compute_what_the_adapter_does(
    modules: list[str],
    saved: list[str],
    rank: int,
    alpha: int,
    dora: bool,
    rslora: bool,
    tied: bool,
    half: bool,
    seed: int,
) -> None:
    """Tied or not, and in half precision up to rounding; the merged copy's model is unchanged."""
    saved = [name for name in saved if name not in modules]
    if tied and saved and {"embed_tokens", "lm_head"} & set(modules):
        saved = ["norm"]
    base = make_llama(TOKENIZER, tied=tied)
    if half:
        base = base.bfloat16()
    config = PeftSettings(
        type="lora",
        r=rank,
        alpha=alpha,
        target_modules=tuple(modules),
        modules_to_save=tuple(saved) or None,
        use_dora=dora,
        use_rslora=rslora,
    )
    model = add_adapter(base, config, None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = logits(model)
    merged = merge_adapter(copy_for_merge(model, model.state_dict()))
    assert difference(expected, logits(merged)) < (0.15 if half else 1e-4)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16 if half else torch.float32}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(logits(model), expected)
