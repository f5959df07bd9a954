"""Which files a run's plugins consist of is written down, shown when they are others, and can be required."""

from __future__ import annotations

import json
import re

import pytest

from hooktrain import PluginError, hookimpl
from hooktrain.plugin.digests import digest_of
from hooktrain.plugin.lockfile import lock_differences, write_lock
from hooktrain.testing import TinyPlugin
from hooktrain.training.load import load, make_host
from tests.facts import facts

WATCHES = """
import hooktrain
@hooktrain.hookimpl
def on_train_start(trainer): pass
"""


@pytest.fixture
def site(tmp_path):
    return tmp_path / "site"


def digest(host, name):
    return next(record["digest"] for record in host.manifest() if record["name"] == name)


def test_the_manifest_tells_files_apart(installed, site, monkeypatch):
    import sys

    installed("a-first", WATCHES)
    before = digest(make_host(), "a-first")
    assert len(before) == 32 and digest(make_host(), "a-first") == before
    (site / "mod_a_first.py").write_text(WATCHES + "\n# changed\n")
    del sys.modules["mod_a_first"]
    from hooktrain.plugin import digests as lock

    lock._of_files.cache_clear()
    assert digest(make_host(), "a-first") != before


def test_a_package_counts_with_all_of_its_files_but_not_with_what_python_compiled(tmp_path, monkeypatch):
    import importlib

    from hooktrain.plugin import digests as lock

    folder = tmp_path / "a_package_of_files"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("x = 1\n")
    (folder / "inner" / "table.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("a_package_of_files")
    found = []
    for change in ("", "__pycache__/x.pyc", ".DS_Store", ".cache/x.json", "inner/table.json", "inner/more.txt"):
        if change:
            (folder / change).parent.mkdir(exist_ok=True)
            (folder / change).write_text("something else")
        lock._of_folders.cache_clear()
        lock._of_files.cache_clear()
        found.append(digest_of(module, distributed=True))
    assert found[0] == found[1] == found[2] == found[3] and len(set(found)) == 3


def test_a_plugin_without_a_file_has_no_digest():
    made = {}
    exec("class Typed: pass", {"__name__": "no_such_module"}, made)
    assert digest_of(made["Typed"](), distributed=False) == ""


def test_a_lock_is_written_required_and_says_every_difference(run_cli, tiny_recipe, tmp_path):
    source = "import hooktrain\n@hookimpl\ndef on_step_end(): pass\n"
    lock = tmp_path / "plugins.lock"
    made = run_cli("plan", tiny_recipe, "-p", "extra", "--lock", str(lock), source=source)
    assert made.status == 0 and f"{lock}: " in made.stdout, made.output
    names = [record["name"] for record in json.loads(lock.read_text())["plugins"]]
    assert names[0] == "loop" and {"torch", "extra"} <= set(names)
    required = {**tiny_recipe, "plugins": {"lock": str(lock)}}
    fits = run_cli("train", required, "-p", "extra", source=source)
    assert fits.status == 0, fits.output
    other = run_cli("train", required, "-p", "extra", "-p", "no:hf", source=source + "# changed\n")
    assert other.status == 1
    assert "plugins.lock: " in other.stderr and str(lock) in other.stderr
    assert "'extra' (extra)" in other.stderr and "'hf' (hooktrain-hf" in other.stderr
    assert "'torch'" not in other.stderr, "which is as the lock has it"
    assert "Traceback" not in other.stderr
    anew = run_cli("plan", required, "-p", "extra", "--lock", str(lock), source=source + "# changed\n")
    assert anew.status == 0, "a lock that no longer fits can be written anew"
    planned = run_cli("plan", required, "-p", "extra", "--json", source=source)
    assert any("plugins.lock" in each["message"] for each in json.loads(planned.stdout)["complaints"]), planned.output


def test_every_kind_of_difference():
    def record(name, version="1", digest="a"):
        return {"name": name, "distribution": f"of-{name}", "version": version, "digest": digest}

    locked = [record("same"), record("gone"), record("older"), record("edited"), record("moved")]
    now = [record("moved"), record("same"), record("older", "2"), record("edited", digest="b"), record("new")]
    found = lock_differences(locked, now)
    named = (
        ["'gone' (of-gone 1)"],
        ["'older' (of-older 2)", "'older' (of-older 1)"],
        ["'edited' (of-edited 1)", "files"],
        ["'new' (of-new 1)"],
        ["order", "moved, edited, older, same,", "edited, older, same, moved"],
    )
    for difference, texts in zip(found, named, strict=True):
        assert re.search(facts(*texts), difference), difference
    assert lock_differences(locked, locked) == []


def test_files_that_several_plugins_share_are_told_of_once():
    def of(digest):
        return [{"name": n, "distribution": "hooktrain", "version": "1", "digest": digest} for n in ("loop", "jsonl")]

    (found,) = lock_differences(of("a"), of("b"))
    assert "'loop' (hooktrain 1)" in found


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"plugins": [1]}', "plugins: [a]"])
def test_what_is_no_lock_is_refused(tmp_path, text):
    path = tmp_path / "x.lock"
    path.write_text(text)
    with pytest.raises(PluginError, match=facts("plugins.lock:", str(path), "`hooktrain plan RECIPE --lock")):
        load({"type": "tiny", "plugins": {"lock": str(path)}}, plugins=[TinyPlugin()])


