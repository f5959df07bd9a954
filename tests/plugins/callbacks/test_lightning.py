"""Callbacks of Lightning: the real classes, and the order in which Lightning's own trainer calls them."""

from __future__ import annotations

import csv
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hooktrain_callbacks import Callbacks
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hooktrain import HooktrainError, HooktrainWarning, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts

EVENTS = [name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown")]
STATE = ("on_save_checkpoint", "on_load_checkpoint")
FULL = {"type": "full", "save_every_n_steps": 1}
GETS_WORSE = {"eval_interval": 1, "optimizer": {"type": "sgd", "lr": 50.0}, "epochs": 3}
PACKAGE = "lightning.pytorch.callbacks."


class Recording(Callback):
    """Records every event with its epoch, step and micro-batch."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.losses: list[float] = []


def _event(name: str) -> Any:
    def record(self: Any, trainer: Any, module: Any, *given: Any, **named: Any) -> None:
        numbers = [one for one in given if isinstance(one, int)]
        where = f"{trainer.current_epoch}.{trainer.global_step}" if name not in ("setup", "teardown") else ""
        self.events.append(" ".join([name, where, *map(str, numbers), str(named.get("stage", ""))]).strip())
        if name == "on_train_batch_end":
            self.losses.append(float(given[0]["loss"]))

    return record


for _name in set(EVENTS) - set(STATE):
    setattr(Recording, _name, _event(_name))


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(2, 2)

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        return self.head(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        return self.head(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_events_come_as_lightnings_own_trainer_calls_them(run_tiny, tmp_path):
    """Two epochs of three steps of two micro-batches, evaluated after each epoch's last step."""
    theirs, ours = Recording(), Recording()
    rows = torch.utils.data.DataLoader(torch.ones(6, 2), batch_size=1)
    pl.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
        callbacks=[theirs],
    ).fit(Tiny(), rows, torch.utils.data.DataLoader(torch.ones(2, 2), batch_size=1))
    run_tiny(
        Callbacks(ours),
        data={"rows": 6, "eval_rows": 2},
        micro_batch_size=1,
        gradient_accumulation_steps=2,
        epochs=2,
        eval_interval=3,
    )

    def split(recorded: list[str]) -> tuple[list[str], int]:
        """Gradients are cleared after the update here, and before the next window's first backward pass there."""
        cleared = [event for event in recorded if event.startswith("on_before_zero_grad")]
        return [event for event in recorded if event not in cleared], len(cleared)

    assert split(ours.events) == split(theirs.events)
    assert len(ours.events) > 70 and len(ours.losses) == 12


def test_gradients_are_there_where_they_are_read(run_tiny):
    seen: dict[str, list[bool]] = {}

    def look(name: str) -> Any:
        def see(trainer: Any, module: Any, *given: Any) -> None:
            assert module.model is trainer.run.model
            seen.setdefault(name, []).append(all(p.grad is not None for p in module.parameters()))

        return see

    names = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
    run_tiny(Callbacks(callbacks.LambdaCallback(**{name: look(name) for name in names})), train_iters=2)
    assert seen == {names[0]: [False] * 2, **{name: [True] * 2 for name in names[1:]}}


@pytest.mark.parametrize("monitor", ["val_loss", "eval/held_out/loss", "val_held_out_loss"])
def test_early_stopping_continues_after_a_resume(run_tiny, tmp_path, monitor):
    watch = {"callbacks": [{"name": PACKAGE + "EarlyStopping", "monitor": monitor, "patience": 3}], "checkpoint": FULL}
    first = run_tiny(**watch, **GETS_WORSE)
    assert "EarlyStopping" in first.state.stop_reason
    assert 4 <= first.global_step < 20
    before = first.run_dir / "checkpoints" / f"step-{first.global_step - 1:08d}"
    again = run_tiny(**watch, **GETS_WORSE, run_dir=str(tmp_path / "again"), trainer={"resume_from": before})
    assert (again.global_step, again.state.stop_reason) == (first.global_step, first.state.stop_reason)


def test_early_stopping_without_evaluation_looks_at_the_end_of_epochs(run_tiny):
    watch = callbacks.EarlyStopping("train_loss", patience=2)
    trainer = run_tiny(Callbacks(watch), data={"eval_rows": 0}, epochs=9, optimizer={"type": "sgd", "lr": 50.0})
    assert watch.stopped_epoch == trainer.state.epoch - 1 < 8


def test_a_metric_that_is_not_there_is_named(run_tiny):
    with pytest.raises(RuntimeError, match=facts("`val_bleu`", "`val_loss`")):
        run_tiny(callbacks=[{"name": PACKAGE + "EarlyStopping", "monitor": "val_bleu"}], eval_interval=2)


