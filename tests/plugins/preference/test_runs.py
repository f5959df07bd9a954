"""Runs of ``type: preference``: references of every type, evaluation, resume, plans, and TRL's numbers."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hooktrain import HooktrainError, ModelError, RecipeError, Trainer
from hooktrain.inspection.plan import read_plan
from hooktrain.testing import Recorder, save_llama
from tests.launching import stored_weights
from tests.plugins.preference.beside_trl import trl_lines
from tests.plugins.preference.conftest import PAIRS

Run = Callable[..., Trainer]
LORA = {"peft": {"type": "lora", "r": 4}}


def run_recorded(run: Run, **changes: Any) -> tuple[Trainer, list[dict[str, float]]]:
    recorder = Recorder()
    return run(recorder, **changes), recorder.metrics


def losses(lines: list[dict[str, float]]) -> list[float]:
    return [line["loss"] for line in lines]


# --------------------------------------------------------------------------------------------------------- references


def test_the_reference_is_a_frozen_copy_that_no_checkpoint_holds(run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    trainer, lines = run_recorded(run, checkpoint=[{"type": "full", "save_end_of_training": True}])
    reference = trainer.models["reference"]
    start = run(train_iters=1, optimizer={"lr": 1e-30, "weight_decay": 0.0}, run_dir=str(tmp_path / "start")).model
    for name, weight in start.state_dict().items():
        torch.testing.assert_close(reference.state_dict()[name], weight, rtol=0, atol=0)
    assert not torch.equal(trainer.model.lm_head.weight, reference.lm_head.weight)
    saved = stored_weights(tmp_path / "run/checkpoints/step-00000003")
    assert saved.keys() <= trainer.model.state_dict().keys()
    named = {"reference": {"type": "huggingface", "name_or_path": str(tiny_llama)}}
    assert losses(run_recorded(run, models=named, type="dpo", run_dir=str(tmp_path / "named"))[1]) == losses(lines)


def test_with_an_adapter_the_reference_is_the_model_without_it(run: Run, tmp_path: Path) -> None:
    off, found = run_recorded(run, **LORA)
    copied, expected = run_recorded(run, **LORA, models={"reference": {"type": "copy"}}, run_dir=str(tmp_path / "copy"))
    assert not off.models and set(copied.models) == {"reference"}
    assert losses(found) == pytest.approx(losses(expected), rel=1e-6) and found[-1]["rewards/margins"] != 0
    trained = [weight.requires_grad for name, weight in off.model.named_parameters() if "lora" in name]
    assert trained and all(trained), "the adapter is as it was"
    assert off.model.training == copied.model.training


def test_the_reference_has_no_dropout(run: Run, recipe: dict[str, Any]) -> None:
    model = {**recipe["model"], "hf_config_kwargs": {"attention_dropout": 0.5}}
    (dropped, *_), (plain, *_) = (run_recorded(run, **LORA, **changes)[1] for changes in ({"model": model}, {}))
    by_reference = [line["logps/chosen"] - line["rewards/chosen"] / 0.1 for line in (dropped, plain)]
    assert by_reference[0] == pytest.approx(by_reference[1], rel=1e-5)
    assert dropped["rewards/chosen"] != 0, "dropout is active in the model that is trained"


def test_an_adapter_on_the_head_is_called_in_chunks(run: Run) -> None:
    adapter = {"type": "lora", "r": 4, "target_modules": ["q_proj", "lm_head"]}
    model = {"name_or_path": str(save_llama(Path(run(train_iters=1).run_dir) / "untied", tied=False))}
    found = [losses(run_recorded(run, peft=adapter, model=model, loss={"chunk_size": size})[1]) for size in (None, 3)]
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0][0] == pytest.approx(0.693147, rel=1e-5)


def test_the_loss_of_the_readme_trains(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "plugins/hooktrain-preference/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "slic_loss.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin, recorder = importlib.import_module("slic_loss"), Recorder()
    trainer = run(plugin, recorder, loss={"type": "slic"})
    assert not trainer.models and recorder.metrics[-1]["pairs"] == 12


def test_losses_without_a_reference_build_none(run: Run, tmp_path: Path) -> None:
    for kind in ("simpo", "orpo", "cpo"):
        trainer, lines = run_recorded(run, loss={"type": kind}, run_dir=str(tmp_path / kind))
        assert not trainer.models and all(line["loss"] < 100 for line in lines)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"models": {"reference": {"type": "adapter_off"}}},
            ModelError,
            r"given type adapter_off, but LlamaForCausalLM has no",
        ),
        (
            {"models": {"reference": {"type": "huggingface"}}},
            RecipeError,
            r"given type huggingface without name_or_path, expected",
        ),
        (
            {"models": {"reference": {"type": "copy"}}, "loss": {"type": "simpo"}},
            RecipeError,
            r"models.reference: has no effect",
        ),
        (
            {"loss": {"loss_type": "ipo", "label_smoothing": 0.1}},
            RecipeError,
            r"label_smoothing: given 0.1 with loss_type",
        ),
        ({"loss": {"beta": 0}}, RecipeError, r"loss.beta: given 0.*expected more than 0"),
        ({"type": "sft", "loss": {"type": "dpo"}}, RecipeError, r"type|pairs"),
    ],
    ids=["no adapter", "no name", "no effect", "smoothing", "beta", "sft"],
)
def test_refused(run: Run, changes: dict[str, Any], error: type[HooktrainError], text: str) -> None:
    with pytest.raises(error, match=text):
        run(**changes)


def test_a_reference_of_another_vocabulary_is_refused(run: Run, tmp_path: Path) -> None:
    other = save_llama(tmp_path / "other", vocab_size=400)
    with pytest.raises(ModelError, match=r"has a vocabulary of 400 tokens, expected that of the run's model, 29\d"):
        run(models={"reference": {"type": "huggingface", "name_or_path": str(other)}})


def test_a_reference_of_another_tokenizer_is_refused(run: Run, tmp_path: Path) -> None:
    """Its vocabulary has the same size, and two tokens have changed places."""
    other = save_llama(tmp_path / "swapped")
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    reference = {"reference": {"type": "huggingface", "name_or_path": str(other)}}
    with pytest.raises(ModelError, match=r"whose tokenizer has '[ab]' as token \d+, where it is token \d+, expected"):
        run(models=reference)
    path.unlink()
    (other / "tokenizer_config.json").unlink()
    assert run(models=reference, train_iters=1).global_step == 1, "weights alone have no tokenizer to compare"


def test_a_plan_counts_the_reference(recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    facts = read_plan(path)
    found = facts["estimates"]["model"]["further_models"]
    assert found["reference"]["class"] == "LlamaForCausalLM" and not found["reference"]["trainable"]


# -------------------------------------------------------------------------------------------------- evaluation, resume


def test_evaluation_has_the_metrics_of_training(run: Run, recipe: dict[str, Any]) -> None:
    data = {**recipe["data"], "eval_sources": recipe["data"]["sources"], "pack_samples": True}
    trainer, lines = run_recorded(run, data=data, eval_interval=3)
    (name,) = trainer.data.evaluation
    found = lines[-1]
    for metric in ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen"):
        assert f"eval/{name}/{metric}" in found
    assert 0 < found[f"eval/{name}/loss"] < 0.7 and found[f"eval/{name}/rewards/accuracies"] > 0.5


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["copy", "adapter_off"])
def test_a_resume_repeats_the_run_bit_by_bit(run: Run, tmp_path: Path, adapter: dict[str, Any]) -> None:
    saves = [{"type": "full", "save_every_n_steps": 2}]
    one, expected = run_recorded(run, **adapter, checkpoint=saves, train_iters=4)
    path = tmp_path / "run/checkpoints/step-00000002"
    changes = {**adapter, "checkpoint": saves, "train_iters": 4, "run_dir": str(tmp_path / "again")}
    two, found = run_recorded(run, **changes, trainer={"resume_from": path})
    for line, other in zip(found, expected[2:], strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            assert line[name] == other[name]
    for (name, weight), (_, other) in zip(one.model.named_parameters(), two.model.named_parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_a_resume_with_another_reference_is_refused(run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    saves = [{"type": "full", "save_every_n_steps": 2}]
    run(checkpoint=saves)
    other = {"reference": {"type": "huggingface", "name_or_path": str(tiny_llama)}}
    with pytest.raises(HooktrainError, match=r"models\.reference"):
        run(models=other, checkpoint=saves, trainer={"resume_from": tmp_path / "run/checkpoints/step-00000002"})


# ------------------------------------------------------------------------------------------------------ beside TRL's


SIGMOID = {"sigmoid": 1.0}


@pytest.mark.thorough
@pytest.mark.parametrize("end", ["\n", "", " "], ids=["line break", "nothing", "blank"])
def test_pairs_of_text_are_cut_where_trl_cuts_them_unless_one_token_spans_the_cut(
    run: Run, tmp_path: Path, tiny_llama: Path, end: str
) -> None:
    """Where the prompt's blank and one answer's first letters are a token, TRL trains the blank in the other too."""
    expected, lines = _beside_trl(run, tmp_path, tiny_llama, SIGMOID, end)
    apart = [line["logps/chosen"] - other["logps/chosen"] for line, other in zip(lines, expected, strict=True)]
    if end == " ":
        assert min(apart) > 0.1, "without the blank an answer is more probable"
    else:
        assert apart == pytest.approx([0.0] * len(apart), abs=2e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "variants",
    [
        *({name: 1.0} for name in ("sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "apo_zero", "apo_down")),
        *({name: 1.0} for name in ("exo_pair", "nca_pair", "bco_pair", "sppo_hard", "discopop")),
        {"sigmoid": 0.8, "bco_pair": 0.2, "hinge": 1.5},
    ],
    ids=" ".join,
)
def test_losses_and_rewards_are_those_of_trl(
    run: Run, tmp_path: Path, tiny_llama: Path, variants: dict[str, float]
) -> None:
    """Ten steps on the same pairs in the same order, in float32; of text, as TRL trains the line after a turn too."""
    expected, lines = _beside_trl(run, tmp_path, tiny_llama, variants, "\n")
    assert len(lines) == len(expected) == 10
    for line, other in zip(lines, expected, strict=True):
        for name in (
            "logps/chosen",
            "logps/rejected",
            "loss",
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "rewards/accuracies",
        ):
            assert line[name] == pytest.approx(other[name], abs=2e-5, rel=1e-5), (line["step"], name)


def _beside_trl(
    run: Run, tmp_path: Path, tiny_llama: Path, variants: dict[str, float], end: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The log lines of TRL's run and of ours, on prompts with this end."""
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": f"{prompt}{end}", "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    smoothing = 0.1 if {"robust", "exo_pair"} & variants.keys() else 0.0
    tau = 1.0  # with the default of 0.05 discopop multiplies rounding by 20, step for step
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    more = {
        "discopop_tau": tau,
        "loss_type": list(variants),
        "loss_weights": list(variants.values()),
        "label_smoothing": smoothing,
        "beta": 0.1,
    }
    expected = trl_lines(DPOTrainer, DPOConfig, model, tiny_llama, rows, tmp_path / "trl", **more)
    data = {"sources": [str(tmp_path / "pairs.jsonl")], "max_length": 96, "shuffle": False}
    _, lines = run_recorded(
        run,
        data=data,
        train_iters=10,
        loss={
            "loss_type": dict(variants) if len(variants) > 1 else next(iter(variants)),
            "label_smoothing": smoothing,
            "discopop_tau": tau,
        },
        gradient_clipping=1.0,
        optimizer={"lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.999]},
    )
    return expected, lines
