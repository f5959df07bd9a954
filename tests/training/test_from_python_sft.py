"""Fine-tuning from Python with a model, a tokenizer and rows passed from Python: what is prepared, trained, saved and left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import hooktrain
from hooktrain import DataError, ModelError, Trainer, hookimpl
from hooktrain.testing.tiny_llama import make_llama, make_tokenizer, save_llama
from tests.conversations import MORE, ROWS
from tests.facts import facts
from tests.preload import DEEPSPEED


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model and a tokenizer on the disk."""
    return save_llama(tmp_path / "model")


@pytest.fixture
def recipe(tmp_path) -> dict:
    return recipe_in(tmp_path)


def recipe_in(folder: Path) -> dict:
    return {
        "micro_batch_size": 2,
        "run_dir": str(folder / "run"),
        "optimizer": {"lr": 1e-2},
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "console": {"enabled": False},
    }


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.history]


def run(recipe: dict, **objects) -> Trainer:
    trainer = Trainer(recipe, **objects)
    trainer.run()
    return trainer


def test_the_command_line_and_python_give_the_same_losses_bit_by_bit(folder, recipe, tmp_path):
    """By name and passed from Python: recipe file, mapping, rows, tokenizer and model, packed and with dropout."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = {
        **recipe,
        "epochs": 2,
        "model": {"name_or_path": str(folder), "hf_config_kwargs": {"attention_dropout": 0.25}},
        "data": {"max_length": 64, "pack_samples": True},
    }
    path = tmp_path / "by_file.yaml"
    path.write_text(yaml.safe_dump({**settings, "data": {**settings["data"], "sources": [str(rows)]}}))
    command = [sys.executable, "-m", "hooktrain", "train", str(path)]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert shown.returncode == 0, shown.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["loss"], line["grad_norm"], line["lr"]) for line in lines]
    assert len(expected) > 4

    model = AutoModelForCausalLM.from_pretrained(folder, attention_dropout=0.25, dtype=torch.float32)
    by_name = {"sources": [str(rows)], **settings["data"]}
    for given, objects in (
        ({**settings, "data": by_name}, {}),
        (settings, {"train_dataset": ROWS}),
        ({**settings, "model": None}, {"train_dataset": datasets.Dataset.from_list(ROWS), "model": model}),
    ):
        trainer = run({key: value for key, value in given.items() if value is not None}, **objects)
        assert [(line["loss"], line["grad_norm"], line["lr"]) for line in trainer.history] == expected


def test_five_lines_do(folder, tmp_path, monkeypatch):
    """The shortest script; TRL's has as many words."""
    monkeypatch.chdir(tmp_path)
    trainer = hooktrain.Trainer(model=folder, train_dataset=ROWS)
    trainer.run()
    trainer.save("fine-tuned")
    assert AutoModelForCausalLM.from_pretrained("fine-tuned").dtype == torch.float32
    assert AutoTokenizer.from_pretrained("fine-tuned").chat_template
    assert (tmp_path / "runs" / "recipe" / "metrics.jsonl").is_file()


def test_the_script_of_the_readme_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").partition("Or from Python:")[2]
    script = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len([line for line in script.splitlines() if line.strip()]) <= 6
    name = '"HuggingFaceTB/SmolLM2-135M-Instruct"'
    assert name in script
    scope: dict = {}
    exec(script.replace(name, repr(str(folder))), scope)
    assert scope["trainer"].state.global_step == 100
    assert (tmp_path / "fine-tuned" / "config.json").is_file()


def test_what_is_in_hand_is_what_the_caller_has_afterwards(recipe, tmp_path):
    tokenizer = make_tokenizer()
    model = make_llama(tokenizer)
    trainer = run(recipe, model=model, tokenizer=tokenizer, train_dataset=ROWS, eval_dataset={"more": MORE})
    assert trainer.model is model
    assert trainer.tokenizer is tokenizer
    assert not model.training
    assert not model.is_gradient_checkpointing
    ids = torch.tensor([tokenizer("What is 3?")["input_ids"]])
    made = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert made.shape == (1, ids.shape[1] + 3)
    assert trainer.evaluate()["eval/more/loss"] == trainer.history[-1]["eval/more/loss"]
    assert model.config._attn_implementation == "sdpa"
    saved = LlamaForCausalLM.from_pretrained(trainer.save(tmp_path / "saved"))
    assert all(torch.equal(one, two) for one, two in zip(saved.state_dict().values(), model.state_dict().values(), strict=True))  # fmt: skip
    plain = model.save_pretrained(tmp_path / "theirs")  # as users of transformers do
    assert plain is None
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")(ids).logits, saved(ids).logits)


