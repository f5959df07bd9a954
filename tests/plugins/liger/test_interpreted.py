"""Runs the cases of ``interpreted_*.py`` in a process whose Triton interprets: it decides that when Liger is imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("interpreted_*.py"))


def cases(file: Path) -> list[str]:
    tree = ast.parse(file.read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Failures of each test function, by name."""
    report = tmp_path_factory.mktemp("report") / "report.xml"
    command = [sys.executable, "-m", "pytest", str(request.param), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, f"--junitxml={report}"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1) and report.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    found: dict[str, list[str]] = {}
    for case in xml.parse(report).getroot().iter("testcase"):
        problems = [f"{case.get('name')}\n{problem.text}" for problem in case if problem.tag in ("failure", "error")]
        skipped = [f"{case.get('name')}\nskipped: {problem.text}" for problem in case if problem.tag == "skipped"]
        found.setdefault(str(case.get("name")).partition("[")[0], []).extend(problems + skipped)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        pairs = [(file, name) for file in FILES for name in cases(file)]
        metafunc.parametrize(
            ("results", "case"), pairs, indirect=["results"], ids=[f"{f.stem[12:]}-{n[5:]}" for f, n in pairs]
        )


def test_interpreted(results: dict[str, list[str]], case: str) -> None:
    assert not results[case], "\n\n".join(results[case])
