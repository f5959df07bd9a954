"""Comparison of an uninterrupted run with one that was saved and resumed, for ``hooktrain verify-resume``.

It makes three runs: all steps, half of them, and the rest from the checkpoint of the half. Each has a process
of its own, since what is kept in a module would survive within one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import HooktrainError, differences, digest, hookimpl
from hooktrain_torch.files import read_object
from hooktrain_torch.plugin_states import file_of
from hooktrain_torch.stored_tensors import CheckpointTensors

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["BatchRecorder", "Finding", "compare_resumed_run"]

_TIMES = "times.json"


class BatchRecorder:
    """Writes a digest of each step's micro-batches to the run's folder, and which metrics depend on time."""

    @hookimpl
    def on_step_start(self, trainer: Trainer, batches: Sequence[Mapping[str, Any]]) -> None:
        line = {"step": trainer.global_step + 1, "batches": digest(list(batches))}
        with (trainer.run_dir / f"batches-{trainer.world.rank}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    @hookimpl
    def on_log(self, trainer: Trainer) -> None:
        if trainer.world.is_main:
            (trainer.run_dir / _TIMES).write_text(json.dumps(sorted(trainer.meter.times)), encoding="utf-8")


@attrs.frozen
class Finding:
    """The result of one comparison.

    Attributes:
        what: what was compared.
        count: how many values.
        differs: where the first difference is and how large; empty where there is none.
    """

    what: str
    count: int
    differs: str


def compare_resumed_run(
    words: Sequence[str],
    steps: int,
    ranks: int,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> list[Finding]:
    """Run a recipe without interruption and through a checkpoint, and compare.

    Args:
        words: the recipe and the options of ``hooktrain train``.
        steps: of the uninterrupted run; the checkpoint is made half-way.
        ranks: processes of each run.
        folder: where the runs' files are kept; None uses a temporary one.
        say: called with messages about progress.

    Raises:
        HooktrainError: when one of the runs fails.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="hooktrain-verify-") as made:
            return compare_resumed_run(words, steps, ranks, Path(made), say)
    half = steps // 2
    for number, (name, what, last, resume) in enumerate(
        (
            ("uninterrupted", f"steps 1 to {steps}", steps, None),
            ("half", f"steps 1 to {half}", half, None),
            (
                "resumed",
                f"steps {half + 1} to {steps} from its checkpoint",
                steps,
                folder / "half" / "checkpoints" / _name(half),
            ),
        ),
        start=1,
    ):
        say(f"run {number} of 3: {what}")
        _run(words, folder / name, last, ranks, resume)
    return list(_compare(folder / "uninterrupted", folder / "resumed", half, steps, ranks))


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _run(words: Sequence[str], run_dir: Path, steps: int, ranks: int, resume: Path | None) -> None:
    settings = {
        "run_dir": run_dir,
        "exit_iteration": steps,
        "log_interval": 1,
        "checkpoint": "[{type: full, save_end_of_training: true}]",
    }
    command = [sys.executable, "-m", "hooktrain", "train", *words, "--nproc", str(ranks)]
    command += [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    command += ["-p", f"{__name__}:BatchRecorder", *(["--resume", str(resume)] if resume else [])]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise HooktrainError(
            f"verify-resume: the run '{run_dir.name}' failed with status {done.returncode}. Its last output:\n"
            + "\n".join(done.stdout.splitlines()[-20:])
        )
    if not (run_dir / "checkpoints" / _name(steps)).is_dir():
        raise HooktrainError(
            f"verify-resume: given --steps {steps}, but the run '{run_dir.name}' ended sooner; give fewer steps, or a"
            " recipe with more"
        )


def _compare(uninterrupted: Path, resumed: Path, half: int, steps: int, ranks: int) -> Iterator[Finding]:
    one, two = (folder / "checkpoints" / _name(steps) for folder in (uninterrupted, resumed))
    batches = [
        [_lines(folder / f"batches-{rank}.jsonl", half) for rank in range(ranks)] for folder in (uninterrupted, resumed)
    ]
    yield _finding("batches of each step", *batches)
    times = json.loads((uninterrupted / _TIMES).read_text(encoding="utf-8"))
    metrics = []
    for folder in (uninterrupted, resumed):
        lines = _lines(folder / "metrics.jsonl", half)
        metrics.append({f"step {n}": {k: v for k, v in line.items() if k not in times} for n, line in lines.items()})
    yield _finding("logged numbers", *metrics)
    for kind, what in (("model", "weights"), ("optimizer", "optimizer's tensors")):
        tensors = []
        for folder in (one, two):
            index = json.loads((folder / "tensors.json").read_text(encoding="utf-8"))
            found = CheckpointTensors(folder, kind, index[kind])
            tensors.append({name: found.read(name) for name in found.names()})
        yield _finding(what, *tensors)
    parts = [read_object(folder / "parts.pt") for folder in (one, two)]
    for folder, part in zip((one, two), parts, strict=True):
        own = {path.stem: read_object(path) for path in sorted(folder.glob(file_of("*")))}
        part["plugins"] = {**part["plugins"], **own}
    for key, what in (
        ("trained", "optimizer's settings and counts"),
        ("scheduler", "schedule"),
        ("strategy", "state of the strategy"),
        ("plugins", "states of plugins"),
    ):
        yield _finding(what, *(part[key] for part in parts))
    random = [
        {f"rank {rank}": read_object(folder / f"random-{rank}.pt") for rank in range(ranks)} for folder in (one, two)
    ]
    yield _finding("random states", *random)
    states = [json.loads((folder / "state.json").read_text(encoding="utf-8")) for folder in (one, two)]
    for state in states:
        state["metrics"] = {name: value for name, value in state["metrics"].items() if name not in times}
    yield _finding("counters", *states)


def _lines(path: Path, after: int) -> dict[int, Any]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line for line in lines if line["step"] > after}


def _finding(what: str, one: Any, two: Any) -> Finding:
    found = list(differences(one, two, names=("the uninterrupted run", "the resumed run")))
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return Finding(what, _count(one), found[0] + more if found else "")


def _count(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, (list, tuple)) and len(value) < 100 else 1
