"""What is shown of plugins and hooks: complete, in order, and also where something is broken."""

from __future__ import annotations

import re

import pytest

from hooktrain import HooktrainError, PluginInfo, hookimpl
from hooktrain.inspection.hooks import hooks_of, print_hooks
from hooktrain.inspection.plugins import plugins_of, print_plugin, print_plugins
from hooktrain.testing import host_of
from hooktrain.training.load import make_host
from hooktrain.training.python_parts import PythonParts
from tests.facts import facts


class Replaces:
    """Runs steps in a way of its own.

    And says more about it.
    """

    hooktrain_plugin = PluginInfo(name="replaces")

    @hookimpl
    def run_step(self, trainer, batches):
        return NotImplemented

    @hookimpl(wrapper=True)
    def make_model(self):
        return (yield)


def plugins_by_name(host):
    return {fact["name"]: fact for fact in plugins_of(host)}


def test_a_plugin_says_what_it_brings_and_what_of_it_is_not_reached():
    host = host_of(Replaces())
    found = plugins_by_name(host)
    assert found["replaces"]["documentation"] == "Runs steps in a way of its own."
    assert found["replaces"]["wraps"] == ["make_model"]
    assert found["replaces"]["shadowed"] == []
    assert found["loop"]["shadowed"] == [{"hook": "run_step", "by": "replaces"}]
    assert found["replaces"]["file"] == __file__
    (summary,) = [part["summary"] for part in found["TinyPlugin"]["parts"] if part["kind"] == "data"]
    assert re.search(facts("token", "random"), summary)


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(width, on_terminal):
    host = make_host()
    for show, found in (
        (print_plugins, plugins_of(host)),
        (print_hooks, hooks_of(host)),
        (print_plugin, plugins_of(host, "torch")),
    ):
        lines = on_terminal(width, show, found)
        assert max(map(len, lines)) <= width


@pytest.mark.parametrize("columns", [None, "80"])
def test_a_pipe_has_no_width(columns, monkeypatch, capsys):
    """Whatever the environment says: a shell or a Python process exports the width of a terminal that this is not."""
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    host = make_host()
    print_plugins(plugins_of(host))
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(host.records)
    (line,) = [line for line in table if line.startswith("torch ")]
    assert "optimizer adamw, adam, sgd, muon, torch" in line
    assert "command verify-resume" in line
    print_hooks(hooks_of(host))
    hooks = capsys.readouterr().out.splitlines()
    (line,) = [line for line in hooks if line.startswith("make_optimizer ")]
    assert " optimizer" in line and "| torch" in line
    print_plugin(plugins_of(host, "torch"))
    plugin = capsys.readouterr().out.splitlines()
    (line,) = [line for line in plugin if line.startswith("hooks ")]
    assert line.endswith(plugins_of(host, "torch")[0]["hooks"][-1])
    assert all(line == line.rstrip() for line in (*table, *hooks, *plugin))


def test_one_plugin_in_full(capsys):
    print_plugin(plugins_of(make_host(), "torch"))
    shown = capsys.readouterr().out
    assert "optimizer: {type: adamw}" in shown
    assert "decoupled weight decay" in shown
    assert "hooktrain_torch/plugin.py" in shown
    with pytest.raises(HooktrainError, match=facts("plugin", "'torhc'", "'torch'")):
        plugins_of(make_host(), "torhc")


BROKEN = {
    "a-error": ("raise ValueError('what [now]?')", "ValueError: what [now]?"),
    "a-missing": ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
    "a-syntax": ("def f(:\n", "SyntaxError"),
    "a-nothing": ("x = 1\n", "implements no hook"),
    "a-quits": ("raise SystemExit('I need a GPU')", "SystemExit: I need a GPU"),
}


def test_broken_plugins_are_listed_with_the_cause(installed, capsys):
    for name, (source, _) in BROKEN.items():
        installed(name, source)
    host = make_host()
    print_plugins(plugins_of(host))
    shown = capsys.readouterr().out
    for name, (_, reason) in BROKEN.items():
        assert plugins_by_name(host)[name]["state"] == "failed"
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{name}: ")]
        assert reason in line
    assert "torch " in shown, "the others are listed anyway"


def test_on_a_terminal_a_cause_is_a_line_that_can_be_copied(installed, on_terminal):
    reason = "it needs what is not here, " * 9 + "at last"
    installed("a-long", f"raise ValueError({reason!r})")
    host = make_host()
    for show, found in ((print_plugins, plugins_of(host)), (print_plugin, plugins_of(host, "a-long"))):
        (line,) = [line for line in on_terminal(80, show, found) if line.startswith("a-long: ")]
        assert line.endswith(f"ValueError: {reason}")


def test_what_only_objects_in_hand_are_is_not_offered():
    """A recipe file cannot say ``type: python``, as it holds no objects."""
    host = make_host()
    found = plugins_by_name(host)
    assert found["python_parts"]["registers"] == [] and found["python_parts"]["parts"] == []
    assert not [offer for fact in found.values() for offer in fact["registers"] if offer.endswith("/python")]
    objects = PythonParts()
    objects.add("model", object())
    assert plugins_by_name(make_host(python_parts=objects))["python_parts"]["registers"] == ["type/python"]


def test_clashing_distributions_and_missing_metadata_are_listed(installed, tmp_path, capsys):
    for distribution in ("one", "other"):
        installed("a-same", "raise RuntimeError('never loaded')", distribution=distribution)
    installed("b-bare", "import hooktrain\n@hooktrain.hookimpl\ndef on_train_start(trainer): pass\n")
    (tmp_path / "site" / "b_bare-1.2.dist-info" / "METADATA").unlink()
    print_plugins(plugins_of(make_host()))
    lines = capsys.readouterr().out.splitlines()
    (twins,) = [line for line in lines if line.startswith("a-same: ")]
    assert "one and other" in twins and "'a-same'" in twins
    (bare,) = [line for line in lines if line.startswith("b-bare")]
    assert bare.split()[1:3] == ["unknown", "active"]


def test_the_commands_of_a_plugin_are_listed():
    class Greets:
        hooktrain_plugin = PluginInfo(name="greets", commands={"greet": "a_module_that_nobody_imports:greet"})

    assert plugins_by_name(host_of(Greets()))["greets"]["commands"] == ["greet"]
    assert plugins_by_name(make_host())["torch"]["commands"] == ["verify-resume"], "of its distribution's metadata"


def test_hooks_in_call_order_with_their_documentation(capsys):
    host = host_of(Replaces())
    (fact,) = hooks_of(host, "run_step")
    assert [(each["plugin"], each["role"]) for each in fact["implementations"]] == [
        ("replaces", "runs"),
        ("loop", "not called"),
    ]
    print_hooks([fact])
    shown = capsys.readouterr().out
    assert re.search(facts("optimizer step", "accumulation window"), shown)
    assert "\nCalled: " in shown
    everything = hooks_of(host)
    assert [fact["name"] for fact in everything][:2] == ["register_hookspecs", "register_configs"]
    assert all(fact["documentation"] for fact in everything)
    roles = {(f["name"], e["plugin"]): e["role"] for f in everything for e in f["implementations"]}
    assert roles["make_model", "replaces"] == "wraps"
    assert roles["make_model", "TinyPlugin"] == "is tried"
    assert roles["on_log", "console"] == "is called"
    assert roles["register_configs", "console"] == "collected"


def test_hooks_that_a_plugin_brings_are_told_apart(capsys):
    (fact,) = hooks_of(make_host(), "pack_sequences")
    assert fact["declared_in"] == "hooktrain_sft.hookspecs"
    assert fact["kind"] == "brought by a plugin"
