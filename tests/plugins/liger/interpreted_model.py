"""Building the model in Triton's interpreter, which runs the rotary embeddings and the cross-entropies, and no more."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_hf import HFModelConfig, build_model
from hooktrain_liger.config import LigerModelConfig
from hooktrain_liger.model import build_liger_model
from transformers import AutoConfig, GPT2Config, PreTrainedConfig

from hooktrain import ModelError, World
from hooktrain.testing import make_llama, make_tokenizer
from tests.facts import facts

WORLD = World()


@pytest.fixture
def config_only(tmp_path: Path) -> Callable[[PreTrainedConfig], str]:
    """A folder with a config and no weights: what is refused with it is refused before weights are read."""

    def make(config: PreTrainedConfig) -> str:
        config.save_pretrained(tmp_path / "config-only")
        return str(tmp_path / "config-only")

    return make


def refusal(folder: str, **keys: Any) -> str:
    with pytest.raises(ModelError) as caught:
        build_liger_model(LigerModelConfig(name_or_path=folder, **keys), None, WORLD, "auto")
    return str(caught.value)


def llama() -> PreTrainedConfig:
    return make_llama(make_tokenizer()).config


def test_unsupported_type(config_only: Callable[..., str]) -> None:
    text = refusal(config_only(GPT2Config(n_layer=1, n_embd=8, n_head=1)))
    assert re.search(facts("model.name_or_path", "'gpt2'", "gemma2", "llama", "qwen3", "type: huggingface"), text)
    assert "\n" not in text


def test_kernel_that_the_type_does_not_have(config_only: Callable[..., str]) -> None:
    text = refusal(config_only(llama()), geglu=True)
    assert re.search(facts("model.geglu", "given true", "'llama'", "rope, rms_norm, swiglu"), text)


def test_kernel_that_does_not_run_here(config_only: Callable[..., str]) -> None:
    text = refusal(config_only(llama()), rms_norm=True)
    assert re.search(facts("model.rms_norm", "TRITON_INTERPRET", "write rms_norm: false"), text)


def test_soft_capping_that_does_not_run_here(config_only: Callable[..., str]) -> None:
    config = AutoConfig.for_model("gemma2", num_hidden_layers=1, hidden_size=16, intermediate_size=16, head_dim=8)
    text = refusal(config_only(config))
    assert re.search(facts("model.fused_linear_cross_entropy: ", "soft-capping", "TRITON_INTERPRET"), text)


def test_versions_that_do_not_fit(config_only: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger reaches into modules of transformers by name."""
    from transformers.models.llama import modeling_llama

    def renamed(self: Any, config: Any) -> None:
        init(self, config)
        self.final_norm = self.norm
        del self.norm

    init = modeling_llama.LlamaModel.__init__
    monkeypatch.setattr(modeling_llama.LlamaModel, "__init__", renamed)
    from hooktrain_liger import model as module

    monkeypatch.setattr(module, "_choose", lambda *arguments: {"rms_norm": True})
    text = refusal(config_only(llama()))
    versions = [f"liger-kernel {version('liger-kernel')}", f"transformers {version('transformers')}"]
    assert re.search(facts("model.name_or_path", "'norm'", *versions, "type: huggingface"), text)


def test_a_valid_config_continues_with_the_weights(config_only: Callable[..., str]) -> None:
    assert re.search(facts("model.name_or_path", " weights "), refusal(config_only(llama())))


def test_a_kernel_that_cannot_run_is_not_applied_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_llama(make_tokenizer()).save_pretrained(tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        model, kernels = build_liger_model(LigerModelConfig(name_or_path=str(tmp_path / "model")), None, WORLD, "auto")
    assert kernels == ["rope"]
    assert {type(m).__name__ for m in model.modules() if "forward" in vars(m)} == {"LlamaAttention"}
    (ours,) = [r.message for r in caplog.records if r.name.startswith("hooktrain")]
    assert re.search(facts("model", "rms_norm, swiglu", "TRITON_INTERPRET"), ours)
    assert not [r for r in caplog.records if r.name.startswith("liger_kernel")]


@pytest.mark.usefixtures("full_interpreter")
def test_what_is_off_stays_off(tmp_path: Path) -> None:
    make_llama(make_tokenizer()).save_pretrained(tmp_path / "model")
    config = LigerModelConfig(name_or_path=str(tmp_path / "model"), rope=False, swiglu=False)
    model, kernels = build_liger_model(config, None, WORLD, "auto")
    assert kernels == ["rms_norm"]
    assert {type(m).__name__ for m in model.modules() if "forward" in vars(m)} == {"LlamaRMSNorm"}


@pytest.mark.parametrize("from_config", [True, False])
def test_same_weights_as_huggingface(tmp_path: Path, from_config: bool) -> None:
    """Trying the kernels on a model without weights draws no random number."""
    make_llama(make_tokenizer()).save_pretrained(tmp_path / "model")
    keys: dict[str, Any] = {"name_or_path": str(tmp_path / "model"), "from_config": from_config}
    torch.manual_seed(1)
    theirs = build_model(HFModelConfig(**keys), None, WORLD)
    torch.manual_seed(1)
    ours, _ = build_liger_model(LigerModelConfig(**keys), None, WORLD, "auto")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_it_gives_logits(tmp_path: Path) -> None:
    """Liger's own forward gives none in training, which others depend on."""
    make_llama(make_tokenizer()).save_pretrained(tmp_path / "model")
    model, _ = build_liger_model(LigerModelConfig(name_or_path=str(tmp_path / "model")), None, WORLD, "auto")
    ids = torch.arange(6)[None]
    output = model.train()(input_ids=ids, labels=ids)
    assert output.logits.shape == (1, 6, model.config.vocab_size)
