"""Frozen weights in ``full`` checkpoints: not written where building the model restores them, and only there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_torch.frozen_weights import FrozenWeights, checksum
from hypothesis import given
from hypothesis import strategies as st

from hooktrain import CheckpointError, PluginInfo, Shard, hookimpl
from tests.facts import facts

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool]


class FreezeEmbedding:
    """Freezes the embedding as it is built; ``factor`` makes it another base, ``moves`` is added to it in each step."""

    hooktrain_plugin = PluginInfo(may_change=["parameters", "training mode"])

    def __init__(self, factor: float = 1.0, moves: float = 0.0, at: int = 0) -> None:
        self.factor, self.moves, self.at = factor, moves, at

    @hookimpl(wrapper=True)
    def make_model(self):
        model = yield
        with torch.no_grad():
            model.embedding.weight.mul_(self.factor)
        model.embedding.requires_grad_(self.at > 0)
        return model

    @hookimpl
    def on_step_end(self, trainer):
        with torch.no_grad():
            trainer.model.embedding.weight.add_(self.moves)
        if trainer.global_step == self.at:
            trainer.model.embedding.requires_grad_(False)


SAVE = [{"type": "full", "save_every_n_steps": 2}]


def weights(tmp_path: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(tmp_path / f"run/checkpoints/step-{step:08d}/model-0.pt", weights_only=True)


def test_frozen_weights_are_not_written_and_a_resume_repeats_the_run(run_tiny: Any, tmp_path: Path) -> None:
    one = run_tiny(FreezeEmbedding(), train_iters=4, checkpoint=SAVE)
    assert set(weights(tmp_path, 2)) == {"head.weight", "head.bias"}
    resumed = run_tiny(
        FreezeEmbedding(),
        train_iters=4,
        checkpoint=SAVE,
        trainer={"resume_from": tmp_path / "run/checkpoints/step-00000002"},
    )
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    assert set(weights(tmp_path, 4)) == {"head.weight", "head.bias"}, "nor does a resumed run write them"


def test_another_base_is_refused(run_tiny: Any, tmp_path: Path) -> None:
    run_tiny(FreezeEmbedding(), train_iters=2, checkpoint=SAVE)
    path = tmp_path / "run/checkpoints/step-00000002"
    for other in (FreezeEmbedding(1 + 2**-20), FreezeEmbedding(2.0, at=1)):  # also where the run would train them
        with pytest.raises(
            CheckpointError, match=facts("step-00000002", "1 of them", "(embedding.weight)", "recipe.yaml")
        ):
            run_tiny(other, train_iters=2, checkpoint=SAVE, trainer={"resume_from": path})


def test_frozen_weights_that_are_written_to_are_saved(run_tiny: Any, tmp_path: Path) -> None:
    """Such as a moving average of other weights: building the model would not give it back."""
    one = run_tiny(FreezeEmbedding(moves=0.5), train_iters=4, checkpoint=SAVE)
    assert "embedding.weight" in weights(tmp_path, 2)
    path = tmp_path / "run/checkpoints/step-00000002"
    other = run_tiny(FreezeEmbedding(moves=0.5), train_iters=4, checkpoint=SAVE, trainer={"resume_from": path})
    assert torch.equal(one.model.embedding.weight, other.model.embedding.weight)


def test_weights_that_are_frozen_after_they_were_trained_are_saved(run_tiny: Any, tmp_path: Path) -> None:
    one = run_tiny(FreezeEmbedding(at=1), train_iters=4, checkpoint=SAVE, optimizer={"type": "sgd", "lr": 0.1})
    saved = weights(tmp_path, 4)["embedding.weight"]
    assert torch.equal(saved, one.model.embedding.weight)


def test_they_are_written_when_asked_for(run_tiny: Any, tmp_path: Path) -> None:
    run_tiny(FreezeEmbedding(), train_iters=2, checkpoint=[{**SAVE[0], "save_frozen": True}])
    assert "embedding.weight" in weights(tmp_path, 2)
    path = tmp_path / "run/checkpoints/step-00000002"
    other = run_tiny(FreezeEmbedding(3.0), train_iters=2, checkpoint=SAVE, trainer={"resume_from": path})
    assert torch.equal(other.model.embedding.weight, weights(tmp_path, 2)["embedding.weight"])


@given(st.integers(0, 60), st.sampled_from(DTYPES), st.lists(st.integers(0, 60), max_size=3))
def test_ranks_add_up_what_one_would_find(size: int, dtype: torch.dtype, cuts: list[int]) -> None:
    raw = torch.randint(0, 2, (size * dtype.itemsize,), dtype=torch.uint8).view(dtype)
    ends = [0, *sorted(min(cut, size) for cut in cuts), size]
    parts = [[Shard("w", (size,), start, raw[start:stop])] for start, stop in pairwise(ends)]
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(raw, requires_grad=False)
    alone = FrozenWeights(model, [Shard("w", (size,), 0, raw)], lambda mine: [mine])
    expected = alone.unchanged(model, [Shard("w", (size,), 0, raw)], lambda mine: [mine])
    assert expected["w"][0] == checksum(raw)
    shares: list[Any] = []
    for part in parts:  # each rank's share first, then what all of them together are
        FrozenWeights(model, part, lambda mine: shares.append(mine) or [mine])
    assert not alone.different(expected, [], lambda mine: shares)
    assert FrozenWeights(model, parts[0], lambda mine: shares).different(expected, [], lambda mine: shares) == []


@given(st.integers(0, 40), st.sampled_from(DTYPES), st.integers(0, 3), st.data())
def test_any_changed_bit_changes_the_checksum(size: int, dtype: torch.dtype, offset: int, data: st.DataObject) -> None:
    """Whatever the type, the length and the place in memory; and equal bits give equal text."""
    raw = torch.randint(0, 2, ((size + offset) * dtype.itemsize,), dtype=torch.uint8)
    tensor = raw.view(dtype)[offset:]
    assert checksum(tensor) == checksum(tensor.clone())
    if size:
        at = data.draw(st.integers(0, size * dtype.itemsize - 1))
        before = checksum(tensor)
        raw[offset * dtype.itemsize + at] ^= 1
        assert checksum(tensor) != before


def test_the_checksum_knows_order_shape_and_type() -> None:
    wide = torch.arange(1 << 22, dtype=torch.float32)  # several chunks
    swapped = wide.clone()
    swapped[[1, 3_000_000]] = wide[[3_000_000, 1]]
    rolled = wide.roll(1 << 21)  # complete chunks exchanged
    texts = {checksum(found) for found in (wide, swapped, rolled, wide.view(2, -1), wide.view(torch.int32))}
    assert len(texts) == 5
    assert checksum(wide.view(2, -1).t()) == checksum(wide.view(2, -1).t().contiguous())


def test_weights_are_known_again_in_another_precision() -> None:
    torch.manual_seed(0)
    values = torch.randn(40)

    def built(content: torch.Tensor) -> tuple[FrozenWeights, list[Shard], torch.nn.Module]:
        model = torch.nn.Module()
        model.register_parameter("w", torch.nn.Parameter(content, requires_grad=False))
        shards = [Shard("w", (40,), 0, content)]
        return FrozenWeights(model, shards, lambda mine: [mine]), shards, model

    def resumes(saved: torch.Tensor, now: torch.Tensor) -> bool:
        before, shards, model = built(saved)
        expected = before.unchanged(model, shards, lambda mine: [mine])
        after, shards, _ = built(now)
        return not after.different(expected, shards, lambda mine: [mine])

    nearly = values.clone()
    nearly[3] += 1e-6  # the same when rounded
    for half in (torch.bfloat16, torch.float16):
        assert resumes(values.to(half), values), "saved under ZeRO in bf16, resumed in float32"
        assert resumes(values, values.to(half))
        assert not resumes((values * 1.1).to(half), values)
        assert not resumes(values, (values * 1.1).to(half))
    assert not resumes(values, nearly), "in one precision bit by bit"
    assert not resumes(values.to(torch.bfloat16), values.to(torch.float16))
