"""Loads the callbacks that a recipe names, and collects everything that is wrong with them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hooktrain import Complaint, did_you_mean, require_trusted
from hooktrain_callbacks.callback_handler import BASES, LoadedCallback, base_of, overridden
from hooktrain_callbacks.compat import adapted, monitored_metric
from hooktrain_callbacks.config import Entry, entry_of
from hooktrain_callbacks.events import LIGHTNING, NEVER, TRANSFORMERS
from hooktrain_callbacks.known_callbacks import default_policy, refusal
from hooktrain_callbacks.trainer_usage import unsupported_uses

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["LoadResult", "add", "load", "stops_too_late"]


class LoadResult:
    """The callbacks of a recipe, or of a call from Python.

    Attributes:
        callbacks: those that can be called.
        complaints: errors about the others.
        notes: warnings about differences from their own trainers.
    """

    def __init__(self) -> None:
        self.callbacks: list[LoadedCallback] = []
        self.complaints: list[Complaint] = []
        self.notes: list[str] = []


def load(entries: Sequence[str | Mapping[str, Any]]) -> LoadResult:
    """Import and build the callbacks that a recipe names."""
    result = LoadResult()
    for number, each in enumerate(entries):
        entry, where = entry_of(each), f"callbacks[{number}]"
        try:
            callback = _build(entry, _find(entry.name))
        except ValueError as problem:
            result.complaints.append(Complaint(where, str(problem)))
            continue
        add(result, callback, where, entry.name, entry.on_error)
    return result


def add(result: LoadResult, callback: Any, where: str, name: str = "", policy: str | None = None) -> None:
    """Add a callback to the result, or the reason why it cannot be called."""
    callback = adapted(callback)
    kind = type(callback)
    name = name or f"{kind.__module__}.{kind.__qualname__}"

    def complain(text: str) -> None:
        result.complaints.append(Complaint(where, f"{name} {text}"))

    base = base_of(kind)
    if base is None:
        complain(
            f"is {'a class' if inspect.isclass(callback) else f'a {kind.__name__}'}, expected a TrainerCallback of"
            " transformers, or a Callback or Logger of Lightning"
        )
        return
    package = BASES[f"{base.__module__}.{base.__qualname__}"]
    is_logger = base.__name__ == "Logger"
    policy = policy or default_policy(callback, package, is_logger)
    if is_logger:
        result.callbacks.append(LoadedCallback(callback, where, name, package, frozenset(), policy, is_logger=True))
        return
    events = TRANSFORMERS if package == "transformers" else LIGHTNING
    if why := refusal(callback):
        complain(why)
        return
    own = overridden(callback, base)
    if not own & events.keys() or (own & NEVER and not own & events.keys() - {"setup", "teardown"}):
        never = ", ".join(sorted(own & NEVER)) or "nothing"
        complain(f"overrides {never}, and a training run calls none of its methods; remove it")
        return
    loaded = LoadedCallback(callback, where, name, package, own, policy)
    if package != "transformers":
        for problem in unsupported_uses(callback, base):
            if problem.fatal:
                complain(problem.text)
            else:
                result.notes.append(f"{loaded} {problem.text}")
    for event in sorted(vars(kind)):
        if event.startswith("on_") and not hasattr(base, event) and inspect.isfunction(vars(kind)[event]):
            known = [other for other in vars(base) if other.startswith("on_")]
            result.notes.append(f"{loaded} has a method {event}, which is no event{did_you_mean(event, known)}")
    result.callbacks.append(loaded)


def stops_too_late(callbacks: Iterable[LoadedCallback], trainer: Trainer) -> Iterator[str]:
    """Yield warnings about early stopping in a run that is evaluated only at its end."""
    if trainer.data.evaluation and trainer.recipe.eval_interval:
        return
    fix = "set eval_interval to a number of steps" if trainer.data.evaluation else "give data for an evaluation"
    for loaded in callbacks:
        stops = any(one.__name__ in ("EarlyStopping", "EarlyStoppingCallback") for one in type(loaded.callback).__mro__)
        if stops and monitored_metric(loaded.callback).startswith(("eval", "val")):  # and not a loss of the training
            yield f"{loaded} watches the evaluations, of which there is none before the end of the run; {fix}"


def _find(name: str) -> Any:
    """Return the object of a full name.

    Raises:
        ValueError: when it does not exist.
    """
    steps = name.replace(":", ".").split(".")
    if len(steps) < 2:
        raise ValueError(f"given '{name}', expected a full name such as transformers.{name}")
    require_trusted(".".join(steps[:-1]), "callbacks")
    found: Any = None
    for number in range(1, len(steps) + 1):
        path, step = ".".join(steps[:number]), steps[number - 1]
        try:
            found = importlib.import_module(path)
        except ImportError as problem:
            missing = isinstance(problem, ModuleNotFoundError) and problem.name == path
            if not missing:
                raise ValueError(f"{name}: {path} cannot be imported ({problem}); fix or install it") from problem
            if number == 1:
                raise ValueError(f"{name}: the package {step} is not installed; pip install {step}") from None
            try:
                found = getattr(found, step)
            except AttributeError:
                within = ".".join(steps[: number - 1])
                raise ValueError(f"{name}: {within} has no '{step}'{did_you_mean(step, dir(found))}") from None
            except ImportError as problem_inside:
                raise ValueError(f"{name}: cannot be imported ({problem_inside})") from problem_inside
        except Exception as problem:
            raise ValueError(f"{name}: {path} cannot be imported ({type(problem).__name__}: {problem})") from problem
    return found


def _build(entry: Entry, found: Any) -> Any:
    """Build the callback.

    Raises:
        ValueError: when its constructor refuses the arguments.
    """
    if not callable(found):
        if entry.arguments:
            raise ValueError(f"{entry.name}: is an object already, and takes no arguments")
        return found
    try:
        inspect.signature(found).bind(**entry.arguments)
    except TypeError as problem:
        raise ValueError(f"{entry.name}: {problem}; it takes {_parameters(found)}") from None
    except ValueError:
        pass  # made in C, and has no signature
    try:
        return found(**entry.arguments)
    except Exception as problem:
        raise ValueError(f"{entry.name}: cannot be built ({type(problem).__name__}: {problem})") from problem


def _parameters(found: Any) -> str:
    return ", ".join(name for name in inspect.signature(found).parameters if name not in ("args", "kwargs")) or "none"
