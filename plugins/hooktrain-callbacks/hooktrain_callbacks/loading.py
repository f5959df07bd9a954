"""From names in a recipe to callbacks in their places; what is wrong or cannot be mapped is named, all at once."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hooktrain import Complaint, did_you_mean
from hooktrain_callbacks.config import Entry, entry_of
from hooktrain_callbacks.mapping import LIGHTNING, NEVER, TRANSFORMERS
from hooktrain_callbacks.refusals import default_policy, refusal
from hooktrain_callbacks.slots import BASES, Slot, base_of, overridden
from hooktrain_callbacks.uses import uses

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["Loaded", "load", "never_stopping", "place"]


class Loaded:
    """What became of a list of callbacks.

    Attributes:
        slots: those that can be called.
        complaints: why others cannot.
        notes: what will be other than under their own trainers.
    """

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.complaints: list[Complaint] = []
        self.notes: list[str] = []


def load(given: Sequence[str | Mapping[str, Any]]) -> Loaded:
    """Import and build the callbacks that a recipe names."""
    loaded = Loaded()
    for number, each in enumerate(given):
        entry, where = entry_of(each), f"callbacks[{number}]"
        try:
            callback = _build(entry, _find(entry.name))
        except ValueError as problem:
            loaded.complaints.append(Complaint(where, str(problem)))
            continue
        place(loaded, callback, where, entry.name, entry.on_error)
    return loaded


def place(loaded: Loaded, callback: Any, where: str, name: str = "", policy: str | None = None) -> None:
    """Give a callback its place, or say why it cannot have one."""
    kind = type(callback)
    name = name or f"{kind.__module__}.{kind.__qualname__}"

    def complain(text: str) -> None:
        loaded.complaints.append(Complaint(where, f"{name} {text}"))

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
        loaded.slots.append(Slot(callback, where, name, package, frozenset(), policy, is_logger=True))
        return
    events = TRANSFORMERS if package == "transformers" else LIGHTNING
    if why := refusal(callback):
        complain(why)
        return
    own = overridden(callback, base)
    if not own & events.keys() or (own & NEVER and not own & events.keys() - {"setup", "teardown"}):
        never = ", ".join(sorted(own & NEVER)) or "nothing"
        complain(f"overrides {never}, of which a training run calls nothing; leave it out")
        return
    slot = Slot(callback, where, name, package, own, policy)
    if package != "transformers":
        for problem in uses(callback, base):
            if problem.fatal:
                complain(problem.text)
            else:
                loaded.notes.append(f"{slot} {problem.text}")
    for event in sorted(vars(kind)):
        if event.startswith("on_") and not hasattr(base, event) and inspect.isfunction(vars(kind)[event]):
            known = [other for other in vars(base) if other.startswith("on_")]
            loaded.notes.append(f"{slot} has a method {event}, which is no event{did_you_mean(event, known)}")
    loaded.slots.append(slot)


def never_stopping(slots: Iterable[Slot], trainer: Trainer) -> Iterator[str]:
    """What to tell of callbacks that stop a run early by its evaluations, where none comes before the end."""
    if trainer.data.evaluation and trainer.recipe.eval_interval > 0:
        return
    missing = "write eval_interval, the steps between two" if trainer.data.evaluation else "there are no rows for them"
    for slot in slots:
        stops = any(one.__name__ in ("EarlyStopping", "EarlyStoppingCallback") for one in type(slot.callback).__mro__)
        watched = str(getattr(slot.callback, "monitor", "eval"))  # Lightning's may watch the loss of the training too
        if stops and watched.startswith(("eval", "val")):
            yield f"{slot} stops the run by its evaluations, and none comes before the end ({missing}): it does nothing"


def _find(name: str) -> Any:
    """The object of a whole name.

    Raises:
        ValueError: when there is none.
    """
    steps = name.replace(":", ".").split(".")
    if len(steps) < 2:
        raise ValueError(f"given '{name}', expected a whole name such as transformers.{name}")
    found: Any = None
    for number in range(1, len(steps) + 1):
        path, step = ".".join(steps[:number]), steps[number - 1]
        try:
            found = importlib.import_module(path)
        except ImportError as problem:
            missing = isinstance(problem, ModuleNotFoundError) and problem.name == path
            if not missing:
                raise ValueError(f"{name}: {path} cannot be imported ({problem}); mend or install it") from problem
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
    """Make the callback.

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
