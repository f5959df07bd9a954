"""What is shown of plugins and hooks: complete, in order, and also where something is broken."""

from __future__ import annotations

import sys

import click
import pytest

from hooktrain import HooktrainError, hookimpl
from hooktrain.build import make_host
from hooktrain.given import Given
from hooktrain.report.hooks import hooks_of, print_hooks
from hooktrain.report.plugins import plugins_of, print_plugin, print_plugins
from hooktrain.testing import host_of


class Replaces:
    """Runs steps in a way of its own.

    And says more about it.
    """

    plugin_name = "replaces"

    @hookimpl
    def run_step(self, trainer, batches):
        return NotImplemented

    @hookimpl(wrapper=True)
    def make_model(self):
        return (yield)


def facts_of(host):
    return {fact["name"]: fact for fact in plugins_of(host)}


def test_a_plugin_says_what_it_brings_and_what_of_it_is_not_reached():
    host = host_of(Replaces())
    facts = facts_of(host)
    assert facts["replaces"]["documentation"] == "Runs steps in a way of its own."
    assert facts["replaces"]["wraps"] == ["make_model"]
    assert facts["replaces"]["shadowed"] == []
    assert facts["loop"]["shadowed"] == [{"hook": "run_step", "by": "replaces"}]
    assert facts["replaces"]["file"] == __file__
    assert {"kind": "data", "name": "tiny", "summary": "Random token sequences of random lengths."} in facts[
        "TinyPlugin"
    ]["parts"]


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(width, on_terminal):
    host = make_host()
    for show, facts in (
        (print_plugins, plugins_of(host)),
        (print_hooks, hooks_of(host)),
        (print_plugin, plugins_of(host, "torch")),
    ):
        lines = on_terminal(width, show, facts)
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
    assert "optimizer adamw, adam, sgd, torch" in line
    assert "command verify-resume" in line
    print_hooks(hooks_of(host))
    hooks = capsys.readouterr().out.splitlines()
    (line,) = [line for line in hooks if line.startswith("make_optimizer ")]
    assert "Build the optimizer" in line and "| torch" in line
    print_plugin(plugins_of(host, "torch"))
    plugin = capsys.readouterr().out.splitlines()
    (line,) = [line for line in plugin if line.startswith("hooks ")]
    assert line.endswith(plugins_of(host, "torch")[0]["hooks"][-1])
    assert all(line == line.rstrip() for line in (*table, *hooks, *plugin))


def test_one_plugin_in_full(capsys):
    print_plugin(plugins_of(make_host(), "torch"))
    shown = capsys.readouterr().out
    assert "optimizer: {type: adamw}" in shown
    assert "Adam with decoupled weight decay" in shown
    assert "hooktrain_torch/plugin.py" in shown
    with pytest.raises(HooktrainError, match=r"no plugin is named 'torhc' \(did you mean 'torch'\?\)"):
        plugins_of(make_host(), "torhc")


BROKEN = {
    "a-error": ("raise ValueError('what [now]?')", "cannot be imported: ValueError: what [now]?"),
    "a-missing": ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
    "a-syntax": ("def f(:\n", "SyntaxError"),
    "a-nothing": ("x = 1\n", "implements no hook"),
    "a-quits": ("raise SystemExit('I need a GPU')", "cannot be imported: SystemExit: I need a GPU"),
}


def test_broken_plugins_are_listed_with_the_cause(installed, capsys):
    for name, (source, _) in BROKEN.items():
        installed(name, source)
    host = make_host()
    print_plugins(plugins_of(host))
    shown = capsys.readouterr().out
    for name, (_, reason) in BROKEN.items():
        assert facts_of(host)[name]["state"] == "failed"
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{name}: ")]
        assert reason in line
    assert "torch " in shown, "the others are there all the same"


def test_on_a_terminal_a_cause_is_a_line_that_can_be_copied(installed, on_terminal):
    reason = "it needs what is not here, " * 9 + "at last"
    installed("a-long", f"raise ValueError({reason!r})")
    host = make_host()
    lines = on_terminal(80, print_plugins, plugins_of(host))
    assert f"a-long: cannot be imported: ValueError: {reason}" in lines
    lines = on_terminal(80, print_plugin, plugins_of(host, "a-long"))
    assert f"a-long: cannot be imported: ValueError: {reason}" in lines


def test_what_only_objects_in_hand_are_is_not_offered():
    """A recipe file cannot say ``type: given``, as it holds no objects."""
    host = make_host()
    facts = facts_of(host)
    assert facts["given"]["offers"] == [] and facts["given"]["parts"] == []
    assert not [offer for fact in facts.values() for offer in fact["offers"] if offer.endswith("/given")]
    in_hand = Given()
    in_hand.hand("model", object())
    assert facts_of(make_host(given=in_hand))["given"]["offers"] == ["type/given"]


def test_clashing_distributions_and_missing_metadata_are_listed(installed, tmp_path, capsys):
    for distribution in ("one", "other"):
        installed("a-same", "raise RuntimeError('never loaded')", distribution=distribution)
    installed("b-bare", "import hooktrain\n@hooktrain.hookimpl\ndef on_train_start(trainer): pass\n")
    (tmp_path / "site" / "b_bare-1.2.dist-info" / "METADATA").unlink()
    print_plugins(plugins_of(make_host()))
    lines = capsys.readouterr().out.splitlines()
    (twins,) = [line for line in lines if line.startswith("a-same: ")]
    assert "one and other, both offer a plugin named 'a-same'" in twins
    (bare,) = [line for line in lines if line.startswith("b-bare")]
    assert bare.split()[1:3] == ["unknown", "active"]


def test_a_plugin_whose_commands_fail_is_listed(capsys):
    class Broken:
        plugin_name = "broken"

        @hookimpl
        def register_commands(self, cli):
            cli.add_command(click.Command("first"))
            sys.exit("no server")

    host = host_of(Broken())
    print_plugins(plugins_of(host))
    assert "broken: register_commands raises SystemExit: no server" in capsys.readouterr().out
    assert facts_of(host)["broken"]["commands"] == ["first"]


def test_hooks_in_call_order_with_their_documentation(capsys):
    host = host_of(Replaces())
    (fact,) = hooks_of(host, "run_step")
    assert [(each["plugin"], each["role"]) for each in fact["implementations"]] == [
        ("replaces", "answers"),
        ("loop", "not reached"),
    ]
    print_hooks([fact])
    shown = capsys.readouterr().out
    assert "One optimizer step over its whole accumulation window." in shown
    assert "\nCalled: " in shown
    everything = hooks_of(host)
    assert [fact["name"] for fact in everything][:2] == ["register_hookspecs", "register_configs"]
    assert all(fact["documentation"] for fact in everything)
    roles = {(f["name"], e["plugin"]): e["role"] for f in everything for e in f["implementations"]}
    assert roles["make_model", "replaces"] == "wraps"
    assert roles["make_model", "TinyPlugin"] == "is asked"
    assert roles["on_log", "console"] == "hears"
    assert roles["register_configs", "console"] == "adds"


def test_hooks_that_a_plugin_brings_are_told_apart(capsys):
    (fact,) = hooks_of(make_host(), "pack_rows")
    assert fact["declared_in"] == "hooktrain_sft.hookspecs"
    assert fact["kind"] == "brought by a plugin"