def test_learning_rates_are_in_the_log_lines(run_tiny):
    recorder = Recorder()
    run_tiny(
        recorder,
        callbacks=[{"name": PACKAGE + "LearningRateMonitor", "log_weight_decay": True}],
        optimizer={"type": "sgd", "lr": 0.5},
        scheduler={"type": "linear"},
        log_interval=2,
    )
    (name,) = {key for key in recorder.metrics[-1] if key.startswith("lr-") and key.endswith("pg1")}
    for line in recorder.metrics:
        assert line[name] == pytest.approx(line["lr"]), "the rate of the step that is logged"
        assert any(key.endswith("weight_decay") for key in line)


@pytest.mark.parametrize(
    "callback",
    [
        {"name": PACKAGE + "DeviceStatsMonitor"},
        {"name": PACKAGE + "ModelSummary", "max_depth": 2},
        {"name": PACKAGE + "RichModelSummary"},
        {"name": PACKAGE + "TQDMProgressBar"},
        {"name": PACKAGE + "RichProgressBar"},
        {"name": PACKAGE + "SpikeDetection", "on_error": "stop"},
    ],
)
def test_reporters_run(run_tiny, callback, recwarn):
    trainer = run_tiny(callbacks=[{**callback, "on_error": "stop"}], eval_interval=3, epochs=2, log_interval=3)
    assert trainer.global_step == 14
    if "DeviceStats" in callback["name"]:
        assert trainer.state.metrics["DeviceStatsMonitor.on_train_batch_end/cpu_percent"] >= 0
    assert not [one for one in recwarn if "no counterpart" in str(one.message)]


def test_throughput(run_tiny):
    monitor = callbacks.ThroughputMonitor(batch_size_fn=lambda batch: len(batch["input_ids"]))
    trainer = run_tiny(Callbacks(monitor, on_error="stop"), epochs=2, log_interval=7)
    assert trainer.state.metrics["train/samples"] == 26


def test_a_timer_ends_the_run(run_tiny):
    trainer = run_tiny(callbacks=[{"name": PACKAGE + "Timer", "duration": {"seconds": 0}}])
    assert (trainer.global_step, "Timer" in trainer.state.stop_reason) == (1, True)


def test_averaged_weights_are_evaluated_saved_and_resumed(run_tiny, tmp_path):
    decay, seen = 0.5, []

    class Watch:
        @hookimpl(tryfirst=True)
        def on_step_end(self, trainer):
            seen.append(deepcopy(trainer.model.state_dict()))

    average = {"callbacks": [{"name": PACKAGE + "EMAWeightAveraging", "decay": decay}], "checkpoint": FULL}
    begun = run_tiny(train_iters=1, optimizer={"lr": 0.0}).model.state_dict()
    first = run_tiny(Watch(), **average, eval_interval=2, run_dir=str(tmp_path / "whole"))
    expected = seen[0]
    for weights in seen[1:]:
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in weights.items()}
    assert not torch.equal(begun["head.weight"], expected["head.weight"])
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    plain = Recorder()
    run_tiny(plain, eval_interval=2, run_dir=str(tmp_path / "plain"))
    assert [line["loss"] for line in plain.metrics][-1] == first.state.metrics["loss"], "training itself is the same"
    assert plain.metrics[-1]["eval/held_out/loss"] != first.state.metrics["eval/held_out/loss"]
    for step in (3, 4):
        from_there = tmp_path / "whole" / "checkpoints" / f"step-{step:08d}"
        again = run_tiny(
            **average, eval_interval=2, run_dir=str(tmp_path / f"again{step}"), trainer={"resume_from": from_there}
        )
        for name, value in again.model.state_dict().items():
            torch.testing.assert_close(value, first.model.state_dict()[name])


