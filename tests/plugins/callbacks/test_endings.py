"""Callbacks of others where their own trainers do something that is easily missed: failures, exports, resumes."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from hooktrain_callbacks import Callbacks
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback
from transformers.integrations import MLflowCallback
from trl import BEMACallback

from hooktrain import HooktrainError, hookimpl
from tests.facts import facts

EMA = {"name": "lightning.pytorch.callbacks.EMAWeightAveraging", "decay": 0.5}


class Fails:
    """Fails after the second step."""

    @hookimpl
    def on_step_end(self, trainer: Any) -> None:
        if trainer.global_step == 2:
            raise ValueError("out of luck")


class Weights:
    """Keeps the weights after each step, and the averages that Lightning's callback has of them."""

    def __init__(self, decay: float) -> None:
        self.decay, self.raw, self.averages = decay, [], []  # type: ignore[var-annotated]

    @hookimpl
    def on_step_end(self, trainer: Any) -> None:
        now = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        before = self.averages[-1] if self.averages else now
        self.raw.append(now)
        self.averages.append({name: self.decay * before[name] + (1 - self.decay) * now[name] for name in now})


# --------------------------------------------------------------------------------------------------------- failures


def test_a_messenger_of_lightning_does_not_say_that_a_failed_run_is_complete(run_tiny):
    class Messenger(Callback):
        def __init__(self) -> None:
            self.sent: list[str] = []

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self.sent.append(f"failed: {exception}")

        def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
            self.sent.append("complete")

    failed, complete = Messenger(), Messenger()
    with pytest.raises(ValueError, match="out of luck"):
        run_tiny(Callbacks(failed), Fails())
    run_tiny(Callbacks(complete))
    assert (failed.sent, complete.sent) == (["failed: out of luck"], ["complete"])


def test_an_mlflow_run_of_transformers_ends_with_a_failed_run(run_tiny, monkeypatch):
    """``MLflowCallback`` with a stand-in for the package, which the thorough tests have as it is."""
    ended: list[str] = []
    active: list[object] = []
    package = types.SimpleNamespace(
        active_run=lambda: active[-1] if active else None,
        end_run=lambda status="FINISHED": (ended.append(status), active.clear()),
    )
    callback = MLflowCallback.__new__(MLflowCallback)
    callback._ml_flow, callback._auto_end_run, callback._initialized = package, True, True
    monkeypatch.setattr(MLflowCallback, "on_train_begin", lambda *given, **named: active.append(object()))
    monkeypatch.setattr(MLflowCallback, "on_log", lambda *given, **named: None)
    with pytest.raises(ValueError, match="out of luck"):
        run_tiny(Callbacks(callback), Fails())
    assert (ended, active) == (["FAILED"], [])
    run_tiny(Callbacks(callback))
    assert ended == ["FAILED", "FINISHED"], "and a run that ends well ends it itself"
    callback._auto_end_run = False


# -------------------------------------------------------------------------------------------------- averages, exports


def test_exports_along_the_way_hold_averaged_weights(run_chat, tmp_path):
    weights = Weights(0.5)
    trainer = run_chat(
        weights,
        callbacks=[EMA],
        checkpoint=[
            {"type": "full", "save_every_n_steps": 2},
            {"type": "huggingface", "save_every_n_steps": 2, "output_dir": str(tmp_path / "exports")},
            {"type": "huggingface", "save_best": "eval/rows/loss", "output_dir": str(tmp_path / "best")},
        ],
        eval_interval=2,
    )
    (name,) = trainer.data.evaluation
    found = sorted(path.parent for path in (tmp_path / "exports").rglob("model.safetensors"))
    assert found, "an export was made"
    exported = load_file(found[0] / "model.safetensors")
    for key, value in exported.items():
        torch.testing.assert_close(value, weights.averages[1][key].to(value.dtype))
    assert not torch.equal(exported["model.embed_tokens.weight"], weights.raw[1]["model.embed_tokens.weight"])
    again = run_chat(
        callbacks=[EMA],
        checkpoint={"type": "full"},
        run_dir=str(tmp_path / "again"),
        trainer={"resume_from": tmp_path / "run" / "checkpoints" / "step-00000002"},
        eval_interval=2,
    )
    for key, value in trainer.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[key], value)
    assert name


