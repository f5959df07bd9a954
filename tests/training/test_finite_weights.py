"""Weights that are not finite are neither saved nor exported, under any strategy and whatever put them there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from hooktrain import NonFiniteError, PluginInfo, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

EACH = {"type": "full", "save_every_n_steps": 1, "keep_last": 1}


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "run" / "checkpoints").glob("step-*"))


@torch.no_grad()
def poison(model, name: str, value: float) -> None:
    dict([*model.named_parameters(), *model.named_buffers()])[name].view(-1)[-1:] = value


class Poison:
    """Puts a number into a weight after the third step."""

    hooktrain_plugin = PluginInfo(changes_gradients=True)

    def __init__(self, value: float = math.nan, name: str = "head.weight") -> None:
        self.value, self.name = value, name

    @hookimpl
    def on_step_end(self, trainer):
        if trainer.global_step == 3:
            poison(trainer.model, self.name, self.value)


class Adds:
    """Adds weights or buffers to the model that no loss uses."""

    def __init__(self, **more: torch.Tensor) -> None:
        self.more = more

    @hookimpl(wrapper=True)
    def make_model(self):
        model = yield
        for name, value in self.more.items():
            if isinstance(value, nn.Parameter):
                model.register_parameter(name, value)
            else:
                model.register_buffer(name, value)
        return model


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")])
def test_they_are_not_saved_and_the_last_good_checkpoint_stays(run_tiny, tmp_path, value, word, on_nan, background):
    with pytest.raises(NonFiniteError, match=facts("step 3", "head.weight", word, "step-00000002")):
        run_tiny(Poison(value), checkpoint={**EACH, "asynchronous": background}, on_nan=on_nan, log_interval=100)
    assert saved(tmp_path) == [2]


@pytest.mark.parametrize(
    "strategy", [{"data_parallel": "fsdp2"}, {"type": "deepspeed"}, {"type": "deepspeed", "zero_stage": 1}]
)
def test_other_strategies_look_too(run_tiny, tmp_path, strategy):
    class Everywhere:
        hooktrain_plugin = PluginInfo(changes_gradients=True)

        @hookimpl
        def on_optimizer_step_start(self, trainer):
            if trainer.global_step == 2:
                for group in trainer.optimizer.param_groups:
                    group["lr"] = math.inf

    with pytest.raises(NonFiniteError, match=facts("step 3", "weight", "expected finite", "step-00000002")):
        run_tiny(
            Everywhere(), checkpoint=EACH, log_interval=100, strategy={"dtype": "fp32", "device": "cpu", **strategy}
        )
    assert saved(tmp_path) == [2]


RANK_1 = """
import hooktrain, torch

hooktrain_plugin = hooktrain.PluginInfo(changes_gradients=True)

@hookimpl
def on_step_end(trainer):
    if trainer.global_step == 3 and trainer.world.rank == 1:
        with torch.no_grad():
            weight = trainer.model.head.weight
            (weight.to_local() if hasattr(weight, "to_local") else weight).fill_(float("nan"))
