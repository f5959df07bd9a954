"""What the metadata promise to work with is what the tests run with: each lower bound is the pinned version."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PINNED = {
    name.lower(): version
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "tests/constraints.txt").read_text(), re.M)
}
BUILD = {"setuptools", "wheel"}
"""Tools that only build, in environments of their own."""


def requirements() -> list[tuple[str, str]]:
    own = configparser.ConfigParser()
    own.read(ROOT / "setup.cfg")
    listed = [own["options"]["install_requires"], *own["options.extras_require"].values()]
    found = [("hooktrain", line) for text in listed for line in text.split("\n") if line.strip()]
    for path in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        more = [each for extra in project.get("optional-dependencies", {}).values() for each in extra]
        found += [(project["name"], each) for each in (*project["dependencies"], *more)]
    return found


@pytest.mark.parametrize(("owner", "text"), requirements())
def test_a_lower_bound_is_a_version_that_was_tried(owner, text):
    requirement = Requirement(text)
    if requirement.name in BUILD:
        return
    (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
    tried = "0.2" if requirement.name.startswith("hooktrain") else PINNED[requirement.name.lower()]
    assert Version(bound) == Version(tried), f"{owner} promises {text}, and the tests run with {tried}"


def test_python_and_pluggy():
    own = configparser.ConfigParser()
    own.read(ROOT / "setup.cfg")
    assert own["options"]["python_requires"] == ">=3.11"
    (pluggy,) = [text for owner, text in requirements() if owner == "hooktrain" and text.startswith("pluggy")]
    assert "<2" in str(Requirement(pluggy).specifier)
