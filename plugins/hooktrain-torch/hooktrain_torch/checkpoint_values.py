"""Values of a checkpoint, which a stranger may have made: read without running any of it, and checked before use."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import CheckpointError

if TYPE_CHECKING:
    from hooktrain import Trainer, TrainerState

__all__ = ["read_json", "refused", "set_state"]

_BYTES = 256 << 20
"""Most bytes of a file of JSON; the index of a model of a hundred thousand tensors has a tenth of them."""
_WRONG = (
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError),
    pickle.PickleError,
)
"""What Python, torch and libraries raise on values of another form, ``RecursionError`` included."""


@contextlib.contextmanager
def refused(trainer: Trainer | None, path: Path, remedy: str) -> Iterator[None]:
    """Raise a ``CheckpointError`` about the checkpoint ``path``, which ends with ``remedy``, for values of other form.

    An error in a plugin that is not hooktrain's own stays as it is: its author needs the traceback.

    Raises:
        CheckpointError: in one sentence.
    """
    try:
        yield
    except _WRONG as problem:
        plugin, _ = (None if trainer is None else trainer.host.blame(problem)) or ("", "")
        if (
            trainer is not None
            and plugin in trainer.host.records
            and not trainer.host.records[plugin].distribution.startswith("hooktrain")
        ):
            raise
        # torch advises at length to load what it refuses without its protection
        is_pickle = isinstance(problem, pickle.PickleError)
        said = "it holds code or objects, which are never loaded" if is_pickle else _first(problem)
        fits = "does not fit this model" if trainer is None else "does not fit this run"
        raise CheckpointError(f"{path}: {fits} ({said}); {remedy}") from problem


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of JSON that holds a mapping.

    Raises:
        ValueError: when it holds something else, or is larger than any that hooktrain writes.
    """
    with path.open("rb") as stream:
        held = stream.read(_BYTES + 1)
    if len(held) > _BYTES:
        raise ValueError(f"{path.name} is larger than {_BYTES >> 20} MiB")
    try:
        found = json.loads(held)
    except RecursionError as problem:
        raise ValueError(f"{path.name} is nested too deeply") from problem
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, expected a mapping")
    return found


def set_state(state: TrainerState, values: Mapping[str, Any]) -> None:
    """Set the counters of a run.

    Raises:
        ValueError: when a value is not what a run counts; nothing is set then.
    """
    known = {item.name: getattr(state, item.name) for item in attrs.fields(type(state))}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"state.json holds '{name}', which this version does not know")
        now = known[name]
        kind = str if now is None else type(now)
        fits = type(value) is kind or ((now is None or kind is str) and value is None)
        least = -1 if name == "evaluated_at" else 0
        if not fits or (kind is int and not least <= value < 1 << 62):
            raise ValueError(f"state.json holds {name}: {_short(value)}, expected {kind.__name__}")
        numbers = name in ("metrics", "best", "counted")
        if numbers and not all(isinstance(number, (int, float)) for number in value.values()):
            raise ValueError(f"state.json holds {name} that are no numbers")
    for name, value in values.items():
        setattr(state, name, value)


def _first(problem: BaseException) -> str:
    text = f"{type(problem).__name__}: {problem}" if isinstance(problem, LookupError) else str(problem)
    return " ".join(text.split())[:300] or type(problem).__name__


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
