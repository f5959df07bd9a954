"""The README is what the code does: its generated parts are fresh, its plugin and its recipe run."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests import readme
from tests.environments import Environment, build_wheels, unpack

TEXT = readme.README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_generated_parts_are_fresh(tiny_recipe):
    assert readme.rendered(TEXT, readme.record(tiny_recipe)) == TEXT, "run `python -m tests.readme`"


def test_the_first_plugin_works(tmp_path):
    """Installed as the README says, and tested as it says, with pytest in a process of its own."""
    project = next(block for block in blocks("toml") if block.startswith("# pyproject.toml"))
    code = next(block for block in blocks("python") if block.startswith("# hooktrain_lion.py"))
    test = next(block for block in blocks("python") if "def test_lion" in block)
    source = tmp_path / "source"
    source.mkdir()
    for name, text in (("pyproject.toml", project), ("hooktrain_lion.py", code), ("test_lion.py", test)):
        (source / name).write_text(text)
    site = unpack(build_wheels(tmp_path, [source]).iterdir(), tmp_path / "site")
    (source / "hooktrain_lion.py").unlink()  # what is tested is what the wheel holds
    run = Environment.of(site).run(source, "-m", "pytest", "-v", "-p", "no:cacheprovider", "test_lion.py")
    assert run.status == 0, run.output
    assert run.stdout.count("test_conformance[") == 10
    assert run.stdout.count(" PASSED") + run.stdout.count(" SKIPPED") == 11
    assert "test_lion_moves_the_weights PASSED" in run.stdout


def test_ci_runs_the_commands_of_the_readme():
    ci = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    assert command in ci.splitlines()


def test_the_quick_start_is_the_recipe_of_the_design():
    recipe = yaml.safe_load(next(block for block in blocks("yaml") if "ultrachat" in block))
    assert list(recipe) == ["type", "micro_batch_size", "model", "data", "checkpoint"]
