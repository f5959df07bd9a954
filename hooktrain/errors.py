"""Every error a user can meet. Messages are one sentence: where, what was given, what is expected, what to do."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hooktrain.masking import mask_text

__all__ = [
    "CheckpointError",
    "Complaint",
    "DataError",
    "Failure",
    "HangError",
    "HooktrainError",
    "HooktrainWarning",
    "ModelError",
    "NameTakenError",
    "NonFiniteError",
    "PluginError",
    "RanksDisagreeError",
    "RecipeError",
    "LoopHookError",
    "closest",
    "described",
    "did_you_mean",
    "failure_of",
    "show_warnings",
    "text_of",
]


class HooktrainError(Exception):
    """Base of all errors that hooktrain raises on purpose; the command line prints them without a traceback."""


class Complaint(NamedTuple):
    """One thing that is wrong in a recipe.

    Attributes:
        where: path in the recipe, such as ``optimizer.lr`` or ``data.sources[1]``.
        message: what was given, what is expected and what to do.
        of_machine: whether this machine lacks something that the one that trains may have, such as a package; a run is
            refused, and ``hooktrain plan`` says so without an error.
    """

    where: str
    message: str
    of_machine: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class HooktrainWarning(UserWarning):
    """Something that a user should know and that does not stop the run."""


def show_warnings() -> None:
    """Print warnings of hooktrain and its plugins as one line each, whether they are Python's or those of a logger.

    They go through ``logging``, so that a plugin that configures it receives all of them. Warnings of other libraries,
    and what the user has told Python to do with warnings, stay as they are.
    """
    shown = warnings.showwarning

    def log(message: Warning | str, category: type[Warning], *more: Any) -> None:
        if issubclass(category, HooktrainWarning):
            logging.getLogger("hooktrain").warning("%s", message)
        else:
            shown(message, category, *more)

    warnings.showwarning = log  # type: ignore[assignment]
    logging.lastResort = _Lines(logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("always", HooktrainWarning)


class _Lines(logging.Handler):
    """Prints what a program has configured no handler for, as Python does, with what warns where it is hooktrain."""

    def emit(self, record: logging.LogRecord) -> None:
        rank = os.environ.get("RANK", "0")
        said = f"hooktrain: warning{'' if rank == '0' else f' of rank {rank}'}: "
        ours = record.name.partition(".")[0].startswith("hooktrain")
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            print(mask_text(f"{said if ours else ''}{record.getMessage()}"), file=sys.stderr)


class RecipeError(HooktrainError):
    """The recipe is wrong; holds every complaint, not only the first."""

    def __init__(self, complaints: Iterable[Complaint], source: str = "recipe") -> None:
        self.complaints = list(complaints)
        self.rename(source)

    def rename(self, source: str) -> None:
        """Set the file that the errors are in."""
        self.source = source
        count = len(self.complaints)
        head = f"{source}: {count} error{'s' if count != 1 else ''}"
        self.args = ("\n".join([head, *(f"  - {complaint}" for complaint in self.complaints)]),)


@dataclass
class Failure:
    """Facts about an exception: where and when it was raised.

    Attributes:
        where: plugin, hook, step and rank, in words; empty outside of a run.
        step: optimizer steps that had been finished.
        when: by the monotonic clock, which the processes of a host share.
        rank: the rank that met the problem, where all of them raise it; None for each its own.
        raised_in: the plugin and the hook, where no frame of it is on the traceback.
        saved: the last checkpoint that the run has saved.
    """

    where: str = ""
    step: int = 0
    when: float = 0.0
    rank: int | None = None
    raised_in: tuple[str, str] | None = None
    saved: Path | None = None


def failure_of(exception: BaseException) -> Failure:
    """Return what is known about an exception, to read and to add to."""
    found: Failure = vars(exception).setdefault("hooktrain_failure", Failure())
    return found


def text_of(exception: BaseException) -> str:
    """Return the message of an exception, also of one whose message cannot be made."""
    try:
        return str(exception)
    except Exception as problem:
        return f"<its message cannot be shown: {type(problem).__name__}>"


def described(exception: BaseException) -> str:
    """Return ``Type: message`` of an exception, on one line."""
    text = " ".join(text_of(exception).split())
    return f"{type(exception).__name__}: {text}" if text else type(exception).__name__


class PluginError(HooktrainError):
    """A plugin cannot be loaded, clashes with another one, or breaks a rule of the hooks."""


class NameTakenError(PluginError):
    """Two plugins register the same name."""


class LoopHookError(HooktrainError):
    """A loop hook did not return what its documentation promises."""


class DataError(HooktrainError):
    """The data cannot be read, rendered, masked or packed."""


class ModelError(HooktrainError):
    """A model or tokenizer cannot be built."""


class CheckpointError(HooktrainError):
    """A checkpoint or export cannot be written or read."""


class NonFiniteError(HooktrainError):
    """The loss, the gradients or the weights are not finite, or too many steps were skipped for that."""


class HangError(HooktrainError):
    """A run has made no step for as long as ``hang_timeout`` allows, and ``on_hang`` says to stop."""


class RanksDisagreeError(HooktrainError):
    """The ranks of one run do not have the same recipe, plugins or data."""


def closest(given: str, candidates: Iterable[str]) -> str:
    """Return the name that was probably meant: in almost the same letters, with these initials, or its beginning."""
    names = [str(candidate) for candidate in candidates]
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    initials = {"".join(part[:1] for part in name.split("_")): name for name in reversed(names) if "_" in name}
    begun = max((name for name in names if given.startswith(f"{name}_")), key=len, default="")
    return close[0] if close else initials.get(given, begun)


def did_you_mean(given: str, candidates: Iterable[str]) -> str:
    """Return what to append to an error about an unknown name: `` (did you mean 'x'?)``, or nothing."""
    meant = closest(given, candidates)
    return f" (did you mean '{meant}'?)" if meant else ""
