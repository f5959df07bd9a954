"""``metrics.jsonl`` in the run directory: one line for each log; and ``events.jsonl`` beside it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attrs

from hooktrain.builtins.event_log import EventLog
from hooktrain.config import field
from hooktrain.errors import HooktrainError, described
from hooktrain.markers import hookimpl
from hooktrain.training.run_files import keep_aside, move_aside, write_whole

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["JsonLines", "JsonLinesConfig"]

_WRITE_EVERY = 0.1
"""Seconds between two writes at least: where steps are quicker than that, a write for each would be felt."""
_ENCODE = json.JSONEncoder(allow_nan=False).encode


@attrs.frozen(kw_only=True)
class JsonLinesConfig:
    """Settings of the files of metrics and events; the recipe's ``jsonl``."""

    enabled: bool = field(default=True, affects_training=False)
    """Whether to write the files."""
    file: str = field(default="metrics.jsonl", affects_training=False)
    """The name of that of metrics in the run directory; that of events is ``events.jsonl``."""


class JsonLines:
    """Writes on rank 0, whole lines at a time, so that a reader never sees half of one: each at once, or, where steps
    take less than a tenth of a second, those of a tenth together. Before a checkpoint everything is written, so that a
    run which resumes from it finds all lines of its past.

    A run that begins anew alongside the file of an earlier one keeps that under ``metrics.1.jsonl`` and so on; a run
    that resumes continues with the file, and keeps lines of steps after the checkpoint, which it will write again,
    likewise. A line that it cannot read is kept likewise, too, with a warning. A second line for one step, as where an
    evaluation is made up for, becomes one with the first.
    """

    def __init__(self) -> None:
        self.stream: TextIO | None = None
        self._last: dict[str, Any] = {}
        self._replaces = False
        self._require_folder: Callable[[], None] = lambda: None
        self._waiting: list[Mapping[str, float]] = []
        self._written_at = -math.inf
        self._events: EventLog | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"jsonl": JsonLinesConfig}}

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        config = trainer.recipe.settings["jsonl"]
        if not (trainer.world.is_main and config.enabled):
            return
        path = trainer.run_dir / config.file
        self._require_folder = trainer.run_record.require_folder
        try:
            self._replaces, self._last = False, _make_room(path, trainer.global_step, trainer.host.warn)
            self.stream = path.open("a", encoding="utf-8")
        except OSError as problem:
            raise HooktrainError(
                f"jsonl.file: '{path}' cannot be written ({problem.strerror}); give another name"
            ) from problem
        self._events = EventLog(trainer)
        resumed = trainer.resume_from
        self._events.add("start" if resumed is None else "resume", trainer.global_step, str(resumed or ""))

    @hookimpl
    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if self._events is not None:
            self._events.sample(trainer)
        if self.stream is not None:
            # made into text when it is written: lines in a row take a fifth of what each takes between two steps
            line = dict(metrics)
            if line.get("step") == self._last.get("step", -1):
                line = self._merged(line)
            self._last = line
            self._waiting.append(line)
            if time.monotonic() - self._written_at >= _WRITE_EVERY:
                self._write()

    @hookimpl(tryfirst=True)
    def on_checkpoint_start(self) -> None:
        self._write()

    @hookimpl
    def on_checkpoint_end(self, trainer: Trainer, path: Path) -> None:
        if self._events is not None:
            self._events.add("checkpoint", trainer.global_step, str(path))

    @hookimpl
    def on_evaluate_end(self, trainer: Trainer) -> None:
        if self._events is not None:
            self._events.add("evaluation", trainer.global_step)

    @hookimpl
    def on_exception(self, trainer: Trainer, exception: BaseException) -> None:
        if self._events is not None:
            self._events.add("failure", trainer.global_step, described(exception))

    @hookimpl
    def on_train_end(self) -> None:
        self._write()

    @hookimpl
    def on_teardown(self, trainer: Trainer) -> None:
        self._write()
        if self._events is not None:
            self._events.add("end", trainer.global_step, trainer.state.stop_reason or "")
            self._events = None
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def _merged(self, line: dict[str, Any]) -> dict[str, Any]:
        """Take back the line before, which is of the same step; returns both as one."""
        if self._waiting:
            self._waiting.pop()
        else:
            self._replaces = True
        return {**self._last, **line}

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self.stream is not None and waiting:
            self._require_folder()
            text = "".join(map(_line, waiting))
            if self._replaces:
                path, self._replaces = Path(self.stream.name), False
                self.stream.close()
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                write_whole(path, "".join(lines[:-1]) + text)
                self.stream = path.open("a", encoding="utf-8")
            else:
                self.stream.write(text)
                self.stream.flush()
            self._written_at = time.monotonic()


def _line(metrics: Mapping[str, Any]) -> str:
    """The metrics as a line of JSON; what that has no word for (infinity, NaN) is at least not lost as text."""
    try:
        return _ENCODE(metrics) + "\n"
    except (TypeError, ValueError):
        return _ENCODE({name: _plain(value) for name, value in metrics.items()}) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, int):
        return value
    try:
        number = float(value)  # a tensor's or numpy's number, which an evaluation may have given
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else str(number)


def _make_room(path: Path, step: int, warn: Callable[[str], None]) -> dict[str, Any]:
    """Leave in ``path`` what belongs to this run's past, and keep everything else aside; returns the last line."""
    if not path.is_file():
        if os.path.lexists(path):
            warn(f"{path}: is no file, where this run writes its metrics; it is kept as {move_aside(path).name}")
        return {}
    lines = path.read_bytes().splitlines(keepends=True)
    read = [(line, _metrics(line)) for line in lines]
    odd = [number for number, (line, found) in enumerate(read, 1) if found is None and line.endswith(b"\n")]
    keep = [(line, found) for line, found in read if found is not None and 0 < step >= found["step"]]
    if len(keep) < len(lines):
        aside = keep_aside(path)
        if odd:
            warn(
                f"{path}: line {odd[0]} is no line of metrics"
                f"{f', and {len(odd) - 1} more are none' if len(odd) > 1 else ''}; all of it is kept as {aside.name}"
            )
        write_whole(path, b"".join(line for line, _ in keep).decode())
    return keep[-1][1] if keep else {}


def _metrics(line: bytes) -> dict[str, Any] | None:
    """A line's metrics; None where it is not a whole line, or none of a run."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    step = found.get("step") if isinstance(found, dict) else None
    is_number = isinstance(step, (int, float)) and not isinstance(step, bool) and math.isfinite(step)
    return found if is_number and line.endswith(b"\n") else None
