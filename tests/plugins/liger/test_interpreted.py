"""Runs the cases of ``interpreted_*.py`` in a process whose Triton interprets: it decides that when Liger is imported."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("interpreted_*.py"))


def test_interpreted(tmp_path: Path) -> None:
    _run(FILES, tmp_path / "report.xml", thorough=False)  # in one process, as Liger takes seconds to import


@pytest.mark.thorough
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_all_interpreted(file: Path, tmp_path: Path) -> None:
    _run([file], tmp_path / "report.xml", thorough=True)


def _run(files: list[Path], report: Path, thorough: bool) -> None:
    """Run test files, and see that every test of theirs ran and passed."""
    command = [sys.executable, "-m", "pytest", *map(str, files), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, f"--junitxml={report}", *(["-m", "thorough or not thorough"] if thorough else [])],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1) and report.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    cases = list(xml.parse(report).getroot().iter("testcase"))
    ran = {(str(case.get("classname")).rpartition(".")[2], str(case.get("name")).partition("[")[0]) for case in cases}
    assert ran == {(file.stem, name) for file in files for name in _tests(file, thorough)}
    failed = [f"{case.get('name')}: {problem.tag}\n{problem.text}" for case in cases for problem in case]
    assert not failed, "\n\n".join(failed)


def _tests(file: Path, thorough: bool) -> set[str]:
    """The names of a file's test functions; of the default tier, or of both."""
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {
        function.name
        for function in functions
        if function.name.startswith("test_")
        and (thorough or [ast.unparse(each) for each in function.decorator_list][:1] != ["pytest.mark.thorough"])
    }
