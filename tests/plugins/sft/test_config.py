"""Config classes, structured as the engine structures them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig
from hooktrain_sft.loss.config import DFTLossConfig, SFTLossConfig

from hooktrain import Complaint, structure
from tests.facts import facts


def read(cls: type, **given: Any) -> tuple[Any, list[str]]:
    complaints: list[Complaint] = []
    return structure(cls, given, "data", complaints), [str(complaint) for complaint in complaints]


def test_defaults() -> None:
    config, complaints = read(SFTDataConfig, sources=["x"])
    assert not complaints
    assert (config.train_on, config.overflow, config.pack_samples, config.max_length) == (
        "assistant",
        "auto",
        False,
        None,
    )
    assert config.trained_part == "assistant"
    causal, _ = read(CausalDataConfig, sources=["x"])
    assert (causal.overflow, causal.on_empty, causal.pack_samples) == ("split", "error", True)
    assert (config.on_empty, config.max_dropped) == ("auto", 0.1)


def test_inputs_unmasked() -> None:
    config, _ = read(SFTDataConfig, sources=["x"], mask_inputs=False, dl_num_workers=2)
    assert config.trained_part == "all" and config.workers == 2


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"sources": []}, facts("data", "sources")),
        (
            {"sources": ["x"], "train_eval_split": [0.9, 0.2]},
            facts("data.train_eval_split", "[0.9, 0.2]", "[0.9, 0.1]"),
        ),
        ({"sources": ["x"], "train_eval_split": [0, 1]}, facts("data.train_eval_split", "[0.0, 1.0]")),
        (
            {"sources": ["x"], "eval_sources": ["y"], "train_eval_split": [0.9, 0.1]},
            facts("data", "eval_sources", "train_eval_split"),
        ),
        ({"sources": ["x"], "eval_sources": ["y"], "val_size": 2}, facts("data", "eval_sources", "val_size")),
        (
            {"sources": ["x"], "train_eval_split": [0.9, 0.1], "val_size": 2},
            facts("data", "train_eval_split", "val_size"),
        ),
        ({"sources": ["x"], "val_size": 0}, facts("data.val_size", "given 0", "1")),
        ({"sources": ["x"], "overflow": "trunc"}, facts("data.overflow", "'trunc'", "error, drop, truncate")),
        (
            {"sources": ["x"], "train_on": "user"},
            facts("data.train_on", "'user'", "assistant, last_assistant, completion, all"),
        ),
        ({"sources": ["x"], "max_dropped": 10}, facts("data.max_dropped", "given 10", "from 0.0 to 1.0")),
        ({"sources": ["x"], "max_length": 1}, facts("data.max_length", "given 1", "2")),
        ({"sources": ["x"], "pack_sample": True}, facts("data.pack_sample:", "'pack_samples'")),
    ],
)
def test_complaints(given: dict[str, Any], complaint: str) -> None:
    config, complaints = read(SFTDataConfig, **given)
    assert config is None and len(complaints) == 1 and re.search(complaint, complaints[0])


def test_loss() -> None:
    assert read(SFTLossConfig)[0].chunk_size is None, "chosen by the size of the vocabulary"
    assert (read(SFTLossConfig)[0].weighted_by_probability, read(DFTLossConfig)[0].weighted_by_probability) == (
        False,
        True,
    )
    (chunk_size,) = read(SFTLossConfig, chunk_size=0)[1]
    assert re.search(facts("data.chunk_size", "given 0", "1"), chunk_size)
    (label_smoothing,) = read(SFTLossConfig, label_smoothing=2)[1]
    assert re.search(facts("data.label_smoothing", "given 2.0", "0", "1"), label_smoothing)
