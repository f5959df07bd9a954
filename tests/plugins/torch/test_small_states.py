"""Optimizers with small states: their bytes, what they learn, checkpoints and resumes, ranks, and refusals."""

from __future__ import annotations

import importlib.util
import math
import re

import pytest
import torch
from hooktrain_torch.small_states import SMALL_STATES

from hooktrain import RecipeError, World, hookimpl
from hooktrain.testing import Recorder
from hooktrain.testing.tiny_plugin import TinyPlugin
from tests.facts import facts
from tests.launching import stored_weights, weights_at

HERE = ("adamw_8bit", "adamw_4bit", "lion_8bit", "adafactor")
"""Those that run on a processor."""
WIDE = {"width": 512, "dropout": 0.0}
"""Two matrices of 8,704 elements, which are quantized, and a vector, which is not."""
RATES = {"adamw_8bit": 1e-3, "adamw_4bit": 1e-3, "lion_8bit": 2e-4, "adafactor": 1e-1}


def optimizer(name: str, **more: object) -> dict[str, object]:
    return {"type": name, "lr": RATES.get(name, 1e-3), "weight_decay": 0.0, **more}


def stored_bytes(states: object) -> int:
    """Bytes of all storages that hold an optimizer's states, wrapped tensors included; each storage once."""
    held: dict[int, int] = {}

    def visit(value: object) -> None:
        if isinstance(value, torch.Tensor):
            if hasattr(value, "__tensor_flatten__"):
                for name in value.__tensor_flatten__()[0]:
                    visit(getattr(value, name))
                return
            storage = value.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)

    for state in states.state.values():  # type: ignore[attr-defined]
        visit(state)
    return sum(held.values())


class LionInFull:
    """Lion in 32 bits, in the place of the recipe's optimizer."""

    @hookimpl(tryfirst=True)
    def make_optimizer(self, config, model):
        from bitsandbytes.optim import Lion32bit

        return Lion32bit(model.parameters(), lr=config.lr, betas=(0.9, 0.99))


@pytest.fixture(scope="module")
def losses_and_bytes(tmp_path_factory):
    """Runs of 100 steps, by the optimizer's name: the mean loss of the last ten, and the bytes of the states."""
    from hooktrain.testing.in_process import train

    known: dict[str, tuple[float, int]] = {}

    def measured(name: str) -> tuple[float, int]:
        if name not in known:
            recorder = Recorder()
            folder = tmp_path_factory.mktemp(name)
            trainer = train(
                {
                    "type": "tiny",
                    "run_dir": str(folder / "run"),
                    "micro_batch_size": 8,
                    "train_iters": 100,
                    "model": WIDE,
                    "optimizer": optimizer(name.removesuffix(" in full")),
                    "strategy": {"dtype": "fp32", "device": "cpu"},
                    "console": {"enabled": False},
                },
                recorder,
                *([LionInFull()] if name.endswith(" in full") else []),
            )
            losses = [line["loss"] for line in recorder.metrics][-10:]
            known[name] = sum(losses) / len(losses), stored_bytes(trainer.optimizer)
        return known[name]

    return measured


@pytest.mark.parametrize(
    ("name", "share"), [("adamw_8bit", 0.35), ("adamw_4bit", 0.2), ("lion_8bit", 0.2), ("adafactor", 0.1)]
)
def test_states_take_a_fraction_of_adamws_bytes(losses_and_bytes, name, share):
    assert losses_and_bytes(name)[1] <= share * losses_and_bytes("adamw")[1]


@pytest.mark.parametrize(
    ("name", "full"), [("adamw_8bit", "adamw"), ("adamw_4bit", "adamw"), ("lion_8bit", "lion_8bit in full")]
)
def test_it_learns_what_it_learns_with_states_in_full(losses_and_bytes, name, full):
    assert losses_and_bytes(name)[0] == pytest.approx(losses_and_bytes(full)[0], rel=0.01)


def test_adafactor_learns(losses_and_bytes):
    assert losses_and_bytes("adafactor")[0] < 0.7 * math.log(17), "the loss before training"


