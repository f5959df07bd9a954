"""Sequence parallelism: ranks that share the tokens of a sequence compute what one rank computes with all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_sft.data.collate import collate_flat, collate_stacked
from hooktrain_torch import SequenceGroup, data_world, divide
from hypothesis import given
from hypothesis import strategies as st

from hooktrain import HooktrainError, World
from hooktrain.testing import Recorder
from hooktrain.training.default_loop import Loop
from tests.facts import facts
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

COMMON = {"optimizer": {"type": "sgd", "lr": 0.05}, "gradient_clipping": 0.0}
STRATEGIES = {
    "ddp": {"dtype": "fp32", "device": "cpu"},
    "fsdp2": {"dtype": "fp32", "device": "cpu", "data_parallel": "fsdp2"},
    "zero 3": {"type": "deepspeed", "zero_stage": 3, "dtype": "fp32", "device": "cpu"},
}
SAVE = {"type": "full", "save_every_n_steps": 2}


@pytest.fixture
def launch_recipe(run_ranks: Any, recipe: dict[str, Any], tmp_path: Path) -> Any:
    """The recipe of conversations on several ranks."""

    def start(ranks: int, **changes: Any) -> Any:
        return run_ranks(ranks, **{"micro_batch_size": 1, **recipe, "run_dir": str(tmp_path / "ranks"), **changes})

    return start


def assert_same(one: Any, lines: list[dict[str, float]]) -> None:
    assert len(lines) == len(one.metrics)
    for mine, theirs in zip(lines, one.metrics, strict=True):
        assert mine.keys() == theirs.keys()
        for name in theirs.keys() - {"tokens_per_second", "step_seconds"}:
            assert mine[name] == pytest.approx(theirs[name], rel=5e-5, abs=5e-6), name


@pytest.mark.parametrize(
    "strategy",
    [value if name == "ddp" else pytest.param(value, marks=pytest.mark.thorough) for name, value in STRATEGIES.items()],
    ids=list(STRATEGIES),
)
def test_two_ranks_with_half_a_sequence_each(run, launch_recipe, recipe, strategy):
    """Losses, metrics, gradients' norms, counts and evaluation, of packed sequences of an odd number of tokens."""
    settings = {**COMMON, "data": {**recipe["data"], "max_length": 95}, "eval_interval": 2}
    recorder = Recorder()
    run(recorder, **settings)
    two = launch_recipe(2, strategy={**strategy, "sequence_parallel": 2}, **settings)
    assert two.status == 0, two.output
    assert_same(recorder, two.metrics)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"pack_samples": False}, "micro_batch_size": 3},
        pytest.param(
            {"gradient_accumulation_steps": 2, "model": {"activation_checkpointing": True}}, marks=pytest.mark.thorough
        ),
        pytest.param({"loss": {"type": "dft"}, "micro_batch_size": 2}, marks=pytest.mark.thorough),
        {"peft": {"type": "lora", "r": 4}},
        pytest.param({"data": {"weights": [{"match": "answer|it", "weight": 0.3}]}}, marks=pytest.mark.thorough),
    ],
    ids=["flat sequences", "accumulation, activation checkpointing", "dft, stacked sequences", "lora", "weights"],
)
def test_other_settings_of_a_recipe(run, launch_recipe, recipe, changes):
    settings = {**COMMON, **changes}
    for name in ("data", "model"):
        settings[name] = {**recipe[name], **changes.get(name, {})}
    recorder = Recorder()
    run(recorder, **settings)
    two = launch_recipe(2, strategy={**STRATEGIES["ddp"], "sequence_parallel": 2}, **settings)
    assert two.status == 0, two.output
    assert_same(recorder, two.metrics)


@pytest.mark.thorough
def test_four_ranks_two_and_two(run, launch_recipe, recipe, tmp_path):
    """Two sequences at a time, each shared by two ranks, is one rank with a micro-batch of two; resumed on one rank."""
    undisturbed, rest = Recorder(), Recorder()
    settings = {**COMMON, "checkpoint": [SAVE]}
    run(undisturbed, micro_batch_size=2, **{**settings, "run_dir": str(tmp_path / "undisturbed")})
    strategy = {**STRATEGIES["ddp"], "sequence_parallel": 2}
    four = launch_recipe(4, strategy=strategy, **settings)
    assert four.status == 0, four.output
    assert_same(undisturbed, four.metrics)
    path = four.folder / "checkpoints" / "step-00000002"
    run(rest, micro_batch_size=2, trainer={"resume_from": path}, **settings)
    assert [line["loss"] for line in rest.metrics] == pytest.approx(
        [x["loss"] for x in undisturbed.metrics[2:]], rel=1e-5
    )


