"""Runs of ``type: reward``: scores, margins, adapters, exports, resume, and TRL's numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import logsigmoid

from hooktrain import DataError, ModelError, RecipeError, Trainer
from hooktrain.testing import Recorder, save_llama
from tests.plugins.preference.beside_trl import trl_lines
from tests.plugins.preference.conftest import PAIRS

Run = Callable[..., Trainer]
METRICS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``pairs(margin=...)``: the section ``data`` of pairs of text, some with margins."""

    def made(margins: bool = False, **data: Any) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [
            {"prompt": f"{prompt}\n", "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS
        ]
        if margins:
            rows = [{**row, "margin": number / 4} for number, row in enumerate(rows)]
        path = tmp_path / f"text-{margins}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"sources": [str(path)], "max_length": 96, **data}

    return made


@pytest.fixture
def classifier(tmp_path: Path, tiny_llama: Path) -> Path:
    """A classifier with one label, in a folder of its own, so that everyone begins with the same head."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def run_recorded(run: Run, **changes: Any) -> tuple[Trainer, list[dict[str, float]]]:
    recorder = Recorder()
    return run(recorder, type="reward", **changes), recorder.metrics


def scores_of(folder: Path, rows: list[tuple[str, str, str]], adapter: Path | None = None) -> tuple[Any, Any]:
    """Scores of chosen and rejected answers by transformers alone, a text at a time."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    model.config.pad_token_id = tokenizer.eos_token_id
    found = []
    for prompt, *answers in rows:
        for answer in answers:
            ids = tokenizer(f"{prompt}\n{answer}<|endoftext|>", add_special_tokens=False, return_tensors="pt")
            with torch.no_grad():
                found.append(model(**ids).logits[0, 0])
    made = torch.stack(found)
    return made[::2], made[1::2]


def test_an_export_scores_in_transformers_as_in_the_run(run: Run, pairs: Any, tmp_path: Path) -> None:
    data = pairs(eval_sources=pairs()["sources"])
    exports = [{"type": "huggingface", "save_end_of_training": True, "output_dir": str(tmp_path / "export")}]
    trainer, lines = run_recorded(run, data=data, checkpoint=exports, eval_interval=3, eval_at_start=True)
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert (
        config["architectures"] == ["LlamaForSequenceClassification"] and "num_labels" not in trainer.recipe.as_dict()
    )
    chosen, rejected = scores_of(tmp_path / "export", PAIRS)
    (name,) = trainer.data.evaluation
    expected = {
        "loss": -logsigmoid(chosen - rejected).mean(),
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).float().mean(),
    }
    for metric, value in expected.items():
        assert lines[-1][f"eval/{name}/{metric}"] == pytest.approx(float(value), abs=1e-5), metric
    evaluated = [line[f"eval/{name}/loss"] for line in lines if f"eval/{name}/loss" in line]
    assert evaluated[-1] < evaluated[0] and lines[-1]["pairs"] == 12 and not trainer.models


