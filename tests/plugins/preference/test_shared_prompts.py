"""Prompts that are computed once for both answers of a pair: the same results from fewer tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hooktrain_hf import install_document_attention, shares_prefixes
from hooktrain_preference import DPOLossConfig, PairLoss, collate_pairs
from hooktrain_preference.pair_losses import LOSSES
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from hooktrain import ModelError, Trainer, hookimpl
from hooktrain.testing import Recorder, make_llama, make_tokenizer

Run = Callable[..., Trainer]


def pair(seed: int, prompt: int, chosen: int, rejected: int, begins_alike: int = 0) -> dict[str, Any]:
    """A pair of random tokens; both answers may begin with the same tokens."""
    draw = np.random.default_rng(seed)
    asked, one, two = (draw.integers(3, 290, size) for size in (prompt, chosen, rejected))
    two[:begins_alike] = one[:begins_alike]
    labels = [np.concatenate([np.full(prompt, -100), answer]) for answer in (one, two)]
    return {
        "input_ids": np.concatenate([asked, one, asked, two]),
        "labels": np.concatenate(labels),
        "position_ids": np.concatenate([np.arange(prompt + chosen), np.arange(prompt + rejected)]),
    }


BATCH = [pair(1, 20, 5, 7), pair(2, 31, 9, 3, begins_alike=2), pair(3, 4, 6, 6), pair(4, 300, 280, 270)]
"""Of these the third has a prompt that is too short to be worth it, and the last more tokens than a block."""


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The tokens of each call of the embedding."""
    found: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, args: found.append(args[0].numel()))
    yield found
    hook.remove()


def results(model: nn.Module, share: bool, batch: Any) -> tuple[float, list[torch.Tensor], list[int]]:
    model = copy.deepcopy(model)
    install_document_attention(model, "auto")
    config = DPOLossConfig()
    loss = PairLoss(partial(LOSSES[DPOLossConfig], config), chunk_size=7, share_prompts=share)
    given = {name: value for name, value in batch.items() if name not in ("tokens", "denominator", "counts")}
    with torch.no_grad():
        loss(model, given, 4.0)  # inspects the model, and compares
    with counted(model) as tokens:
        found = loss(model, given, 4.0)
    gradients = torch.autograd.grad(found.total, [p for p in model.parameters() if p.requires_grad])
    return float(found.total.detach()), list(gradients), tokens


def other_model(kind: str) -> nn.Module:
    """Models whose attention has a window, a cap on scores, or a place without value."""
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024}
    more = {"gemma2": {"sliding_window": 16}, "mistral": {"sliding_window": 24}, "qwen2": {}}[kind]
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads, **more))
    return made.double().eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
def test_losses_and_gradients_are_those_of_prompts_computed_twice(kind: str) -> None:
    model = (
        make_llama(make_tokenizer(), max_position_embeddings=1024).double() if kind == "llama" else other_model(kind)
    )
    batch = collate_pairs(BATCH)
    total, gradients, tokens = results(model, True, batch)
    expected, others, all_tokens = results(model, False, batch)
    assert total == pytest.approx(expected, rel=1e-7)
    for one, other in zip(gradients, others, strict=True):
        assert float((one - other).norm()) <= 1e-6 * float(other.norm()) + 1e-12, "norms are in float32 in any model"
    # one token of each shared prompt is there twice, as it predicts the first token of both answers
    assert all_tokens == [sum(len(one["input_ids"]) for one in BATCH)]
    assert tokens == [all_tokens[0] - sum(prompt - 1 for prompt in (20, 31, 300))]


class Counting:
    """Counts the tokens that pass the embedding of the run's model."""

    def __init__(self) -> None:
        self.found: list[int] = []

    @hookimpl(trylast=True)
    def on_train_start(self, trainer: Trainer) -> None:
        embedding = trainer.model.get_input_embeddings()
        embedding.register_forward_pre_hook(lambda module, args: self.found.append(args[0].numel()))


def test_a_run_computes_one_prompt_for_each_pair(run: Run, recipe: dict[str, Any], tmp_path: Path) -> None:
    """And its losses are those of a run that computes all prompts twice."""
    lines, counts = [], []
    data = {**recipe["data"], "shuffle": False}
    for share in (True, False):
        recorder, counting = Recorder(), Counting()
        folder = str(tmp_path / str(share))
        run(recorder, counting, loss={"share_prompts": share}, data=data, run_dir=folder)
        lines.append([line["loss"] for line in recorder.metrics])
        counts.append(counting.found)
    assert lines[0] == pytest.approx(lines[1], abs=1e-6)
    assert len(counts[1]) == 3 and counts[0][-1] < 0.75 * counts[1][-1]


class NoLogits(TorchDispatchMode):
    """Finds the largest tensor of (tokens, vocabulary)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.found = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[-1] == self.vocabulary:
                self.found = max(self.found, value.numel() // self.vocabulary)
        return made


def test_no_tensor_has_the_logits_of_all_answers() -> None:
    model = make_llama(make_tokenizer(), max_position_embeddings=1024)
    install_document_attention(model, "auto")
    loss = PairLoss(partial(LOSSES[DPOLossConfig], DPOLossConfig()), chunk_size=8)
    batch = collate_pairs(BATCH)
    given = {name: value for name, value in batch.items() if name not in ("tokens", "denominator", "counts")}
    loss(model, given, 4.0)
    with NoLogits(model.config.vocab_size) as mode:
        loss(model, given, 4.0).total.backward()
    assert 8 <= mode.found <= model.config.hidden_size, "chunks, and the transposed weight of the head"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_cannot_share_computes_prompts_twice(attention: str) -> None:
    model = make_llama(make_tokenizer(), max_position_embeddings=1024)
    model.set_attn_implementation(attention)
    install_document_attention(model, attention)
    assert not shares_prefixes(model)
    batch = collate_pairs(BATCH[:2])
    given = {name: value for name, value in batch.items() if name not in ("tokens", "denominator", "counts")}
    loss = PairLoss(partial(LOSSES[DPOLossConfig], DPOLossConfig()))
    loss(model, given, 2.0)
    with counted(model) as tokens:
        loss(model, given, 2.0)
    assert tokens == [batch["tokens"]]
    inputs = {name: given[name] for name in ("input_ids", "position_ids", "document_lengths")}
    with pytest.raises(ModelError, match=r"document_prefixes, but the attention of LlamaModel cannot share them"):
        model.get_decoder()(**inputs, document_prefixes=(0, 5, 0, 0))


def test_prompts_are_not_shared_where_results_differ() -> None:
    """As with positions that are not the same for the prompt of both answers."""
    model = make_llama(make_tokenizer(), max_position_embeddings=1024)
    install_document_attention(model, "auto")
    batch = collate_pairs(BATCH[:2])
    given = {name: value for name, value in batch.items() if name not in ("tokens", "denominator", "counts")}
    given["position_ids"] = given["position_ids"] + torch.arange(batch["tokens"])[None] // 40
    loss = PairLoss(partial(LOSSES[DPOLossConfig], DPOLossConfig()))
    loss(model, given, 2.0)
    with counted(model) as tokens:
        loss(model, given, 2.0)
    assert tokens == [batch["tokens"]]
