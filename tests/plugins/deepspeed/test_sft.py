"""Fine-tuning a transformers model under DeepSpeed: loss, export and resume equal those of plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hooktrain.testing import Recorder

EXPORT = [{"type": "huggingface", "save_end_of_training": True}]


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(0, marks=pytest.mark.thorough),
        pytest.param(1, marks=pytest.mark.thorough),
        pytest.param(2, marks=pytest.mark.thorough),
        3,
    ],
)
@pytest.mark.parametrize("loss", [{"type": "sft"}, {"type": "dft"}])
def test_packed_conversations(
    run: Callable[..., Any], recipe: dict[str, Any], tmp_path: Path, stage: int, loss: dict[str, Any]
) -> None:
    """Tied weights, packing, activation checkpointing: losses to rounding, and the export is the live model."""
    settings = {**recipe, "loss": loss, "checkpoint": EXPORT}
    settings["model"] = {**recipe["model"], "activation_checkpointing": True}
    reference, recorder = Recorder(), Recorder()
    run(reference, **settings)
    strategy = {"type": "deepspeed", "zero_stage": stage, "dtype": "fp32", "device": "cpu"}
    run(recorder, **{**settings, "strategy": strategy, "run_dir": str(tmp_path / "zero")})
    for name in ("loss", "grad_norm", "token_accuracy"):
        expected = [line[name] for line in reference.metrics if name in line]
        assert [line[name] for line in recorder.metrics if name in line] == pytest.approx(expected, rel=1e-4)
    one, two = (load_file(folder / "export" / "model.safetensors") for folder in (tmp_path / "run", tmp_path / "zero"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


def test_a_head_that_is_cut_up_computes_its_logits_once(
    run: Callable[..., Any], recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hooktrain_sft.loss.lm_head import HeadedForward

    def called(*arguments: Any) -> None:
        raise AssertionError("the logits are computed again in the backward pass")

    monkeypatch.setattr(HeadedForward, "_called", called)
    run(**{**recipe, "strategy": {"type": "deepspeed", "zero_stage": 3, "dtype": "fp32", "device": "cpu"}})


@pytest.mark.parametrize(
    "stage", [pytest.param(1, marks=pytest.mark.thorough), pytest.param(2, marks=pytest.mark.thorough), 3]
)
def test_an_adapter(run: Callable[..., Any], recipe: dict[str, Any], tmp_path: Path, stage: int) -> None:
    """LoRA on the frozen model: losses as with plain PyTorch, and a resume repeats the run bit by bit."""
    saved = [{"type": "huggingface", "save_end_of_training": True}, {"type": "full", "save_every_n_steps": 2}]
    settings = {**recipe, "peft": {"type": "lora", "r": 4}, "checkpoint": saved}
    reference, recorder, rest = Recorder(), Recorder(), Recorder()
    run(reference, **settings)
    settings["strategy"] = {"type": "deepspeed", "zero_stage": stage, "dtype": "fp32", "device": "cpu"}
    run(recorder, **{**settings, "run_dir": str(tmp_path / "zero")})
    losses = [[line["loss"] for line in each.metrics] for each in (reference, recorder)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = (load_file(f / "export" / "adapter_model.safetensors") for f in (tmp_path / "run", tmp_path / "zero"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    resume = {"resume_from": tmp_path / "zero/checkpoints/step-00000002"}
    run(rest, trainer=resume, **{**settings, "run_dir": str(tmp_path / "rest")})
    assert [line["loss"] for line in rest.metrics] == losses[1][2:]
