"""The conformance kit finds each broken rule, says how to fix it, and reports nothing else."""

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
from hooktrain.testing.jobs import Job, run_jobs
from hooktrain.testing.plugin_checks import CHECKS
from hooktrain.testing.plugin_checks.check_observes import check_observes
from hooktrain.testing.plugin_checks.kit import LIGHT, Broken, Kit, NotApplicable, Options
from hooktrain.testing.plugin_checks.plugin_reference import Spec, reference_to
from tests import bad_plugins
from tests.facts import facts

pytest_plugins = ["pytester"]

test_an_observer = conformance(bad_plugins.Observes, calls=3, allocations=2, thorough=True)
test_a_registered_part = conformance(
    bad_plugins.Registers, settings={"optimizer": "mine"}, checks=["hooks", "declines", "observes", "device"]
)


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """``check("device", plugin, option=value)``: run one check, or several that share runs."""

    def make(name: str, plugin: Any, **options: Any) -> Kit:
        kit = Kit(reference_to(plugin), Options(**options), tmp_path)
        for each in name.split():
            module, _, function = CHECKS[each].partition(":")
            getattr(importlib.import_module(f"hooktrain.testing.plugin_checks.{module}"), function)(kit)
        return kit

    return make


def test_a_state_that_is_changed_in_place_and_saved_at_every_step(check):
    check("state resume", bad_plugins.Averages)


def test_a_loop_hook_with_another_one_of_the_same(check):
    assert "at 1 hooks" in check("together", bad_plugins.DeclinesLate).notes["together"]


def test_a_loss_that_is_a_sum(check):
    for plugin in (bad_plugins.Scales, bad_plugins.CountsSequences):
        assert re.search(facts("total", "denominator"), check("loss", plugin).notes["loss"])
    with pytest.raises(NotApplicable, match=facts("compute_loss", "count_batch", "make_loss")):
        check("loss", bad_plugins.Averages)


def test_metrics_that_are_meant_to_change(tmp_path):
    kit = Kit(reference_to(bad_plugins.Averages), Options(), tmp_path)
    with pytest.raises(Broken, match=facts("eval/held_out/loss", "ignore=")):
        check_observes(kit)
    kit.options = Options(ignore=("eval/held_out/loss",))
    check_observes(kit)


def test_settings_of_other_parts_stay_in_the_run_without_the_plugin():
    """A plugin that reads logits needs a loss that makes them, and is compared with a run of the same loss."""
    settings = {"mine": {"on": True}, "loss": {"all_logits": True}, "optimizer": {"type": "mine"}, "data": {"rows": 5}}
    spec = Spec(reference=reference_to(bad_plugins.Registers), recipe={"data": {"seed": 1}}, settings=settings, steps=2)
    both = {"loss": {"all_logits": True}, "data": {"seed": 1}, "plugins": {}}
    assert spec.raw("without") == both
    assert spec.raw("unselected") == {**both, "mine": {"on": True}}
    assert spec.raw("with") == {**both, **settings, "data": {"seed": 1, "rows": 5}}
    assert spec.selected == ["optimizer", "data"]


