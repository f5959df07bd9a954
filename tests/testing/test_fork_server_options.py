"""Command lines of forked processes: programs see the same as after a real start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hooktrain.testing import fork_server

PROGRAM = """
import json, sys
found = [sys.argv, sys.orig_argv[1:], sys.stdout.write_through, __name__, "torch" in sys.modules]
print(json.dumps(found))
"""


@pytest.mark.parametrize("words", [["{file}"], ["-u", "{file}"], ["-c", PROGRAM], ["-u", "-c", PROGRAM]])
def test_a_fork_sees_its_command_line_as_a_process_that_is_started(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    line = [sys.executable, *(word.replace("{file}", str(tmp_path / "program.py")) for word in words), "one", "-u"]
    forked = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    with fork_server.real_starts():
        real = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    assert forked[:4] == real[:4]
    assert (forked[4], real[4]) == (True, False), "the server has imported torch"
