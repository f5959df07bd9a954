"""Commands of plugins: listed by their metadata, imported only when one is run."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from hooktrain import PluginError
from hooktrain.cli.main import cli
from hooktrain.plugin.commands import plugin_command, plugin_commands
from tests.facts import facts

GREETS = """
import click
import hooktrain

@click.command()
@click.option("--name", default="you")
def greet(name):
    click.echo(f"hello {name} from a plugin")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(name, info)``: a module with a command that ``HOOKTRAIN_PLUGINS`` names."""

    def made(name: str, info: str) -> None:
        (tmp_path / f"{name}.py").write_text(f"{GREETS}\nhooktrain_plugin = hooktrain.PluginInfo({info})\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("HOOKTRAIN_PLUGINS", name)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return made


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """``distribution(name, command, path)``: metadata as an installed distribution has them."""

    def made(name: str, command: str, path: str) -> None:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[hooktrain.commands]\n{command} = {path}\n")
        (tmp_path / f"{name}.py").write_text(GREETS)
        monkeypatch.syspath_prepend(str(tmp_path))

    return made


def test_a_module_names_its_commands(module):
    module("brings", "commands={'greet': 'brings:greet'}")
    shown = CliRunner().invoke(cli, ["greet", "--name", "all"])
    assert shown.output == "hello all from a plugin\n"


def test_help_lists_installed_commands_and_imports_no_plugin(distribution):
    distribution("greeter", "greet", "greeter:greet")
    shown = CliRunner().invoke(cli, ["--help"]).output
    assert "greeter 1.0" in shown and "verify-resume" in shown
    assert "greeter" not in sys.modules
    assert CliRunner().invoke(cli, ["greet"]).output == "hello you from a plugin\n"
    assert "greeter" in sys.modules


def test_running_a_command_imports_that_plugin_only(distribution):
    distribution("greeter", "greet", "greeter:greet")
    distribution("other", "leave", "other:greet")
    sys.modules.pop("other", None)
    assert plugin_command("greet") is not None and "other" not in sys.modules


def test_a_word_that_is_no_command_names_those_there_are(distribution):
    distribution("greeter", "greet", "greeter:greet")
    shown = CliRunner().invoke(cli, ["greeet"])
    assert shown.exit_code == 2
    assert all(word in shown.output for word in ("'greeet'", "did you mean 'greet'?", "verify-resume", "train"))


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("greeter:absent", ["hooktrain greet", "greeter:absent", "greeter 1.0", "AttributeError"]),
        ("no_such_module:greet", ["hooktrain greet", "no_such_module:greet", "ModuleNotFoundError"]),
        ("greeter:GREETING", ["hooktrain greet", "greeter:GREETING", "str", "click command"]),
    ],
)
def test_a_command_that_is_none_is_refused(distribution, tmp_path, path, named):
    distribution("greeter", "greet", path)
    (tmp_path / "greeter.py").write_text("GREETING = 'hello'\n")
    sys.modules.pop("greeter", None)
    with pytest.raises(PluginError, match=facts(*named)):
        plugin_command("greet")


def test_two_plugins_with_a_command_of_one_name_are_named(distribution):
    distribution("greeter", "greet", "greeter:greet")
    distribution("welcomer", "greet", "welcomer:greet")
    with pytest.raises(PluginError, match=facts("hooktrain greet", "greeter 1.0", "welcomer 1.0", "uninstall")):
        plugin_commands()
