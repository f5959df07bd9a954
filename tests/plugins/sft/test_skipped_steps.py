"""Runs whose gradients or weights are not finite: their examples are named, and nothing of them is exported."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooktrain import CheckpointError, NonFiniteError, PluginInfo, hookimpl
from tests.facts import facts

EXPORT = {"type": "huggingface", "save_end_of_training": True}
FULL = {"type": "full", "save_end_of_training": True}


class Fails:
    """Makes every gradient NaN."""

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Any:
        loss = yield
        return loss._replace(total=loss.total * math.nan) if torch.is_grad_enabled() else loss


def test_examples_are_named_by_source_and_number(run_chat: Callable[..., Any]) -> None:
    with pytest.raises(NonFiniteError, match=facts("2 steps", "step 1", "rows.jsonl, example ")):
        run_chat(Fails(), on_nan="skip", max_skipped_steps=2)


def test_a_model_that_was_hardly_trained_is_not_exported(run_chat: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export = {**EXPORT, "output_dir": str(out), "overwrite": True}
    run_chat(checkpoint=[export], run_dir=str(tmp_path / "good"))
    good = (out / "model.safetensors").read_bytes()
    with pytest.raises(NonFiniteError, match=facts("4 of 4 steps", "not exported")):
        run_chat(Fails(), on_nan="skip", checkpoint=[FULL, export])
    assert (tmp_path / "run/checkpoints/step-00000004/manifest.json").is_file()
    assert (out / "model.safetensors").read_bytes() == good


@pytest.mark.parametrize("strategy", [{}, {"data_parallel": "fsdp2"}])
def test_weights_that_are_not_finite_are_not_exported(
    run_chat: Callable[..., Any], tmp_path: Path, strategy: dict[str, Any]
) -> None:
    class Poison:
        hooktrain_plugin = PluginInfo(changes_gradients=True)

        @hookimpl
        def on_checkpoint_start(self, trainer: Any) -> None:
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.mul_(math.nan)

    with pytest.raises(NonFiniteError, match=facts("step 4", "NaN")):
        run_chat(Poison(), checkpoint=[EXPORT], strategy={"dtype": "fp32", "device": "cpu", **strategy})
    assert not list((tmp_path / "run/export").glob("*"))


def test_weights_that_the_written_precision_cannot_hold_are_not_exported(
    run_chat: Callable[..., Any], tmp_path: Path
) -> None:
    class Grows:
        hooktrain_plugin = PluginInfo(changes_gradients=True)

        @hookimpl
        def on_train_start(self, trainer: Any) -> None:
            with torch.no_grad():
                trainer.model.model.embed_tokens.weight[0, 0] = 1e6

    run_chat(Grows(), checkpoint=[{**EXPORT, "save_dtype": "bf16"}], train_iters=1)
    with pytest.raises(CheckpointError, match=facts("embed_tokens", "float16", "save_dtype: bf16")):
        run_chat(Grows(), checkpoint=[{**EXPORT, "save_dtype": "fp16", "overwrite": True}], train_iters=1)
