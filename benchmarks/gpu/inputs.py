"""The model with random weights, and the peak performance of devices."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

__all__ = ["ONE_BILLION", "TINY", "flops_per_token", "peak_flops", "save_model"]

ONE_BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}

_PEAKS = (("B200", 2250e12), ("H200", 989e12), ("H100 PCIe", 756e12), ("H100", 989e12), ("A100", 312e12))
_PEAKS += (("L40S", 362e12), ("L4", 121e12), ("A10", 125e12), ("RTX 4090", 165e12), ("RTX 3090", 71e12))
"""Dense bf16 operations per second from the data sheets; the first name contained in the device's counts."""


def peak_flops(device: str) -> float | None:
    """Return a device's peak bf16 operations per second; None where unknown."""
    return next((peak for name, peak in _PEAKS if name in device), None)


def flops_per_token(shape: dict[str, Any], vocab: int) -> float:
    """Return the operations of forward and backward for one token: six for each weight of a matrix.

    They exclude attention's own products and what activation checkpointing computes again, so that a utilization is
    never too high.
    """
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    keys = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    return 6.0 * (layers * layer + hidden * vocab)


def save_model(tokenizer: Path, shape: dict[str, Any], target: Path) -> int:
    """Write a Llama with random weights in bf16 and the files of a tokenizer; return the size of the vocabulary."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    made: Any = AutoTokenizer.from_pretrained(tokenizer)  # type: ignore[no-untyped-call, unused-ignore]
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(made), bos_token_id=made.bos_token_id, eos_token_id=made.eos_token_id, **shape)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "vocab", "merges")):
            shutil.copy(file, target / file.name)
    return len(made)
