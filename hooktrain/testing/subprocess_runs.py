"""Training runs in processes of their own, started as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hooktrain.errors import HooktrainError

__all__ = ["NOTES", "Run", "finish", "rank_notes", "run_cli", "run_ranks"]

NOTES = """
import json, os
from pathlib import Path
import torch
from hooktrain import hookimpl

def note(**facts):
    with Path(os.environ["NOTES"]).with_suffix("." + os.environ.get("RANK", "0")).open("a") as stream:
        stream.write(json.dumps(facts) + "\\n")
"""
"""First lines of a plugin that a test has as text; ``note`` writes to a file of each rank."""

_TINY = "hooktrain.testing:TinyPlugin"


class Run(NamedTuple):
    """The result of a command.

    Attributes:
        status: its exit status, negative where a signal ended it.
        stdout: what it printed.
        stderr: what it printed on the standard error.
        seconds: how long it took.
        folder: the recipe's ``run_dir``, or where the command ran.
        lines: the text of the folder's ``metrics.jsonl`` when the command had ended; later runs may write to it.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float
    folder: Path
    lines: str | None = None

    def of(self, folder: Path) -> Run:
        """Return the result with another folder, whose metrics are read now."""
        path = folder / "metrics.jsonl"
        return self._replace(folder=folder, lines=path.read_text(encoding="utf-8") if path.is_file() else None)

    @property
    def output(self) -> str:
        """Everything that it printed."""
        return self.stdout + self.stderr

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Every line of ``metrics.jsonl``, as it was when the command had ended."""
        if self.lines is None:
            raise HooktrainError(
                f"{self.folder}: the run has written no metrics.jsonl there; it printed:\n{self.output}"
            )
        return [json.loads(line) for line in self.lines.splitlines()]


def run_cli(
    folder: Path,
    *words: str | Path | Mapping[str, Any],
    source: str = "",
    env: Mapping[str, str] = {},
    stdin: str | None = None,
    timeout: float = 100.0,
) -> Run:
    """Run ``python -m hooktrain`` in a process of its own.

    Args:
        folder: where it runs and keeps its files.
        words: the command line; a recipe may be a mapping in it, and is written to ``recipe.yaml``.
        source: a plugin as the text of a module, which is loaded as ``extra``.
        env: variables besides those of this process.
        stdin: what it reads.
        timeout: seconds after which it is killed.

    Raises:
        HooktrainError: when it takes longer than ``timeout``, with what it has printed.
    """
    run_dir, line = folder, [sys.executable, "-m", "hooktrain"]
    for word in words:
        if isinstance(word, Mapping):
            recipe = _complete(word, source)
            run_dir = Path(recipe.get("run_dir", folder))
            (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        line.append(str(folder / "recipe.yaml") if isinstance(word, Mapping) else str(word))
    return finish(line, folder, source=source, env=env, stdin=stdin, timeout=timeout).of(run_dir)


def run_ranks(
    folder: Path,
    ranks: int,
    source: str = "",
    *,
    words: Sequence[str] = (),
    script: str = "",
    timeout: float = 100.0,
    **changes: Any,
) -> Run:
    """Train the tiny recipe in several processes, as ``hooktrain train --nproc`` does.

    Args:
        folder: where it runs and keeps its files.
        ranks: processes.
        source: a plugin as the text of a module, which is loaded as ``extra``; its ``note(key=value)`` writes what
            ``rank_notes`` reads.
        words: further words of the command line.
        script: a program that ``torchrun`` is to start in the place of ``hooktrain``, with the same words.
        timeout: seconds after which all are killed.
        changes: top-level keys of the recipe.

    Raises:
        HooktrainError: when it takes longer than ``timeout``, with what it has printed.
    """
    recipe = {
        "type": "tiny",
        "run_dir": str(folder / "ranks"),
        "micro_batch_size": 2,
        "strategy": {"dtype": "fp32", "device": "cpu"},
        "optimizer": {"type": "sgd", "lr": 0.1},
        "console": {"enabled": False},
        **changes,
    }
    if not script:
        found = run_cli(folder, "train", recipe, "--nproc", str(ranks), *words, source=source, timeout=timeout)
        return found.of(folder / "ranks")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(_complete(recipe, source)), encoding="utf-8")
    (folder / "script.py").write_text(textwrap.dedent(script), encoding="utf-8")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    line += [str(folder / "script.py"), "train", str(folder / "recipe.yaml"), *words]
    return finish(line, folder, source=source, timeout=timeout).of(folder / "ranks")


def rank_notes(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Read what ``note(...)`` of a plugin passed as ``source`` wrote on a rank."""
    path = folder / f"notes.{rank}"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _complete(recipe: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the recipe with the plugins of the test, unless it has ``plugins.load``."""
    load = [*([_TINY] if recipe.get("type") == "tiny" else []), *(["extra"] if source else [])]
    return {**recipe, "plugins": {"load": load, **recipe.get("plugins", {})}}


def finish(
    line: Sequence[str],
    folder: Path,
    *,
    source: str = "",
    env: Mapping[str, str] = {},
    stdin: str | None = None,
    timeout: float = 100.0,
) -> Run:
    """Run a command to its end, and kill it with all its processes when it takes too long."""
    if source:
        (folder / "extra.py").write_text(NOTES + textwrap.dedent(source), encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, "NOTES": str(folder / "notes"), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    process = subprocess.Popen(
        line,
        cwd=folder,
        env={**os.environ, **own, **env},
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, so that ranks can be killed with their launcher
    )
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout)
    except BaseException as problem:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        if not isinstance(problem, subprocess.TimeoutExpired):
            raise
        text = "\n".join([*stdout.splitlines()[-20:], *stderr.splitlines()[-20:]])
        raise HooktrainError(
            f"`{' '.join(line[1:])}`: not finished after {timeout:g} s, and killed; on a slow machine, pass a longer"
            f" --hooktrain-timeout; it had printed:\n{text}"
        ) from None
    return Run(process.returncode, stdout, stderr, time.monotonic() - began, folder).of(folder)
