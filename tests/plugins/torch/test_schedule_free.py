"""Schedule-free optimizers by name: the package's own numbers, averages where one looks, and exact resumes."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch

from hooktrain import HooktrainError, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts

RUN: dict[str, Any] = {
    "optimizer": {"type": "schedule_free_adamw", "lr": 0.01, "weight_decay": 0.1},
    "scheduler": "constant",
}
needed = pytest.mark.skipif(importlib.util.find_spec("schedulefree") is None, reason="schedulefree is not installed")


@needed
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_evaluations_and_the_model_afterwards_are_averages(run_tiny, name):
    import schedulefree

    class Beside:
        """Steps a copy of the model with the same gradients."""

        @hookimpl
        def on_train_start(self, trainer: Any) -> None:
            self.model = copy.deepcopy(trainer.model)
            kind = {"adamw": schedulefree.AdamWScheduleFree, "sgd": schedulefree.SGDScheduleFree}[name]
            self.optimizer = kind(self.model.parameters(), lr=0.01)
            self.optimizer.train()
            self.evaluated: list[Any] = []

        @hookimpl
        def on_optimizer_update_start(self, trainer: Any) -> None:
            for mine, theirs in zip(self.model.parameters(), trainer.model.parameters(), strict=True):
                mine.grad = theirs.grad.clone()
            self.optimizer.step()

        @hookimpl(wrapper=True)
        def compute_loss(self, trainer: Any) -> Any:
            if not torch.is_grad_enabled():
                average = copy.deepcopy(self.model)
                other = copy.deepcopy(self.optimizer.state_dict())
                self.optimizer.eval()
                self.evaluated.append([p.detach().clone() for p in self.model.parameters()])
                self.model.load_state_dict(average.state_dict())
                self.optimizer.load_state_dict(other)
                for mine, seen in zip(self.evaluated[-1], trainer.model.parameters(), strict=True):
                    assert torch.equal(mine, seen)
            return (yield)

    beside = Beside()
    trainer = run_tiny(
        beside,
        eval_interval=3,
        optimizer={"type": f"schedule_free_{name}", "lr": 0.01},
        scheduler="constant",
    )
    assert len(beside.evaluated) >= 3
    beside.optimizer.eval()
    for mine, theirs in zip(beside.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@needed
def test_evaluations_change_nothing_and_a_resume_repeats_the_run(run_tiny, tmp_path):
    one, two, three = Recorder(), Recorder(), Recorder()
    checkpoint = {"type": "full", "save_every_n_steps": 3}
    run_tiny(one, checkpoint=checkpoint, **RUN)
    run_tiny(two, eval_interval=1, run_dir=str(tmp_path / "evaluated"), **RUN)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    run_tiny(three, trainer={"resume_from": path}, run_dir=str(tmp_path / "rest"), checkpoint=checkpoint, **RUN)
    losses = [[line["loss"] for line in each.metrics] for each in (one, two, three)]
    assert losses[1] == losses[0] and losses[2] == losses[0][3:]


@needed
def test_exports_hold_averages(run_chat, tmp_path):
    from safetensors.torch import load_file

    class Watch:
        @hookimpl(trylast=True)
        def on_checkpoint_end(self, trainer: Any) -> None:
            self.trained = trainer.model.model.embed_tokens.weight.detach().clone()

    watch = Watch()
    export = {"type": "huggingface", "save_end_of_training": True, "output_dir": str(tmp_path / "export")}
    trainer = run_chat(watch, checkpoint=export, **RUN)
    exported = load_file(tmp_path / "export" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(exported, trainer.model.model.embed_tokens.weight) and not torch.equal(exported, watch.trained)


def test_what_does_not_go_together_is_said(run_tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(
        HooktrainError, match=facts("pip install schedulefree", "scheduler", "cosine", "scheduler: constant")
    ):
        run_tiny(optimizer={"type": "schedule_free_sgd", "lr": 1.0}, scheduler="cosine")