def test_a_model_trained_twice_has_its_hooks_once(recipe):
    tokenizer = make_tokenizer()
    model = make_llama(tokenizer)
    hooks = []
    for _ in range(2):
        trainer = run(recipe, model=model, tokenizer=tokenizer, train_dataset=ROWS)
        hooks.append(sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()))
    assert hooks[0] == hooks[1]
    fresh = run(recipe, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS)
    assert losses(trainer)[0] < losses(fresh)[0], "the second run resumes from the weights of the first"


@pytest.mark.parametrize(("loaded", "asked"), [("eager", "auto"), ("sdpa", "eager"), ("eager", "sdpa")])
def test_attention_is_what_was_loaded_unless_the_recipe_says_otherwise(recipe, loaded, asked):
    tokenizer = make_tokenizer()
    model = make_llama(tokenizer)
    model.set_attn_implementation(loaded)
    packed = {**recipe, "data": {"pack_samples": True, "max_length": 64}, "model": {"attn_implementation": asked}}
    first = run(packed, model=model, tokenizer=tokenizer, train_dataset=ROWS)
    assert model.config._attn_implementation == {"auto": loaded}.get(asked, asked)
    other = run({**packed, "model": {}}, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS)
    assert losses(first) == pytest.approx(losses(other), rel=1e-5)


def test_attention_that_there_is_none_of_is_named(recipe):
    tokenizer = make_tokenizer()
    with pytest.raises(ModelError, match=facts("model.attn_implementation: ", "'sdpaa'", "LlamaForCausalLM")):
        run({**recipe, "model": {"attn_implementation": "sdpaa"}}, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- tokenizers


def test_the_tokenizer_is_found_where_the_model_was_loaded_from(folder, recipe):
    model = AutoModelForCausalLM.from_pretrained(folder)
    trainer = run(recipe, model=model, train_dataset=ROWS)
    assert trainer.recipe.tokenizer.name_or_path == str(folder)


def test_a_model_that_does_not_say_where_it_is_from_needs_a_tokenizer(folder, recipe):
    model = make_llama(make_tokenizer())
    with pytest.raises(ModelError, match=facts("LlamaForCausalLM", "tokenizer=...")):
        Trainer(recipe, model=model, train_dataset=ROWS)
    trainer = run(recipe, model=model, tokenizer=str(folder), train_dataset=ROWS)
    assert len(trainer.tokenizer) == model.config.vocab_size


def test_a_tokenizer_of_another_model_is_refused(recipe):
    tokenizer = make_tokenizer()
    model = make_llama(tokenizer)
    tokenizer.add_tokens(["one", "two"])
    sizes = (f" {model.config.vocab_size} ", f" {len(tokenizer)}")
    with pytest.raises(ModelError, match=facts("model: ", *sizes, "model.resize_token_embeddings")):
        run(recipe, model=model, tokenizer=tokenizer, train_dataset=ROWS)


# ----------------------------------------------------------------------------------------------------------------- rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trainer:
    """A run on ``ROWS``."""
    tokenizer = make_tokenizer()
    given = {"model": make_llama(tokenizer), "tokenizer": tokenizer, "train_dataset": ROWS}
    return run(recipe_in(tmp_path_factory.mktemp("trained")), **given)


class Tokenized(torch.utils.data.Dataset):
    """Rows as a torch Dataset gives them: tensors, with the labels that count."""

    def __init__(self, tokenizer) -> None:
        self.rows = []
        for row in ROWS:
            prompt = tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
            ids = torch.tensor(tokenizer(whole.removesuffix("\n"), add_special_tokens=False)["input_ids"])
            labels = ids.clone()
            labels[: len(tokenizer(prompt, add_special_tokens=False)["input_ids"])] = -100
            rest = torch.tensor(tokenizer("\n", add_special_tokens=False)["input_ids"])
            self.rows.append(
                {"input_ids": torch.cat([ids, rest]), "labels": torch.cat([labels, torch.full_like(rest, -100)])}
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return self.rows[index]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        tuple(ROWS),
        datasets.Dataset.from_list(ROWS),
        datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(MORE)}),
        Tokenized(make_tokenizer()),
        [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in ROWS],
        [{"conversations": [{"from": "human", "value": row["messages"][0]["content"]}, {"from": "gpt", "value": row["messages"][1]["content"]}]} for row in ROWS],
    ],
    ids=["list", "tuple", "datasets", "splits", "tokenized", "prompts", "sharegpt"],
)  # fmt: skip
def test_every_kind_of_rows_is_prepared_alike(trained, recipe, rows):
    tokenizer, one = make_tokenizer(), trained
    other = run(recipe, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=rows)
    assert losses(other) == losses(one)
    assert other.data.train_fingerprint == one.data.train_fingerprint