def test_margins_and_centring_are_in_the_loss(run: Run, pairs: Any, classifier: Path) -> None:
    changes = {"data": pairs(margins=True, shuffle=False), "model": {"name_or_path": str(classifier)}}
    loss = {"center_rewards_coefficient": 0.3}
    _, (line, *_) = run_recorded(run, **changes, loss=loss, micro_batch_size=8, train_iters=1)
    chosen, rejected = scores_of(classifier, PAIRS)
    margins = torch.arange(8) / 4
    expected = -logsigmoid(chosen - rejected - margins) + 0.3 * (chosen + rejected) ** 2
    assert line["loss"] == pytest.approx(float(expected.mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("value", "text"),
    [(-1, r"margin is -1, expected a number of 0 or more"), ("much", r"margin is 'much', expected a number")],
)
def test_a_margin_that_is_none(run: Run, tmp_path: Path, value: Any, text: str) -> None:
    row = {"prompt": "What? ", "chosen": "It is.", "rejected": "No.", "margin": value}
    path = tmp_path / "margin.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=text):
        run(type="reward", data={"sources": [str(path)]})


def test_accumulated_pairs_score_as_packed_ones(run: Run, pairs: Any, tmp_path: Path) -> None:
    """In a sequence of all pairs each answer has the score that it has alone."""
    packed = run_recorded(run, data=pairs())[1]
    parts = {"micro_batch_size": 1, "gradient_accumulation_steps": 4, "run_dir": str(tmp_path / "parts")}
    for line, other in zip(run_recorded(run, data=pairs(), **parts)[1], packed, strict=True):
        assert [line[name] for name in METRICS] == pytest.approx([other[name] for name in METRICS], abs=1e-5)


def test_an_adapter_trains_the_head_and_is_exported_with_it(
    run: Run, pairs: Any, classifier: Path, tmp_path: Path
) -> None:
    exports = [{"type": "huggingface", "save_end_of_training": True, "output_dir": str(tmp_path / "adapter")}]
    changes = {
        "data": pairs(shuffle=False),
        "model": {"name_or_path": str(classifier)},
        "peft": {"type": "lora", "r": 4},
    }
    trainer, _ = run_recorded(run, **changes, checkpoint=exports)
    heads = {name: weight for name, weight in trainer.model.named_parameters() if "score" in name}
    assert [weight.requires_grad for weight in heads.values()].count(True) == 1
    before, after = heads.values()
    assert not torch.equal(before, after)
    chosen, rejected = scores_of(classifier, PAIRS, tmp_path / "adapter")
    _, lines = run_recorded(
        run, **{**changes, "peft": {"adapter": str(tmp_path / "adapter")}}, micro_batch_size=8, train_iters=1
    )
    assert lines[0]["rewards/margins"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-5)


def test_a_resume_repeats_the_run_bit_by_bit(run: Run, pairs: Any, tmp_path: Path) -> None:
    changes = {"data": pairs(), "checkpoint": [{"type": "full", "save_every_n_steps": 2}], "train_iters": 4}
    one, expected = run_recorded(run, **changes)
    path = tmp_path / "run/checkpoints/step-00000002"
    two, found = run_recorded(run, **changes, run_dir=str(tmp_path / "again"), trainer={"resume_from": path})
    for line, other in zip(found, expected[2:], strict=True):
        assert {name: line[name] for name in METRICS} == {name: other[name] for name in METRICS}
    for (name, weight), (_, other) in zip(one.model.named_parameters(), two.model.named_parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_the_same_seed_gives_the_same_head(run: Run, pairs: Any, tmp_path: Path) -> None:
    lines = [run_recorded(run, data=pairs(), train_iters=1, run_dir=str(tmp_path / name))[1] for name in "ab"]
    assert lines[0][0]["loss"] == lines[1][0]["loss"]


def test_refused(run: Run, pairs: Any, tiny_llama: Path) -> None:
    with pytest.raises(RecipeError, match=r"weights: given, but this loss has no weights of tokens"):
        run(type="reward", data=pairs(weights=[{"match": "It", "weight": 2}]))
    with pytest.raises(RecipeError, match=r"needs a model that scores answers; write `type: reward`"):
        run(type="preference", loss={"type": "reward"})
    with pytest.raises(RecipeError, match=r"models.reference: has no effect"):
        run(type="reward", data=pairs(), models={"reference": {"type": "copy"}})


def test_a_model_that_writes_text_is_refused(run: Run, pairs: Any, tiny_llama: Path) -> None:
    model = {"type": "huggingface", "name_or_path": str(tiny_llama)}
    with pytest.raises(ModelError, match=r"given a LlamaForCausalLM, expected one that AutoModelForSequenceClass"):
        run(type="reward", data=pairs(), model=model)


@pytest.mark.thorough
def test_two_ranks_train_as_one_does(run: Run, pairs: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    alone = run_recorded(run, data=pairs())[1]
    path = tmp_path / "reward-ranks.yaml"
    changed = {"type": "reward", "data": pairs(), "micro_batch_size": 2, "run_dir": str(tmp_path / "ranks")}
    path.write_text(yaml.safe_dump({**recipe, **changed}))
    command = [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = map(json.loads, (tmp_path / "ranks/metrics.jsonl").read_text().splitlines())
    for line, other in zip(lines, alone, strict=True):
        assert [line[name] for name in METRICS] == pytest.approx([other[name] for name in METRICS], abs=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("margins", [False, True], ids=["plain", "margins"])
def test_losses_and_rewards_are_those_of_trl(
    run: Run, pairs: Any, classifier: Path, tmp_path: Path, margins: bool
) -> None:
    """Ten steps on the same pairs in the same order, in float32."""
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    rows = [json.loads(line) for line in Path(pairs(margins)["sources"][0]).read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(classifier, num_labels=1, dtype=torch.float32)
    more = {"center_rewards_coefficient": 0.01}
    expected = trl_lines(RewardTrainer, RewardConfig, model, classifier, rows, tmp_path / "trl", **more)
    _, lines = run_recorded(
        run,
        data=pairs(margins, shuffle=False),
        model={"name_or_path": str(classifier)},
        train_iters=10,
        loss={"center_rewards_coefficient": 0.01},
        gradient_clipping=1.0,
        optimizer={"lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.999]},
    )
    assert len(lines) == len(expected) == 10
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-5), line["step"]
        assert line["rewards/margins"] == pytest.approx(other["margin"], abs=1e-5), line["step"]
        assert line["rewards/accuracies"] == pytest.approx(other["accuracy"], abs=1e-6), line["step"]
        mean = (line["rewards/chosen"] + line["rewards/rejected"]) / 2
        assert mean == pytest.approx(other["mean_reward"], abs=1e-5), line["step"]


def test_a_random_head_is_no_missing_weight_but_a_layer_is(run: Run, pairs: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_llama(tmp_path / "incomplete")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 of the model's weights \(model.layers.0.mlp.up_proj.weight\)"):
        run(type="reward", data=pairs(), model={"name_or_path": str(folder)})
