"""``metrics.jsonl`` in the run directory: one line for each log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attrs

from hooktrain.config import field
from hooktrain.errors import HooktrainError
from hooktrain.markers import hookimpl

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["JsonLines", "JsonLinesConfig"]

_WRITE_EVERY = 0.1
"""Seconds between two writes at least: where steps are quicker than that, a write for each would be felt."""
_ENCODE = json.JSONEncoder(allow_nan=False).encode


@attrs.frozen(kw_only=True)
class JsonLinesConfig:
    """Settings of the metrics file; the recipe's ``jsonl``."""

    enabled: bool = field(default=True, affects_training=False)
    """Whether to write the file."""
    file: str = field(default="metrics.jsonl", affects_training=False)
    """Its name in the run directory."""


class JsonLines:
    """Writes on rank 0, whole lines at a time, so that a reader never sees half of one: each at once, or, where steps
    take less than a tenth of a second, those of a tenth together. Before a checkpoint everything is written, so that a
    run which resumes from it finds all lines of its past.

    A run that begins anew alongside the file of an earlier one keeps that under ``metrics.1.jsonl`` and so on; a run
    that resumes continues with the file, and keeps lines of steps after the checkpoint, which it will write again,
    likewise.
    """

    def __init__(self) -> None:
        self.stream: TextIO | None = None
        self._waiting: list[Mapping[str, float]] = []
        self._written_at = -math.inf

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"jsonl": JsonLinesConfig}}

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        config = trainer.recipe.settings["jsonl"]
        if not (trainer.world.is_main and config.enabled):
            return
        path = trainer.run_dir / config.file
        try:
            _make_room(path, trainer.global_step)
            self.stream = path.open("a", encoding="utf-8")
        except OSError as problem:
            raise HooktrainError(
                f"jsonl.file: '{path}' cannot be written ({problem.strerror}); give another name"
            ) from problem

    @hookimpl
    def on_log(self, metrics: Mapping[str, float]) -> None:
        if self.stream is not None:
            # made into text when it is written: lines in a row take a fifth of what each takes between two steps
            self._waiting.append(dict(metrics))
            if time.monotonic() - self._written_at >= _WRITE_EVERY:
                self._write()

    @hookimpl(tryfirst=True)
    def on_checkpoint_start(self) -> None:
        self._write()

    @hookimpl
    def on_train_end(self) -> None:
        self._write()

    @hookimpl
    def on_teardown(self) -> None:
        self._write()
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self.stream is not None and waiting:
            self.stream.write("".join(map(_line, waiting)))
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


def _make_room(path: Path, step: int) -> None:
    """Leave in ``path`` what belongs to this run's past, and move everything else aside."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    keep = [line for line in lines if step > 0 and line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(keep) == len(lines):
        return
    number = 1
    while (aside := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    os.replace(path, aside)
    path.write_text("".join(keep), encoding="utf-8")
