"""Optimizer state that is not laid out as its parameter is survives a checkpoint, on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hooktrain import CheckpointError, HooktrainError, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.plugins.deepspeed.zero import zero
from tests.plugins.torch import odd_optimizer
from tests.plugins.torch.odd_optimizer import Odd
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

FSDP = {"data_parallel": "fsdp2", "dtype": "fp32", "device": "cpu"}
PLAIN = {"dtype": "fp32", "device": "cpu"}
COMMON = {
    "epochs": 2,
    "data": {"eval_rows": 0},
    "optimizer": {"type": "sgd"},
    "checkpoint": [{"type": "full", "save_every_n_steps": 3}],
}


SOURCE = Path(odd_optimizer.__file__).read_text() + "\nmake_optimizer = Odd(**OPTIONS).make_optimizer\n"


def losses(recorder):
    return [line["loss"] for line in recorder.metrics]


@pytest.fixture
def one_process(run_tiny, tmp_path):
    """The losses of a run in one process, which nothing shards, and its folder."""
    recorder = Recorder()
    run_tiny(Odd(), recorder, strategy=PLAIN, run_dir=str(tmp_path / "one"), **COMMON)
    return losses(recorder), tmp_path / "one"


@pytest.mark.parametrize("strategy", [PLAIN, FSDP], ids=["plain", "fsdp2"])
def test_one_rank_resumes_bit_by_bit(run_tiny, one_process, tmp_path, strategy):
    recorder, rest = Recorder(), Recorder()
    first = run_tiny(Odd(), recorder, strategy=strategy, **COMMON)
    assert losses(recorder) == pytest.approx(one_process[0], abs=1e-6)
    resume = {"resume_from": tmp_path / "run" / "checkpoints" / "step-00000003"}
    second = run_tiny(Odd(), rest, strategy=strategy, trainer=resume, run_dir=str(tmp_path / "rest"), **COMMON)
    assert losses(rest) == losses(recorder)[3:]
    states = [dict(each.optimizer.state) for each in (first, second)]
    assert states[0].pop("all") == states[1].pop("all") == {"steps": 14}, "of no parameter"
    for one, other in zip(*(each.values() for each in states), strict=True):
        assert {k: (type(v), v.dtype) for k, v in one.items()} == {k: (type(v), v.dtype) for k, v in other.items()}
        assert {v.dtype for v in other.values()} == {torch.float32, torch.bfloat16, torch.int64}


def test_two_ranks_resume_bit_by_bit_and_one_after_them(run_ranks, run_tiny, one_process, tmp_path):
    settings = {**COMMON, "micro_batch_size": 1, "strategy": FSDP}
    source = SOURCE.replace("**OPTIONS", "")
    two = run_ranks(2, source, **settings)
    assert two.status == 0, two.output
    found = [line["loss"] for line in two.metrics]
    assert found == pytest.approx(one_process[0], abs=2e-6)
    path = two.folder / "checkpoints" / "step-00000003"
    rest = run_ranks(2, source, words=["--resume", str(path)], **{**settings, "run_dir": str(tmp_path / "rest")})
    assert rest.status == 0, rest.output
    assert [line["loss"] for line in rest.of(tmp_path / "rest").metrics] == found[3:]
    for strategy in (PLAIN, FSDP):
        one = Recorder()
        more = {**COMMON, "strategy": strategy, "run_dir": str(tmp_path / f"one{len(strategy)}")}
        run_tiny(Odd(), one, trainer={"resume_from": path}, **more)
        assert losses(one) == pytest.approx(found[3:], abs=2e-6)


def test_state_that_differs_by_rank_needs_as_many_ranks(run_ranks, run_tiny, tmp_path):
    settings = {**COMMON, "micro_batch_size": 1, "strategy": FSDP}
    source = SOURCE.replace("**OPTIONS", "by_rank=True")
    two = run_ranks(2, source, **settings)
    assert two.status == 0, two.output
    path = two.folder / "checkpoints" / "step-00000003"
    rest = run_ranks(2, source, words=["--resume", str(path)], **{**settings, "run_dir": str(tmp_path / "rest")})
    assert rest.status == 0, rest.output
    found = [line["loss"] for line in rest.of(tmp_path / "rest").metrics]
    assert found == [line["loss"] for line in two.metrics][3:]
    one = {**settings, "micro_batch_size": 2, "run_dir": str(tmp_path / "one")}
    with pytest.raises(CheckpointError, match=facts("embedding.weight/spread", "differs by rank", "on 2 ranks")):
        run_tiny(Odd(by_rank=True), trainer={"resume_from": path}, **one)


def test_what_cannot_be_sharded_is_refused_by_name(run_tiny, one_process):
    resume = {"resume_from": one_process[1] / "checkpoints" / "step-00000003"}
    expected = facts("embedding.weight/low", "(17, 3)", "without shards", "data_parallel: fsdp2")
    with pytest.raises(CheckpointError, match=expected):
        run_tiny(Odd(), strategy=FSDP, trainer=resume, **COMMON)


def test_tensors_inside_other_values_are_refused_by_name(run_tiny):
    with pytest.raises(HooktrainError, match=facts("embedding.weight/inside", "dict", "key of its own")):
        run_tiny(Odd(nested=True), strategy=FSDP, **COMMON)


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.thorough), 3])
def test_zero_refuses_what_belongs_to_no_parameter(run_tiny, one_process, stage):
    resume = {"resume_from": one_process[1] / "checkpoints" / "step-00000003"}
    settings = {**COMMON, "strategy": zero(stage)}
    with pytest.raises(CheckpointError, match=facts("embedding.weight/low", "another shape", "ZeRO", "zero_stage: 0")):
        run_tiny(Odd(), trainer=resume, **settings)


def test_zero_saves_no_state_of_another_shape(run_tiny):
    class Factored(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["rows"] = torch.ones(2)
            return super().step(closure)

    class Makes:
        @hookimpl(tryfirst=True)
        def make_optimizer(self, model):
            return Factored(model.parameters(), lr=0.1)

    with pytest.raises(CheckpointError, match=facts("'rows'", "(2,)", "ZeRO", "strategy torch")):
        run_tiny(Makes(), strategy=zero(1), **COMMON)