"""


def test_a_shard_of_another_rank_is_looked_at_and_all_ranks_end(run_ranks):
    run = run_ranks(
        2,
        RANK_1,
        checkpoint=EACH,
        strategy={"data_parallel": "fsdp2", "dtype": "fp32", "device": "cpu"},
        log_interval=9,
    )
    assert run.status == 1
    assert "the weight head.weight holds NaN" in run.stderr and "rank 1" in run.stderr, run.stderr
    assert [path.name for path in (run.folder / "checkpoints").glob("step-*")] == ["step-00000002"]


def test_what_a_wrapper_exchanges_for_the_save_is_looked_at(run_tiny, tmp_path):
    class Averages:
        @hookimpl(wrapper=True)
        def save_checkpoint(self, trainer):
            poison(trainer.model, "head.bias", math.nan if trainer.global_step == 3 else 0.0)
            return (yield)

    with pytest.raises(NonFiniteError, match=facts("step 3", "head.bias")):
        run_tiny(Averages(), checkpoint=EACH)
    assert saved(tmp_path) == [2]


def test_a_plugin_that_saves_itself_gets_no_such_weights(run_tiny, tmp_path):
    class Saves:
        @hookimpl
        def save_checkpoint(self, trainer):
            return [path for engine in trainer.due_checkpoint_engines if (path := engine.save(trainer))]

    with pytest.raises(NonFiniteError, match=facts("step 3", "head.weight")):
        run_tiny(Saves(), Poison(), checkpoint=EACH)
    assert saved(tmp_path) == [2]


def test_a_run_that_saves_nothing_does_not_end_well_with_them(run_tiny):
    class Last:
        hooktrain_plugin = PluginInfo(changes_gradients=True)

        @hookimpl
        def on_epoch_end(self, trainer):
            poison(trainer.model, "head.weight", math.nan)

    recorder = Recorder()
    with pytest.raises(NonFiniteError, match=facts("step 7", "head.weight")):
        run_tiny(recorder, Last())
    assert "on_train_end" not in recorder.hooks


def weights_of_many_types() -> dict[str, torch.Tensor]:
    return {
        "bf16": nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)),
        "complex64": nn.Parameter(torch.zeros(3, dtype=torch.complex64)),
        "float64": nn.Parameter(torch.full((3,), 1e300, dtype=torch.float64)),
        "frozen": nn.Parameter(torch.zeros(3), requires_grad=False),
        "float8": torch.zeros(3).to(torch.float8_e4m3fn),
        "buffer": torch.zeros(3),
    }


@pytest.mark.parametrize("name", weights_of_many_types())
def test_weights_and_buffers_of_any_type_are_looked_at(run_tiny, tmp_path, name):
    more = weights_of_many_types()
    with pytest.raises(NonFiniteError, match=facts("step 3", f"weight {name}")):
        run_tiny(Adds(**more), Poison(torch.tensor(math.nan).to(more[name].dtype), name), checkpoint=EACH)
    assert saved(tmp_path) == [2]


def test_what_was_not_finite_as_built_may_stay_so(run_tiny, tmp_path):
    """A mask of infinities, a frozen weight nobody has filled, an empty one, numbers that are whole."""
    odd = {
        "mask": torch.full((2, 2), -math.inf).triu(1),
        "unused": nn.Parameter(torch.full((2,), math.nan), requires_grad=False),
        "suppressed": nn.Parameter(torch.tensor([0.0, -math.inf])),
        "empty": torch.zeros(0),
        "count": torch.tensor(3),
    }
    run_tiny(Adds(**odd), checkpoint=EACH)
    assert saved(tmp_path) == [7]
    with pytest.raises(NonFiniteError, match=facts("step 3", "suppressed", "NaN")):
        run_tiny(Adds(**odd), Poison(math.nan, "suppressed"), checkpoint={**EACH, "overwrite": True})


def test_an_evaluation_that_is_not_a_number_is_never_the_best(run_tiny, tmp_path):
    class Losses:
        values = [2.0, 1.0, math.nan, 3.0, math.nan, 5.0, math.nan]

        @hookimpl
        def run_evaluate(self, trainer):
            return {"eval/held_out/loss": self.values[trainer.global_step - 1]}

    run_tiny(Losses(), eval_interval=1, checkpoint={**EACH, "keep_best": "eval/held_out/loss"})
    assert saved(tmp_path) == [2, 7]


# ------------------------------------------------------------------------------------------------ skipped steps


class Fails:
    """Makes the gradients of chosen steps NaN, which are counted from 1."""

    def __init__(self, steps):
        self.steps = steps

    @hookimpl(wrapper=True)
    def compute_loss(self, trainer):
        loss = yield
        bad = torch.is_grad_enabled() and trainer.global_step + 1 in self.steps
        return loss._replace(total=loss.total * math.nan) if bad else loss


@pytest.mark.parametrize("strategy", [{}, {"dtype": "fp16"}, {"type": "deepspeed", "zero_stage": 2}])
def test_too_many_skipped_steps_end_the_run_and_the_first_is_named(run_tiny, tmp_path, strategy):
    settings = {"strategy": {"dtype": "fp32", "device": "cpu", **strategy}, "on_nan": "skip", "max_skipped_steps": 3}
    with pytest.raises(
        NonFiniteError, match=facts("step 5", "3 steps", "max_skipped_steps", "step 3", "row ")
    ) as caught:
        run_tiny(Fails(range(3, 99)), checkpoint=EACH, data={"shuffle": False}, **settings)
    assert "row 4; row 5" in str(caught.value), "the third window of two"
    assert saved(tmp_path) == [2, 3, 4], "nothing is rotated away meanwhile"


def test_a_step_that_succeeds_begins_the_count_anew_and_rotates_again(run_tiny, tmp_path):
    class Looks:
        there = []

        @hookimpl
        def on_checkpoint_end(self):
            self.there.append(saved(tmp_path))

    looks = Looks()
    trainer = run_tiny(Fails({2, 3, 5, 6}), looks, checkpoint=EACH, on_nan="skip", max_skipped_steps=3)
    assert looks.there == [[1], [1, 2], [1, 2, 3], [4], [4, 5], [4, 5, 6], [7]]
    assert (trainer.state.skipped_steps, trainer.state.consecutive_skipped_steps) == (4, 0)


def test_the_count_outlives_a_resume(run_tiny, tmp_path):
    settings = {"on_nan": "skip", "max_skipped_steps": 3, "checkpoint": EACH, "data": {"shuffle": False}}
    run_tiny(Fails(range(3, 99)), exit_iteration=4, **settings)
    with pytest.raises(NonFiniteError, match=facts("step 5", "3 steps", "step 3", "row 4")):
        run_tiny(Fails(range(3, 99)), trainer={"resume_from": tmp_path / "run/checkpoints/step-00000004"}, **settings)


@pytest.mark.filterwarnings("ignore::hooktrain.HooktrainWarning")
def test_a_run_that_hardly_ever_stepped_is_no_success(run_tiny, tmp_path):
    recorder = Recorder()
    end = {"type": "full", "save_end_of_training": True}
    settings = {"on_nan": "skip", "max_skipped_steps": 0, "checkpoint": [end]}
    with pytest.raises(NonFiniteError, match=facts("13 of 14 steps", "step 2", "gradients", "not trained")):
        run_tiny(Fails(range(2, 99)), recorder, epochs=2, **settings)
    assert saved(tmp_path) == [14], "its state is there, for whoever looks for the cause"
    assert "on_train_end" not in recorder.hooks
    with pytest.raises(NonFiniteError, match="13 of 14 steps"):  # nor is one that finds nothing left to do
        run_tiny(Fails([]), epochs=2, trainer={"resume_from": tmp_path / "run/checkpoints/step-00000014"}, **settings)
    run_tiny(Fails(range(2, 6)), **settings, run_dir=str(tmp_path / "half"))
