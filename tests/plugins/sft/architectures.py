"""Tiny models of architectures that need care, and their loss in a run next to their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional

from hooktrain import Trainer, hookimpl
from hooktrain.testing import make_tokenizer

__all__ = ["BIASED", "HYBRIDS", "ROWS", "SMALL", "TOKENIZER", "Observer", "losses", "make"]

TOKENIZER = make_tokenizer()
SMALL: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
GATED = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
STATE = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
HYBRIDS: dict[str, dict[str, Any]] = {
    "Mamba": {**SMALL, "state_size": 4},
    "Qwen3Next": {**SMALL, **EXPERTS, **LINEAR, **GATED, "shared_expert_intermediate_size": 16},
    "Qwen3_5Text": {**SMALL, **LINEAR, **GATED},
    "Lfm2": {**SMALL, "layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
    "GraniteMoeHybrid": {**SMALL, **STATE, "layer_types": ["mamba", "attention"], "num_local_experts": 0},
    "NemotronH": {**SMALL, "hybrid_override_pattern": "M*", "head_dim": 8, "mamba_num_heads": 8, "mamba_head_dim": 8},
    "Jamba": {
        **SMALL,
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"num_experts": 4, "num_experts_per_tok": 2, "use_mamba_kernels": False, "mamba_d_state": 8},
    },
    "FalconH1": {**SMALL, **STATE, "head_dim": 8, "mamba_d_ssm": 64},
    "Rwkv": {**SMALL, "attention_hidden_size": 32},
}
"""Configs of models that carry a state from token to token."""
BIASED: dict[str, dict[str, Any]] = {
    "Bloom": {"vocab_size": len(TOKENIZER), "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Mpt": {"vocab_size": len(TOKENIZER), "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
}
"""Configs of models whose attention is biased by distance."""
ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in (("What?", "A test."), ("Hi, how are you?", "Fine, and yourself?"), ("x", "yes"))
]


class Observer:
    """Keeps the last micro-batch, its loss, and what the run said."""

    def __init__(self) -> None:
        self.batch: dict[str, Any] = {}
        self.loss, self.messages, self.steps = 0.0, [], 0  # type: float, list[str], int

    @hookimpl
    def on_message(self, message: str) -> None:
        self.messages.append(message)

    @hookimpl
    def on_microbatch_start(self, batch: Any) -> None:
        self.batch, self.steps = dict(batch), self.steps + 1

    @hookimpl
    def on_log(self, metrics: Any) -> None:
        self.loss = metrics["loss"]


def make(family: str, config: dict[str, Any], std: float = 0.3) -> Any:
    """Make a model whose weights are so large that a wrong position or a leak changes its loss, without dropout."""
    torch.manual_seed(0)
    made = getattr(transformers, f"{family}Config")(**config)
    model: Any = transformers.AutoModelForCausalLM.from_config(made)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def losses(
    model: Any, run_dir: Path, *plugins: object, packed: bool = False, size: int = 3, dtype: str = "fp32"
) -> tuple[float, float, Any]:
    """Train one step with a learning rate of 0; return its loss, the model's own one by one, and the observer."""
    own, observer = copy.deepcopy(model).eval(), Observer()
    recipe = {
        "optimizer": {"lr": 0.0},
        "strategy": {"dtype": dtype},
        "console": {"enabled": False},
        "run_dir": str(run_dir),
        "micro_batch_size": size,
        "train_iters": 1,
        "data": {"use_data_cache": False, "max_length": 64, "pack_samples": packed, "shuffle": False},
    }
    given = {"model": model, "tokenizer": TOKENIZER, "train_dataset": ROWS, "switches": ["no:samples"]}
    Trainer(recipe, plugins=[*plugins, observer], **given).run()
    ids, labels = observer.batch["input_ids"].flatten(), observer.batch["labels"].flatten()
    total, count = 0.0, 0
    with torch.no_grad():
        for one, goal in zip(
            *(value.split(observer.batch["document_lengths"]) for value in (ids, labels)), strict=True
        ):
            logits = own(input_ids=one[None]).logits[0, :-1].double()
            total += float(functional.cross_entropy(logits, goal[1:], reduction="sum"))
            count += int((goal[1:] != -100).sum())
    return observer.loss, total / count, observer
