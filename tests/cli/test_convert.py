"""``hooktrain convert``, and recipes of other programs in the other commands."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hooktrain import HooktrainError, PluginError, RecipeError
from hooktrain.cli.main import cli
from tests.facts import facts

ARCTIC = """
type: sft
logger: {level: INFO}
model: {name_or_path: org/model}
data: {sources: [org/rows]}
"""
TRL = "model_name_or_path: org/model\ndataset_name: org/rows\nlearning_rate: 1e-5\n"
GONE = ("tensorboard", "torchao")
DIALECT = """
from hooktrain import Collector, hookimpl


class Mine:
    name, summary = "mine", "my program"

    def recognises(self, raw):
        return "my_lr" in raw

    def translate(self, raw, folder):
        found = Collector(raw, self.summary)
        found.copy("my_lr", "optimizer.lr", float)
        found.ignored("fast", "it is always fast")
        return found.translation(["my_lr", "fast"])


@hookimpl
def register_recipe_dialects():
    return [Mine()]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, capsys):
    """Run a command of hooktrain with a recipe file; returns status, output and error output."""

    def run(command: str, text: str, *words: str):
        (here / "r.yml").write_text(text)
        status = cli.main([command, "r.yml", *words], prog_name="hooktrain", standalone_mode=False)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_writes_a_recipe_with_comments_and_prints_the_account(run, here):
    status, shown, _ = run(
        "convert", ARCTIC + "micro_batch_size: 3\noptimizer: {learning_rate: 1e-5}\n", "-o", "new/recipe.yaml"
    )
    assert status == 0
    text = (here / "new" / "recipe.yaml").read_text()
    lines = {line.strip().partition(":")[0]: line for line in text.splitlines()}
    assert lines["micro_batch_size"] == "micro_batch_size: 3", "copied one to one"
    assert "# from optimizer.learning_rate" in lines["lr"]
    assert "ArcticTraining" in lines["overflow"], "a default of the other program"
    assert yaml.safe_load(text)["optimizer"] == {"lr": 1e-5}
    for words in (["optimizer.learning_rate", "translated", "optimizer.lr"], ["logger.level", "no effect here"]):
        assert any(all(word in line for word in words) for line in shown.splitlines()), shown


def test_json_and_a_recipe_that_plans(run, here):
    status, shown, _ = run("convert", TRL, "--json", "-o", "new.yaml")
    account = json.loads(shown)
    assert (status, account["dialect"], account["unsupported"]) == (0, "trl", [])
    assert {"key": "learning_rate", "to": ["optimizer.lr"]} in account["translated"]
    status, shown, _ = run("plan", (here / "new.yaml").read_text(), "--json", "--no-estimates")
    assert status == 0
    assert json.loads(shown)["recipe"]["optimizer"]["lr"] == 1e-5


def test_without_out_the_recipe_is_the_output(run):
    status, shown, told = run("convert", TRL)
    assert status == 0
    assert yaml.safe_load(shown)["model"]["name_or_path"] == "org/model"
    assert "learning_rate" in told


def test_packages_that_are_missing_here_are_told_of(run, here, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in GONE else find(name, *more))
    text = TRL + "report_to: tensorboard\noptim: adamw_torch_8bit\n"
    status, shown, _ = run("convert", text, "-o", "new.yaml")
    assert status == 0, "the recipe is right, and may be for another machine"
    assert re.search(facts("trackers[0]", "pip install tensorboard", "remove"), shown)
    assert re.search(facts("optimizer.type", "adamw_8bit", "pip install torchao"), shown)
    status, shown, _ = run("convert", text, "--json")
    assert {each["where"] for each in json.loads(shown)["errors"]} == {"trackers[0]", "optimizer.type"}


def test_what_is_not_supported_needs_partial(run, here):
    refused = ARCTIC + "overfit_first_batch: true\n"
    status, shown, _ = run("convert", refused, "-o", "new.yaml", "--json")
    assert status == 3
    assert not (here / "new.yaml").exists()
    (entry,) = json.loads(shown)["unsupported"]
    assert entry.keys() == {"key", "reason", "remedy"}
    status, shown, _ = run("convert", refused, "-o", "new.yaml", "--partial")
    assert status == 3
    assert "overfit_first_batch" in (here / "new.yaml").read_text().partition("\n\n")[0], "told at its head"
    assert "NOT SUPPORTED" in shown


def test_other_files_are_no_recipes(run):
    status, shown, _ = run("convert", "name: dpo\nchannels: [a]\n", "--from", "arctic", "--json")
    assert status == 4
    assert "channels" in json.loads(shown)["not_a_recipe"]
    status, _, told = run("convert", "name: dpo\n", "--from", "trl")
    assert (status, "not a training recipe" in told) == (4, True)


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("a: 1\na: 2\n", ["--from", "trl"], facts("'a' is given twice", "line 1")),
        ("type: sft\n", [], facts("no dialect recognises", "--from", "arctic", "trl")),
        (TRL, ["--from", "arktic"], facts("--from arktic", "did you mean 'arctic'")),
        (ARCTIC + TRL, [], facts("ArcticTraining", "TRL", "--from arctic", "--from trl")),
    ],
    ids=["a key twice", "nobody's", "no such dialect", "two dialects"],
)
def test_recipes_that_lie(run, text, words, expected):
    with pytest.raises(HooktrainError, match=expected):
        run("convert", text, *words)


