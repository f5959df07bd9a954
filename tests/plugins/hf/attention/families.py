"""Tiny models of every family, and packed batches for them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from hooktrain_hf.attention import install_document_attention

from hooktrain import document_keys

__all__ = [
    "FAMILIES",
    "HYBRIDS",
    "LENGTHS",
    "SMALL",
    "VOCABULARY",
    "documents",
    "flat",
    "gradients",
    "logits",
    "make",
    "pair",
]

VOCABULARY = 61
LENGTHS = (5, 9, 9, 1, 21, 2)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BOTH = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("documents", SMALL),
    "Qwen2": ("documents", {**SMALL, **BOTH, "use_sliding_window": True}),
    "Qwen3": ("documents", {**SMALL, "head_dim": 8}),
    "Qwen3Moe": ("documents", {**SMALL, **EXPERTS, "head_dim": 8}),
    "Gemma": ("documents", {**SMALL, "head_dim": 8}),
    "Gemma2": (
        "documents_eager",
        {**SMALL, **BOTH, "head_dim": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "Gemma3": ("documents", {**SMALL, **BOTH, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "Mistral": ("documents", {**SMALL, "sliding_window": 7, "head_dim": 8}),
    "Ministral": ("documents", {**SMALL, **BOTH, "head_dim": 8}),
    "Mixtral": ("documents", {**SMALL, "sliding_window": 7, "num_local_experts": 4}),
    "Phi": ("documents", SMALL),
    "Phi3": ("documents", {**SMALL, "sliding_window": 7}),
    "GPTNeoX": ("documents", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "GPT2": ("documents", GPT2),
    "OPT": (
        "documents",
        {
            **{k: v for k, v in SMALL.items() if k != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "init_std": 0.3,
        },
    ),
    "SmolLM3": ("documents", {**SMALL, **BOTH, "use_sliding_window": True, "no_rope_layers": [1, 0]}),
    "Granite": ("documents", {**SMALL, "attention_multiplier": 0.3, "logits_scaling": 2.0}),
    "Cohere": ("documents", SMALL),
    "Cohere2": ("documents", {**SMALL, **BOTH}),
    "GptOss": ("documents_eager", {**SMALL, **BOTH, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Olmo2": ("documents", SMALL),
    "Olmo3": ("documents", {**SMALL, **BOTH}),
    "Starcoder2": ("documents", {**SMALL, "sliding_window": 7}),
    "DeepseekV3": (
        "documents",
        {**SMALL, **LATENT, **ROUTED, "v_head_dim": 4, "head_dim": 8, "first_k_dense_replace": 1},
    ),
    "MiniCPM3": ("documents", {**SMALL, **LATENT, "v_head_dim": 24}),
    "StableLm": ("sdpa", SMALL),  # without the interface
    "GPTJ": ("eager", {**GPT2, "rotary_dim": 8}),
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "Mamba": {**SMALL, "state_size": 4},
    "FalconH1": {**SMALL, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "GraniteMoeHybrid": {
        **SMALL,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "num_local_experts": 0,
    },
    "Qwen3Next": {**SMALL, **EXPERTS, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    "Lfm2": {**SMALL, "layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "RecurrentGemma": {**SMALL, "lru_width": 32, "attention_window_size": 7, "num_hidden_layers": 3},
}


def make(family: str, config: dict[str, Any], implementation: str | None = None) -> Any:
    """Make a tiny model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    made: Any = getattr(transformers, f"{family}{'Text' if family == 'Gemma3' else ''}Config")(**config)
    kind: Any = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    model = kind._from_config(made, attn_implementation=implementation).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.normal_()
    return model


def documents(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def flat(texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return one sequence of all documents, as ``collate_flat`` makes it."""
    positions = [list(range(len(text))) for text in texts]
    ids, places = (torch.tensor([list(itertools.chain(*parts))]) for parts in (texts, positions))
    return {"input_ids": ids, "position_ids": places, **document_keys(map(len, texts))}


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return the model's logits, shape (sequences * tokens, vocabulary)."""
    return model(**batch, use_cache=False).logits.flatten(0, 1)  # type: ignore[no-any-return]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


_made: dict[str, tuple[Any, Any]] = {}


def pair(family: str) -> tuple[Any, Any]:
    """Return a model that computes documents one by one, and an equal one that does not."""
    if family not in _made:
        dense = make(family, FAMILIES[family][1])
        model = copy.deepcopy(dense)
        install_document_attention(model, "auto")
        _made[family] = model, dense
    return _made[family]
