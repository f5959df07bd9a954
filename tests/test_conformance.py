"""The conformance kit finds what it is there to find, says it so that one can mend it, and is quiet otherwise."""

from __future__ import annotations

import importlib
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from hooktrain import HooktrainError
from hooktrain.testing import conformance
from hooktrain.testing.checks import CHECKS
from hooktrain.testing.checks.kit import LIGHT, Broken, Kit, Options, Unjudged
from hooktrain.testing.checks.observing import check_observes
from hooktrain.testing.checks.subject import Spec, reference_to
from hooktrain.testing.fork_server import Job, run_jobs
from tests import bad_plugins

pytest_plugins = ["pytester"]

test_an_observer = conformance(bad_plugins.Observes, calls=3, allocations=2, thorough=True)
test_an_offer = conformance(
    bad_plugins.Offers, settings={"optimizer": "mine"}, checks=["hooks", "declines", "observes", "device"]
)


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """``check("device", plugin, option=value)``: make one check, or several of the same runs."""

    def make(name: str, plugin: Any, **options: Any) -> Kit:
        kit = Kit(reference_to(plugin), Options(**options), tmp_path)
        for each in name.split():
            module, _, function = CHECKS[each].partition(":")
            getattr(importlib.import_module(f"hooktrain.testing.checks.{module}"), function)(kit)
        return kit

    return make


def test_a_state_that_is_changed_in_place_and_saved_at_every_step(check):
    check("state resume", bad_plugins.Averages)


def test_metrics_that_are_meant_to_change(tmp_path):
    kit = Kit(reference_to(bad_plugins.Averages), Options(), tmp_path)
    with pytest.raises(Broken, match=r"eval/held_out/loss(?s:.*)is named in ignore="):
        check_observes(kit)
    kit.options = Options(ignore=("eval/held_out/loss",))
    check_observes(kit)


def test_settings_of_other_parts_stay_where_the_plugin_is_compared_with_its_absence():
    """What looks at logits needs a loss that makes them, and is compared with a run of the same loss."""
    settings = {"mine": {"on": True}, "loss": {"all_logits": True}, "optimizer": {"type": "mine"}, "data": {"rows": 5}}
    spec = Spec(reference=reference_to(bad_plugins.Offers), recipe={"data": {"seed": 1}}, settings=settings, steps=2)
    both = {"loss": {"all_logits": True}, "data": {"seed": 1}, "plugins": {}}
    assert spec.raw("without") == both
    assert spec.raw("beside") == {**both, "mine": {"on": True}}
    assert spec.raw("with") == {**both, **settings, "data": {"seed": 1, "rows": 5}}
    assert spec.selected == ["optimizer", "data"]


