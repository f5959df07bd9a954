"""``python -m benchmarks soak``: runs that are killed again and again, until a thousand kills have lost nothing.

Each kill is a line of the results file, and each run that was killed and came to its end is compared with one that was
never disturbed: weights, exports, metrics and events. The next sitting goes on where the last one ended, with the mode
and order that has the fewest kills.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

__all__ = ["MODES", "ORDERS", "Soak", "command", "counted"]

_DEFAULT = Path(__file__).parent / "results" / "soak.jsonl"
_TIMED = ("tokens_per_second", "step_seconds")
_ZERO = {"type": "deepspeed", "zero_stage": 3, "dtype": "fp32", "device": "cpu", "timeout": 60}

MODES: Mapping[str, tuple[int, Mapping[str, Any], Mapping[str, Any]]] = {
    "one rank": (1, {}, {}),
    "one rank, in the background": (1, {}, {"asynchronous": True}),
    "two ranks": (2, {}, {}),
    "two ranks, in the background": (2, {}, {"asynchronous": True}),
    "two ranks, ZeRO-3": (2, {"strategy": _ZERO}, {}),
}
"""Ranks, changes of the recipe and changes of its ``full`` checkpoints by mode."""
ORDERS = ("full first", "huggingface first")
"""Orders of the checkpoint engines in the recipe."""

_PLUGIN = """
import os, time
from pathlib import Path
from hooktrain import hookimpl

@hookimpl
def on_microbatch_start(trainer):
    Path(f"pid-{trainer.world.rank}-{os.getpid()}").touch()
    time.sleep(0.01)

@hookimpl
def on_checkpoint_end(trainer, path):
    if trainer.world.is_main:
        with (trainer.run_dir / "emitted").open("a") as file:
            print(path.relative_to(trainer.run_dir), file=file)
