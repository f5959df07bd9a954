"""What a recipe may say, read as the engine reads it."""

from __future__ import annotations

from typing import Any

import pytest
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig
from hooktrain_sft.loss_config import DFTLossConfig, SFTLossConfig

from hooktrain import Complaint, structure


def read(cls: type, **given: Any) -> tuple[Any, list[str]]:
    complaints: list[Complaint] = []
    return structure(cls, given, "data", complaints), [str(complaint) for complaint in complaints]


def test_defaults() -> None:
    config, complaints = read(SFTDataConfig, sources=["x"])
    assert not complaints
    assert (config.train_on, config.overflow, config.pack_samples, config.max_length) == (
        "assistant",
        "error",
        False,
        None,
    )
    assert config.trained_part == "assistant"
    causal, _ = read(CausalDataConfig, sources=["x"])
    assert (causal.overflow, causal.pack_samples) == ("split", True)


def test_inputs_unmasked() -> None:
    config, _ = read(SFTDataConfig, sources=["x"], mask_inputs=False, dl_num_workers=2)
    assert config.trained_part == "all" and config.workers == 2


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"sources": []}, "sources is missing or empty"),
        (
            {"sources": ["x"], "train_eval_split": [0.9, 0.2]},
            "data.train_eval_split: given [0.9, 0.2], expected the shares",
        ),
        ({"sources": ["x"], "train_eval_split": [0, 1]}, "data.train_eval_split: given"),
        (
            {"sources": ["x"], "eval_sources": ["y"], "train_eval_split": [0.9, 0.1]},
            "eval_sources is given together with",
        ),
        ({"sources": ["x"], "overflow": "trunc"}, "data.overflow: given 'trunc' (text), expected one of error, drop"),
        ({"sources": ["x"], "train_on": "user"}, "expected one of assistant, last_assistant, completion, all"),
        ({"sources": ["x"], "max_length": 1}, "data.max_length: given 1, expected at least 2"),
        ({"sources": ["x"], "pack_sample": True}, "did you mean 'pack_samples'?"),
    ],
)
def test_complaints(given: dict[str, Any], complaint: str) -> None:
    config, complaints = read(SFTDataConfig, **given)
    assert config is None and len(complaints) == 1 and complaint in complaints[0]


def test_loss() -> None:
    assert read(SFTLossConfig)[0].chunk_size is None, "chosen by the size of the vocabulary"
    assert (read(SFTLossConfig)[0].weighted_by_probability, read(DFTLossConfig)[0].weighted_by_probability) == (
        False,
        True,
    )
    assert read(SFTLossConfig, chunk_size=0)[1] == ["data.chunk_size: given 0, expected at least 1"]
    assert read(SFTLossConfig, label_smoothing=2)[1] == [
        "data.label_smoothing: given 2.0, expected a number from 0 to 1"
    ]
