"""The runs in some folders, and how each stands: what ``hooktrain runs`` prints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from hooktrain.errors import HooktrainError
from hooktrain.runs.starting import is_starting
from hooktrain.training.run_lock import is_held
from hooktrain.training.run_record import FILE, RunRecord, read_record

__all__ = ["facts_of", "find_runs", "runs_in"]

_SKIPPED = ("step-", "damaged-step-", "other-step-", ".")
"""Beginnings of the names of folders that hold no runs, but many files."""


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the run directories in a folder, itself included, in the order of their names.

    Raises:
        HooktrainError: there is no such folder.
    """
    if not folder.is_dir():
        raise HooktrainError(f"runs: given '{folder}', which is no folder; give a run directory, or a folder of some")
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(_SKIPPED))
        if FILE in files:
            yield Path(path)


def runs_in(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return facts about the runs in some folders.

    Returns:
        For each run ``folder``, the attributes of :class:`hooktrain.training.run_record.RunRecord`, and ``problem``:
        why the record cannot be read, else empty. ``state`` is also ``ended without finishing`` where the record says
        ``running`` and no process holds the folder, ``starting`` where a process is about to run there again, and
        ``unreadable``.

    Raises:
        HooktrainError: one of the folders is none.
    """
    return [facts_of(path) for path in dict.fromkeys(path for folder in folders for path in find_runs(folder))]


def facts_of(folder: Path) -> dict[str, Any]:
    """Return facts about the run in a folder, see :func:`runs_in`."""
    try:
        record = read_record(folder) or RunRecord(id="", state="unreadable")
        problem = ""
    except ValueError as raised:
        record, problem = RunRecord(id="", state="unreadable"), str(raised)
    facts = {"folder": str(folder), **attrs.asdict(record), "problem": problem}
    if record.state == "running" and not _is_running(folder):
        facts |= {"state": "ended without finishing", "why": "its process was killed, or a plugin or library ended it"}
    elif record.state != "running" and not problem and is_starting(folder, record):
        facts |= {"state": "starting", "why": "a process resumes it, or starts another run in the folder"}
    return facts


def _is_running(folder: Path) -> bool:
    try:
        return is_held(folder)
    except OSError:  # no locks there: what the record says is all that is known
        return True