@pytest.mark.parametrize("name", HERE)
def test_a_resume_repeats_the_run_bit_by_bit(run_tiny, tmp_path, name):
    common = {"model": WIDE, "optimizer": optimizer(name, weight_decay=0.1), "scheduler": {"type": "linear"}}
    saved = {"type": "full", "save_every_n_steps": 3, "keep_last": 0}
    one = run_tiny(**common, train_iters=6, checkpoint=saved)
    first = tmp_path / "run" / "checkpoints" / "step-00000003"
    again = run_tiny(
        **common, train_iters=6, run_dir=str(tmp_path / "again"), trainer={"resume_from": str(first)}, checkpoint=saved
    )
    for found, expected in zip(again.model.parameters(), one.model.parameters(), strict=True):
        assert torch.equal(found, expected)
    last = (tmp_path / each / "checkpoints" / "step-00000006" for each in ("run", "again"))
    states, expected = (stored_weights(path, "optimizer") for path in last)
    assert states.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in states.items())


def test_states_in_full_continue_in_8_bits(run_tiny, tmp_path):
    first = run_tiny(
        model=WIDE,
        optimizer=optimizer("adamw"),
        train_iters=3,
        checkpoint={"type": "full", "save_end_of_training": True},
    )
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    trainer = run_tiny(
        model=WIDE,
        optimizer=optimizer("adamw_8bit"),
        train_iters=4,
        run_dir=str(tmp_path / "again"),
        trainer={"resume_from": str(path)},
        allow_changes=["optimizer.type"],
        checkpoint={"type": "full"},
    )
    assert stored_bytes(trainer.optimizer) <= 0.35 * stored_bytes(first.optimizer)


@pytest.mark.parametrize("name", ["adamw_8bit", "lion_8bit"])
@pytest.mark.thorough
def test_two_ranks_are_one_global_batch(run_ranks, run_tiny, name):
    common = {"model": WIDE, "optimizer": optimizer(name), "train_iters": 4}
    saved = {"type": "full", "save_end_of_training": True}
    run = run_ranks(2, "", checkpoint=saved, **common)
    assert run.status == 0, run.output
    alone = run_tiny(micro_batch_size=4, **common)
    for key, value in weights_at(run, 4).items():
        # a rounding of a gradient may round a state to the next code
        torch.testing.assert_close(value, alone.model.state_dict()[key], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", HERE)
def test_a_plan_counts_their_bytes(losses_and_bytes, tmp_path, name):
    from hooktrain.inspection.estimate import estimate
    from hooktrain.training.load import load

    recipe = {"type": "tiny", "run_dir": str(tmp_path / "run"), "model": WIDE, "optimizer": optimizer(name)}
    made, host = load(recipe, plugins=[TinyPlugin()])
    planned = estimate(made, host, World(), [])["model"]["optimizer_bytes"]
    assert planned == pytest.approx(losses_and_bytes(name)[1], rel=0.12), "tables of 256 numbers are not counted"


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {"data_parallel": "fsdp2", "device": "cpu"}}, ["optimizer.type", "adamw_8bit", "shards", "ddp"]),
        ({"strategy": {"type": "deepspeed", "device": "cpu"}}, ["optimizer.type", "ZeRO", "adamw", "torch"]),
        ({"strategy": {"type": "deepspeed", "zero_stage": 3, "device": "cpu"}}, ["adamw_8bit", "shards", "adamw"]),
    ],
)
def test_strategies_that_divide_states_are_refused(run_tiny, changes, message):
    with pytest.raises(RecipeError) as caught:
        run_tiny(optimizer=optimizer("adamw_8bit"), **changes)
    assert re.search(facts(*message), str(caught.value))


@pytest.mark.parametrize("name", [name for name in SMALL_STATES if name.startswith("paged")])
def test_paged_states_need_a_gpu(run_tiny, name):
    with pytest.raises(RecipeError, match=facts("optimizer.type", name, "GPU", name.removeprefix("paged_"))):
        run_tiny(optimizer=optimizer(name))


@pytest.mark.parametrize(("name", "package"), [("adamw_4bit", "torchao"), ("lion_8bit", "bitsandbytes")])
def test_a_missing_package_is_named(run_tiny, monkeypatch, name, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *rest: None if wanted == package else find(wanted))
    with pytest.raises(RecipeError, match=facts("optimizer.type", name, f"pip install {package}")):
        run_tiny(optimizer=optimizer(name))
