"""``hooktrain new-plugin``: from hooktrain's own wheel to a plugin that is built, installed, tested and run."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hooktrain.cli.new_plugin import LONGEST, PluginNames, new_plugin, write_plugin
from hooktrain.errors import HooktrainError
from tests.environments import PIP, Environment, build_wheels, shared, unpack
from tests.facts import facts

ROOT = Path(__file__).parents[2]
PROJECT = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def _build(folder: Path) -> None:
    source = folder / "hooktrain"
    source.mkdir()
    shutil.copytree(ROOT / "hooktrain", source / "hooktrain", ignore=shutil.ignore_patterns("__pycache__"))
    for name in PROJECT:
        shutil.copy(ROOT / name, source)
    build_wheels(folder, [source])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """hooktrain's own wheel."""
    (found,) = shared(tmp_path_factory, "hooktrain", _build).glob("wheels/hooktrain-*.whl")
    return found


@pytest.fixture(scope="module", params=["unpacked", pytest.param("installed", marks=pytest.mark.thorough)])
def environment(request, tmp_path_factory):
    """Where the wheel of a plugin that hooktrain wrote is on the path, and the plugin's folder.

    *Installed* is what a reader has who has nothing of this repository: pip has installed it, and hooktrain's own wheel.
    """
    folder = tmp_path_factory.mktemp("scaffold")
    site = folder / "site"
    installed = request.param == "installed"
    if installed:
        _install(site, request.getfixturevalue("wheel"))
    made = Environment.of(site)
    shown = succeeded(made, folder, "-m", "hooktrain", "new-plugin", "Square-Root2")
    assert shown.splitlines()[-6:] == [
        "",
        "  cd hooktrain-square-root2",
        '  pip install -e ".[test]"',
        "  python -m pytest",
        "  hooktrain plugins",
        "  hooktrain train recipe.yaml",
    ]
    wheels = list(build_wheels(folder, [folder / "hooktrain-square-root2"]).iterdir())
    if installed:
        _install(site, *wheels)
    else:
        unpack(wheels, site)
    return made, folder / "hooktrain-square-root2"


def _install(site: Path, *wheels: Path) -> None:
    install = [sys.executable, *PIP, "install", "--no-deps", "--target", str(site)]
    subprocess.run([*install, *map(str, wheels)], check=True)


def succeeded(environment: Environment, folder: Path, *words: str) -> str:
    """The output of a Python program."""
    run = environment.run(folder, *words)
    assert run.status == 0, run.output
    return run.stdout.rstrip("\n")


def test_the_wheel_of_hooktrain_holds_its_files(wheel):
    held = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "hooktrain").rglob("*"):
        place = path.relative_to(ROOT)
        left_out = any(part.startswith((".", "__pycache__")) for part in place.parts) or path.name == "ruff.toml"
        assert left_out or path.is_dir() or place.as_posix() in held, f"{place} is missing in the wheel"


def test_its_tests_pass(environment):
    made, folder = environment
    assert " passed" in succeeded(made, folder, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_it_is_seen_and_does_what_it_says(environment):
    made, folder = environment
    listed = json.loads(succeeded(made, folder, "-m", "hooktrain", "plugins", "--json"))
    (fact,) = [fact for fact in listed if fact["name"] == "square_root2"]
    assert (fact["distribution"], fact["version"], fact["state"]) == ("hooktrain-square-root2", "0.1.0", "active")
    assert fact["registers"] == ["scheduler/square_root2", "settings/square_root2"]
    assert "on_step_end" in fact["hooks"]
    succeeded(made, folder, "-m", "hooktrain", "train", "recipe.yaml")
    lines = [json.loads(line) for line in (folder / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines[:5]] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    assert lines[19]["lr"] == pytest.approx(0.05 / 2), "four times the warm-up is half of the rate"
    mean = lines[0]["loss"]
    for line in lines[1:]:
        mean = 0.8 * mean + 0.2 * line["loss"]
        assert line["square_root2/loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("name", ["x", "a" * LONGEST, "m-1"])
def test_the_code_is_in_order_whatever_the_name(tmp_path, name):
    folder = write_plugin(PluginNames.of(name), tmp_path)
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
        ended = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "RAYON_NUM_THREADS": "1"},
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    written = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert "PLUGIN" not in written


def test_names():
    for given in ("My-Plugin2", "my_plugin2", "hooktrain-my-plugin2", "hooktrain_My_Plugin2"):
        assert PluginNames.of(given) == ("my_plugin2", "hooktrain_my_plugin2", "hooktrain-my-plugin2")
    for given in ("", "3d", "a--b", "a-", "_a", "a.b", "a b", "a/b", "é", "hooktrain", "../a", "a" * (LONGEST + 1)):
        with pytest.raises(HooktrainError, match=facts(f"'{given}'", "my-plugin")):
            PluginNames.of(given)
    for given, named in (
        ("on", ["'on'", "True"]),
        ("null", ["'null'", "None"]),
        ("Optimizer", ["'optimizer'", "recipe"]),
        ("loss_log_interval", ["'loss_log_interval'", "recipe"]),
    ):
        with pytest.raises(HooktrainError, match=facts(*named)):
            PluginNames.of(given)


def test_names_that_are_taken(tmp_path):
    for name, why in (
        ("sft", "plugin 'sft' (hooktrain-sft "),
        ("cosine", "plugin 'torch' (hooktrain-torch "),
        ("console", "plugin 'console' (hooktrain "),
    ):
        with pytest.raises(HooktrainError, match=facts(f"'{name}'", why)):
            new_plugin.main([name, "--dir", str(tmp_path)], standalone_mode=False)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    names = PluginNames.of("twice")
    folder = write_plugin(names, tmp_path / "new" / "folder")
    (folder / "README.md").write_text("mine")
    with pytest.raises(HooktrainError, match=facts(str(folder))):
        write_plugin(names, tmp_path / "new" / "folder")
    assert (folder / "README.md").read_text() == "mine"


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, cause in (
        (Path("/proc/nothing"), "No such file or directory"),
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
    ):
        with pytest.raises(HooktrainError, match=facts(str(folder), cause, "--dir")):
            write_plugin(PluginNames.of("lost"), folder)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files")
def test_nothing_is_left_of_half_a_package(tmp_path):
    """A process that may not write files of more than 1,000 bytes gets through some of them."""
    code = (
        "from hooktrain.cli.new_plugin import *; from pathlib import Path; write_plugin(PluginNames.of('half'), Path())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert "hooktrain-half: " in ended.stderr and "(File too large)" in ended.stderr
    assert not list(tmp_path.iterdir())
