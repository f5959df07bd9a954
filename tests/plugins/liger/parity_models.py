"""Tiny models of many types, and a comparison of one with and without Liger's kernels, on any device."""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any

import torch
import transformers
from hooktrain_liger.compat import apply_function
from hooktrain_liger.config import LAYER_KERNELS
from hooktrain_liger.kernels import apply_kernels
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

SIZE: dict[str, Any] = {
    **{"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False},
}
SMALL = {
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 48},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "qwen3_5_text": {"linear_num_key_heads": 2, "linear_num_value_heads": 2},
    "mixtral": {"num_local_experts": 4},
    "hunyuan_v1_moe": {"num_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def config_of(model_type: str) -> PreTrainedConfig:
    kind = type(AutoConfig.for_model(model_type))
    accepted = kind().to_dict()
    config = kind(**{k: v for k, v in SIZE.items() if k in accepted}, **SMALL.get(model_type, {}))
    config._attn_implementation = "eager"
    return config


def build(model_type: str, device: str = "cpu") -> nn.Module:
    """A model whose weights are all random, in evaluation mode."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(model_type)).float()
    for parameter in model.parameters():  # norms start as ones and zeros, which hide mistakes
        parameter.data.normal_(std=0.2).add_(1.0 if parameter.dim() == 1 else 0.0)
    return model.to(device).eval()


def all_on(model_type: str) -> dict[str, bool]:
    """The kernels that Liger has on for the type."""
    parameters = inspect.signature(apply_function(model_type)).parameters
    return {name: True for name in LAYER_KERNELS if name in parameters and parameters[name].default}


def run(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of two packed documents, and the gradients of a loss."""
    model.zero_grad()
    device = next(model.parameters()).device
    ids = torch.arange(3, 19, device=device).view(1, 16) * 3 % 61
    positions = torch.cat([torch.arange(9), torch.arange(7)])[None].to(device)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum").backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def world() -> dict[tuple[str, str, str], Any]:
    """Everything outside the model that kernels could be put into."""
    found: dict[tuple[str, str, str], Any] = {}
    modules = [n for n in sys.modules if n.startswith("transformers.models.") and ".modeling_" in n]
    for name in (*modules, "torch.nn", "torch.nn.functional", "transformers.loss.loss_utils"):
        for key, value in vars(sys.modules[name]).items():
            found[name, key, ""] = value
            if inspect.isclass(value) and value.__module__ == name:
                found.update({(name, key, attribute): inner for attribute, inner in vars(value).items()})
    found.update({("activations", key, ""): value for key, value in dict.items(transformers.activations.ACT2FN)})
    return found


def assert_parity(model_type: str, device: str = "cpu", tolerance: float = 1e-4) -> None:
    """Kernels change the logits and gradients of one model by rounding, and nothing else in the process."""
    model = build(model_type, device)
    logits, gradients = run(model)
    before, untouched = world(), copy.deepcopy(model)
    kernels = all_on(model_type)
    apply_kernels(model, model_type, kernels)

    after = world()
    assert not [key for key in before if after[key] is not before[key]]
    assert not [m for m in untouched.modules() if "forward" in vars(m)]

    kerneled, kerneled_gradients = run(model)
    assert not torch.equal(kerneled, logits) or model_type == "nemotron"  # other kernels round in other ways
    torch.testing.assert_close(kerneled, logits, rtol=tolerance, atol=tolerance * float(logits.abs().max()))
    assert kerneled_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max()) or 1.0
        torch.testing.assert_close(
            kerneled_gradients[name] / scale, gradient / scale, rtol=0, atol=2 * tolerance, msg=name
        )
    torch.testing.assert_close(run(untouched)[0], logits, rtol=0, atol=0 if device == "cpu" else 1e-6)
