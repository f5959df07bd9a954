"""Faults of a line or two, kept as patches, each of which makes a test of the default tier fail.

The head of a patch in ``tests/faults`` says in a sentence what is wrong, and names the test::

    The loss of an accumulation window is not divided by its tokens.
    Fails: tests/training/test_trainer.py::test_accumulation

A patch that no longer applies, as its lines have changed, is written anew for the new lines: ``git diff`` of the fault.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hooktrain.testing import fork_server

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "faults"
MARK = "Fails: "


class Fault(NamedTuple):
    """A patch.

    Attributes:
        path: its file.
        sentence: what is wrong.
        test: node id of the test that fails.
        files: those that it changes.
        changed: the lines that it removes and those that it adds.
    """

    path: Path
    sentence: str
    test: str
    files: list[str]
    changed: tuple[list[str], list[str]]

    @classmethod
    def read(cls, path: Path) -> Fault:
        """Read a patch."""
        head, _, rest = path.read_text(encoding="utf-8").partition("\n--- ")
        lines = f"--- {rest}".splitlines()
        test = next(line.removeprefix(MARK) for line in head.splitlines() if line.startswith(MARK))
        removed = [line for line in lines if line.startswith("-") and not line.startswith("--- ")]
        added = [line for line in lines if line.startswith("+") and not line.startswith("+++ ")]
        files = [line.removeprefix("+++ b/") for line in lines if line.startswith("+++ b/")]
        return cls(path, head.partition(f"\n{MARK}")[0].strip(), test, files, (removed, added))


FAULTS = [Fault.read(path) for path in sorted(FOLDER.glob("*.patch"))]
TESTS = list(dict.fromkeys(fault.test for fault in FAULTS))


def apply(fault: Fault, root: Path, *more: str) -> None:
    """Apply a patch in a folder, wherever its lines stand by now."""
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    done = subprocess.run(
        ["git", "apply", "--recount", "-C1", *more, str(fault.path)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{fault.path.name} no longer applies; write it for the lines of today\n{done.stderr}"


# ---------------------------------------------------------------------------------------------------- the patches


def test_there_are_forty_faults_of_a_line_or_two() -> None:
    assert len(FAULTS) >= 40
    for fault in FAULTS:
        assert fault.sentence.endswith(".") and "\n\n" not in fault.sentence, fault.path.name
        assert all(1 <= len(lines) <= 2 or not lines for lines in fault.changed) and any(fault.changed), fault.path.name
        assert all(name.startswith(("hooktrain/", "plugins/")) for name in fault.files), fault.path.name


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.path.stem)
def test_a_patch_applies(fault: Fault) -> None:
    apply(fault, ROOT, "--check")


@pytest.mark.parametrize("test", TESTS, ids=str)
def test_a_named_test_is_of_the_default_tier(test: str) -> None:
    """Whether its parameters exist is found when it runs: collecting all of these files would take a minute."""
    name, _, function = test.partition("[")[0].partition("::")
    body = ast.parse((ROOT / name).read_text(encoding="utf-8")).body
    found = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == function]
    assert len(found) == 1, f"there is no {function} in {name}"
    marks = [ast.unparse(mark) for mark in found[0].decorator_list]
    marks += [ast.unparse(node) for node in body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    assert not any("mark.thorough" in mark and "parametrize" not in mark for mark in marks), marks


# ----------------------------------------------------------------------------------------------------- the runs


class Copy:
    """A copy of the repository, tests included, in which a test can be run.

    Args:
        root: the copy.
        folder: for the files of the runs.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self._folder, self._runs = root, folder, 0
        self._path = [str(root), *(str(path.parent) for path in sorted(root.glob("plugins/*/hooktrain_*")))]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
        with fork_server.real_starts():  # which has imported nothing of the code under test
            self._process = subprocess.Popen(
                [sys.executable, str(FOLDER / "forked_pytest.py")],
                env={**environment, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def run(self, test: str) -> tuple[dict[str, Any], str]:
        """Run a test in a process that imports the copy's packages; returns what became of it and what it printed."""
        self._runs += 1
        folder = self._folder / str(self._runs)
        folder.mkdir(parents=True)
        asked = {"test": test, "root": str(self.root), "path": self._path, "folder": str(folder)}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        assert answer and (folder / "outcome.json").exists(), f"the process has ended\n{output}"
        outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        shutil.rmtree(folder)
        return outcome, output

    def close(self) -> None:
        """End the process that runs are forked from."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    root = tmp_path_factory.mktemp("copy") / "repository"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*cache", "build", "dist")
    for name in ("hooktrain", "plugins", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.cfg", "README.md"):
        shutil.copy(ROOT / name, root / name)
    made = Copy(root, root.parent / "runs")
    yield made
    made.close()


def _forget_compiled(path: Path) -> None:
    """Remove what Python has compiled, which it takes for a source of the same second and size."""
    for file in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        file.unlink()


@pytest.fixture
def faulty(copy: Copy) -> Iterator[Callable[[Fault], None]]:
    """``faulty(fault)`` puts a fault into the copy until the test ends."""
    before: dict[Path, bytes] = {}

    def put(fault: Fault) -> None:
        before.update({copy.root / name: (copy.root / name).read_bytes() for name in fault.files})
        apply(fault, copy.root)
        for path, text in before.items():
            assert path.read_bytes() != text
            _forget_compiled(path)

    yield put
    for path, text in before.items():
        path.write_bytes(text)
        _forget_compiled(path)


WHERE = """
import subprocess
import sys

import hooktrain
import hooktrain_sft
import hooktrain_torch


def test_where(tmp_path):
    program = "import hooktrain, hooktrain_sft, hooktrain_torch as t; print(hooktrain.__file__, hooktrain_sft.__file__, t.__file__)"
    (tmp_path / "program.py").write_text(program)
    expected = [hooktrain.__file__, hooktrain_sft.__file__, hooktrain_torch.__file__]
    assert all(file.startswith({root!r}) for file in expected), expected
    for words in (["-c", program], ["program.py"]):
        shown = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert shown.split() == expected
"""


@pytest.mark.thorough
def test_a_run_and_its_processes_import_the_copy(copy: Copy) -> None:
    (copy.root / "tests" / "test_where.py").write_text(WHERE.format(root=str(copy.root)), encoding="utf-8")
    outcome, output = copy.run("tests/test_where.py::test_where")
    assert outcome["status"] == 0, output


@pytest.mark.thorough
@pytest.mark.parametrize("test", TESTS, ids=str)
def test_without_a_fault_the_test_passes(copy: Copy, test: str) -> None:
    outcome, output = copy.run(test)
    assert outcome["status"] == 0 and ["call", "passed"] in outcome["reports"], output


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.path.stem)
def test_a_fault_fails_its_test(copy: Copy, faulty: Callable[[Fault], None], fault: Fault) -> None:
    faulty(fault)
    outcome, output = copy.run(fault.test)
    assert all(file.startswith(str(copy.root)) for file in outcome["files"]), outcome["files"]
    assert outcome["status"] == 1, f"{fault.sentence} {fault.test} does not find it.\n{output}"
    assert {when for when, result in outcome["reports"] if result == "failed"} == {"call"}, output
