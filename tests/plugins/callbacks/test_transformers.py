"""Callbacks of transformers: the real classes, and the order in which transformers' own trainer calls them."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hooktrain_callbacks import Callbacks
from lightning.pytorch.callbacks import EarlyStopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import EarlyStoppingCallback, TrainerCallback

from hooktrain import HooktrainError, HooktrainWarning
from hooktrain.testing import Recorder
from tests.facts import facts

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]
PATIENT = {"name": "transformers.EarlyStoppingCallback", "early_stopping_patience": 3}
GETS_WORSE = {"eval_interval": 1, "optimizer": {"type": "sgd", "lr": 50.0}, "epochs": 3}


def recording(**acts: Any) -> Any:
    """A callback that records every event; ``acts`` are called in the event of that name."""

    class Recording(TrainerCallback):
        def __init__(self) -> None:
            self.events: list[str] = []
            self.given: dict[str, list[dict[str, Any]]] = {}

    def event(name: str) -> Any:
        def record(self: Any, args: Any, state: Any, control: Any, **given: Any) -> Any:
            self.events.append(f"{name} {state.global_step}")
            seen = {"args": args, "state": state, "flags": vars(control).copy(), "epoch": state.epoch, **given}
            self.given.setdefault(name, []).append(seen)
            return acts[name](args, state, control) if name in acts else None

        return record

    for name in EVENTS:
        setattr(Recording, name, event(name))
    return Recording()


def under_transformers(folder: Path, callback: TrainerCallback) -> None:
    """Two epochs of three steps of two micro-batches, evaluated and saved after every epoch's last step."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": torch.nn.functional.mse_loss(self.head(x), labels)}

    rows = [{"x": torch.ones(2), "labels": torch.zeros(2)} for _ in range(6)]
    steps = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3, "logging_steps": 1}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        **steps,
    )
    transformers.Trainer(Model(), arguments, train_dataset=rows, eval_dataset=rows[:2], callbacks=[callback]).train()


def test_events_come_as_transformers_own_trainer_calls_them(run_tiny, tmp_path):
    theirs, ours = recording(), recording()
    under_transformers(tmp_path / "theirs", theirs)
    run_tiny(
        Callbacks(ours),
        data={"rows": 6, "eval_rows": 2},
        micro_batch_size=1,
        gradient_accumulation_steps=2,
        epochs=2,
        eval_interval=3,
        checkpoint={"type": "full", "save_every_n_steps": 3},
    )

    def without_logs(callback: Any) -> list[str]:
        return [event for event in callback.events if not event.startswith("on_log")]

    assert without_logs(ours) == without_logs(theirs)
    assert len(without_logs(ours)) > 40
    # a line of the training comes after the evaluation of the same step here, and before it there
    assert sorted(ours.events) == sorted(theirs.events)
    for name in ours.given:
        there = set(theirs.given[name][0]) - {"flags"}
        assert there <= set(ours.given[name][0]), name
    for one, other in zip(ours.given["on_step_end"], theirs.given["on_step_end"], strict=True):
        assert one["epoch"] == pytest.approx(other["epoch"])
        assert one["flags"] == other["flags"], "flags of the recipe are on before callbacks are called"


def test_what_an_event_is_given(run_tiny):
    seen = recording()
    trainer = run_tiny(Callbacks(seen), eval_interval=4, log_interval=2, gradient_clipping=0.5)
    (begun,) = seen.given["on_train_begin"]
    assert isinstance(begun["args"], transformers.TrainingArguments)
    assert isinstance(begun["state"], transformers.TrainerState)
    assert (begun["args"].learning_rate, begun["args"].logging_steps, begun["args"].max_grad_norm) == (1e-2, 2, 0.5)
    assert begun["args"].output_dir == str(trainer.run_dir)
    assert begun["args"].to_dict()["recipe"]["optimizer"]["lr"] == 1e-2
    assert begun["model"] is trainer.model and begun["optimizer"] is trainer.optimizer
    assert len(begun["train_dataloader"]) == 7 and len(begun["eval_dataloader"]) == 3
    assert [len(batch["input_ids"]) for batch in begun["train_dataloader"]] == [2] * 6 + [1]
    (measured, _) = seen.given["on_evaluate"]
    assert measured["metrics"]["eval_loss"] == measured["metrics"]["eval_held_out_loss"] > 0
    logged = [given["logs"] for given in seen.given["on_log"] if "loss" in given["logs"]]
    assert [set(line) >= {"loss", "learning_rate", "grad_norm", "epoch"} for line in logged] == [True] * 4
    assert logged[-1]["epoch"] == 1.0