# ------------------------------------------------------------------------------------------------- what is refused


def test_models_and_batches_that_cannot_be_shared(launch_recipe, run_ranks, recipe):
    strategy = {**STRATEGIES["ddp"], "sequence_parallel": 2}
    sdpa = launch_recipe(2, strategy=strategy, model={**recipe["model"], "attn_implementation": "sdpa"})
    assert sdpa.status == 1
    assert re.search(r"strategy\.sequence_parallel.*LlamaModel.*'sdpa'", sdpa.output)
    tiny = run_ranks(2, strategy=strategy)
    assert tiny.status == 1
    assert re.search(r"strategy\.sequence_parallel.*no position_ids.*input_ids, labels, position_ids", tiny.output)
    odd = run_ranks(3, strategy=strategy)
    assert re.search(r"strategy\.sequence_parallel.*given 2.*\b3 ranks", odd.output)


def test_heads_that_cannot_be_shared(launch_recipe, recipe):
    """The model has two heads."""
    three = launch_recipe(3, strategy={**STRATEGIES["ddp"], "sequence_parallel": 3})
    assert re.search(r"strategy\.sequence_parallel.*given 3.*\b2 attention heads", three.output)


# ---------------------------------------------------------------------------------------------------- splitting sequences


def row(lengths: list[int], first: int) -> dict[str, Any]:
    ids = torch.arange(first, first + sum(lengths)).numpy()
    positions = torch.cat([torch.arange(length) for length in lengths]).numpy()
    labels = ids.copy()
    labels[positions == 0] = -100
    weights = {"token_weights": (ids / 4).astype("float32")} if first % 200 > 100 else {}
    return {"input_ids": ids, "labels": labels, "position_ids": positions, **weights}


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(2, 5),
    st.booleans(),
)
def test_the_shards_are_the_sequences(lengths, size, stacked):
    """Nothing is lost, and what each token is to predict is what follows it in its document."""
    rows = [row(each, 1 + 100 * number) for number, each in enumerate(lengths)]
    batch = (collate_stacked if stacked else collate_flat)(rows)
    parts = [divide(batch, SequenceGroup(World(rank=r, world_size=size), size, None)) for r in range(size)]
    height, width = batch["input_ids"].shape
    for name in ("input_ids", "position_ids"):
        assert torch.equal(torch.cat([part[name] for part in parts], 1)[:, :width], batch[name])
    shifted = torch.cat([part["shift_labels"] for part in parts], 1)
    assert torch.equal(shifted[:, : width - 1], batch["labels"][:, 1:])
    assert bool((shifted[:, width - 1 :] == -100).all())
    if "token_weights" in batch:
        weights = torch.cat([part["shift_token_weights"] for part in parts], 1)
        assert torch.equal(weights[:, : width - 1], batch["token_weights"][:, 1:])
        assert not weights[:, width - 1 :].any()
        counts = [Loop().count_batch(part) for part in parts]
        assert sum(each.denominator for each in counts) == Loop().count_batch(batch).denominator
        assert all("token_weights" not in part for part in parts)
    padded = shifted.shape[1]
    assert padded % size == 0
    assert padded - width < size
    for part in parts:
        assert sum(part["document_lengths"]) == height * padded
        assert part["cu_seq_lens_q"].tolist()[-1] == height * padded
        assert part["max_length_q"] == max(part["document_lengths"])
        assert "labels" not in part
    positions = torch.cat([part["position_ids"] for part in parts], 1).flatten()
    begins = torch.cumsum(torch.tensor([0, *parts[0]["document_lengths"]]), 0)[:-1]
    assert bool((positions[begins] == 0).all())
    assert sum(part["tokens"] for part in parts) == batch.get("tokens", height * width)


def test_which_ranks_share_a_sequence():
    worlds = [data_world(World(rank=rank, world_size=6, local_rank=rank), 3) for rank in range(6)]
    assert [(world.rank, world.world_size) for world in worlds] == [(0, 2)] * 3 + [(1, 2)] * 3
    with pytest.raises(HooktrainError, match=facts("strategy.sequence_parallel", "given 4", "6 ranks")):
        data_world(World(rank=0, world_size=6), 4)