def test_what_a_callback_logs_reaches_the_log_line(run_tiny):
    class Logging(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.log("mine/loss", outputs["loss"])
            self.log("mine/step", trainer.global_step)
            trainer.logger.log_metrics({"mine/batch": batch_idx})

    recorder = Recorder()
    run_tiny(recorder, Callbacks(Logging()))
    assert [(line["mine/step"], line["mine/batch"]) for line in recorder.metrics] == [(n + 1, n) for n in range(7)]
    assert [line["mine/loss"] for line in recorder.metrics] == pytest.approx(
        [line["loss"] for line in recorder.metrics]
    )


def test_loggers_get_every_line(run_tiny, tmp_path):
    recorder = Recorder()
    run_tiny(
        recorder,
        eval_interval=3,
        callbacks=[
            {"name": "lightning.pytorch.loggers.CSVLogger", "arguments": {"save_dir": str(tmp_path), "name": "csv"}},
            {
                "name": "lightning.pytorch.loggers.TensorBoardLogger",
                "arguments": {"save_dir": str(tmp_path), "name": "tb"},
            },
        ],
    )
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == pytest.approx([line["loss"] for line in recorder.metrics])
    assert (tmp_path / "csv" / "version_0" / "hparams.yaml").read_text().count("eval_interval: 3") == 1
    events = EventAccumulator(str(tmp_path / "tb" / "version_0"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert [one.step for one in events.Scalars("eval/held_out/loss")] == [3, 6, 7]


def test_several_evaluation_sets_are_several_loaders(run_tiny):
    seen = []

    class Two:
        @hookimpl(wrapper=True)
        def make_data(self):
            data = yield
            (rows,) = data.evaluation.values()
            data.evaluation = {"one": rows, "two": rows}
            return data

    class Places(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            seen.append((dataloader_idx, batch_idx))

    run_tiny(Two(), Callbacks(Places()))
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_exceptions_reach_callbacks(run_tiny):
    seen = []

    class Fails:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 2:
                raise ValueError("on purpose")

    class Observer(Callback):
        def on_exception(self, trainer, pl_module, exception):
            seen.append(str(exception))

        def teardown(self, trainer, pl_module, stage):
            seen.append(stage)

    with pytest.raises(ValueError, match="on purpose"):
        run_tiny(Callbacks(Observer()), Fails())
    assert seen == ["on purpose"], "and no teardown, as under Lightning"


# ------------------------------------------------------------------------------------------ what cannot be mapped


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (callbacks.ModelCheckpoint(), "checkpoint: [{type: full, save_every_n_steps: ..., keep_best: ...}]"),
        (callbacks.OnExceptionCheckpoint("."), "auto_resume: true"),
        (callbacks.GradientAccumulationScheduler({4: 2}), "gradient_accumulation_steps"),
        (callbacks.BatchSizeFinder(), "micro_batch_size"),
        (callbacks.LearningRateFinder(), "optimizer.lr"),
        (callbacks.StochasticWeightAveraging(1e-2), "lightning.pytorch.callbacks.WeightAveraging"),
        (callbacks.ModelPruning("l1_unstructured", amount=0.5), "exported model"),
        (callbacks.BackboneFinetuning(), "make_model"),
        (callbacks.BasePredictionWriter(), "overrides"),
    ],
)
def test_what_would_change_the_run_is_refused(callback, text):
    with pytest.raises(HooktrainError) as caught:
        Callbacks(callback)
    assert text in str(caught.value) and type(callback).__name__ in str(caught.value)


def test_what_is_set_is_found_before_the_run():
    class Shortens(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.should_stop = False
            trainer.fit_loop.max_epochs = 3

    with pytest.raises(
        HooktrainError, match=facts("Shortens", "sets", "trainer.fit_loop.max_epochs", "on_train_start")
    ):
        Callbacks(Shortens())


class ReadsMore(Callback):
    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            self.found = trainer.datamodule
        if trainer.global_step > 5:
            self.found = trainer.predict_loop.predictions


def test_reading_what_is_missing_warns_before_the_run_and_fails_when_it_happens(run_tiny):
    with pytest.warns(HooktrainWarning, match=facts("ReadsMore", "reads", "trainer.predict_loop", "on_train_start")):
        assert run_tiny(Callbacks(ReadsMore())).global_step == 7

    class Hides(Callback):
        def on_train_start(self, trainer, pl_module):
            getattr(trainer, "predict_" + "loop")

    with pytest.raises(HooktrainError, match=facts("Hides", "reads", "trainer.predict_loop", "hooktrain hooks")):
        run_tiny(Callbacks(Hides()))

    class Model(Callback):
        def on_train_start(self, trainer, pl_module):
            assert pl_module.embedding is trainer.model.model.embedding
            assert not hasattr(pl_module, "flops_per_batch")
            print(pl_module.backbone)

    with pytest.raises(HooktrainError, match=facts("Model", "reads", "pl_module.backbone", "hooktrain hooks")):
        run_tiny(Callbacks(Model()))


def test_a_method_that_is_no_event_warns(run_tiny):
    class Old(Callback):
        def on_train_start(self, trainer, pl_module): ...

        def on_batch_end(self, trainer, pl_module): ...

    with pytest.warns(HooktrainWarning, match=facts("Old", "on_batch_end", "no event", "'on_")):
        run_tiny(Callbacks(Old()))


def test_nothing_is_called_at_a_step_where_nothing_is_overridden(run_tiny):
    trainer = run_tiny(Callbacks(callbacks.EarlyStopping("val_loss")))
    per_step = ("on_step_start", "on_step_end", "on_microbatch_start", "on_microbatch_end", "run_backward")
    for hook in (*per_step, "compute_loss", "on_optimizer_step_start", "on_optimizer_step_end"):
        assert "Callbacks" not in [found.plugin_name for found in trainer.host.implementations(hook)]


def test_no_device_sync_between_two_log_lines(run_tiny, monkeypatch):
    syncs = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: syncs.append(1) or item(self))

    class Everything(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx): ...

        def on_before_backward(self, trainer, pl_module, loss): ...

        def on_before_optimizer_step(self, trainer, pl_module, optimizer): ...

    run_tiny(log_interval=50)
    without = len(syncs)
    run_tiny(Callbacks(Everything()), log_interval=50)
    assert len(syncs) == 2 * without