def test_without_averages_exports_are_made_as_ever(run_chat, tmp_path):
    export = {"type": "huggingface", "save_every_n_steps": 2, "output_dir": str(tmp_path / "exports")}
    trainer = run_chat(callbacks=["lightning.pytorch.callbacks.LearningRateMonitor"], checkpoint=export)
    hooks = [found.plugin_name for found in trainer.host.implementations("save_checkpoint")]
    assert "callbacks" not in hooks and list((tmp_path / "exports").rglob("model.safetensors"))


# ------------------------------------------------------------------------------------------------------ early stopping


def test_early_stopping_on_a_metric_that_there_is_not_is_an_error(run_tiny):
    with pytest.raises(
        HooktrainError, match=facts("EarlyStoppingCallback", "'held_out_los'", "'eval_held_out_loss'", "it has eval_")
    ):
        run_tiny(
            callbacks={
                "use": [{"name": "transformers.EarlyStoppingCallback", "early_stopping_patience": 2}],
                "arguments": {"metric_for_best_model": "held_out_los", "greater_is_better": False},
            },
            eval_interval=2,
        )
    assert run_tiny(Callbacks(EarlyStoppingCallback(9)), eval_interval=2).global_step == 7


# ---------------------------------------------------------------------------------------------------------------- TRL


@pytest.mark.parametrize("adapter", [False, True])
def test_trls_bema_works_with_an_adapter_and_resumes(run_chat, tmp_path, adapter):
    class Watch:
        def __init__(self) -> None:
            self.bema = BEMACallback(update_freq=1, lag=2)
            self.callbacks = Callbacks(self.bema)

    more = {"peft": {"type": "lora", "r": 2}} if adapter else {}
    checkpoint = {"type": "full", "save_every_n_steps": 2}
    whole, begun, rest = Watch(), Watch(), Watch()
    run_chat(whole.callbacks, checkpoint=checkpoint, **more)
    run_chat(begun.callbacks, checkpoint=checkpoint, exit_iteration=2, run_dir=str(tmp_path / "begun"), **more)
    path = tmp_path / "begun" / "checkpoints" / "step-00000002"
    run_chat(
        rest.callbacks, checkpoint=checkpoint, run_dir=str(tmp_path / "rest"), trainer={"resume_from": path}, **more
    )
    expected, found = whole.bema.running_model.state_dict(), rest.bema.running_model.state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert len(whole.bema.param_names) == len(whole.bema.ema_params)
    if adapter:
        assert all("lora" in name for name in whole.bema.param_names)


def test_trls_bema_computes_what_trl_computes(run_tiny, monkeypatch):
    """The averages of a plain model are those of TRL's own class, whose copy of it needs a configuration."""
    ours, theirs = BEMACallback(update_freq=1, lag=2), BEMACallback(update_freq=1, lag=2)

    class Runs:
        @hookimpl
        def on_train_start(self, trainer: Any) -> None:
            import copy

            theirs.running_model = copy.deepcopy(trainer.model)
            for name, parameter in trainer.model.named_parameters():
                theirs.param_names.append(name)
                theirs.thetat_params.append(parameter)
                theirs.theta0_params.append(parameter.detach().clone())
                theirs.ema_params.append(parameter.detach().clone())

        @hookimpl
        def on_step_end(self, trainer: Any) -> None:
            state = types.SimpleNamespace(global_step=trainer.global_step)
            theirs.on_step_end(None, state, None, trainer.model)

    monkeypatch.setattr(type(ours), "on_train_end", lambda self, *given, **named: None)
    run_tiny(Callbacks(ours), Runs())
    for name, value in theirs.running_model.state_dict().items():
        assert torch.equal(ours.running_model.state_dict()[name], value)
