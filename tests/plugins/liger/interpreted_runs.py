"""Complete runs with Liger's fused loss, compared with the same runs of ``huggingface``."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hooktrain import HooktrainWarning, PluginInfo, hookimpl
from tests.facts import facts

Train = Callable[..., list[dict[str, float]]]
FUSED = "fused_linear_cross_entropy"
LIGER = {"type": "liger", "rope": False}
"""The fused loss alone."""


def curve(metrics: list[dict[str, float]], *keys: str) -> list[float]:
    return [line[key] for line in metrics for key in keys or ("loss", "grad_norm", "eval/rows/loss") if key in line]


class Messages:
    def __init__(self) -> None:
        self.messages: list[str] = []

    @hookimpl
    def on_message(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of hidden states that Liger's fused loss was called with."""
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Function

    calls: list[torch.Size] = []
    forward = Function.forward

    def counted(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, *arguments: Any) -> Any:
        if len(weight) > 8:  # the trial at the start has a vocabulary of 8
            calls.append(hidden.shape)
        return forward(ctx, hidden, weight, *arguments)

    monkeypatch.setattr(Function, "forward", staticmethod(counted))
    return calls


@pytest.mark.parametrize(
    ("micro", "accumulation"),
    [(1, 4), *(pytest.param(*division, marks=pytest.mark.thorough) for division in ((4, 1), (2, 2)))],
)
def test_any_division_into_micro_batches_is_the_run_of_huggingface(
    fine_tune: Train, fused_calls: list[Any], micro: int, accumulation: int
) -> None:
    """Liger's own mean would weigh micro-batches alike (Liger-Kernel#675)."""
    expected = curve(fine_tune({}))
    assert len(expected) == 7 and not fused_calls
    found = fine_tune(LIGER, micro_batch_size=micro, gradient_accumulation_steps=accumulation)
    assert curve(found) == pytest.approx(expected, rel=2e-5)
    assert fused_calls


@pytest.mark.thorough
def test_two_ranks_are_the_run_of_huggingface(fine_tune: Train, tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    expected = curve(fine_tune({}))
    recipe = tiny_run(LIGER, micro_batch_size=1, gradient_accumulation_steps=2)
    recipe["run_dir"] = str(tmp_path / "ranks")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["train", str(tmp_path / "recipe.yaml"), "--nproc", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "hooktrain", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "ranks" / "metrics.jsonl").read_text().splitlines()
    assert curve([json.loads(line) for line in lines]) == pytest.approx(expected, rel=2e-5)
    assert done.stderr.count("TRITON_INTERPRET") == 1  # one rank warns


def test_only_supervised_positions_reach_the_kernel(fine_tune: Train, fused_calls: list[Any]) -> None:
    metrics = fine_tune(LIGER, train_iters=2)
    # the last calls are two micro-batches of a complete epoch, and the evaluation of the same rows
    trained, evaluated = (sum(shape[0] for shape in fused_calls[part]) for part in (slice(-4, -2), slice(-2, None)))
    assert trained == evaluated == metrics[-1]["supervised_tokens"]


@pytest.mark.thorough
def test_micro_batches_without_a_supervised_token(fine_tune: Train) -> None:
    """Such a micro-batch still has a backward pass, with gradients of zero: other ranks wait for it."""

    class Mask:
        hooktrain_plugin = PluginInfo(may_change=["batch"])

        @hookimpl
        def on_step_start(self, trainer: Any, batches: Any) -> None:
            for batch in batches[: trainer.global_step + 1]:
                batch["labels"].fill_(-100)
            trainer.begin_step(batches)

    runs = [curve(fine_tune(model, Mask(), gradient_accumulation_steps=4, micro_batch_size=1)) for model in ({}, LIGER)]
    assert runs[1] == pytest.approx(runs[0], rel=2e-5) and len(runs[0]) > 3


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "sft", "label_smoothing": 0.1, "z_loss": 1e-3},
        pytest.param({"type": "dft"}, marks=pytest.mark.thorough),
        pytest.param({"type": "dft", "label_smoothing": 0.1}, marks=pytest.mark.thorough),
    ],
)
def test_losses_are_those_of_huggingface(fine_tune: Train, fused_calls: list[Any], loss: dict[str, Any]) -> None:
    expected = curve(fine_tune({}, loss=loss))
    assert curve(fine_tune(LIGER, loss=loss)) == pytest.approx(expected, rel=2e-5)
    assert fused_calls


