"""Notes of ranks to the process that has started them: that they train, have ended, or why they failed."""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from pathlib import Path

from hooktrain.errors import failure_of
from hooktrain.masking import mask_text

__all__ = [
    "NOTES",
    "OUR_OWN",
    "has_begun",
    "has_launcher",
    "has_left",
    "note_end",
    "note_failure",
    "note_training",
    "running_file",
    "trace_of",
]

NOTES = "HOOKTRAIN_FAILURES"
"""The environment variable that names the folder of the notes."""
OUR_OWN = (
    "/click/",
    "/pluggy/",
    "<frozen runpy>",
    "<hook ",
    "hooktrain/cli/main.py",
    "hooktrain/__main__.py",
    "hooktrain/builtins/hook_timer.py",
    "hooktrain/plugin/error_policy.py",
    "hooktrain/plugin/results.py",
)
"""Files whose frames say nothing about a failure."""


def has_left(folder: Path, rank: int) -> bool:
    """Whether a rank has ended as ranks do, and not in the midst of something, as by ``os._exit``."""
    return not running_file(folder, rank).exists()


def running_file(folder: Path, rank: int) -> Path:
    """A file that a rank removes at its end, since a full disk, which may be why it ends, takes no new one."""
    return folder / f"{rank}.running"


def has_begun(folder: Path, rank: int) -> bool:
    """Whether a rank obeys signals, by saving and ending, which it does from the beginning of its training."""
    return _training_file(folder, rank).exists()


def note_training() -> None:
    """Tell the launcher, where there is one, that this rank obeys signals from now on."""
    folder = os.environ.get(NOTES)
    if folder:
        with contextlib.suppress(OSError):
            _training_file(Path(folder), int(os.environ["RANK"])).touch()


def _training_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.training"


def has_launcher() -> bool:
    """Whether ``hooktrain train --nproc`` has started this process as one of its ranks."""
    return NOTES in os.environ


def note_end() -> None:
    """Tell the launcher, where there is one, that this rank has come to its end, well or not."""
    folder = os.environ.get(NOTES)
    if folder:
        with contextlib.suppress(OSError):
            running_file(Path(folder), int(os.environ["RANK"])).unlink(missing_ok=True)


def note_failure(message: str, problem: BaseException, *, trace: bool) -> bool:
    """Tell whoever has started this rank why it ends.

    Args:
        message: in one line or a few.
        problem: what was raised.
        trace: whether its traceback is of use.

    Returns:
        Whether the launcher is this module's, which prints it.
    """
    when = failure_of(problem).when or time.monotonic()
    text, message = trace_of(problem) if trace else "", mask_text(message)
    folder, file = os.environ.get(NOTES), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if folder:
        with contextlib.suppress(OSError):
            rank = int(os.environ["RANK"])
            known = failure_of(problem).rank
            met = rank if known is None else known  # by which rank, where all of them raise it
            facts = {"when": when, "rank": met, "message": message, "trace": text}
            writing = Path(folder) / f"{rank}.json.writing"
            writing.write_text(json.dumps(facts), encoding="utf-8")
            os.replace(writing, writing.with_suffix(""))  # a rank may be killed meanwhile
            return True
    elif file and not os.path.exists(file):
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
    return False


def trace_of(problem: BaseException) -> str:
    """The traceback without the frames of the command line and of the calling of hooks."""
    made = traceback.TracebackException.from_exception(problem)
    found: traceback.TracebackException | None = made
    while found is not None:
        frames = [frame for frame in found.stack if not any(own in frame.filename for own in OUR_OWN)]
        found.stack = traceback.StackSummary.from_list(frames)
        found = found.__cause__ or found.__context__
    return mask_text("".join(made.format()))
