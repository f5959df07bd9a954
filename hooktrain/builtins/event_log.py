"""``events.jsonl`` in the run directory: what happened when, and the memory in use meanwhile."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hooktrain.masking import mask_text

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["FILE", "EventLog"]

FILE = "events.jsonl"
_SAMPLES = 200
"""Samples of a run until they become rarer: then the next one comes after this part of the time that it has taken."""
_LONGEST = 4000
"""Characters of a text, at most."""


class EventLog:
    """Appends a line for each event, with its time, step and the id of the run, which is how a reader tells runs apart.

    Args:
        trainer: the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._path: Path | None = trainer.run_dir / FILE
        self._run, self._run_record = trainer.run_id, trainer.run_record
        self._warnings: list[str] = trainer.host.warnings
        self._warn: Callable[[str], None] = trainer.host.warn
        self._told = 0
        self._began = self._sampled = time.monotonic()

    def add(self, kind: str, step: int, text: str = "", more: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write an event, behind the warnings that came before it; a run does not end because it cannot be written.

        Args:
            kind: such as ``checkpoint``.
            step: optimizer steps finished.
            text: for people.
            more: other values.
        """
        new, self._told = self._warnings[self._told :], len(self._warnings)
        found: list[tuple[str, str, Mapping[str, Any]]] = [*(("warning", text, {}) for text in new), (kind, text, more)]
        self._append([(kind, text, more) for kind, text, more in found if kind], step)

    def sample(self, trainer: Trainer) -> None:
        """Write the memory in use where it is time for that, and warnings since the last event."""
        now = time.monotonic()
        if now - self._sampled >= max(1.0, (now - self._began) / _SAMPLES):
            self._sampled = now
            self.add("memory", trainer.global_step, more=_memory(trainer))
        elif self._told < len(self._warnings):
            self.add("", trainer.global_step)

    def _append(self, found: list[tuple[str, str, Mapping[str, Any]]], step: int) -> None:
        at = round(time.time(), 3)
        lines = []
        for kind, text, more in found:
            line = {
                "time": at,
                "step": step,
                "run": self._run,
                "kind": kind,
                "text": mask_text(text)[:_LONGEST],
                **more,
            }
            lines.append(json.dumps({key: value for key, value in line.items() if value != ""}) + "\n")
        if self._path is None or not lines or not self._run_record.has_folder:  # another one is not ours to write into
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
        except OSError as problem:
            path, self._path = self._path, None
            self._warn(f"{path}: cannot be written ({problem.strerror}), and ends here; the run continues")


def _memory(trainer: Trainer) -> dict[str, int]:
    """Bytes of this process, and the most that its device has held so far; what cannot be told is left out."""
    found = {}
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        found["process"] = pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    if trainer.device.type == "cuda":
        found["device"] = int(sys.modules["torch"].cuda.max_memory_allocated(trainer.device))
    return found
