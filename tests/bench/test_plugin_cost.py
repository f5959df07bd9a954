"""The command ``hooktrain bench plugin``."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from hooktrain.bench.plugin_cost import print_report
from hooktrain.bench.results import read
from hooktrain.cli.main import cli
from hooktrain.inspection.terminal import console
from tests.drivers import fork_drivers
from tests.facts import facts

COSTLY = """
import types
from hooktrain import hookimpl
from hooktrain.bench import driver

now = 0.0  # a clock that only this plugin moves: its steps take as long as it says
driver.time = types.SimpleNamespace(perf_counter=lambda: now, process_time=lambda: now)

@hookimpl
def on_step_end(trainer, output):
    global now
    now += 0.25
    output.total.item()
    output.total.item()

@hookimpl(wrapper=True)
def compute_loss():
    loss = yield
    return loss._replace(total=loss.total * CHANGE)
"""


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    fork_drivers(monkeypatch)


@pytest.mark.parametrize(
    ("change", "named"), [(1, ["losses", "3 steps", "equal"]), (2, ["losses", "differ", "step 1 "])]
)
def test_what_a_plugin_costs_and_changes(tmp_path, monkeypatch, on_terminal, change, named):
    (tmp_path / f"costly_{change}.py").write_text(COSTLY.replace("CHANGE", str(change)))
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(
        cli,
        ["bench", "plugin", f"costly_{change}", "--quick", "--steps", "3", "--out", "o", "-p", "no:*", "-p", "torch"],
    )
    assert shown.exit_code == 0, shown.output
    assert any(re.search(facts(*named), line) for line in shown.stdout.splitlines()), shown.stdout
    assert "compute_loss, on_step_end" in shown.stdout
    (line,) = read(tmp_path / "o")
    assert max(map(len, on_terminal(80, lambda: print_report(line, console())))) <= 80
    assert not any("device_syncs" in found["values"] for found in line["variants"].values()), "it needs a GPU"
    assert line["runs"]["with"][0]["seconds"] == [0.25, 0.25, 0.25], "its own time belongs to each step"
    assert len(line["runs"]["without"][0]["seconds"]) == 3 and min(line["runs"]["without"][0]["seconds"]) > 0
    assert all(found["values"]["start_seconds"] for found in line["variants"].values())


SCALES = """
import attrs
from hooktrain import PluginInfo, hookimpl

hooktrain_plugin = PluginInfo(active_when=lambda recipe: recipe.settings["scales"].by != 1)
Scales = attrs.make_class("Scales", {"by": attrs.field(type=float, default=1.0)}, frozen=True, kw_only=True)

@hookimpl
def register_configs():
    return {"settings": {"scales": Scales}}

@hookimpl(wrapper=True)
def compute_loss(trainer):
    loss = yield
    return loss._replace(total=loss.total * trainer.recipe.settings["scales"].by)
"""


@pytest.mark.parametrize("used", [True, False])
def test_the_variant_with_the_plugin_has_settings_of_its_own(tmp_path, monkeypatch, used):
    (tmp_path / "scales.py").write_text(SCALES)
    monkeypatch.chdir(tmp_path)
    words = ["bench", "plugin", "scales", "--quick", "--steps", "3", "-p", "no:*", "-p", "torch"]
    shown = CliRunner().invoke(cli, [*words, *(["--settings", "scales.by=2"] if used else [])])
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.stdout.split())
    assert ("the losses differ from step 1 on" in said) is used
    assert (
        bool(re.search(facts("did not use it", "active_when returned False", "--settings KEY=VALUE"), said)) is not used
    )


def test_settings_that_are_none_are_refused_before_anything_is_measured(bench):
    shown = bench("plugin", "jsonl", "--settings", "jsonl")
    assert shown.exit_code == 1
    assert re.search(facts("-o jsonl", "key=value"), str(shown.exception))


def test_a_recipe_that_fails_without_the_plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "plugin", "torch", "--quick", "--steps", "3", "-p", "no:*"]
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 0
    assert re.search(facts("without", "recipe"), shown.stdout)
    for part in ("strategy", "optimizer", "scheduler"):
        assert f"{part}.type" in shown.stdout, "all errors of the recipe"


@pytest.mark.parametrize(
    "named",
    [
        pytest.param("line", marks=pytest.mark.thorough),
        pytest.param("environment", marks=pytest.mark.thorough),
        "recipe",
    ],
)
def test_the_variant_without_the_plugin_does_not_load_it(tmp_path, monkeypatch, named):
    (tmp_path / "stops.py").write_text(
        "from hooktrain import hookimpl\n\n@hookimpl\ndef on_step_end(trainer):\n"
        "    if trainer.global_step == 3:\n        trainer.request_stop('enough')\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["bench", "plugin", "stops", "--quick", "-p", "no:*", "-p", "torch"]
    if named == "recipe":
        recipe = {"type": "tiny", "micro_batch_size": 1, "plugins": {"load": ["stops", "hooktrain.testing:TinyPlugin"]}}
        recipe |= {"strategy": {"dtype": "fp32", "device": "cpu"}, "console": {"enabled": False}}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        words.insert(3, "recipe.yaml")
    shown = CliRunner().invoke(
        cli, words + ["-p", "stops"] * (named == "line"), env={"HOOKTRAIN_PLUGINS": "stops" * (named == "environment")}
    )
    assert shown.exit_code == 0, shown.output
    assert any(re.search(facts("8 losses", "without", " 3 "), line) for line in shown.stdout.splitlines())


def test_a_plugin_that_does_not_exist(bench):
    shown = bench("plugin", "jsnl")
    assert shown.exit_code == 1
    assert re.search(facts("'jsnl'", "plugin", "module"), str(shown.exception))
