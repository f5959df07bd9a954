"""Distributions built into wheels, and what these are installed in: folders on the path, or virtual environments."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from filelock import FileLock

from hooktrain.testing.subprocess_runs import Run, finish

__all__ = ["PIP", "PYTEST", "Environment", "build_wheels", "make_environment", "shared", "unpack", "write_recipe"]

PIP = ("-m", "pip", "--disable-pip-version-check", "-q")
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib")
BACKEND = "setuptools.build_meta"

_BUILD = f"""
import os, sys
import {BACKEND} as backend
wheels, *sources = sys.argv[1:]
for source in sources:
    os.chdir(source)
    (backend if os.path.exists("pyproject.toml") else backend.__legacy__).build_wheel(wheels)
"""


@attrs.frozen
class Environment:
    """What a distribution is installed in.

    Attributes:
        python: the interpreter.
        variables: what its processes have besides the variables of the test's.
    """

    python: Path
    variables: Mapping[str, str] = {}

    @classmethod
    def of(cls, *sites: Path) -> Environment:
        """This environment, with folders on the path in which wheels are unpacked."""
        return cls(Path(sys.executable), {"PYTHONPATH": os.pathsep.join(map(str, sites))})

    def hooktrain(self, folder: Path, *words: str | Path) -> Run:
        """Run ``hooktrain`` in a folder; ``runs/<recipe>`` is where metrics are read."""
        run = self.run(folder, "-m", "hooktrain", *words)
        recipes = [Path(word).stem for word in words if Path(word).suffix == ".yaml"]
        return run.of(folder.joinpath("runs", *recipes[:1]))

    def run(self, folder: Path, *words: str | Path) -> Run:
        """Run its Python."""
        return finish([str(self.python), *map(str, words)], folder, env=self.variables, timeout=300.0)


def build_wheels(folder: Path, sources: Iterable[Path]) -> Path:
    """Build distributions with the build backend that is installed, as pip does; returns where their wheels are.

    They are built from copies, as setuptools writes into what it builds.
    """
    copies = []
    for source in sources:
        copies.append(folder / "sources" / source.name)
        shutil.copytree(source, copies[-1], ignore=shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "build"))
        project = copies[-1] / "pyproject.toml"
        assert not project.exists() or f'build-backend = "{BACKEND}"' in project.read_text(encoding="utf-8"), project
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    built = finish([sys.executable, "-c", _BUILD, str(wheels), *map(str, copies)], folder)
    assert built.status == 0, built.output
    return wheels


def unpack(wheels: Iterable[Path], folder: Path) -> Path:
    """Install wheels by unpacking them into a folder, which is what an installer does with those that hold Python alone."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as file:
            assert "Root-Is-Purelib: true" in file.read(_metadata(file, "WHEEL")).decode()
            file.extractall(folder)
    return folder


def _metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (found,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return found


def make_environment(
    folder: Path, wheels: Path, distributions: Sequence[str], beside: Environment | None = None
) -> Environment:
    """A new virtual environment that sees what this one has, and what the one alongside it has, with distributions from a
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
