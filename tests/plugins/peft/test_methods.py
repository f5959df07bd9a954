"""Every method of PEFT, by its name: it is refused with a reason, or it trains, reloads, resumes and merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_peft.export import write_merged
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM

from hooktrain import CheckpointError, RecipeError
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.plugins.peft.conftest import difference, logits

SMALL: dict[str, dict[str, Any]] = {
    "ADALORA": {"r": 4, "config": {"target_r": 2}},
    "C3A": {"config": {"block_size": 8}},
    "FOURIERFT": {"config": {"n_frequency": 16}},
    "GRALORA": {"r": 8},
    "MISS": {"r": 8},
    "OFT": {"config": {"oft_block_size": 8}},
    "PSOFT": {"r": 8},
    "ROAD": {"config": {"group_size": 8}},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"config": {"token_indices": [5, 6, 7, 40]}},
    "VBLORA": {"config": {"vector_length": 8, "num_vectors": 16}},
    "WAVEFT": {"config": {"n_frequency": 16}},
}
"""Settings that fit a model of 16 channels."""
NEEDS: dict[str, dict[str, Any]] = {
    "ADAPTION_PROMPT": {"config": {"adapter_len": 4, "adapter_layers": 1}},
    "CPT": {"config": {"cpt_token_ids": [1], "cpt_mask": [1], "cpt_tokens_type_mask": [1]}},
    "XLORA": {"config": {"adapters": {}}},
}
REFUSED = {
    *("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"),
    *("ADAPTION_PROMPT", "LILY", "SHADOW", "XLORA"),
}
NOT_MERGED = {"BEFT"}
DEFAULT = {*REFUSED, "ADALORA", "LORA", "IA3", "LN_TUNING", "OFT", "TRAINABLE_TOKENS", "VBLORA", "BEFT"}
"""Each kind of what a method adds, and whether it is merged; the other methods are thorough."""
NAMES = sorted(name.value for name in PEFT_TYPE_TO_CONFIG_MAPPING)


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.thorough) for name in NAMES]
)
def test_a_method_works_or_is_refused_with_a_reason(
    name: str, run: Callable[..., Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    peft = {"type": name.lower(), **SMALL.get(name, NEEDS.get(name, {}))}
    if name in REFUSED:
        with pytest.raises(RecipeError, match=rf"'{name.lower()}'.*such as lora"):
            run(peft=peft)
        return
    if name == "ADAMSS":
        pytest.importorskip("sklearn", reason="this method is one of scikit-learn's users")
    uninterrupted, parts = Recorder(), Recorder()
    saves = [{"type": "full", "save_every_n_steps": 2}, {"type": "huggingface", "save_end_of_training": True}]
    one = run(uninterrupted, peft=peft, checkpoint=saves)
    expected = logits(one.model)
    base = AutoModelForCausalLM.from_pretrained(bases["tied"])
    assert difference(logits(base), expected) > 1e-4, "it has learnt something"
    own = base.state_dict()
    for key, value in one.model.get_base_model().named_parameters():
        plain = key.replace(".base_layer", "").replace(".original_module", "")
        if plain in own and not value.requires_grad:
            assert torch.equal(value, own[plain]), f"{key} was frozen and has changed"

    torch.manual_seed(9)
    reloaded = logits(PeftModel.from_pretrained(base, tmp_path / "run/export"))
    assert difference(expected, reloaded) < 1e-6

    resumed = run(
        parts, peft=peft, trainer={"resume_from": tmp_path / "run/checkpoints/step-00000002"}, checkpoint=saves
    )
    assert torch.equal(logits(resumed.model), expected)
    assert [m["loss"] for m in parts.metrics] == [m["loss"] for m in uninterrupted.metrics[2:]]

    weights = one.model.state_dict()
    if name in NOT_MERGED:
        with pytest.raises(CheckpointError, match=facts("peft", "merged", "LlamaForCausalLM")):
            write_merged(one.model, weights, tmp_path / "merged", None, None)
        return
    write_merged(one.model, weights, tmp_path / "merged", None, None)
    assert torch.equal(logits(one.model), expected), "merging a copy leaves the model alone"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert difference(expected, logits(merged)) < 1e-5
    assert {key for key, _ in merged.named_parameters()} == set(own) - {"lm_head.weight"}