def test_contradicting_keys_are_told_of(run):
    status, _, told = run("convert", TRL + "bf16: true\nfp16: true\n")
    assert status == 3
    assert "contradicts another key: bf16" in told


@pytest.mark.parametrize("command", ["train", "plan", "data"])
def test_a_foreign_recipe_is_recognised_before_its_code_is_loaded(run, here, command):
    (here / "mine.py").write_text("open('was_run', 'w')\n")
    for text in (ARCTIC, ARCTIC + "code: mine.py\n", ARCTIC + "plugins: {load: [mine]}\n", TRL):
        with pytest.raises(HooktrainError, match=facts("r.yml", "is a recipe of", "hooktrain convert r.yml --from")):
            run(command, text)
    assert not (here / "was_run").exists()


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_recipe_of_ours_keeps_its_errors(run, command):
    text = "type: sft\nmodel: org/model\ndata: {sources: [org/rows], max_lenght: 3}\n"
    if command == "plan":
        status, shown, _ = run(command, text, "--no-estimates")
        assert (status, "max_length" in shown) == (1, True)
        return
    with pytest.raises(RecipeError, match=facts("max_lenght", "did you mean 'max_length'")):
        run(command, text)


def test_from_plans_a_foreign_recipe_as_it_stands(run):
    status, shown, _ = run("plan", TRL, "--from", "trl", "--json", "--no-estimates", "-o", "optimizer.eps=1e-6")
    facts_of = json.loads(shown)
    assert (status, facts_of["recipe"]["optimizer"]["lr"], facts_of["recipe"]["optimizer"]["eps"]) == (0, 1e-5, 1e-6)
    assert facts_of["origins"]["optimizer.lr"] == "r.yml, translated"
    assert facts_of["origins"]["optimizer.eps"] == "command line -o optimizer.eps=1e-6"


def test_from_trains_a_foreign_recipe_as_it_stands(run, here, tiny_llama):
    turns = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three four"}]
    (here / "rows.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 4)
    text = f"""
        model_name_or_path: {tiny_llama}
        dataset_name: rows.jsonl
        max_steps: 2
        per_device_train_batch_size: 2
        output_dir: out
        use_cpu: true
        bf16: false
        report_to: none
        save_strategy: "no"
    """
    status, _, _ = run("train", text, "--from", "trl", "-o", "run_dir=run")
    assert not status
    assert len((here / "run" / "metrics.jsonl").read_text().splitlines()) >= 1
    assert (here / "out" / "config.json").is_file()


def test_from_refuses_what_is_not_supported(run):
    with pytest.raises(HooktrainError, match=facts("load_in_4bit", "quantized base", "--partial")):
        run("train", TRL + "load_in_4bit: true\n", "--from", "trl")
    with pytest.raises(HooktrainError, match=facts("not a training recipe")):
        run("plan", "name: x\n", "--from", "trl")


def test_a_third_party_s_dialect_is_one_module(run, here):
    (here / "my_dialect.py").write_text(DIALECT)
    status, shown, _ = run("convert", "my_lr: 1e-3\nfast: true\nwidth: 3\n", "-p", "my_dialect", "--json")
    account = json.loads(shown)
    assert (status, account["dialect"]) == (3, "mine")
    assert account["translated"] == [{"key": "my_lr", "to": ["optimizer.lr"]}]
    assert account["ignored"] == [{"key": "fast", "reason": "it is always fast"}]
    assert account["unsupported"][0]["key"] == "width"
    assert account["recipe"] == {"optimizer": {"lr": 1e-3}}


def test_two_dialects_of_one_name_are_an_error(run, here):
    (here / "mine_again.py").write_text(DIALECT.replace('"mine"', '"trl"'))
    with pytest.raises(PluginError, match=facts("recipes", "mine_again", "'trl'")):
        run("convert", TRL, "-p", "mine_again")


@pytest.mark.usefixtures("real_starts")
def test_converts_without_torch(here):
    """Which is what makes it quick: a clock here would measure how busy the machine is."""
    (here / "r.yml").write_text(TRL)
    code = (
        "import sys, hooktrain.cli.main as c\n"
        "c.cli.main(['convert', 'r.yml', '-o', 'new.yaml'], standalone_mode=False)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'datasets', 'peft')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=True)
    assert shown.stdout.rstrip().endswith("[]"), shown.stdout
    assert Path("new.yaml").is_file()
