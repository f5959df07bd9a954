"""Run single tests, each in a fork of a process that has imported the libraries and nothing of the code under test.

For each line of JSON on the standard input, a fork runs a test; when it has ended, a line goes to the standard output.
Importing torch and transformers anew for each of these runs would take longer than the tests themselves.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

LIBRARIES = (
    *("torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.run"),
    *("datasets", "transformers", "transformers.models.llama.modeling_llama"),
    *("rich._emoji_codes", "hypothesis"),
)


class Outcome:
    """A plugin of pytest that keeps what became of each test, and where the code under test was imported from."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append((report.when or "", report.outcome))

    def as_dict(self, status: int) -> dict[str, Any]:
        """Plain values for JSON."""
        packages = {name.partition(".")[0] for name in sys.modules if name.startswith("hooktrain")}
        files = [str(sys.modules[name].__file__) for name in sorted(packages)]
        return {"status": status, "reports": self.reports, "files": files}


def run(test: str, root: str, path: list[str], folder: str) -> None:
    """Be a process that runs one test of a copy of the repository.

    Args:
        test: its node id.
        root: the copy.
        path: folders in the copy from which this process, and those that it starts, import the packages.
        folder: where ``output.txt``, ``outcome.json`` and the test's own files go.
    """
    os.setpgid(0, 0)
    shown = os.open(f"{folder}/output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, number in ((nothing, 0), (shown, 1), (shown, 2)):
        os.dup2(file, number)
    os.chdir(root)
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    sys.path[:0] = path
    importlib.invalidate_caches()
    outcome = Outcome()
    words = ["-p", "no:cacheprovider", "--basetemp", f"{folder}/files", test]
    status = pytest.main(words, plugins=[outcome])
    Path(folder, "outcome.json").write_text(json.dumps(outcome.as_dict(int(status))), encoding="utf-8")


def main() -> None:
    """Serve one request after the other."""
    del sys.path[0]  # this folder
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                run(**json.loads(line))
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what a test that fails has left running
        print("done", flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # what libraries have to say of their own end is of no interest