def test_gradients_are_clipped_before_the_step_and_still_there_after_it(run_tiny):
    norms: dict[str, list[float]] = {"on_pre_optimizer_step": [], "on_optimizer_step": []}

    class Watching(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **given):
            norms["on_pre_optimizer_step"].append(norm(model))

        def on_optimizer_step(self, args, state, control, model, **given):
            norms["on_optimizer_step"].append(norm(model))

    def norm(model: torch.nn.Module) -> float:
        return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))

    run_tiny(Callbacks(Watching()), gradient_clipping=1e-3, train_iters=2)
    assert norms["on_pre_optimizer_step"] == pytest.approx([1e-3] * 2, rel=1e-2)
    assert norms["on_optimizer_step"] == norms["on_pre_optimizer_step"]


@pytest.mark.parametrize(
    ("flag", "event", "expected"),
    [
        ("should_save", "on_step_end", ["on_checkpoint_end 2"]),
        ("should_evaluate", "on_step_end", ["on_evaluate_end 2", "on_evaluate_end 7"]),
        ("should_log", "on_step_end", ["on_log 2", "on_log 7"]),
        ("should_epoch_stop", "on_step_end", ["on_epoch_end 2"]),
        ("should_training_stop", "on_step_end", ["on_train_end 2"]),
        ("should_training_stop", "on_log", ["on_train_end 2"]),
    ],
)
def test_control_flags_are_obeyed(run_tiny, flag, event, expected):
    def switch_on(args: Any, state: Any, control: Any) -> None:
        if state.global_step == (1 if event == "on_log" else 2):
            setattr(control, flag, True)

    recorder = Recorder()
    interval = 1 if event == "on_log" else 50
    run_tiny(Callbacks(recording(**{event: switch_on})), recorder, log_interval=interval, checkpoint={"type": "full"})
    name = expected[0].split()[0]
    steps, found = 0, []
    for hook, _ in recorder.calls:
        steps += hook == "on_step_end"
        found += [f"{hook} {steps}"] if hook == name else []
    assert found == expected


def test_what_the_recipe_schedules_cannot_be_switched_off(run_tiny):
    def veto(args: Any, state: Any, control: Any) -> Any:
        control.should_evaluate = False
        return control

    with pytest.raises(HooktrainError, match=facts("control.should_evaluate", "on_step_end", "eval_interval")):
        run_tiny(Callbacks(recording(on_step_end=veto)), eval_interval=2)


def test_early_stopping_continues_after_a_resume(run_tiny, tmp_path):
    saving = {"type": "full", "save_every_n_steps": 1}
    first = run_tiny(callbacks=[PATIENT], checkpoint=saving, **GETS_WORSE)
    assert "transformers.EarlyStoppingCallback" in first.state.stop_reason
    assert 3 <= first.global_step < 20
    before = first.run_dir / "checkpoints" / f"step-{first.global_step - 1:08d}"
    seen = recording()
    again = run_tiny(
        Callbacks(seen),
        callbacks=[PATIENT],
        checkpoint=saving,
        run_dir=str(tmp_path / "again"),
        trainer={"resume_from": before},
        **GETS_WORSE,
    )
    assert (again.global_step, again.state.stop_reason) == (first.global_step, first.state.stop_reason)


def test_the_best_evaluation_is_known(run_tiny):
    seen = recording()
    trainer = run_tiny(
        Callbacks(seen), eval_interval=1, train_iters=4, checkpoint={"type": "full", "save_every_n_steps": 1}
    )
    losses = [given["metrics"]["eval_loss"] for given in seen.given["on_evaluate"]]
    state = seen.given["on_train_end"][0]["state"]
    assert state.best_metric == min(losses)
    assert state.best_global_step == 1 + losses.index(min(losses))
    assert state.best_model_checkpoint == str(trainer.run_dir / "checkpoints" / f"step-{state.best_global_step:08d}")
    assert [line["loss"] for line in state.log_history if "loss" in line] and state.log_history[-1]["step"] == 4


