"""Losses in complete runs: by name, of another plugin, replaced heads, and logged metrics."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from hooktrain import ModelError, RecipeError, Trainer, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts


def reference(trainer: Trainer) -> dict[str, float]:
    """Means over all trained tokens of the evaluation set, from the model's own logits, one document at a time."""
    (sequences,) = trainer.data.evaluation.values()
    totals, count = dict.fromkeys(("loss", "token_accuracy", "entropy", "dft"), 0.0), 0
    trainer.model.eval()
    for number in range(len(sequences)):
        sequence = {name: torch.tensor(value) for name, value in sequences[number].items()}
        begins = [*(sequence["position_ids"] == 0).nonzero()[:, 0].tolist(), len(sequence["input_ids"])]
        for start, end in itertools.pairwise(begins):
            with torch.no_grad():
                logits = trainer.model(sequence["input_ids"][None, start:end]).logits[0, :-1].double()
            goal = sequence["labels"][start + 1 : end]
            logits, goal = logits[goal != -100], goal[goal != -100]
            each = functional.cross_entropy(logits, goal, reduction="none")
            totals["loss"] += float(each.sum())
            totals["dft"] += float((each * torch.exp(-each)).sum())
            totals["token_accuracy"] += float((logits.argmax(-1) == goal).sum())
            totals["entropy"] += float(torch.special.entr(logits.softmax(-1)).sum())
            count += len(goal)
    return {name: value / count for name, value in totals.items()}


@pytest.mark.parametrize("packed", [True, False])
def test_logged_metrics(run: Callable[..., Trainer], recipe: dict[str, Any], packed: bool) -> None:
    recorder = Recorder()
    trainer = run(recorder, micro_batch_size=2, data={**recipe["data"], "pack_samples": packed})
    expected = reference(trainer)
    last = recorder.metrics[-1]
    for name in ("loss", "token_accuracy", "entropy"):
        assert last[f"eval/rows/{name}"] == pytest.approx(expected[name], rel=1e-5)
    for line in recorder.metrics:
        assert 0 <= line["token_accuracy"] <= 1 and 0 < line["entropy"] < math.log(300)
        assert "cross_entropy" not in line


def test_dft_by_name(run: Callable[..., Trainer]) -> None:
    recorder = Recorder()
    trainer = run(recorder, loss={"type": "dft"})
    expected, last = reference(trainer), recorder.metrics[-1]
    assert last["eval/rows/loss"] == pytest.approx(expected["dft"], rel=1e-5)
    assert last["eval/rows/cross_entropy"] == pytest.approx(expected["loss"], rel=1e-5)
    assert recorder.metrics[-1]["cross_entropy"] < recorder.metrics[0]["cross_entropy"]


def test_options_are_read_strictly(run: Callable[..., Trainer]) -> None:
    with pytest.raises(RecipeError, match=facts("loss.label_smooth:", "'label_smoothing'")):
        run(loss={"label_smooth": 0.1})


