"""Tiny vision-language models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from hooktrain.testing import make_tokenizer

__all__ = ["FAMILIES", "save"]

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 8}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llava": {
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
        "vision_feature_layer": -1,
    },
    "Qwen2VL": {
        "text_config": {**_TEXT, **_ROPE},
        "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 8},
    },
    "Qwen2_5_VL": {
        "text_config": {**_TEXT, **_ROPE},
        "vision_config": {**_QWEN_VISION, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
    },
    "Mistral3": {
        "text_config": {"model_type": "mistral", **_TEXT},
        "vision_config": {"model_type": "pixtral", **_VISION, "head_dim": 8},
    },
    "Gemma3": {
        "text_config": {**_TEXT, "query_pre_attn_scalar": 8},
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
        "mm_tokens_per_image": 4,
    },
}


def save(family: str, folder: Path) -> Path:
    """Write a model of a family with the test kit's tokenizer, and a file about the preparation of its images."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    values = {**FAMILIES[family], "text_config": {**FAMILIES[family]["text_config"], "vocab_size": len(tokenizer)}}
    values |= {f"{name}_token_{key}": 3 for name in ("image", "video") for key in ("id", "index")}
    config = getattr(transformers, f"{family}Config")(**values)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 16}')
    return folder
