"""Distributions built into wheels, and virtual environments that these are installed in, without a network."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from filelock import FileLock

from hooktrain.testing.processes import Run, finish

__all__ = ["PIP", "Environment", "build_wheels", "make_environment", "shared", "write_recipe"]

PIP = ("-m", "pip", "--disable-pip-version-check", "-q")

_SEVERAL = """
import contextlib, io, json, sys, traceback
from hooktrain.cli import main
done = []
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        except Exception:
            traceback.print_exc()
            status = 1
    done.append([status or 0, stdout.getvalue(), stderr.getvalue()])
print(json.dumps(done))
"""


@attrs.frozen
class Environment:
    """A virtual environment.

    Attributes:
        python: its interpreter.
        variables: what its processes have besides the variables of the test's.
    """

    python: Path
    variables: Mapping[str, str] = {}

    def hooktrain(self, folder: Path, *words: str | Path, env: Mapping[str, str] = {}) -> Run:
        """Run ``hooktrain`` in a folder; ``runs/<recipe>`` is where metrics are read."""
        run = finish([str(self.python), "-m", "hooktrain", *map(str, words)], folder, env={**self.variables, **env})
        return run._replace(folder=_run_dir(folder, words))

    def several(self, folder: Path, *commands: Sequence[str | Path]) -> list[Run]:
        """Run ``hooktrain`` with one command line after the other, in one process as most of the time goes into imports."""
        words = json.dumps([list(map(str, command)) for command in commands])
        run = finish([str(self.python), "-c", _SEVERAL, words], folder, env=self.variables)
        assert run.status == 0, run.output
        done = json.loads(run.stdout.splitlines()[-1])
        return [Run(*each, 0.0, _run_dir(folder, command)) for each, command in zip(done, commands, strict=True)]

    def run(self, folder: Path, *words: str | Path) -> Run:
        """Run its Python."""
        return finish([str(self.python), *map(str, words)], folder, env=self.variables)


def _run_dir(folder: Path, words: Sequence[str | Path]) -> Path:
    recipes = [Path(word).stem for word in words if Path(word).suffix == ".yaml"]
    return folder.joinpath("runs", *recipes[:1])


def build_wheels(folder: Path, sources: Iterable[Path]) -> Path:
    """Build distributions with the tools that are installed; returns where their wheels are.

    They are built from copies, as setuptools writes into what it builds.
    """
    copies = []
    for source in sources:
        copies.append(folder / "sources" / source.name)
        shutil.copytree(source, copies[-1], ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    options = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder / "wheels")]
    subprocess.run([sys.executable, *PIP, *options, *map(str, copies)], check=True)
    return folder / "wheels"


def make_environment(
    folder: Path, wheels: Path, distributions: Sequence[str], beside: Environment | None = None
) -> Environment:
    """A new virtual environment that sees what this one has, and what the one beside it has, with distributions from a
    folder of wheels: they and what they depend on have to be there.
    """
    venv.create(folder)
    scheme = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    seen = [*([] if beside is None else [_packages_of(beside)]), *site.getsitepackages()]
    # not a path to each folder, as the .pth files in these are to be read too, which are there for editable installs
    lines = [f"import site; site.addsitedir({path!r})\n" for path in seen]
    Path(scheme, "seen.pth").write_text("".join(lines), encoding="utf-8")
    python = folder / "bin" / "python"
    install = [*PIP, "install", "--no-index", "--find-links", str(wheels), *distributions]
    subprocess.run([str(python), *install], check=True)
    return Environment(python)


def _packages_of(environment: Environment) -> str:
    folder = str(environment.python.parents[1])
    return sysconfig.get_path("purelib", "venv", {"base": folder, "platbase": folder})


def shared(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder that is made once for all processes of pytest-xdist.

    Args:
        tmp_path_factory: pytest's.
        name: of the folder.
        make: fills it.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # which belongs to this run of pytest
    with FileLock(base / f"{name}.lock"):
        if not (base / name / "made").exists():
            (base / name).mkdir()
            make(base / name)
            (base / name / "made").touch()
    return base / name


def write_recipe(path: Path, recipe: Mapping[str, Any]) -> Path:
    """A recipe as a file."""
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
    return path