BROKEN = [
    ("hooks", "Misspelt", ["'Misspelt'", "'on_step_ended'", "'on_step_end'"]),
    ("hooks", "Unmarked", ["on_step_end:", "not marked", "@hookimpl"]),
    ("hooks", "WrongParameter", ["'WrongParameter'", "on_step_end", "'result'"]),
    ("hooks", "NeverRuns", ["on_step_end:", "yield", "@hookimpl(wrapper=True)"]),
    ("declines", "Greedy", ["make_optimizer:", "list", "config"]),
    ("declines", "ReadsFirst", ["make_optimizer:", "config.lr"]),
    ("declines", "UsesFirst", ["make_optimizer:", "model.parameters"]),
    ("declines", "ImportsFirst", ["make_loss:", "this_and_that"]),
    ("declines", "AllocatesFirst", ["make_loss:", "aten.zeros"]),
    ("declines", "OpensFirst", ["make_loss:", "/proc/self/status"]),
    ("declines", "DrawsFirst", ["make_loss:", "random numbers"]),
    ("declines", "DeclinesLate", ["run_step:", "aten.ones.default", "before"]),
    ("state", "OnlyCollects", ["implements collect_state", "restore_state"]),
    ("state", "NotPlain", ["collect_state", "state['best']['path']", "pathlib.PosixPath"]),
    ("state", "NotRestored", ["restore_state", "collect_state", "new process", "steps: 4 and 0"]),
    ("resume", "Forgets", ["checkpoint", "step 5, loss: ", "weights: ", "optimizer's tensors: "]),
    ("observes", "Draws", ["status 1", "plugin 'Draws'", "on_step_start", "step 0", "random numbers from torch"]),
    ("observes", "DrawsInWrapper", ["without the plugin", "step 1, loss: "]),
    ("observes", "DeclaresAndDoesNothing", ["changes_gradients", "weights", "without it, bit by bit"]),
    ("ranks", "ByRank", ["one rank", "rank 0 of two", "step 1, loss: ", "1e-06"]),
    ("ranks", "OneRankRaises", ["rank 1", "status 1", "'OneRankRaises'", "on_step_end", "step 1", "out of luck"]),
    ("device", "ReadsLoss", ["on_step_end, bad_plugins.py:", "reads a value", "self.loss = output.total.item()"]),
    ("device", "ListsLoss", ["on_microbatch_end, bad_plugins.py:", "self.loss = loss.total.reshape(1).tolist()"]),
    ("device", "CopiesLoss", ["collect_metrics, bad_plugins.py:", "to the host", 'return {"weight": ']),
    ("device", "DecidesByLoss", ["compute_loss, bad_plugins.py:", "reads a value", "if loss.total > 3:"]),
    ("loss", "Means", ["total: ", "twice", "expected"]),
    ("loss", "MeansOfMore", ["right: ", "twice", "expected"]),
    (
        "teardown",
        "TearsDownWhatIsNotThere",
        ["make_strategy", "plugin 'TearsDownWhatIsNotThere'", "on_teardown", "AttributeError"],
    ),
    ("teardown", "TearsDownOnce", ["make_strategy", "on_teardown", "second time", "IndexError"]),
    ("teardown", "LeavesThread", ["on_epoch_start", "thread left"]),
    ("teardown", "LeavesVariable", ["on_epoch_start", "environment variable MINE"]),
    ("teardown", "Swallows", ["run_evaluate", "swallowed", "exception"]),
    ("together", "TakesMetrics", ["on_log", "changes its argument metrics"]),
    ("together", "DropsMetrics", ["called_before, called_after", "in no log line"]),
    ("together", "IsAlone", ["differ", "step 1, grad_norm: "]),
    ("cost", "Slow", ["10000.0 microseconds a step", " 1000 ", " 100.0 ", "on_step_end "]),
    ("cost", "Allocates", ["3 new tensors", " 2 ", "on_step_end 2"]),
    ("cost", "Observes", ["3 calls of hooks", " 2 ", "on_step_end 1"]),
]
"""A check, a plugin that breaks its rule, and facts of the report."""

OPTIONS: dict[str, dict[str, Any]] = {
    "Slow": {"time": True, "clock": "tests.bad_plugins:read_clock", "rounds": 3},
    "Allocates": {"allocations": 2},
    "Observes": {"calls": 2},
    "LeavesThread": {"failing": ["on_epoch_start"], "patience": 0.01},
    "LeavesVariable": {"failing": ["on_epoch_start"]},
    "Swallows": {"failing": ["run_evaluate"]},
    "TearsDownOnce": {"failing": ["make_strategy"]},
}


@pytest.mark.parametrize(("name", "plugin", "named"), BROKEN, ids=[f"{name}-{plugin}" for name, plugin, _ in BROKEN])
def test_a_broken_rule(check, name, plugin, named):
    with pytest.raises(Broken) as caught:
        check(name, getattr(bad_plugins, plugin), **OPTIONS.get(plugin, {}))
    found, rule, fix = parts_of(caught.value)
    assert re.search(facts(*named), found), found
    assert all(len(part.split()) > 2 for part in (found, rule, fix)), caught.value
    if plugin == "Forgets":
        assert re.search(facts("collect_state", "restore_state", "`hooktrain verify-resume RECIPE`"), fix), fix


def test_an_argument_that_the_plugin_contradicts(check):
    with pytest.raises(Broken, match=facts("changes_gradients=True", "declares changes_gradients=False")):
        check("observes", bad_plugins.Draws, changes_gradients=True)


def parts_of(error):
    """What was found, the rule, and the fix, the last two on labelled lines."""
    return re.fullmatch(r"(.*)\n\n\w+: (.*)\n\w+: (.*)", str(error), re.DOTALL).groups()


def test_a_rule_that_is_broken_where_ranks_hold_parts_of_the_weights(check):
    """What ``thorough=True`` makes, of which the tests under ZeRO are in the thorough tier."""
    check("ranks", bad_plugins.ScalesByShard)
    with pytest.raises(Broken, match=facts("one rank", "rank 0 of two", "step 1, loss: ")):
        check("ranks", bad_plugins.ScalesByShard, strategy="fsdp2")


def test_the_kit_tests_every_check():
    assert {name for name, *_ in BROKEN} | {"import"} == set(CHECKS)


IMPORTS = {
    "slow": ("", [" 0.", " -1 s"]),
    "heavy": ("import left_package", ["4 modules", " 3 ", "left_package"]),
    "thread": (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='left').start()",
        ["thread: left"],
    ),
    "file": ("open('left.txt', 'w').close()", ["left.txt", "writing"]),
    "variable": ("import os\nos.environ['LEFT'] = '1'", ["environment variables: LEFT"]),
    "process": ("import subprocess\nsubprocess.run(['true'])", ["process: true"]),
    "broken": ("import no_such_module", ["importing left_broken", "No module named 'no_such_module'"]),
}