@pytest.mark.parametrize("make", [lambda: iter(ROWS), datasets.IterableDataset.from_generator(lambda: iter(ROWS))])
def test_rows_without_a_length_are_read_while_training(recipe, make):
    tokenizer = make_tokenizer()
    streamed = {**recipe, "train_iters": 9, "data": {"stream_buffer": 5}}
    trainer = run(streamed, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=make)
    assert trainer.recipe.data.sources[0].streaming
    assert trainer.global_step == 9
    assert losses(trainer)[-1] < losses(trainer)[0]
    with pytest.raises(DataError, match=facts("data.sources: ", "train_iters", "epochs")):
        run({**recipe, "data": {"stream_buffer": 5}}, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=make)  # fmt: skip


def test_a_stream_is_gone_on_with(recipe, tmp_path):
    tokenizer = make_tokenizer()
    streamed = {**recipe, "train_iters": 9, "data": {"stream_buffer": 5}, "checkpoint": [{"type": "full"}]}

    def trainer(**more) -> Trainer:
        objects = {"model": make_llama(tokenizer), "tokenizer": tokenizer, "train_dataset": lambda: iter(ROWS)}
        resumed = {"resume_from": more.pop("resume_from", None)}
        return run({**streamed, **more}, **objects, **resumed)

    whole, first = trainer(), trainer(exit_iteration=4)
    second = trainer(resume_from=first.save(tmp_path / "saved", type="full"))
    assert losses(first) + losses(second) == losses(whole)


def test_rows_are_found_again_by_what_they_hold(recipe):
    tokenizer = make_tokenizer()

    def cached(rows) -> bool:
        trainer = run(recipe, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=rows)
        return trainer.data.report["sources"][0]["cached"]

    assert not cached(ROWS)
    assert cached([json.loads(json.dumps(row)) for row in ROWS]), "other objects, the same rows"
    assert cached(datasets.Dataset.from_list(ROWS)), "another container"
    changed = json.loads(json.dumps(ROWS))
    changed[7]["messages"][1]["content"] = "It is 8."
    assert not cached(changed)
    assert not cached(ROWS[::-1])


def test_rows_that_cannot_be_compared_are_prepared_anew(recipe):
    tokenizer = make_tokenizer()
    rows = [{**row, "note": object()} for row in ROWS]
    for _ in range(2):
        trainer = run(recipe, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=rows)
        assert not trainer.data.report["sources"][0]["cached"]


def test_what_is_wrong_with_a_row_is_said_as_for_files(recipe):
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match=facts("train_dataset, ", " 0: ", "messages")):
        run(recipe, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=[{"messages": []}])
    with pytest.raises(DataError, match=r"train_dataset: .*\b(no|one|0|empty)\b"):
        run(recipe, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=[])
    with pytest.raises(hooktrain.RecipeError, match=facts("train_dataset: ", "DataFrame", "frame.to_dict('records')")):
        import pandas

        Trainer(recipe, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=pandas.DataFrame(ROWS))


def test_rows_in_hand_go_through_the_hooks_of_the_data(recipe):
    """A plugin renders what is passed from Python as it does what comes from a file."""

    class Shouts:
        @hookimpl(wrapper=True)
        def load_source(self):
            rows = yield
            return [
                {"messages": [{**turn, "content": turn["content"].upper()} for turn in row["messages"]]} for row in rows
            ]

    tokenizer = make_tokenizer()
    trainer = run({**recipe, "data": {"use_data_cache": False}}, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS, plugins=[Shouts()])  # fmt: skip
    assert "IT IS" in tokenizer.decode(trainer.data.train[0]["input_ids"])


# ------------------------------------------------------------------------------------------------- adapters, checkpoints


def test_an_adapter_is_put_on_a_model_passed_from_python(recipe, tmp_path):
    tokenizer = make_tokenizer()
    model = make_llama(tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lora = {**recipe, "peft": {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]}}
    trainer = run(lora, model=model, tokenizer=tokenizer, train_dataset=ROWS)
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert type(trainer.model).__name__ == "PeftModelForCausalLM"
    assert (trainer.save(tmp_path / "adapter") / "adapter_config.json").is_file()
    with pytest.raises(ModelError, match=facts("peft: ", "LlamaForCausalLM", "trainer.model.unload()")):
        run(lora, model=model, tokenizer=tokenizer, train_dataset=ROWS)
    unloaded = trainer.model.unload()
    assert all(torch.equal(value, before[name]) for name, value in unloaded.state_dict().items())
    again = run(lora, model=unloaded, tokenizer=tokenizer, train_dataset=ROWS)
    assert losses(again) == losses(trainer)