@pytest.mark.thorough
def test_accuracy_is_logged_as_that_of_huggingface(fine_tune: Train) -> None:
    keys = ("token_accuracy", "eval/rows/token_accuracy")
    expected = curve(fine_tune({}), *keys)
    assert len(expected) == 4
    assert curve(fine_tune(LIGER), *keys) == pytest.approx(expected, abs=1e-6)


def test_a_loss_that_liger_does_not_compute_is_left_to_pytorch(
    fine_tune: Train, fused_calls: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    loss = {"type": "dft", "z_loss": 1e-2}
    expected = curve(fine_tune({}, loss=loss))
    with caplog.at_level(logging.WARNING):
        assert curve(fine_tune(LIGER, loss=loss)) == pytest.approx(expected, rel=2e-5)
    assert not fused_calls
    assert re.search(r"model\.fused_linear_cross_entropy: .*z-loss", caplog.text)


def test_logits_kernel_instead_of_the_fused_one(fine_tune: Train, fused_calls: list[Any]) -> None:
    messages = Messages()
    kernels = {**LIGER, FUSED: False, "cross_entropy": True}
    found = curve(fine_tune(kernels, messages))
    assert found == pytest.approx(curve(fine_tune({})), rel=2e-5)
    assert not fused_calls and "liger: cross_entropy" in messages.messages


def test_the_kernels_are_reported(fine_tune: Train) -> None:
    messages = Messages()
    fine_tune(LIGER, messages, train_iters=1)
    assert f"liger: {FUSED}" in messages.messages


def test_no_kernel_at_all_is_the_run_of_huggingface_bit_by_bit(fine_tune: Train, fused_calls: list[Any]) -> None:
    found = fine_tune({"type": "liger", "rope": False, FUSED: False})
    assert curve(found) == curve(fine_tune({})) and not fused_calls


def test_a_loss_that_uses_no_kernel_warns(fine_tune: Train) -> None:
    import attrs

    from hooktrain import LossSum

    @attrs.frozen(kw_only=True)
    class OwnConfig:
        """A loss of another plugin."""

    class Own:
        @hookimpl
        def register_configs(self) -> dict[str, dict[str, type]]:
            return {"loss": {"own": OwnConfig}}

        @hookimpl
        def make_loss(self, config: Any) -> Any:
            return self.loss if isinstance(config, OwnConfig) else None

        def loss(self, model: Any, batch: Any, denominator: float) -> LossSum:
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
            )
            return LossSum(losses, denominator)

    with pytest.warns(
        HooktrainWarning, match=facts(f"model.{FUSED}", "loss", "write loss: {type: sft}", f"{FUSED}: false")
    ):
        own = fine_tune(LIGER, Own(), loss={"type": "own"})
    assert curve(own) == pytest.approx(curve(fine_tune({})), rel=2e-5)  # the model gives logits


@pytest.mark.thorough
def test_bf16_autocast_stays_close(fine_tune: Train) -> None:
    expected = curve(fine_tune({}, strategy={"dtype": "bf16"}), "loss")
    found = curve(fine_tune(LIGER, strategy={"dtype": "bf16"}), "loss")
    assert found == pytest.approx(expected, rel=1e-2) and len(found) == 3


@pytest.mark.thorough
@pytest.mark.usefixtures("full_interpreter")
def test_all_kernels_and_activation_checkpointing(fine_tune: Train) -> None:
    messages, short = Messages(), {"train_iters": 2, "micro_batch_size": 1, "data": {"eval_sources": []}}
    expected = curve(fine_tune({}, **short))
    found = curve(fine_tune({"type": "liger", "activation_checkpointing": True}, messages, **short))
    assert f"liger: rope, rms_norm, swiglu, {FUSED}" in messages.messages
    assert found == pytest.approx(expected, rel=1e-4) and len(found) == 4
