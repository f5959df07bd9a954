"""The reference's log-probabilities ahead of the training: equal, kept, and found again by the reference's weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooktrain import CheckpointError, Trainer, hookimpl
from hooktrain.testing import Recorder, save_llama

Run = Callable[..., Trainer]
AHEAD = {"reference": {"precompute": True}}
METRICS = ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "logps/rejected")


class Messages:
    """Collects what the run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    @hookimpl
    def on_message(self, message: str) -> None:
        self.texts.append(message)

    @property
    def computed(self) -> list[str]:
        return [text for text in self.texts if "computing its log-probabilities" in text]


@pytest.fixture
def cached(tmp_path: Path) -> dict[str, Any]:
    return {"cache_dir": str(tmp_path / "cache"), "use_data_cache": True}


def run_ahead(run: Run, recipe: dict[str, Any], cached: dict[str, Any], **changes: Any) -> tuple[Any, Any, Messages]:
    recorder, messages = Recorder(), Messages()
    data = {**recipe["data"], **cached, **changes.pop("data", {})}
    trainer = run(recorder, messages, **{"models": AHEAD, **changes, "data": data})
    return trainer, recorder.metrics, messages


@pytest.mark.parametrize("adapter", [{}, {"peft": {"type": "lora", "r": 4}}], ids=["copy", "adapter_off"])
def test_losses_are_those_of_a_reference_in_the_same_pass(
    run: Run, recipe: dict[str, Any], cached: dict[str, Any], tmp_path: Path, adapter: dict[str, Any]
) -> None:
    changes = {**adapter, "train_iters": 4, "eval_interval": 4}
    data = {"eval_sources": recipe["data"]["sources"]}
    _, expected, _ = run_ahead(run, recipe, {}, **changes, data=data, models={"reference": {"precompute": False}})
    trainer, found, messages = run_ahead(run, recipe, cached, **changes, data=data, run_dir=str(tmp_path / "ahead"))
    (name,) = trainer.data.evaluation
    for line, other in zip(found, expected, strict=True):
        for metric in METRICS:
            assert line[metric] == pytest.approx(other[metric], abs=2e-5, rel=1e-5), metric
    assert found[-1][f"eval/{name}/rewards/margins"] == pytest.approx(
        expected[-1][f"eval/{name}/rewards/margins"], abs=1e-5
    )
    assert len(messages.computed) == 2 and "8 sequences" in messages.computed[0]
    assert all(weight.is_meta for weight in trainer.models["reference"].parameters()) if trainer.models else True


def test_a_second_run_finds_them_and_another_reference_does_not(
    run: Run, recipe: dict[str, Any], cached: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_llama(tmp_path / "own")
    model = {"name_or_path": str(folder)}
    lines = []
    for name, expected in (("one", 1), ("two", 0)):
        _, found, messages = run_ahead(run, recipe, cached, model=model, run_dir=str(tmp_path / name))
        assert len(messages.computed) == expected, name
        lines.append([line["loss"] for line in found])
    assert lines[0] == lines[1], "what is read is bit by bit what was computed"
    _change_weights(folder)
    _, _, messages = run_ahead(run, recipe, cached, model=model, run_dir=str(tmp_path / "three"))
    assert len(messages.computed) == 1, "the recipe is the same, the weights are others"
    _, _, messages = run_ahead(run, recipe, cached, model=model, data={"val_size": 2}, run_dir=str(tmp_path / "four"))
    assert len(messages.computed) == 2, "other pairs, and a set of its own"


def test_a_damaged_file_is_computed_again(
    run: Run, recipe: dict[str, Any], cached: dict[str, Any], tmp_path: Path
) -> None:
    run_ahead(run, recipe, cached)
    (path,) = (tmp_path / "cache/references").glob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    _, lines, messages = run_ahead(run, recipe, cached, run_dir=str(tmp_path / "again"))
    assert len(messages.computed) == 1 and lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_a_resume_uses_them(run: Run, recipe: dict[str, Any], cached: dict[str, Any], tmp_path: Path) -> None:
    saves = [{"type": "full", "save_every_n_steps": 2}]
    _, expected, _ = run_ahead(run, recipe, cached, checkpoint=saves, train_iters=4)
    _, found, messages = run_ahead(
        *(run, recipe, cached),
        checkpoint=saves,
        train_iters=4,
        run_dir=str(tmp_path / "again"),
        trainer={"resume_from": tmp_path / "run/checkpoints/step-00000002"},
    )
    assert not messages.computed
    for line, other in zip(found, expected[2:], strict=True):
        assert {name: line[name] for name in METRICS} == {name: other[name] for name in METRICS}


@pytest.mark.parametrize("models", [{}, AHEAD], ids=["same pass", "ahead"])
def test_a_resume_with_a_reference_of_other_weights_is_refused(
    run: Run, recipe: dict[str, Any], tmp_path: Path, tiny_llama: Path, models: dict[str, Any]
) -> None:
    """The recipe names the same folder, in which another model lies now."""
    folder = save_llama(tmp_path / "reference")
    reference = {"reference": {**models.get("reference", {}), "type": "huggingface", "name_or_path": str(folder)}}
    saves = [{"type": "full", "save_every_n_steps": 2}]
    run(models=reference, checkpoint=saves)
    _change_weights(folder)
    again = {"resume_from": tmp_path / "run/checkpoints/step-00000002"}
    with pytest.raises(CheckpointError, match=r"models.reference: its weights are others than in the run that saved"):
        run(models=reference, checkpoint=saves, run_dir=str(tmp_path / "again"), trainer=again)
    allowed = {"allow_changes": ["models.reference"], "run_dir": str(tmp_path / "allowed")}
    assert run(models=reference, checkpoint=saves, trainer=again, **allowed).global_step == 3


def test_packs_of_pairs_have_their_own(
    run: Run, recipe: dict[str, Any], cached: dict[str, Any], tmp_path: Path
) -> None:
    """A sequence of the training set has the answers of several pairs."""
    data = {"pack_samples": True, "max_length": 48}
    _, expected, _ = run_ahead(run, recipe, {}, data=data, models={"reference": {"precompute": False}})
    trainer, found, _ = run_ahead(run, recipe, cached, data=data, run_dir=str(tmp_path / "ahead"))
    assert len(trainer.data.train) < 8
    for line, other in zip(found, expected, strict=True):
        assert line["rewards/margins"] == pytest.approx(other["rewards/margins"], abs=1e-5)


def _change_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name] + 0.01 * torch.ones_like(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((folder / "config.json").read_text())