BROKEN = [
    ("hooks", "Misspelt", r"implements 'on_step_ended', which is no hook \(did you mean 'on_step_end'\?\)"),
    ("hooks", "Unmarked", r"on_step_end: is named like a hook, but not marked with @hookimpl"),
    ("hooks", "WrongParameter", r"result"),
    ("hooks", "NeverRuns", r"on_step_end: has a yield, but not @hookimpl\(wrapper=True\)"),
    ("declines", "Greedy", r"make_optimizer: answers with list for a config that is not its own"),
    ("declines", "ReadsFirst", r"make_optimizer: reads config.lr before it knows"),
    ("declines", "UsesFirst", r"make_optimizer: uses model.parameters before it knows"),
    ("declines", "ImportsFirst", r"make_loss: .*imports this_and_that|make_loss: raises ModuleNotFoundError"),
    ("declines", "AllocatesFirst", r"make_loss: computes with torch \(aten.zeros"),
    ("declines", "OpensFirst", r"make_loss: opens /proc/self/status"),
    ("declines", "DrawsFirst", r"make_loss: draws random numbers"),
    ("declines", "DeclinesLate", r"run_step: declines, but computes with torch \(aten.ones.default\) before it does"),
    ("state", "OnlyCollects", r"implements collect_state without restore_state"),
    ("state", "NotPlain", r"state\['best'\]\['path'\] is a pathlib.PosixPath"),
    ("state", "NotRestored", r"collect_state gives another state, in a new process: state, steps: 4 and 0"),
    ("resume", "Forgets", r"logged numbers: step 5, loss: (?s:.*)it keeps no state"),
    ("observes", "Draws", r"without the plugin, and with it, differ. logged numbers: step 1, loss"),
    ("ranks", "ByRank", r"log other numbers. step 1, loss: "),
    (
        "ranks",
        "OneRankRaises",
        r"rank 1 of 2 ended with status 1(?s:.*)plugin 'OneRankRaises', hook on_step_end, step 1",
    ),
    ("device", "ReadsLoss", r"on_step_end, bad_plugins.py:\d+: reads a value: self.loss = output.total.item\(\)"),
    (
        "device",
        "ListsLoss",
        r"on_microbatch_end, bad_plugins.py:\d+: .*: self.loss = loss.total.reshape\(1\).tolist\(\)",
    ),
    ("device", "CopiesLoss", r"collect_metrics, bad_plugins.py:\d+: copies a tensor to the host: return"),
    ("device", "DecidesByLoss", r"compute_loss, bad_plugins.py:\d+: reads a value: if loss.total > 3:"),
    ("teardown", "TearsDownWhatIsNotThere", r"when make_strategy has failed: plugin .*AttributeError"),
    (
        "teardown",
        "TearsDownOnce",
        r"on_teardown, called a second time, when make_strategy has failed, raises IndexError",
    ),
    ("teardown", "LeavesThread", r"when on_epoch_start has failed, the thread left is left"),
    ("teardown", "LeavesVariable", r"when on_epoch_start has failed, the environment variable MINE stays changed"),
    ("teardown", "Swallows", r"a failure in .*evaluat.* does not end the run: somebody has swallowed the exception"),
    (
        "cost",
        "Slow",
        r"costs 10000\.0 microseconds a step .* of 1000 .*; 100\.0 are allowed; the hooks that take longest: on_step_end \d+",
    ),
    ("cost", "Allocates", r"a step makes 3 new tensors.* 2 are allowed; most are of: on_step_end 2, outside .* 1"),
    ("cost", "Observes", r"a step makes 3 calls of hooks and 2 are allowed; most are of: .*on_step_end 1"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "Slow": {"time": True, "clock": "tests.bad_plugins:read_clock", "rounds": 3},
    "Allocates": {"allocations": 2},
    "Observes": {"calls": 2},
    "LeavesThread": {"failing": ["on_epoch_start"], "patience": 0.01},
    "LeavesVariable": {"failing": ["on_epoch_start"]},
    "Swallows": {"failing": ["run_evaluate"]},
    "TearsDownOnce": {"failing": ["make_strategy"]},
}


@pytest.mark.parametrize(("name", "plugin", "message"), BROKEN, ids=[f"{name}-{plugin}" for name, plugin, _ in BROKEN])
def test_a_broken_rule(check, name, plugin, message):
    with pytest.raises(Broken) as caught:
        check(name, getattr(bad_plugins, plugin), **OPTIONS.get(plugin, {}))
    text = str(caught.value)
    assert re.search(message, text), text
    found, rule, mend = re.fullmatch(r"(.*)\n\nrule: (.*)\nmend: (.*)", text, re.DOTALL).groups()
    assert all(len(part.split()) > 2 for part in (found, rule, mend)), text


def test_a_rule_that_is_broken_where_ranks_hold_parts_of_the_weights(check):
    """What ``thorough=True`` makes, of which the tests under ZeRO are in the thorough tier."""
    check("ranks", bad_plugins.ScalesByShard)
    with pytest.raises(Broken, match=r"rank 0 of two with the same global batch, log other numbers. step 1, loss: "):
        check("ranks", bad_plugins.ScalesByShard, strategy="fsdp2")


def test_the_kit_tests_every_check():
    assert {name for name, *_ in BROKEN} | {"import"} == set(CHECKS)


IMPORTS = {
    "slow": ("", r"takes 0\.\d+ s of a processor, .* at most -1 s is allowed"),
    "heavy": ("import left_package", r"brings in 4 modules, .* at most 3 are allowed; most are of left_package"),
    "thread": (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='left').start()",
        r"leaves a thread: left",
    ),
    "file": ("open('left.txt', 'w').close()", r"opens left.txt for writing"),
    "variable": ("import os\nos.environ['LEFT'] = '1'", r"changes environment variables: LEFT"),
    "process": ("import subprocess\nsubprocess.run(['true'])", r"starts a process: true"),
    "broken": ("import no_such_module", r"importing left_\w+ fails:\n.*No module named 'no_such_module'"),
}


@pytest.mark.parametrize(("source", "message"), list(IMPORTS.values()), ids=list(IMPORTS))
def test_an_import_that_is_not_for_nothing(check, tmp_path, monkeypatch, request, source, message):
    what = request.node.callspec.id
    written(tmp_path, monkeypatch, f"left_{what}", source)
    with pytest.raises(Broken) as caught:
        check("import", f"left_{what}", import_modules=3, import_seconds=-1, time=what == "slow")
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_an_import_whose_time_is_not_judged(check, tmp_path, monkeypatch):
    written(tmp_path, monkeypatch, "left_quick", "from left_package import one")
    kit = check("import", "left_quick", import_modules=4, import_seconds=-1)
    assert re.fullmatch(r"4 modules, \d\.\d{3} s \(\d\.\d{3} s of a processor\)", kit.notes["import"])


def test_an_import_whose_time_is_judged_when_pytest_is_told_to(
    tmp_path, tmp_path_factory, monkeypatch, pytestconfig, record_property
):
    written(tmp_path, monkeypatch, "left_judged", "")
    test = conformance("left_judged", import_seconds=-1)
    given = {"tmp_path_factory": tmp_path_factory, "pytestconfig": pytestconfig, "record_property": record_property}
    monkeypatch.setattr(pytestconfig.option, "hooktrain_time", True)
    with pytest.raises(pytest.fail.Exception, match=r"check 'import':\s+importing the plugin takes 0\.\d+ s"):
        test(check="import", **given)


