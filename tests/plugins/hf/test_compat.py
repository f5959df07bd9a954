"""Names of other libraries that hooktrain_hf.compat reads: an upgrade that changes one fails here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hooktrain_hf
import pytest
import torch
import transformers
from hooktrain_hf import compat

from tests.plugins.hf.attention.families import FAMILIES, HYBRIDS, make


@pytest.fixture
def model(make_llama: Callable[..., Any]) -> Any:
    return make_llama()


def test_the_parts_of_a_model(model: Any) -> None:
    assert compat.decoder_of(model) is model.model
    assert compat.vocabulary_size(model) == model.get_input_embeddings().weight.shape[0]
    assert compat.unwrap_adapters(model) is model
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert compat.unwrap_adapters(adapted) is model and compat.decoder_of(adapted) is model.model


def test_kinds_of_layers() -> None:
    hybrid = make("Qwen3Next", HYBRIDS["Qwen3Next"])
    assert list(compat.layer_types(compat.decoder_of(hybrid))) == ["linear_attention", "full_attention"]
    assert compat.is_stateful(compat.decoder_of(make("Mamba", HYBRIDS["Mamba"])))
    assert not compat.is_stateful(compat.decoder_of(make("Llama", FAMILIES["Llama"][1])))


@pytest.mark.parametrize(
    ("family", "name", "interface", "eager"),
    [("Llama", "sdpa", True, True), ("GptOss", "eager", True, True), ("GPTJ", "eager", False, False)],
)
def test_the_attention_of_a_model(family: str, name: str, interface: bool, eager: bool) -> None:
    decoder = compat.decoder_of(make(family, FAMILIES[family][1]))
    assert compat.attention_implementation(decoder) == name
    assert compat.supports_attention_interface(decoder) is interface
    assert callable(compat.eager_attention(decoder)) is eager
    assert compat.works_without_masks(compat.decoder_of(make("Llama", FAMILIES["Llama"][1])))
    compat.set_attention_implementation(decoder, "other")
    assert compat.attention_implementation(decoder) == "other"
    assert compat.attention_implementation(torch.nn.Linear(1, 1)) == ""


def test_the_dtype_of_a_stored_model(make_llama: Callable[..., Any], tmp_path: Path) -> None:
    assert compat.config_dtype(make_llama().config) == ""
    make_llama().bfloat16().save_pretrained(tmp_path)
    assert compat.config_dtype(transformers.AutoConfig.from_pretrained(tmp_path)) == "bfloat16"


def test_the_classes_of_configs() -> None:
    llama, llava = transformers.LlamaConfig(), transformers.LlavaConfig()
    assert compat.auto_class(llama) is transformers.AutoModelForCausalLM
    assert compat.auto_class(llava) is transformers.AutoModelForImageTextToText
    assert compat.auto_class(transformers.T5Config()) is None
    assert compat.has_vision(llava) and not compat.has_vision(llama)
    assert compat.model_class(llava) is transformers.LlavaForConditionalGeneration
    assert compat.model_class(llama) is transformers.LlamaForCausalLM


def test_the_positions_of_configs(tmp_path: Path) -> None:
    assert compat.position_limit(transformers.LlamaConfig()) is None
    assert compat.position_limit(transformers.GPT2Config(n_positions=64)) == 64
    assert compat.position_limit(transformers.MptConfig(max_seq_len=32)) == 32
    assert compat.position_limit(transformers.BloomConfig()) is None
    roberta = transformers.RobertaForCausalLM(
        transformers.RobertaConfig(
            vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    )
    assert sum(map(compat.counts_positions, roberta.modules())) == 1
    assert not any(map(compat.counts_positions, make("Llama", FAMILIES["Llama"][1]).modules()))
    (tmp_path / "there.json").write_text("{}")
    assert compat.stored_file(str(tmp_path), "there.json") == str(tmp_path / "there.json")
    assert compat.stored_file(str(tmp_path), "absent.json") is None


def test_weights_that_are_complete_are_not_gathered() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    with torch.no_grad(), compat.complete_weights([weight]):
        weight += 1
    assert weight.tolist() == [1, 1]


def test_activation_checkpointing(model: Any) -> None:
    compat.enable_activation_checkpointing(model.train())
    ids = torch.arange(8)[None]
    calls = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert len(calls) == 2, "once in the forward pass and once in the backward pass"


def test_devices_of_a_divided_model(model: Any) -> None:
    assert compat.devices_of(model) == set()
    model.hf_device_map = {"model": "cpu", "lm_head": "disk"}
    assert compat.devices_of(model) == {"cpu", "disk"}


def test_the_device_map_of_transformers(folder: Any) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    assert {str(device) for device in compat.devices_of(loaded)} <= {"cpu"}


def test_names_that_are_not_saved() -> None:
    assert list(compat.names_not_saved(SimpleNamespace(_keys_to_ignore_on_save=["a"]))) == ["a"]
    assert hasattr(transformers.PreTrainedModel, "_keys_to_ignore_on_save")


def test_chat_templates(tokenizer: Any) -> None:
    assert "im_start" in compat.chat_template(tokenizer)
    assert compat.chat_template(object()) is None


def test_gguf_weights_are_unpacked() -> None:
    """With a real file in test_gguf.py, which also fails where the marks of quantization stay."""
    options = compat.gguf_load_options()
    assert options == {} or options["quantization_config"].dequantize


def test_a_model_that_is_not_quantized_is_unchanged(model: Any) -> None:
    before = dict(vars(model))
    compat.forget_gguf_quantization(model)
    assert vars(model).keys() == before.keys()


def test_sharded_weights() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    assert compat.complete_shape(weight) == (3,)
    weight.ds_id, weight.ds_shape = 1, torch.Size([6])  # type: ignore[attr-defined]
    assert compat.complete_shape(weight) == (6,)


def test_the_gradient_of_a_softmax() -> None:
    inputs, gradient = (torch.randn(2, 3, 5, dtype=torch.float64) for _ in range(2))
    output = torch.softmax(inputs.requires_grad_(), -1)
    output.backward(gradient)
    torch.testing.assert_close(compat.softmax_backward(gradient, output.detach()), inputs.grad)


def test_native_bf16() -> None:
    assert compat.native_bf16() in (True, False)


def test_generation_configs_hold_their_values_as_attributes(model: Any) -> None:
    """export.py reads them by name."""
    assert {"temperature", "top_p", "top_k", "typical_p", "min_p"} <= vars(model.generation_config).keys()


@pytest.mark.usefixtures("real_starts")
def test_importing_the_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, hooktrain_hf; hooktrain_hf.HFModelConfig, hooktrain_hf.first_line;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'gguf') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_package_exports_what_it_lists() -> None:
    assert all(getattr(hooktrain_hf, name).__name__ == name for name in hooktrain_hf.__all__)
    assert set(hooktrain_hf.__all__) <= set(dir(hooktrain_hf))
    with pytest.raises(AttributeError, match="hooktrain_hf.*nothing"):
        hooktrain_hf.nothing  # noqa: B018