def test_saved_checkpoints_are_where_callbacks_look_for_them(run_tiny):
    found = []

    def look(args: Any, state: Any, control: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        found.append((folder.resolve().name, (folder / "tensors.json").exists()))

    trainer = run_tiny(Callbacks(recording(on_save=look)), checkpoint={"type": "full", "save_every_n_steps": 5})
    assert found == [("step-00000005", True)]
    assert not os.path.lexists(trainer.run_dir / "checkpoint-5")


def test_tensorboard_files_hold_what_was_logged(run_tiny):
    recorder = Recorder()
    trainer = run_tiny(recorder, callbacks=["transformers.integrations.TensorBoardCallback"], eval_interval=3)
    (folder,) = (trainer.run_dir / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    losses = [(line["step"], line["loss"]) for line in recorder.metrics]
    assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [(s, pytest.approx(v)) for s, v in losses]
    measured = {line["step"]: line["eval/held_out/loss"] for line in recorder.metrics if "eval/held_out/loss" in line}
    assert {one.step: one.value for one in events.Scalars("eval/loss")} == pytest.approx(measured)
    assert {"train/learning_rate", "train/grad_norm", "eval/held_out_loss"} <= set(events.Tags()["scalars"])
    text = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0]
    assert json.loads(text)["recipe"]["eval_interval"] == 3


@pytest.mark.parametrize(("policy", "steps", "calls"), [("disable", 7, 1), ("warn", 7, 7), ("stop", 0, 1)])
def test_what_happens_when_one_fails(run_tiny, policy, steps, calls):
    class Unreachable(TrainerCallback):
        called = 0

        def on_step_end(self, args, state, control, **given):
            self.called += 1
            raise ConnectionError("no server")

    fails, recorder = Unreachable(), Recorder()
    if policy == "stop":
        with pytest.raises(ConnectionError, match="no server"):
            run_tiny(recorder, Callbacks(fails, on_error=policy))
    else:
        with pytest.warns(
            HooktrainWarning,
            match=facts("Unreachable", "on_step_end", "step 1", "on_error: " + policy, "ConnectionError: no server"),
        ):
            run_tiny(recorder, Callbacks(fails, on_error=policy))
    assert (recorder.hooks.count("on_step_end"), fails.called) == (steps, calls)


def test_a_tracker_that_fails_does_not_end_the_run(run_tiny, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "/dev/null/no folder")
    with pytest.warns(HooktrainWarning, match=facts("callbacks[0]", "TensorBoardCallback", "on_train_begin")):
        trainer = run_tiny(callbacks=["transformers.integrations.TensorBoardCallback"])
    assert trainer.global_step == 7


def test_nothing_is_called_where_nothing_is_overridden(run_tiny):
    class OnlyLogs(TrainerCallback):
        def on_log(self, args, state, control, **given):
            pass

    trainer = run_tiny(Callbacks(OnlyLogs()))
    called = [h for h in trainer.host.records["Callbacks"].hooks if "Callbacks" in implementing(trainer, h)]
    assert not {"on_step_start", "on_step_end", "on_microbatch_end", "compute_loss", "run_backward"} & set(called)
    assert len(called) >= 9
    assert trainer.host.records["callbacks"].state == "unused"  # the recipe names none


def implementing(trainer: Any, hook: str) -> list[str]:
    return [found.plugin_name for found in trainer.host.implementations(hook)]


def test_default_arguments_do_not_touch_accelerate(run_tiny):
    from accelerate.state import PartialState

    before = dict(PartialState._shared_state)
    run_tiny(Callbacks(EarlyStoppingCallback()), eval_interval=2)
    assert dict(PartialState._shared_state) == before


def test_a_step_is_one_step_under_zero(run_tiny):
    """DeepSpeed steps its optimizer once for each group of parameters."""
    seen = recording()
    trainer = run_tiny(
        Callbacks(seen),
        strategy={"type": "deepspeed", "zero_stage": 2, "dtype": "fp32", "device": "cpu"},
        train_iters=2,
    )
    assert len(trainer.optimizer.param_groups) == 2
    kept = ["on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]
    assert [event.split()[0] for event in seen.events if event.split()[0] in kept] == kept * 2


@pytest.mark.parametrize("callback", [EarlyStoppingCallback, lambda: EarlyStopping("val_loss")])
def test_early_stopping_without_an_evaluation_before_the_end_warns(run_tiny, callback):
    """An interval of 0 evaluates at the end only, when there is nothing left to stop."""
    with pytest.warns(HooktrainWarning, match=facts("EarlyStopping", "eval_interval")):
        run_tiny(Callbacks(callback()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", HooktrainWarning)
        run_tiny(Callbacks(callback()), eval_interval=2)
        run_tiny(Callbacks(EarlyStopping("train_loss", check_on_train_epoch_end=True)))