def written(folder, monkeypatch, name, source):
    """Writes a plugin of one module, and a package of three modules for it."""
    hook = "\nfrom hooktrain import hookimpl\n@hookimpl\ndef on_step_end(): pass\n"
    (folder / f"{name}.py").write_text(source + hook)
    (folder / "left_package").mkdir()
    (folder / "left_package" / "__init__.py").write_text("from left_package import one, two")
    for module in ("one", "two"):
        (folder / "left_package" / f"{module}.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)


def test_what_a_check_says_nothing_about(check):
    with pytest.raises(Unjudged, match="keeps no state"):
        check("state", bad_plugins.Draws)
    with pytest.raises(Unjudged, match="declares that it changes gradients"):
        check("observes", bad_plugins.Declares)
    with pytest.raises(Unjudged, match="changes gradients"):
        check("observes", bad_plugins.Draws, changes_gradients=True)
    with pytest.raises(Unjudged, match="the recipe does not do without the plugin"):
        check("cost", "torch")
    with pytest.raises(Unjudged, match=r"1 calls of hooks and 3 new tensors a step; .*--hooktrain-time"):
        check("cost", bad_plugins.Allocates, budget=0.0)


def test_a_cost_that_is_allowed(check):
    note = check("cost", bad_plugins.Slow, budget="1001%", **OPTIONS["Slow"]).notes["cost"]
    assert "1 calls of hooks and 0 new tensors a step; 10000.0 microseconds a step" in note
    assert "10010.0 are allowed" in note


def test_device_syncs_that_are_allowed(check):
    assert check("device", bad_plugins.ReadsLoss, device_syncs=1).notes["device"] == "1 device syncs a step"
    with pytest.raises(Broken, match=r"1 device syncs a step, and 0\.5 are allowed:\non_step_end, bad_plugins.py"):
        check("device", bad_plugins.ReadsLoss, device_syncs=0.5)


def test_what_cannot_be_checked():
    class Inside:
        pass

    with pytest.raises(TypeError, match="is defined inside a function"):
        conformance(Inside)
    with pytest.raises(ValueError, match="'tirch' is neither an installed plugin nor a module .did you mean 'torch'"):
        conformance("tirch")
    with pytest.raises(ValueError, match="no check is named 'rank' .did you mean 'ranks'"):
        conformance("torch", skip={"rank": "why"})
    with pytest.raises(ValueError, match="thorough=True .* but settings has 'strategy'"):
        conformance("torch", settings={"strategy": "torch"}, thorough=True)


def test_as_an_author_sees_it(pytester, monkeypatch):
    """One line in a test file, of an environment in which nothing else is said."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(
        test_mine=textwrap.dedent(
            """
            from hooktrain import hookimpl
            from hooktrain.testing import conformance

            class Mine:
                @hookimpl
                def on_step_end(self, output):
                    print(float(output.total))

            test_conformance = conformance(
                Mine, skip={"cost": "prints"}, checks=["hooks", "import", "device", "state", "cost"], thorough=True
            )
            """
        )
    )
    words = ["-p", "no:cacheprovider", "--strict-markers", "-m", "not thorough"]
    done = pytester.run(sys.executable, "-m", "pytest", *words, "-v", "-rs")
    done.assert_outcomes(passed=2, failed=1, skipped=2, deselected=2)
    done.stdout.fnmatch_lines(
        [
            "test_mine.py::test_conformance?hooks? PASSED*",
            "test_mine.py::test_conformance?device? FAILED*",
            "plugin 'Mine', conformance check 'device':",
            "on_step_end, test_mine.py:7: reads a value: print(float(output.total))",
            "rule: between two log lines nothing waits for the device*",
            "mend: keep tensors as they are, detached*",
            "*hooktrain conformance*",
            "Mine, import: * modules, 0.* s (0.* s of a processor)",
            "time was not judged; --hooktrain-time judges budget= and import_seconds=",
            "SKIPPED*'Mine', state: the plugin keeps no state*",
        ]
    )
    assert "hooktrain/testing" not in done.stdout.str().partition("FAILURES")[2].partition("short test summary")[0]


def test_a_process_that_cannot_import(tmp_path):
    with pytest.raises(HooktrainError, match=r"was to import .*\bno_such_module\b.* has ended"):
        run_jobs(Job("os:getpid", {}, tmp_path), preload=["no_such_module"])


def test_processes_that_fail_or_hang(tmp_path):
    jobs = [Job("os:getpid", {"of": 1}, tmp_path / "wrong"), Job("os:getpid", {}, tmp_path / "right")]
    wrong, right = run_jobs(*jobs, preload=LIGHT)
    assert (wrong.status, right.status) == (1, 0)
    assert "TypeError" in wrong.output
    assert right.result != os.getpid()
    (hung,) = run_jobs(Job("tests.bad_plugins:hang", {}, tmp_path / "hung"), preload=LIGHT, timeout=1.0)
    assert hung.status is None
