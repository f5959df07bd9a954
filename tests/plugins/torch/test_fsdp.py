"""FSDP2 under the ``torch`` strategy: the numbers, checkpoints and exports of one process that holds everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_torch.fsdp import blocks
from torch import nn

from hooktrain import RecipeError
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.launching import alone, assert_equal_runs, stored_weights, weights_at
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

FSDP = {"data_parallel": "fsdp2", "dtype": "fp32", "device": "cpu"}
COMMON = {
    "epochs": 2,
    "eval_interval": 3,
    "gradient_clipping": 0.2,
    "optimizer": {"type": "adamw", "lr": 0.01},
    "scheduler": {"type": "cosine"},
}
SAVE = {"type": "full", "save_every_n_steps": 3, "save_end_of_training": True}
SHARES = """
@hookimpl
def on_train_start(trainer):
    here = sum(p.to_local().numel() for p in trainer.model.parameters())
    note(here=here, all=sum(p.numel() for p in trainer.model.parameters()))
"""


def test_two_ranks_are_one_global_batch(run_ranks, rank_notes, run_tiny):
    """(2, 2, 2) with FSDP2 is (8, 1, 1): 13 rows in windows of 8 and 5, ragged masks, clipping, evaluation."""
    run = run_ranks(2, SHARES, gradient_accumulation_steps=2, strategy=FSDP, checkpoint=SAVE, **COMMON)
    assert_equal_runs(run, *alone(run_tiny, micro_batch_size=8, **COMMON))
    (first,), (second,) = rank_notes(0), rank_notes(1)
    assert first["here"] + second["here"] == first["all"]
    assert second["here"] > first["all"] / 3


def test_one_rank(run_tiny):
    recorder, reference = Recorder(), Recorder()
    run_tiny(reference, gradient_accumulation_steps=3, **COMMON)
    run_tiny(recorder, gradient_accumulation_steps=3, strategy=FSDP, **COMMON)
    expected = [line.get("loss") for line in reference.metrics]
    assert [line.get("loss") for line in recorder.metrics] == pytest.approx(expected, abs=1e-6)


def test_fewer_rows_than_ranks(run_ranks, run_tiny):
    """Three ranks, weights of four and of two rows: some ranks hold nothing of a weight."""
    model = {"vocab": 17, "width": 2}
    settings = {**COMMON, "model": model}
    run = run_ranks(3, micro_batch_size=1, strategy=FSDP, checkpoint=SAVE, **settings)
    assert_equal_runs(run, *alone(run_tiny, micro_batch_size=3, **settings))


def test_two_ranks_resume_bit_by_bit(run_ranks, tmp_path):
    settings = {**COMMON, "checkpoint": SAVE, "micro_batch_size": 1, "model": {"dropout": 0.3}, "strategy": FSDP}
    undisturbed = run_ranks(2, **settings)
    assert undisturbed.status == 0, undisturbed.output
    words = ["--resume", str(undisturbed.folder / "checkpoints" / "step-00000003")]
    rest = run_ranks(2, words=words, **{**settings, "run_dir": str(tmp_path / "rest")}).of(tmp_path / "rest")
    assert rest.status == 0, rest.output
    assert [line["loss"] for line in rest.metrics] == [line["loss"] for line in undisturbed.metrics][3:]
    last = f"checkpoints/step-{len(undisturbed.metrics):08d}"
    for kind in ("model", "optimizer"):
        expected, found = (stored_weights(run.folder / last, kind) for run in (undisturbed, rest))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "there",
    [
        {"dtype": "fp32", "device": "cpu"},
        pytest.param({"type": "deepspeed", "zero_stage": 3}, marks=pytest.mark.thorough),
    ],
)
def test_resumes_from_other_strategies_and_they_from_it(run_ranks, run_tiny, tmp_path, there):
    """One rank of another strategy, then two of FSDP2, then the first one again."""
    there = {"dtype": "fp32", "device": "cpu", **there}
    settings = {**COMMON, "checkpoint": SAVE, "micro_batch_size": 4}
    reference, back = Recorder(), Recorder()
    run_tiny(reference, strategy=there, **settings)
    words = ["--resume", str(tmp_path / "run" / "checkpoints" / "step-00000003")]
    two = run_ranks(
        2, words=words, strategy=FSDP, **{**settings, "micro_batch_size": 2, "run_dir": str(tmp_path / "two")}
    ).of(tmp_path / "two")
    assert two.status == 0, two.output
    expected = [line["loss"] for line in reference.metrics]
    assert [line["loss"] for line in two.metrics] == pytest.approx(expected[3:], abs=2e-6)
    path = tmp_path / "two" / "checkpoints" / "step-00000006"
    run_tiny(back, strategy=there, trainer={"resume_from": path}, run_dir=str(tmp_path / "back"), **settings)
    assert [line["loss"] for line in back.metrics] == pytest.approx(expected[6:], abs=2e-6)


LLAMA = """
@hookimpl
def on_train_start(trainer):
    model = trainer.model
    note(blocks=sum(hasattr(module, "unshard") for module in model.modules()), layers=len(model.model.layers))
