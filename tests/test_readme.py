"""The README is what the code does: its generated parts are fresh, and its recipe, Python and plugin run."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests import guides, readme

TEXT = readme.README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_it_is_a_landing_page():
    lines = TEXT.splitlines()
    assert len(lines) < 180
    assert [line for line in lines if len(line) > 120 and not line.startswith("pip install")] == []


def test_generated_parts_are_fresh(tiny_recipe):
    assert readme.rendered(TEXT, readme.record(tiny_recipe)) == TEXT, "run `python -m tests.readme`"


def test_the_plugin_runs(chat_recipe, tmp_path):
    """As a reader tries it, with the command of the README."""
    (plugin,) = [block for block in blocks("python") if block.startswith("# token_budget.py")]
    assert len([line for line in plugin.splitlines() if line]) <= 15
    (tmp_path / "token_budget.py").write_text(plugin)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**chat_recipe, "console": {}}))
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "-p token_budget" in line]
    assert "is spent" not in guides.output(command, tmp_path)
    assert "the budget of 50 tokens is spent" in guides.output(command.replace("100000", "50"), tmp_path)


def test_the_python_runs(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = [block for block in blocks("python") if "hooktrain.Trainer(" in block]
    assert len([line for line in code.splitlines() if line]) <= 6
    exec(code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_llama)).replace("range(100)", "range(4)"), {})
    assert (tmp_path / "fine-tuned" / "config.json").exists()


def test_its_commands_are_there(tmp_path):
    (tmp_path / "recipe.yaml").write_text("type: tiny")
    table = TEXT.partition("| command |")[2].partition("\n\n")[0]
    commands = [each for row in table.splitlines() for each in re.findall(r"`(hooktrain [^`]*)`", row.split(" | ")[0])]
    assert len(commands) >= 11
    for command in commands:
        guides.parse(command, tmp_path)


def test_ci_runs_the_commands_of_the_readme():
    ci = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    assert command in ci.splitlines()


def test_the_figures_are_those_of_the_benchmarks():
    measured = (Path(__file__).parents[1] / "benchmarks" / "README.md").read_text(encoding="utf-8")
    table = TEXT.partition("| measured on")[2].partition("\n\n")[0]
    figures = re.findall(
        r"(?<![\w-])\d[\d,.]*\d(?= (?:tokens/s|µs|s)\b|[,|\n]| \||$)", table.replace("100,000", ""), re.MULTILINE
    )
    assert len(figures) >= 11
    for figure in figures:
        assert re.search(rf"\b{re.escape(figure.rstrip(','))} (?:tok/s|µs|s)\b", measured), figure


def test_the_quick_start_is_the_recipe_of_the_design():
    recipe = yaml.safe_load(next(block for block in blocks("yaml") if "ultrachat" in block))
    assert list(recipe) == ["type", "micro_batch_size", "model", "data", "checkpoint"]