"""


class Soak:
    """One mode and order.

    Args:
        folder: where the runs are kept; made.
        mode: of ``MODES``.
        order: of ``ORDERS``.
        seed: of the moments.
    """

    def __init__(self, folder: Path, mode: str, order: str, seed: int) -> None:
        from hooktrain.testing import save_llama, write_rows

        self.folder, self.mode, self.order, self.random = folder, mode, order, random.Random(seed)
        self.ranks, changes, saves = MODES[mode]
        folder.mkdir(parents=True)
        (folder / "soaked.py").write_text(_PLUGIN)
        rows = str(write_rows(folder / "rows.jsonl", "messages"))
        full = {"type": "full", "save_every_n_steps": 3, "save_end_of_training": True, "auto_resume": True, **saves}
        export = {"type": "huggingface", "save_every_n_steps": 3, "save_end_of_training": True}
        self.recipe: dict[str, Any] = {
            "type": "sft",
            "train_iters": 14,
            "micro_batch_size": 1,
            "log_interval": 2,
            "eval_interval": 4,
            "model": {"name_or_path": str(save_llama(folder / "model"))},
            "data": {"sources": [rows], "eval_sources": [rows], "max_length": 96},
            "optimizer": {"type": "adamw", "lr": 0.01},
            "strategy": {"dtype": "fp32", "device": "cpu"},
            "console": {"enabled": False},
            "plugins": {"load": ["soaked"]},
            "checkpoint": [full, export] if order == ORDERS[0] else [export, full],
            **changes,
        }
        began = time.monotonic()
        with self._started("whole") as process:
            self._wait_for_training(process)
            training = time.monotonic()
            self._end(process)
        self.seconds, self.start_seconds = time.monotonic() - training, training - began

    def run(self, kills: int) -> Iterator[dict[str, Any]]:
        """Kill a run so often at most, and let it end; yields a line for each kill, and one for the comparison.

        Raises:
            AssertionError: something was lost.
        """
        made, name = 0, f"run-{self.random.getrandbits(32):08x}"
        while made < kills:
            with self._started(name) as process:
                after = self.random.uniform(-0.2 * self.start_seconds, self.seconds)
                if after < 0:  # while parts are built
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(self.start_seconds + after)
                else:
                    self._wait_for_training(process)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(after)
                victims = self._victims(process)
                if process.poll() is None:
                    for pid in victims:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                process.communicate()
            if process.returncode == 0:
                break
            made += 1
            problem = self._damage(name)
            moment = self._moment(name)
            yield self._line("killed", seconds=round(after, 3), processes=len(victims), **moment, problem=problem)
            assert not problem, problem
        else:
            with self._started(name) as process:
                self._end(process)
        problem = self._difference(name)
        yield self._line("compared", kills=made, problem=problem)
        assert not problem, f"{self.folder / name}: {problem}"
        shutil.rmtree(self.folder / name)

    # ------------------------------------------------------------------------------------------------- processes

    @contextlib.contextmanager
    def _started(self, name: str) -> Iterator[subprocess.Popen[str]]:
        for path in self.folder.glob("pid-*"):
            path.unlink()
        recipe = self.folder / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({**self.recipe, "run_dir": str(self.folder / name)}))
        words = [sys.executable, "-m", "hooktrain", "train", str(recipe)]
        words += ["--nproc", str(self.ranks)] if self.ranks > 1 else []
        mine = {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "HOOKTRAIN_CACHE": str(self.folder / "cache")}
        with subprocess.Popen(
            words,
            cwd=self.folder,
            env={**os.environ, **mine},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            yield process

    def _pids(self) -> list[int]:
        return [int(path.name.rpartition("-")[2]) for path in self.folder.glob("pid-*")]

    def _wait_for_training(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None and len(self._pids()) < self.ranks:
            time.sleep(0.005)

    def _victims(self, process: subprocess.Popen[str]) -> Sequence[int]:
        pids = sorted({*self._pids(), process.pid})
        return self.random.choice([[pid] for pid in pids] + [pids])

    def _end(self, process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate()
        assert process.returncode == 0, output

    # ------------------------------------------------------------------------------------------------ comparisons

    def _damage(self, name: str) -> str:
        """Whatever looks like a checkpoint or an export is one."""
        from hooktrain_torch import problem_of
        from safetensors.torch import load_file

        for path in (self.folder / name / "checkpoints").glob("step-*"):
            if problem := problem_of(path):
                return f"{path}: {problem.text}"
        for path in (self.folder / name / "export").glob("**/[!.]*/model.safetensors"):
            if not any(part.startswith(".") for part in path.relative_to(self.folder).parts):
                load_file(path)
        return ""

    def _difference(self, name: str) -> str:
        """The first difference of a run from the undisturbed one; empty where there is none."""
        one, two = self.folder / "whole", self.folder / name
        found, expected = self._results(two), self._results(one)
        for path in (two / "checkpoints").glob("step-*"):
            if json.loads((path / "state.json").read_text())["stop_reason"]:
                # ranks whose launcher was killed have saved and logged where they stopped
                found.pop("metrics", None), expected.pop("metrics", None)
                if (name := f"checkpoints/{path.name}") not in expected:
                    del found[name]
                    found["emitted"] = [each for each in found["emitted"] if each != name]
        for key in sorted(expected.keys() | found.keys()):
            if found.get(key) != expected.get(key):
                return f"{key}: expected {expected.get(key)!r}, found {found.get(key)!r}"
        left = [
            path.name for path in two.rglob("*") if path.name.endswith(".writing") or path.name.startswith(".saving")
        ]
        return f"left over: {left[0]}" if left else ""

    def _results(self, run: Path) -> dict[str, Any]:
        from hooktrain_torch import CheckpointTensors

        from hooktrain import digest

        made: dict[str, Any] = {}
        for path in sorted((run / "checkpoints").glob("step-*")):
            index = json.loads((path / "tensors.json").read_text())["model"]
            tensors = CheckpointTensors(path, "model", index)
            made[f"checkpoints/{path.name}"] = digest({each: tensors.read(each) for each in sorted(tensors.names())})
        for path in sorted((run / "export").rglob("model.safetensors")):
            made[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        made["metrics"] = [{key: value for key, value in line.items() if key not in _TIMED} for line in lines]
        made["emitted"] = sorted(set((run / "emitted").read_text().splitlines()))
        return made

    def _moment(self, name: str) -> dict[str, Any]:
        from hooktrain.runs.table import runs_in

        path = self.folder / name
        found = runs_in([path]) if path.is_dir() else []
        return {"step": found[0]["step"], "hook": found[0]["hook"]} if found else {"step": 0, "hook": ""}

    def _line(self, what: str, **facts: Any) -> dict[str, Any]:
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        return {"what": what, "when": now, "mode": self.mode, "order": self.order, **facts}


def counted(path: Path) -> Counter[tuple[str, str]]:
    """Return the kills so far of runs that were compared, by mode and order."""
    found: Counter[tuple[str, str]] = Counter({(mode, order): 0 for mode in MODES for order in ORDERS})
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        facts = json.loads(line)
        if facts["what"] == "compared" and not facts["problem"]:
            found[facts["mode"], facts["order"]] += facts["kills"]
    return found


@click.command("soak")
@click.option("--kills", default=1000, show_default=True, type=click.IntRange(1), help="In all sittings together.")
@click.option("--minutes", type=float, help="End this sitting after the run in progress once so much time has passed.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(list(MODES)), help="Only this mode.")
@click.option("--results", type=click.Path(path_type=Path), default=_DEFAULT, help="File that lines are appended to.")
def command(kills: int, minutes: float | None, modes: tuple[str, ...], results: Path) -> None:
    """Kill real runs at any moment, and check that nothing is lost."""
    until = None if minutes is None else time.monotonic() + 60 * minutes
    soaks: dict[tuple[str, str], Soak] = {}
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        while (so_far := counted(results)).total() < kills and (until is None or time.monotonic() < until):
            cells = [cell for cell in so_far if not modes or cell[0] in modes]
            cell = min(cells, key=lambda each: so_far[each])
            if cell not in soaks:
                soaks[cell] = Soak(Path(folder) / str(len(soaks)), *cell, seed=so_far[cell])
            with results.open("a", encoding="utf-8") as file:
                for line in soaks[cell].run(min(4, kills - so_far.total())):
                    file.write(json.dumps(line) + "\n")
                    file.flush()
            click.echo(f"{counted(results).total()} of {kills} kills survived; last {cell[0]}, {cell[1]}")
    for (mode, order), count in counted(results).items():
        click.echo(f"{count:5} {mode}, {order}")