"""


@pytest.mark.parametrize("peft", [None, {"type": "lora", "r": 4}])
@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_packed_conversations_and_their_export(run_ranks, rank_notes, run, recipe, tmp_path, peft, checkpointing):
    """A tied head, layers that are gathered one by one, activation checkpointing, adapters; the export is the same."""
    from safetensors.torch import load_file

    recorder = Recorder()
    settings: dict[str, Any] = {**recipe, "checkpoint": [{"type": "huggingface", "save_end_of_training": True}]}
    settings["model"] = {**recipe["model"], "activation_checkpointing": checkpointing}
    if peft:
        settings["peft"] = peft
    run(recorder, **{**settings, "micro_batch_size": 2})
    two = run_ranks(
        2,
        "" if peft else LLAMA,
        **{**settings, "strategy": FSDP, "micro_batch_size": 1, "run_dir": str(tmp_path / "ranks")},
    )
    assert two.status == 0, two.output
    for name in ("loss", "grad_norm", "token_accuracy"):
        expected = [line[name] for line in recorder.metrics if name in line]
        assert [line[name] for line in two.metrics if name in line] == pytest.approx(expected, rel=1e-4)
    name = "adapter_model.safetensors" if peft else "model.safetensors"
    one, other = (load_file(folder / "export" / name) for folder in (tmp_path / "run", two.folder))
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-5)
    if not peft:
        (facts,) = rank_notes(1)
        assert facts["blocks"] == facts["layers"]


def test_bf16_follows_fp32(run_ranks, run_tiny):
    recorder = Recorder()
    run_tiny(recorder, micro_batch_size=4, **COMMON)
    run = run_ranks(2, strategy={**FSDP, "dtype": "bf16"}, checkpoint=SAVE, **COMMON)
    assert run.status == 0, run.output
    expected = [line["loss"] for line in recorder.metrics]
    found = [line["loss"] for line in run.metrics]
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected
    assert {value.dtype for value in weights_at(run, 8).values()} == {torch.float32}


UNEVEN = """
from torch import nn

@hookimpl(wrapper=True)
def make_model():
    model = yield
    model.spare = nn.Linear(8, 17)
    own = model.forward

    def forward(input_ids):
        made = own(input_ids)
        return made + model.spare(model.embedding(input_ids)) if int(os.environ["RANK"]) == 0 else made

    model.forward = forward
    return model
"""


def test_parameters_that_a_rank_does_not_use(run_ranks):
    run = run_ranks(2, UNEVEN, strategy={**FSDP, "find_unused_parameters": True}, checkpoint=SAVE, **COMMON)
    assert run.status == 0, run.output


def test_fp16_is_refused(run_tiny):
    with pytest.raises(RecipeError, match=facts("strategy.dtype", "given fp16", "bf16 or fp32")):
        run_tiny(strategy={**FSDP, "dtype": "fp16"})


def test_blocks():
    """Members of the outermost lists, unless they share a weight with something else."""

    def layer() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))

    root = nn.Module()
    root.inner = nn.Module()
    root.inner.layers = nn.ModuleList([layer(), layer(), nn.ModuleList([nn.Linear(2, 2)]), nn.Identity()])
    root.head = nn.Linear(2, 2)
    root.head.weight = root.inner.layers[1][0].weight
    assert blocks(root) == [root.inner.layers[0], root.inner.layers[2][0]]


def test_each_rank_writes_its_shards(run_ranks):
    run = run_ranks(2, strategy=FSDP, checkpoint={"type": "full", "save_end_of_training": True})
    assert run.status == 0, run.output
    (path,) = (run.folder / "checkpoints").iterdir()
    entries = json.loads((Path(path) / "tensors.json").read_text())["model"]
    assert all(len(entry["parts"]) == 2 for entry in entries.values())
