"""``make_communication_hook``: a plugin sums the gradients over the ranks in its own way."""

from __future__ import annotations

import pytest

from hooktrain import hookimpl
from hooktrain.testing import Recorder

SETTINGS = {"epochs": 1, "optimizer": {"type": "sgd", "lr": 0.1}}
STRATEGIES = {
    "ddp": {"data_parallel": "ddp", "dtype": "fp32", "device": "cpu"},
    "fsdp2": {"data_parallel": "fsdp2", "dtype": "fp32", "device": "cpu"},
}
ROUNDED = """
import torch
import torch.distributed as dist
from hooktrain import PluginInfo

hooktrain_plugin = PluginInfo(changes_gradients=True)
FACTOR = {factor}
sums = 0


def rounded(gradients):
    global sums
    sums += 1
    return gradients.bfloat16().float() * FACTOR


def sum_bucket(bucket):
    work = dist.all_reduce(rounded(bucket.buffer()), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


class Scatter:
    def allocate(self, size, *, dtype, device):
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        return dist.reduce_scatter_tensor(output_tensor, rounded(input_tensor), op, group, async_op)


@hookimpl
def make_communication_hook(data_parallel):
    return Scatter() if data_parallel == "fsdp2" else sum_bucket


@hookimpl
def on_step_end(trainer):
    note(step=trainer.global_step, sums=sums)
"""


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp2", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("factor", [1, pytest.param(0, marks=pytest.mark.thorough)])
def test_gradients_are_summed_as_the_plugin_sums_them(run_ranks, rank_notes, run_tiny, kind, factor):
    """Rounded to bf16 they train nearly as one process does; multiplied by 0 they change nothing."""
    run = run_ranks(2, ROUNDED.replace("{factor}", str(factor)), strategy=STRATEGIES[kind], **SETTINGS)
    assert run.status == 0, run.output
    for rank in (0, 1):
        notes = rank_notes(rank)
        assert [note["sums"] > 0 for note in notes] == [True] * len(notes) and notes[-1]["step"] == len(run.metrics)
    recorder = Recorder()
    run_tiny(recorder, **{**SETTINGS, "micro_batch_size": 4, "optimizer": {"type": "sgd", "lr": 0.1 * factor}})
    expected = [line["loss"] for line in recorder.metrics if "loss" in line]
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert losses == pytest.approx(expected, abs=2e-3)
    assert factor == 0 or losses != pytest.approx(expected, abs=1e-9), "rounding is seen"


@pytest.mark.parametrize(
    ("strategy", "made", "words"),
    [
        (STRATEGIES["ddp"], "5", ["make_communication_hook", "int", "a function of a bucket"]),
        pytest.param(
            {"type": "deepspeed", "zero_stage": 0, "dtype": "fp32", "device": "cpu"},
            "print",
            ["make_communication_hook", "DeepSpeedStrategy", "strategy: torch"],
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_what_cannot_sum_gradients_is_refused(run_ranks, strategy, made, words):
    source = f"@hookimpl\ndef make_communication_hook():\n    return {made}\n"
    run = run_ranks(2, source, strategy=strategy, **SETTINGS)
    assert run.status != 0
    assert [word for word in words if word not in run.output] == [], run.output


def test_one_process_needs_none(run_tiny):
    class Refuses:
        @hookimpl
        def make_communication_hook(self):
            raise AssertionError("asked")

    assert run_tiny(Refuses(), train_iters=1).global_step == 1