@pytest.mark.parametrize(("source", "named"), list(IMPORTS.values()), ids=list(IMPORTS))
def test_an_import_that_costs_or_changes_too_much(check, tmp_path, monkeypatch, request, source, named):
    what = request.node.callspec.id
    written(tmp_path, monkeypatch, f"left_{what}", source)
    with pytest.raises(Broken) as caught:
        check("import", f"left_{what}", import_modules=3, import_seconds=-1, time=what == "slow")
    found, _, _ = parts_of(caught.value)
    assert re.search(facts("importing", *named), found), found


def test_an_import_whose_time_is_not_checked(check, tmp_path, monkeypatch):
    written(tmp_path, monkeypatch, "left_quick", "from left_package import one")
    kit = check("import", "left_quick", import_modules=4, import_seconds=-1)
    assert re.fullmatch(r"4 modules, \d\.\d{3} s \(\d\.\d{3} s of processor time\)", kit.notes["import"])


def test_an_import_whose_time_is_checked_with_the_option(
    tmp_path, tmp_path_factory, monkeypatch, pytestconfig, record_property
):
    written(tmp_path, monkeypatch, "left_timed", "")
    test = conformance("left_timed", import_seconds=-1)
    given = {"tmp_path_factory": tmp_path_factory, "pytestconfig": pytestconfig, "record_property": record_property}
    monkeypatch.setattr(pytestconfig.option, "hooktrain_time", True)
    with pytest.raises(pytest.fail.Exception, match=facts("'import'", "importing the plugin", " 0.", " -1 s")):
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


def test_checks_that_do_not_apply(check):
    with pytest.raises(NotApplicable, match=facts("collect_state", "restore_state")):
        check("state", bad_plugins.Draws)
    with pytest.raises(NotApplicable, match="changes gradients"):
        check("observes", bad_plugins.Declares)
    with pytest.raises(NotApplicable, match=facts("recipe", "without the plugin")):
        check("cost", "torch")
    with pytest.raises(NotApplicable, match=facts("1 calls of hooks", "3 new tensors", "--hooktrain-time")):
        check("cost", bad_plugins.Allocates, budget=0.0)


def test_a_cost_that_is_allowed(check):
    note = check("cost", bad_plugins.Slow, budget="1001%", **OPTIONS["Slow"]).notes["cost"]
    assert re.search(facts("1 calls of hooks", "0 new tensors", " 10000.0 microseconds", " 10010.0 "), note), note


def test_device_syncs_that_are_allowed(check):
    assert "1 device syncs" in check("device", bad_plugins.ReadsLoss, device_syncs=1).notes["device"]
    with pytest.raises(Broken, match=facts("1 device syncs", " 0.5 ", "on_step_end, bad_plugins.py")):
        check("device", bad_plugins.ReadsLoss, device_syncs=0.5)


def test_what_cannot_be_checked():
    class Inside:
        pass

    with pytest.raises(TypeError, match=facts("Inside", "inside a function")):
        conformance(Inside)
    with pytest.raises(ValueError, match=facts("'tirch'", "'torch'", "plugin", "module")):
        conformance("tirch")
    with pytest.raises(ValueError, match=facts("'rank'", "'ranks'", "check")):
        conformance("torch", skip={"rank": "why"})
    with pytest.raises(ValueError, match=facts("thorough=True", "settings", "'strategy'")):
        conformance("torch", settings={"strategy": "torch"}, thorough=True)


def test_as_an_author_sees_it(pytester, monkeypatch):
    """One line in a test file, in an environment without further options."""
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
            "rule: *device*",
            "*detached*collect_metrics*conformance(device_syncs=*",
            "*hooktrain conformance*",
            "Mine, import: * modules, 0.* s (0.* s of processor time)",
            "*--hooktrain-time*budget=*import_seconds=*",
            "SKIPPED*'Mine', state: *collect_state*restore_state*",
        ]
    )
    assert "hooktrain/testing" not in done.stdout.str().partition("FAILURES")[2].partition("short test summary")[0]


def test_a_process_that_cannot_import(tmp_path):
    with pytest.raises(HooktrainError, match=facts("import ", "no_such_module", "status 1")):
        run_jobs(Job("os:getpid", {}, tmp_path), preload=["no_such_module"])


def test_processes_that_fail_or_hang(tmp_path):
    jobs = [Job("os:getpid", {"of": 1}, tmp_path / "wrong"), Job("os:getpid", {}, tmp_path / "right")]
    wrong, right = run_jobs(*jobs, preload=LIGHT)
    assert (wrong.status, right.status) == (1, 0)
    assert "TypeError" in wrong.output
    assert right.result != os.getpid()
    (hung,) = run_jobs(Job("tests.bad_plugins:hang", {}, tmp_path / "hung"), preload=LIGHT, timeout=1.0)
    assert hung.status is None
