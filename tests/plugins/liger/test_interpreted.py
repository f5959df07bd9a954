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


@pytest.mark.parametrize("tier", ["default", pytest.param("thorough", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_interpreted(file: Path, tmp_path: Path, tier: str) -> None:
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, f"--junitxml={report}", *(["-m", "thorough or not thorough"] if tier == "thorough" else [])],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1) and report.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    cases = list(xml.parse(report).getroot().iter("testcase"))
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    thorough = ["pytest.mark.thorough"]
    tests = {
        function.name
        for function in functions
        if function.name.startswith("test_")
        and (tier == "thorough" or thorough != [ast.unparse(each) for each in function.decorator_list][:1])
    }
    assert {str(case.get("name")).partition("[")[0] for case in cases} == tests
    failed = [f"{case.get('name')}: {problem.tag}\n{problem.text}" for case in cases for problem in case]
    assert not failed, "\n\n".join(failed)