def test_a_lock_that_is_not_there_or_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(PluginError, match=facts("plugins.lock:", str(tmp_path / "nowhere.lock"), "--lock")):
        load({"type": "tiny", "plugins": {"lock": str(tmp_path / "nowhere.lock")}}, plugins=[TinyPlugin()])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match=facts("plugins.lock:", "x.lock", str(tmp_path), "--lock")):
        load({"type": "tiny", "plugins": {"lock": "x.lock"}}, plugins=[TinyPlugin()])
    with pytest.raises(PluginError, match=facts(str(tmp_path / "no" / "folder.lock"), "No such file")):
        write_lock(make_host(discover=False), tmp_path / "no" / "folder.lock")


# ------------------------------------------------------------------------------------------------------- drift


class Nudges:
    @hookimpl(wrapper=True)
    def compute_loss(self):
        return (yield)


class AlsoNudges(Nudges):
    pass


def resume(run_tiny, *plugins, **changes):
    saving = {"checkpoint": {"type": "full", "save_every_n_steps": 1, "auto_resume": True}}
    lines = []

    class Watches:
        @hookimpl
        def on_message(self, message):
            lines.append(message)

    run_tiny(Watches(), *plugins, **saving, **changes)
    return lines


def test_other_files_of_one_version_are_shown_when_a_run_goes_on(run_tiny, tmp_path):
    resume(run_tiny, Nudges(), exit_iteration=2)
    (path,) = tmp_path.glob("run/checkpoints/step-00000002/provenance.json")
    assert '"digest"' in path.read_text()
    from hooktrain.training import resume_check

    before = json.loads(path.read_text())["plugins"]
    edited = [{**each, "digest": "0"} if each["name"] == "Nudges" else each for each in before]
    (change,) = resume_check._in_plugins(edited, before)
    assert str(change).startswith("plugins.Nudges: ") and "files" in str(change)


def test_another_order_of_those_that_have_a_hand_in_the_training_is_refused(run_tiny):
    from hooktrain import CheckpointError

    resume(run_tiny, Nudges(), AlsoNudges(), exit_iteration=2)
    with pytest.raises(CheckpointError, match=facts("plugins.order:", "AlsoNudges, Nudges,", "Nudges, AlsoNudges")):
        resume(run_tiny, AlsoNudges(), Nudges())
    lines = resume(run_tiny, AlsoNudges(), Nudges(), allow_changes=["plugins.order"])
    assert any(re.search(facts("plugins.order:", "AlsoNudges, Nudges"), line) for line in lines)
