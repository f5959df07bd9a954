"""The trainer as its users see it: order of hooks, mathematics, limits, requests, failures."""

from __future__ import annotations

import json
import math
import re
import traceback

import attrs
import pytest
import torch

from hooktrain import (
    BatchCounts,
    HooktrainError,
    LoopHookError,
    LossSum,
    NonFiniteError,
    OptimizerStep,
    PluginInfo,
    StepOutput,
    failure_of,
    field,
    hookimpl,
)
from hooktrain.testing import Recorder, TinyModel, train
from tests.facts import facts
from tests.readme import GOLDEN, record
from tests.reference_loop import reference


def test_order_of_hooks_is_golden(tiny_recipe):
    assert "\n".join(record(tiny_recipe)) + "\n" == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(("micro", "accumulation"), [(8, 1), (2, 4), (3, 2), (1, 1)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_engine_equals_the_reference_loop_bit_for_bit(run_tiny, micro, accumulation, dropout):
    recorder = Recorder()
    trainer = run_tiny(
        recorder, micro_batch_size=micro, gradient_accumulation_steps=accumulation, epochs=3, model={"dropout": dropout}
    )
    losses, model = reference({}, {"dropout": dropout}, micro=micro, accumulation=accumulation, epochs=3, lr=1e-2)
    assert [line["loss"] for line in recorder.metrics] == losses
    for name, value in model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


@pytest.mark.parametrize("split", [(2, 4), (4, 2), (1, 8), (3, 3)])
def test_same_global_batch_same_gradients(run_tiny, split):
    """Ragged masks and a short last window included: 13 rows in windows of 8 (or 9)."""

    class Gradients:
        def __init__(self):
            self.seen = []

        @hookimpl
        def on_optimizer_step_start(self, trainer):
            self.seen.append([p.grad.clone() for p in trainer.model.parameters()])

    whole, parts = Gradients(), Gradients()
    size = split[0] * split[1]
    run_tiny(whole, micro_batch_size=size, gradient_accumulation_steps=1, optimizer={"type": "sgd", "lr": 0.1})
    run_tiny(
        parts, micro_batch_size=split[0], gradient_accumulation_steps=split[1], optimizer={"type": "sgd", "lr": 0.1}
    )
    assert len(whole.seen) == len(parts.seen) == math.ceil(13 / size)
    for one, other in zip(whole.seen, parts.seen, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("limits", "steps", "epochs"),
    [
        ({}, 7, 1),
        ({"epochs": 2}, 14, 2),
        ({"train_iters": 5}, 5, 1),
        ({"train_iters": 10}, 10, 2),
        ({"train_iters": 10, "epochs": 1}, 7, 1),
        ({"epochs": 3, "exit_iteration": 4}, 4, 1),
        ({"min_iterations": 7}, 7, 1),
        ({"min_iterations": 8}, 14, 2),
        ({"min_iterations": 15, "epochs": 2}, 42, 6),
        ({"min_iterations": 20, "train_iters": 16, "epochs": 1}, 16, 3),
        ({"min_iterations": 8, "exit_iteration": 9}, 9, 2),
        ({"min_iterations": 8, "train_iters": 5}, 5, 1),
        ({"epochs": 3, "exit_iteration_this_run": 4}, 4, 1),
    ],
)
def test_limits(run_tiny, limits, steps, epochs):
    recorder = Recorder()
    trainer = run_tiny(recorder, **limits)
    assert trainer.global_step == steps
    assert recorder.hooks.count("on_epoch_start") == recorder.hooks.count("on_epoch_end") == epochs


def test_exit_iteration_this_run_counts_from_where_a_run_resumes(run_tiny, tmp_path):
    saving = {"checkpoint": {"type": "full", "save_end_of_training": True, "output_dir": str(tmp_path / "saved")}}
    where = tmp_path / "saved" / "step-00000004"
    first = run_tiny(**saving, epochs=3, exit_iteration_this_run=4)
    second = run_tiny(**saving, epochs=3, exit_iteration_this_run=2, trainer={"resume_from": where})
    assert (first.global_step, second.global_step) == (4, 6)


def test_properties_are_there_in_every_hook(run_tiny):
    class Look:
        def __init__(self):
            self.seen = []

        def look(self, trainer):
            fixed = (trainer.epochs, trainer.training_horizon, trainer.warmup_steps, trainer.device.type)
            self.seen.append((*fixed, trainer.global_step, trainer.state.global_step))

        @hookimpl
        def on_train_start(self, trainer):
            self.look(trainer)
            self.look_at_batches = next(trainer.train_batches)

        @hookimpl
        def on_step_end(self, trainer):
            self.look(trainer)

        @hookimpl
        def on_train_end(self, trainer):
            self.look(trainer)

    look = Look()
    run_tiny(look, epochs=2, scheduler={"type": "linear", "warmup_steps": 3})
    assert look.seen[0] == (range(2), 14, 3, "cpu", 0, 0)
    assert look.seen[8] == (range(1, 2), 14, 3, "cpu", 8, 8)
    assert look.seen[-1][-1] == 14
    assert look.look_at_batches[0]["input_ids"].shape[0] == 2


def test_lr_follows_the_schedule_by_optimizer_steps(run_tiny):
    """Whatever the accumulation, the rate of step k is the schedule at k."""
    seen = []
    for accumulation, rows in ((1, 8), (4, 32)):
        recorder = Recorder()
        run_tiny(
            recorder,
            data={"rows": rows},
            gradient_accumulation_steps=accumulation,
            scheduler={"type": "linear", "warmup_steps": 2},
            optimizer={"lr": 1.0},
        )
        seen.append([line["lr"] for line in recorder.metrics])
    assert seen[0] == seen[1] == [0.5, 1.0, 1.0, 0.5]


def test_requests_are_obeyed(run_tiny, tmp_path):
    class Ask:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 2:
                trainer.request_evaluation()
                trainer.request_save()
            if trainer.global_step == 3:
                trainer.request_stop("enough is enough")

    recorder = Recorder()
    trainer = run_tiny(Ask(), recorder, checkpoint={"type": "full", "output_dir": str(tmp_path / "saved")})
    assert trainer.global_step == 3
    assert trainer.state.stop_reason == "enough is enough"
    order = [name for name in recorder.hooks if name in ("on_step_end", "on_evaluate_end", "on_checkpoint_end")]
    assert order == ["on_step_end"] * 2 + ["on_evaluate_end", "on_checkpoint_end", "on_step_end", "on_evaluate_end"]
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["step-00000002"]


def test_requests_at_the_end_of_an_epoch_are_obeyed_there(run_tiny, tmp_path):
    class Ask:
        @hookimpl
        def on_epoch_end(self, trainer, epoch):
            trainer.request_evaluation()
            trainer.request_save()
            if epoch == 1:
                trainer.request_stop("two are enough")

    recorder = Recorder()
    saving = {"type": "full", "output_dir": str(tmp_path / "saved")}
    trainer = run_tiny(Ask(), recorder, checkpoint=saving, epochs=4)
    assert (trainer.global_step, trainer.state.epoch) == (14, 2)
    kept = ("on_epoch_start", "on_epoch_end", "on_evaluate_end", "on_checkpoint_end")
    assert [name for name in recorder.hooks if name in kept] == list(kept) * 2
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["step-00000007", "step-00000014"]
    assert [line["step"] for line in recorder.metrics if "eval/held_out/loss" in line] == [7, 14]


def test_the_rest_of_an_epoch_can_be_left_out(run_tiny, tmp_path):
    class Leave:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.state.sequences == 4:
                trainer.request_epoch_end()

    recorder = Recorder()
    saving = {"type": "full", "output_dir": str(tmp_path / "saved"), "save_every_n_steps": 2}
    trainer = run_tiny(Leave(), recorder, checkpoint=saving, epochs=3)
    assert trainer.global_step == 6
    assert "last epoch" in trainer.state.stop_reason
    assert [(line["step"], line["epoch"]) for line in recorder.metrics][1::2] == [(2, 1.0), (4, 2.0), (6, 3.0)]
    assert "eval/held_out/loss" in recorder.metrics[-1]
    again = run_tiny(epochs=3, checkpoint=saving, trainer={"resume_from": tmp_path / "saved" / "step-00000002"})
    assert (again.global_step, again.state.stop_reason) == (16, None), "it continues with the second epoch"


def test_a_log_line_can_be_asked_for(run_tiny):
    class Ask:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 3:
                trainer.request_log()

    recorder = Recorder()
    run_tiny(Ask(), recorder, log_interval=5)
    assert [line["step"] for line in recorder.metrics] == [3, 5, 7]


def test_what_evaluation_finds_can_stop_the_run_at_once(run_tiny):
    class GoodEnough:
        @hookimpl
        def on_evaluate_end(self, trainer, metrics):
            if metrics["eval/held_out/loss"] < 100:
                trainer.request_stop("good enough")

    trainer = run_tiny(GoodEnough(), eval_interval=2)
    assert (trainer.global_step, trainer.state.stop_reason) == (2, "good enough")


@pytest.mark.parametrize("limit", [{"train_iters": 4}, {"exit_iteration": 4}])
def test_a_finished_run_is_not_trained_further(run_tiny, limit):
    saving = {"checkpoint": {"type": "full", "save_every_n_steps": 2, "auto_resume": True}}
    first = run_tiny(**limit, **saving)
    recorder = Recorder()
    again = run_tiny(recorder, **limit, **saving)
    assert again.global_step == 4
    assert "on_step_start" not in recorder.hooks
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_weights_that_are_not_finite_are_never_saved(run_tiny, tmp_path):
    class PoisonedGradient:
        hooktrain_plugin = PluginInfo(may_change=["gradients"])

        @hookimpl
        def on_optimizer_step_start(self, trainer):
            if trainer.global_step == 2:
                trainer.model.head.weight.grad.fill_(float("nan"))

    with pytest.raises(NonFiniteError, match=facts("step 3", "grad_norm", "nan")):
        run_tiny(
            PoisonedGradient(),
            checkpoint={"type": "full", "save_every_n_steps": 3},
            log_interval=100,
            gradient_clipping=0.0,
        )
    assert not list((tmp_path / "run").rglob("step-*"))


def test_savers_see_what_evaluation_found(run_tiny):
    class See:
        @hookimpl
        def on_checkpoint_start(self, trainer):
            self.found = trainer.state.metrics["eval/held_out/loss"]

    see, recorder = See(), Recorder()
    run_tiny(see, recorder, checkpoint={"type": "full", "save_end_of_training": True})
    assert see.found == recorder.metrics[-1]["eval/held_out/loss"]


def test_evaluation_is_the_token_mean_over_every_row_once(run_tiny):
    seen = []
    for size in (1, 2, 5):
        recorder = Recorder()
        trainer = run_tiny(recorder, eval_micro_batch_size=size, eval_interval=3)
        seen.append([line["eval/held_out/loss"] for line in recorder.metrics if "eval/held_out/loss" in line])
        assert sorted(trainer.data.evaluation["held_out"].read) == sorted(list(range(5)) * 3)
    total = weight = 0.0
    with torch.no_grad():
        for ids, labels in trainer.data.evaluation["held_out"].rows:
            logits = trainer.model(ids[None])[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum"))
            weight += int((labels[1:] != -100).sum())
    assert len(seen[0]) == 3
    for found in seen:
        assert found == pytest.approx(seen[0], abs=1e-6)
    assert seen[0][-1] == pytest.approx(total / weight, abs=1e-6)


def test_metrics_file_and_run_dir(run_tiny, tmp_path):
    run_tiny(log_interval=3, gradient_accumulation_steps=2, epochs=3)
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    names = [
        "step",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "supervised_tokens",
        "tokens_per_second",
        "step_seconds",
    ]
    assert all(name in line for line in lines for name in names)
    assert "eval/held_out/loss" in lines[-1]
    assert [line["epoch"] for line in lines] == [
        pytest.approx(x, abs=1e-3) for x in (12 / 13, 1 + 8 / 13, 2 + 4 / 13, 3)
    ]
    assert (run / "recipe.yaml").exists()
    assert {"loop", "torch"} <= {plugin["name"] for plugin in json.loads((run / "plugins.json").read_text())["plugins"]}
    again = train(run / "recipe.yaml")
    assert again.state.metrics["loss"] == lines[-1]["loss"]
    assert (run / "metrics.1.jsonl").read_text().count("\n") == 4, "the first run's metrics are kept"


def test_tokens_are_counted_without_padding(run_tiny):
    recorder = Recorder()
    trainer = run_tiny(recorder, epochs=2)
    rows = trainer.data.train.rows
    assert recorder.metrics[-1]["tokens"] == 2 * sum(len(ids) for ids, _ in rows)
    assert recorder.metrics[-1]["supervised_tokens"] == 2 * sum(int((labels[1:] != -100).sum()) for _, labels in rows)


def test_logged_loss_is_the_token_mean_since_the_last_line(run_tiny):
    every, third = Recorder(), Recorder()
    run_tiny(every)
    run_tiny(third, log_interval=3)
    weights = [0] + [line["supervised_tokens"] for line in every.metrics]
    sums = [line["loss"] * (b - a) for line, a, b in zip(every.metrics, weights, weights[1:], strict=False)]
    assert third.metrics[0]["loss"] == pytest.approx(sum(sums[:3]) / weights[3], abs=1e-6)


# ---------------------------------------------------------------------------------------- replacing and wrapping


def test_a_replaced_step_silences_nobody(run_tiny):
    class Own:
        @hookimpl
        def run_step(self, trainer, batches):
            total = sum(trainer.microbatch(batch).total for batch in batches)
            update = trainer.optimizer_step()
            return StepOutput(total, update.grad_norm, update.stepped)

    plain, replaced = Recorder(), Recorder()
    run_tiny(plain)
    run_tiny(Own(), replaced)
    assert plain.hooks == replaced.hooks
    assert [line["loss"] for line in plain.metrics] == [line["loss"] for line in replaced.metrics]


def test_a_replaced_epoch_still_evaluates_and_saves(run_tiny):
    class FirstThree:
        @hookimpl
        def run_epoch(self, trainer, epoch):
            for number, batches in enumerate(trainer.train_batches, start=1):
                trainer.step(batches)
                if number == 3:
                    trainer.request_epoch_end()
                    return number

    recorder = Recorder()
    run_tiny(FirstThree(), recorder, checkpoint={"type": "full", "save_every_n_steps": 2}, eval_interval=2)
    assert recorder.hooks.count("on_step_end") == 3
    assert recorder.hooks.count("on_evaluate_end") == 1
    assert recorder.hooks.count("on_checkpoint_end") == 1


def test_loop_hooks_can_be_wrapped_and_declined(run_tiny):
    class Halve:
        @hookimpl(wrapper=True)
        def compute_loss(self):
            loss = yield
            return LossSum(loss.total * 0.5, loss.denominator)

    class OnlyTheSecond:
        @hookimpl
        def run_optimizer_step(self, trainer):
            if trainer.global_step != 1:
                return NotImplemented
            trainer.strategy.zero_grad()
            return OptimizerStep(None, stepped=False)

    plain, changed = Recorder(), Recorder()
    run_tiny(plain)
    trainer = run_tiny(Halve(), OnlyTheSecond(), changed)
    assert changed.metrics[0]["loss"] == plain.metrics[0]["loss"] / 2
    assert trainer.state.skipped_steps == changed.metrics[-1]["skipped_steps"] == 1


def test_a_wrapped_factory_changes_the_model(run_tiny):
    class Freeze:
        @hookimpl(wrapper=True)
        def make_model(self):
            model = yield
            model.embedding.requires_grad_(False)
            return model

    before = TinyModelWeights(run_tiny(Freeze(), train_iters=1))
    after = TinyModelWeights(run_tiny(Freeze()))
    assert torch.equal(before.embedding, after.embedding)
    assert not torch.equal(before.head, after.head)


def test_weights_do_not_depend_on_the_random_numbers_that_the_data_draw(run_tiny):
    class Draw:
        @hookimpl(wrapper=True)
        def make_data(self):
            data = yield
            torch.rand(3)
            return data

    plain, other = (TinyModelWeights(run_tiny(*plugins, optimizer={"lr": 0})) for plugins in ((), (Draw(),)))
    assert torch.equal(plain.head, other.head) and torch.equal(plain.embedding, other.embedding)


def test_a_wrapped_factory_finds_its_own_settings_in_the_recipe(run_tiny):
    @attrs.frozen(kw_only=True)
    class ScaleConfig:
        """How much to scale the head."""

        factor: float = field(default=1.0)

    class Scale:
        @hookimpl
        def register_configs(self):
            return {"settings": {"scale": ScaleConfig}}

        @hookimpl(wrapper=True)
        def make_model(self, recipe):
            model = yield
            with torch.no_grad():
                model.head.weight.mul_(recipe.settings["scale"].factor)
            return model

    plain = TinyModelWeights(run_tiny(Scale(), optimizer={"lr": 0}))
    scaled = TinyModelWeights(run_tiny(Scale(), scale={"factor": 2.0}, optimizer={"lr": 0}))
    assert torch.equal(scaled.head, 2 * plain.head)


class TinyModelWeights:
    def __init__(self, trainer):
        self.embedding = trainer.model.embedding.weight.detach().clone()
        self.head = trainer.model.head.weight.detach().clone()


class LoopHook:
    """Plugins whose loop hook breaks a promise, by name."""

    class NoneStep:
        @hookimpl
        def run_step(self, trainer, batches):
            for batch in batches:
                trainer.microbatch(batch)
            trainer.optimizer_step()

    class NoneWrapper:
        @hookimpl(wrapper=True)
        def run_step(self):
            yield

    class MeanLoss:
        @hookimpl
        def compute_loss(self, model, batch):
            return model(batch["input_ids"]).mean()

    class WrongDenominator:
        @hookimpl
        def compute_loss(self, model, batch, denominator):
            return LossSum(model(batch["input_ids"]).sum(), denominator + 7000)

    class Twice:
        @hookimpl
        def run_step(self, trainer, batches):
            trainer.microbatch(batches[0])
            trainer.microbatch(batches[0])


@pytest.mark.parametrize(
    ("plugin", "named"),
    [
        (LoopHook.NoneStep, ("'NoneStep'", "run_step", "returned None", "NotImplemented")),
        (LoopHook.NoneWrapper, ("run_step", "wrapper", "None", "yield", "'NoneWrapper', 'loop'")),
        (LoopHook.MeanLoss, ("'MeanLoss'", "compute_loss", "Tensor", "LossSum(total=")),
        (LoopHook.WrongDenominator, ("'WrongDenominator'", "compute_loss", "700", "denominator=")),
        (LoopHook.Twice, ("trainer.microbatch", "second time", "trainer.begin_step")),
    ],
)
def test_a_loop_hook_that_breaks_its_promise_stops_the_run(run_tiny, plugin, named):
    recorder = Recorder()
    with pytest.raises(LoopHookError, match=facts(*named)):
        run_tiny(recorder, plugin())
    assert recorder.hooks.count("on_step_start") == 1, "nothing was run a second time"


# -------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("hook", ["on_step_end", "on_microbatch_start", "on_evaluate_start", "on_log", "on_train_end"])
def test_a_hook_that_raises_is_named_and_everything_is_torn_down(run_tiny, hook):
    class Recording:
        def __init__(self):
            self.seen = []

        @hookimpl
        def on_exception(self, exception):
            self.seen.append(exception)

        @hookimpl
        def on_teardown(self):
            self.seen.append("torn down")

    class TeardownFails:
        @hookimpl
        def on_teardown(self):
            raise RuntimeError("not this one")

    scope = {}
    exec(f"def {hook}(self): raise ValueError('boom')", scope)
    bad = type("Bad", (), {hook: hookimpl(scope[hook])})()
    first, last = Recording(), Recording()
    with (
        pytest.warns(UserWarning, match=facts("'TeardownFails'", "on_teardown", "not this one")),
        pytest.raises(ValueError) as caught,
    ):
        run_tiny(first, TeardownFails(), bad, last)
    assert re.search(facts("'Bad'", hook, "step ", "rank 0"), failure_of(caught.value).where)
    assert first.seen == last.seen == [caught.value, "torn down"]


def poison(steps):
    class Poison:
        @hookimpl(wrapper=True)
        def compute_loss(self, trainer):
            loss = yield
            bad = trainer.global_step in steps and torch.is_grad_enabled()
            return LossSum(loss.total * float("nan") if bad else loss.total, loss.denominator)

    return Poison()


def test_nan_stops_the_run_before_anything_is_saved(run_tiny, tmp_path):
    with pytest.raises(NonFiniteError, match=facts("step 3", "loss", "nan", "optimizer.lr")):
        run_tiny(poison({2}), checkpoint={"type": "full", "save_every_n_steps": 1}, log_interval=100)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


def test_nan_steps_can_be_left_out(run_tiny):
    recorder, trainer = Recorder(), None
    trainer = run_tiny(poison({2, 4}), recorder, on_nan="skip", log_interval=1)
    assert trainer.state.skipped_steps == 2
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert ["loss" in line for line in recorder.metrics] == [True, True, False, True, False, True, True]


def test_a_window_with_nothing_supervised_never_moves_the_weights(run_tiny):
    class Nothing:
        @hookimpl(wrapper=True)
        def make_data(self):
            data = yield
            data.train.rows = [(ids, torch.full_like(labels, -100)) for ids, labels in data.train.rows]
            return data

    recorder = Recorder()
    with pytest.raises(NonFiniteError, match=facts("7 of 7 steps", "step 1", "nothing was supervised", "not trained")):
        run_tiny(Nothing(), recorder, data={"eval_rows": 0})
    trainer = recorder.calls[-1][1]["trainer"]
    torch.manual_seed(42)
    fresh = TinyModel(type(trainer.recipe.model)())
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    assert trainer.state.skipped_steps == trainer.global_step == 7


def test_two_plugins_cannot_log_one_name(run_tiny):
    class Log:
        @hookimpl
        def collect_metrics(self):
            return {"loss": 1.0}

    with pytest.raises(HooktrainError, match=facts("'loss'", "'Log'")):
        run_tiny(Log())


def test_metrics_of_plugins_reach_the_log(run_tiny):
    class Log:
        @hookimpl
        def collect_metrics(self, trainer):
            return {"mine/weight": trainer.model.head.weight.norm(), "mine/step": trainer.global_step}

    recorder = Recorder()
    trainer = run_tiny(Log(), recorder)
    assert recorder.metrics[-1]["mine/weight"] == float(trainer.model.head.weight.norm())
    assert recorder.metrics[-1]["mine/step"] == 7


def test_an_empty_data_set_is_refused(run_tiny):
    with pytest.raises(HooktrainError, match=facts("data:", "data.sources")):
        run_tiny(data={"rows": 0})


def test_own_counts(run_tiny):
    """A plugin may count in its own way; the loss is divided by its denominators."""

    class ByRow:
        @hookimpl
        def count_batch(self, batch):
            return BatchCounts(len(batch["input_ids"]), batch["input_ids"].numel(), len(batch["input_ids"]))

    recorder, plain = Recorder(), Recorder()
    trainer = run_tiny(ByRow(), recorder, data={"eval_rows": 0})
    run_tiny(plain, data={"eval_rows": 0})
    rows = trainer.state.supervised_tokens
    assert rows == 13
    assert recorder.metrics[0]["loss"] * 2 == pytest.approx(
        plain.metrics[0]["loss"] * plain.metrics[0]["supervised_tokens"]
    )


@pytest.mark.parametrize("clipping", [0.0, 1.0])
def test_no_device_sync_between_two_log_lines(run_tiny, clipping):
    """A tensor on the device ``meta`` has no value, so whoever asks for one fails: the first to ask is the log."""

    class Counts:
        @hookimpl
        def on_step_end(self, trainer):
            self.steps = trainer.global_step

    counts = Counts()
    with pytest.raises((NotImplementedError, RuntimeError), match="meta") as caught:
        run_tiny(
            counts,
            Recorder(),
            strategy={"device": "meta", "dtype": "fp32"},
            optimizer={"type": "sgd", "lr": 0.1},
            data={"eval_rows": 0},
            gradient_accumulation_steps=2,
            gradient_clipping=clipping,
            log_interval=4,
            epochs=2,
        )
    assert counts.steps == 4
    assert "read" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


@pytest.mark.parametrize(
    ("saves", "named"),
    [
        ([{"save_every_n_steps": 3}], ["checkpoint[0]", "step 7", "step 6", "save_end_of_training: true"]),
        ([{"save_every_n_steps": 100}], ["checkpoint[0]", "step 7", "no step"]),
        ([{"save_every_n_steps": 7}], []),
        ([{"save_every_n_steps": 3, "save_every_n_epochs": 1}], []),
        ([{"save_every_n_steps": 3, "output_dir": "a"}, {"save_end_of_training": True, "output_dir": "b"}], []),
    ],
)
def test_an_end_that_is_not_saved_is_said_at_the_start(run_tiny, tmp_path, monkeypatch, saves, named):
    monkeypatch.chdir(tmp_path)

    class Messages(list):
        @hookimpl
        def on_message(self, message):
            self.append(message)

    said = Messages()
    assert run_tiny(said, checkpoint=[{"type": "full", **each} for each in saves]).global_step == 7
    found = [text for text in said if text.startswith("checkpoint[")]
    assert len(found) == bool(named) and all(re.search(facts(*named), text) for text in found)
