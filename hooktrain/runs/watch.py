"""A run as it goes on, seen from another process: what ``hooktrain watch`` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from hooktrain.errors import HooktrainError
from hooktrain.runs.files import MetricsReader, best_losses
from hooktrain.runs.table import facts_of
from hooktrain.training.run_record import FILE

__all__ = ["Snapshot", "figures_of", "snapshots", "sparkline", "time_left"]

_BLOCKS = "▁▂▃▄▅▆▇█"


@attrs.frozen(kw_only=True)
class Snapshot:
    """What is known of a run at a moment.

    Attributes:
        facts: how it stands, as ``hooktrain runs --json`` prints it.
        new: the log lines since the snapshot before.
        last: the newest value of each metric.
        losses: ``loss`` of every log line so far.
        best: the lowest of each loss, with its step.
    """

    facts: Mapping[str, Any]
    new: Sequence[Mapping[str, Any]]
    last: Mapping[str, Any]
    losses: Sequence[float]
    best: Mapping[str, tuple[float, int]]

    @property
    def is_over(self) -> bool:
        """Whether the run does not run any more."""
        return self.facts["state"] not in ("running", "starting")

    @property
    def has_failed(self) -> bool:
        """Whether it is over, and did not come to its end."""
        return self.is_over and self.facts["state"] != "ended"

    def outcome(self) -> str:
        """Say how the run ended, and where: ``ended at step 7 of 7``."""
        facts = self.facts
        steps = "" if facts["steps"] is None else f" of {facts['steps']}"
        hook = f", in the hook {facts['hook']}" if facts["hook"] else ""
        why = facts["problem"] or facts["why"]
        return f"{facts['state']} at step {facts['step']}{steps}{hook}{f': {why}' if why else ''}"


def snapshots(folder: Path, wait: Callable[[], object]) -> Iterator[Snapshot]:
    """Yield how a run stands until it is over; the last one says how it ended.

    Args:
        folder: the run directory.
        wait: called between two looks.

    Raises:
        HooktrainError: there is no record of a run.
    """
    reader = MetricsReader(folder)
    seen: dict[int, Mapping[str, Any]] = {}
    while True:
        if not (folder / FILE).is_file():
            raise HooktrainError(
                f"watch: given '{folder}', which has no {FILE}; expected the directory of a run; `hooktrain runs` lists"
                " them"
            )
        facts = facts_of(folder)  # before the metrics, so that those of a run that is over are complete
        new = reader.read()
        if new and new[0]["step"] <= max(seen, default=-1):  # the file is another one, or was read again
            seen = {step: line for step, line in seen.items() if step < new[0]["step"]}
        seen.update({line["step"]: line for line in new})
        lines = list(seen.values())
        last = {name: value for line in lines for name, value in line.items()}
        losses = [line["loss"] for line in lines if isinstance(line.get("loss"), (int, float))]
        snapshot = Snapshot(facts=facts, new=new, last=last, losses=losses, best=best_losses(lines))
        yield snapshot
        if snapshot.is_over:
            return
        wait()


def figures_of(metrics: Mapping[str, Any]) -> list[str]:
    """Return the usual metrics as short texts, such as ``loss 2.4910``; those of an evaluation come last."""
    formats = {
        "loss": "loss {:.4f}",
        "lr": "lr {:.1e}",
        "grad_norm": "grad_norm {:.3g}",
        "tokens_per_second": "{:,.0f} tok/s",
        "tokens": "{:,} tokens",
    }
    found = [text.format(metrics[name]) for name, text in formats.items() if _is_number(metrics.get(name))]
    found += [f"{name} {metrics[name]}" for name in formats if isinstance(metrics.get(name), str)]  # not finite
    evaluated = {name: value for name, value in metrics.items() if name.startswith("eval/") and _is_number(value)}
    return found + [f"{name} {value:.4f}" for name, value in evaluated.items()]


def time_left(snapshot: Snapshot) -> float | None:
    """Return the seconds until the last step at the present speed; None where that is not known."""
    steps, seconds = snapshot.facts["steps"], snapshot.last.get("step_seconds")
    if steps is None or not _is_number(seconds):
        return None
    return float(max(0, steps - snapshot.facts["step"]) * seconds)


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values in one line of characters, each the mean of a part of them."""
    if not values or width < 1:
        return ""
    size = min(width, len(values))
    parts = [values[len(values) * n // size : len(values) * (n + 1) // size] for n in range(size)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    return "".join(_BLOCKS[round((value - low) / ((high - low) or 1) * (len(_BLOCKS) - 1))] for value in means)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
