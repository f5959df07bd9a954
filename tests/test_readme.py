"""The README is what the code does: its generated parts are fresh, its plugin and its recipe run."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import yaml

from tests import readme
from tests.test_trainer import record

TEXT = readme.README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_generated_parts_are_fresh(tiny_recipe):
    assert readme.rendered(TEXT, record(tiny_recipe)) == TEXT, "run `python -m tests.readme`"


def test_the_first_plugin_works(tmp_path, run_tiny, monkeypatch):
    code = next(block for block in blocks("python") if block.startswith("# hooktrain_lion.py"))
    test = next(block for block in blocks("python") if "def test_lion" in block)
    path = tmp_path / "hooktrain_lion.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("hooktrain_lion", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "hooktrain_lion", module)
    spec.loader.exec_module(module)
    scope: dict = {}
    exec(test, scope)
    scope["test_lion_moves_the_weights"](lambda recorder, **changes: run_tiny(module, recorder, **changes))


def test_ci_runs_the_commands_of_the_readme():
    ci = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "pytest" in line]
    assert command in ci.splitlines()


def test_the_quick_start_is_the_recipe_of_the_design():
    recipe = yaml.safe_load(next(block for block in blocks("yaml") if "ultrachat" in block))
    assert list(recipe) == ["type", "micro_batch_size", "model", "data", "checkpoint"]