@pytest.mark.parametrize("split", [{"micro_batch_size": 4}, {"gradient_accumulation_steps": 4}])
def test_the_same_for_every_split(run: Callable[..., Trainer], recipe: dict[str, Any], split: dict[str, int]) -> None:
    """Smoothing, z-loss and weights are per token, so that no split of a step can change them."""
    data = {**recipe["data"], "pack_samples": False, "shuffle": False}
    loss = {"type": "dft", "label_smoothing": 0.1, "z_loss": 0.01, "chunk_size": 3}
    one, other = Recorder(), Recorder()
    whole = run(one, micro_batch_size=2, gradient_accumulation_steps=2, data=data, loss=loss, train_iters=2)
    parts = run(other, data=data, loss=loss, train_iters=2, **split)
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        for name in ("loss", "cross_entropy", "entropy", "token_accuracy", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, parts.model.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_the_readmes_loss(run: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin with a loss of its own that the README shows, as a user would paste it."""
    text = (Path(__file__).parents[4] / "plugins" / "hooktrain-sft" / "README.md").read_text()
    (source,) = re.findall(r"```python\n(import attrs.*?)```", text, re.DOTALL)
    assert len([line for line in source.splitlines() if line and "import" not in line]) <= 15
    (tmp_path / "focal_loss.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    recorder = Recorder()
    run(recorder, loss={"type": "focal", "gamma": 1.5}, plugins={"load": ["focal_loss"]})
    assert recorder.metrics[-1]["loss"] < recorder.metrics[0]["loss"] and "token_accuracy" in recorder.metrics[0]
    plain = Recorder()
    run(plain)
    zero = Recorder()
    run(zero, loss={"type": "focal", "gamma": 0.0}, plugins={"load": ["focal_loss"]})
    assert [line["loss"] for line in zero.metrics] == pytest.approx([line["loss"] for line in plain.metrics], rel=1e-4)
    sys.modules.pop("focal_loss", None)


def test_a_fused_head_of_a_plugin(run: Callable[..., Trainer]) -> None:
    class Fused:
        calls = 0

        @hookimpl
        def make_head_loss(self, config: Any, transform: Any, model: Any) -> Any:
            assert config.label_smoothing == 0 and transform.multiplier == 1
            self.calls += 1

            def fused(hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
                total = functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum", ignore_index=-100)
                return total, {"token_accuracy": torch.full((), float(len(targets)))}

            return fused

    fused, recorder, plain = Fused(), Recorder(), Recorder()
    run(fused, recorder)
    run(plain)
    assert fused.calls == 1, "before the first step"
    assert all(line["token_accuracy"] == 1 and "entropy" not in line for line in recorder.metrics)
    theirs = [line["loss"] for line in plain.metrics]
    assert [line["loss"] for line in recorder.metrics] == pytest.approx(theirs, rel=1e-4)


def test_a_head_that_a_plugin_refuses_stops_the_run_before_its_first_step(run: Callable[..., Trainer]) -> None:
    class Refuses:
        @hookimpl
        def make_head_loss(self) -> Any:
            raise ModelError("mine: cannot")

    recorder = Recorder()
    with pytest.raises(ModelError, match="mine: cannot"):
        run(Refuses(), recorder)
    assert "on_step_start" not in recorder.hooks


# ------------------------------------------------------------------------------------------- the probe at the start


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("packed", [True, False])
def test_attention_that_keeps_documents_apart(
    run: Callable[..., Trainer], recipe: dict[str, Any], attention: str, packed: bool
) -> None:
    run(
        model={**recipe["model"], "attn_implementation": attention},
        micro_batch_size=2,
        data={**recipe["data"], "pack_samples": packed},
        train_iters=1,
    )


def test_the_isolation_check_leaves_no_trace(run: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the random numbers, the modes of modules and the gradients, nor in the number of sequences read."""

    class Frozen:
        @hookimpl(tryfirst=True)
        def on_train_start(self, trainer: Any) -> None:
            trainer.model.get_decoder().layers[0].eval()
            self.random = torch.get_rng_state()
            self.modes = [module.training for module in trainer.model.modules()]

        @hookimpl
        def on_epoch_start(self, trainer: Any) -> None:
            assert torch.equal(torch.get_rng_state(), self.random)
            assert [module.training for module in trainer.model.modules()] == self.modes
            assert all(parameter.grad is None for parameter in trainer.model.parameters())

    recorder = Recorder()
    run(Frozen(), recorder, train_iters=1)
    assert recorder.hooks.count("on_microbatch_start") == 1
    with_probe = recorder.metrics[0]["loss"]
    monkeypatch.setattr("hooktrain_sft.model_check.check_model", lambda trainer: None)
    run(Frozen(), without := Recorder(), train_iters=1)
    assert without.metrics[0]["loss"] == with_probe