def test_a_model_that_has_an_adapter_is_trained_and_saved_as_one(recipe, tmp_path):
    import peft

    tokenizer = make_tokenizer()
    made = peft.get_peft_model(
        make_llama(tokenizer), peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    trainer = run(recipe, model=made, tokenizer=tokenizer, train_dataset=ROWS)
    assert losses(trainer)[-1] < losses(trainer)[0]
    saved = trainer.save(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(make_llama(tokenizer), saved)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, made(ids).logits)


def test_a_run_with_a_model_in_hand_is_gone_on_from(recipe, tmp_path):
    tokenizer = make_tokenizer()
    saving = {**recipe, "checkpoint": [{"type": "full", "save_every_n_steps": 3, "auto_resume": True}]}
    whole = run({**saving, "run_dir": str(tmp_path / "whole")}, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS)  # fmt: skip
    first = run({**saving, "exit_iteration": 3}, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS)
    second = run(saving, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS)
    assert losses(first) + losses(second) == losses(whole)
    changed = {**saving, "optimizer": {"lr": 1e-3}, "train_iters": 6}
    with pytest.raises(hooktrain.CheckpointError, match=r"optimizer\.lr: .*\b0\.01\b.*\b0\.001\b"):
        run(changed, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS)
    with pytest.raises(hooktrain.CheckpointError, match=r"\bdata: other rows"):
        run(saving, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS[::-1])


# ---------------------------------------------------------------------------------------------------------------- ranks

SCRIPT = '''
import json, sys, torch, hooktrain
from pathlib import Path
from hooktrain.testing.tiny_llama import make_llama, make_tokenizer
from tests.conversations import MORE, ROWS

folder, strategy, seeds, runs = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
tokenizer = make_tokenizer()
recipe = {"micro_batch_size": 1, "run_dir": str(folder / "run"), "optimizer": {"lr": 1e-2},
          "strategy": {"dtype": "fp32", "device": "cpu", **strategy}, "console": {"enabled": False}}
for number in range(runs):
    model = make_llama(tokenizer)
    if seeds == "own":
        torch.nn.init.normal_(model.lm_head.weight, std=1.0 + hooktrain.World.from_environment().rank)
    given = {"model": model, "tokenizer": tokenizer, "train_dataset": ROWS, "eval_dataset": MORE}
    with hooktrain.Trainer(recipe, **given) as trainer:
        trainer.run()
        found = trainer.evaluate()
        saved = trainer.save(folder / f"saved-{number}")
    assert not torch.distributed.is_initialized()
    if trainer.world.is_main:
        (folder / f"history-{number}.json").write_text(json.dumps([*trainer.history, found]))
'''  # fmt: skip


def torchrun(tmp_path: Path, strategy: dict, seeds: str = "same", runs: int = 1) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]  # fmt: skip
    return subprocess.run(
        [sys.executable, *words, str(script), str(tmp_path), json.dumps(strategy), seeds, str(runs)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.mark.parametrize(
    ("strategy", "runs"),
    [
        pytest.param({}, 1, id="ddp"),
        pytest.param({}, 2, id="ddp, twice", marks=pytest.mark.thorough),
        pytest.param({"data_parallel": "fsdp2"}, 1, id="fsdp2"),
        pytest.param({"data_parallel": "fsdp2"}, 2, id="fsdp2, twice", marks=pytest.mark.thorough),
        pytest.param({"type": "deepspeed", "zero_stage": 3}, 2, id="zero3, twice"),
    ],
)
@pytest.mark.preload(*DEEPSPEED)  # transformers imports it to save a model, where it is installed
def test_two_ranks_of_a_script_do_what_one_does(recipe, tmp_path, strategy, runs):
    """With an evaluation and an export after the run; then once more in the same processes."""
    done = torchrun(tmp_path, strategy, runs=runs)
    assert done.returncode == 0, done.stderr[-3000:]
    tokenizer = make_tokenizer()
    alone = run(recipe, model=make_llama(tokenizer), tokenizer=tokenizer, train_dataset=ROWS, eval_dataset=MORE)
    for number in range(runs):
        *lines, found = json.loads((tmp_path / f"history-{number}.json").read_text())
        assert [line["loss"] for line in lines] == pytest.approx(losses(alone), rel=2e-5)
        assert found == pytest.approx(alone.evaluate(), rel=2e-5)
        saved = LlamaForCausalLM.from_pretrained(tmp_path / f"saved-{number}")
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(saved.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_ranks_with_other_weights_are_refused(tmp_path):
    done = torchrun(tmp_path, {"data_parallel": "fsdp2"}, "own")
    assert done.returncode != 0
    assert re.search(r"model: .*rank 1\b.*rank 0\b.*torch\.manual_seed", done.stderr)
