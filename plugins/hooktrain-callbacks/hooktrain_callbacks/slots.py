"""A callback in its place: which events it wants to hear, and what happens when it fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import HooktrainError

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["Slot", "Slots", "UnmappedError", "base_of", "overridden"]

BASES = {
    "transformers.trainer_callback.TrainerCallback": "transformers",
    "lightning.pytorch.callbacks.callback.Callback": "lightning.pytorch",
    "pytorch_lightning.callbacks.callback.Callback": "pytorch_lightning",
    "lightning.pytorch.loggers.logger.Logger": "lightning.pytorch",
    "pytorch_lightning.loggers.logger.Logger": "pytorch_lightning",
}
"""The classes that callbacks (and Lightning's loggers) come from, and the package whose trainer drives them."""


class UnmappedError(HooktrainError, AttributeError):
    """A callback reads or sets something of its own trainer that has no counterpart in hooktrain."""


def base_of(kind: type) -> type | None:
    """The class in :data:`BASES` that ``kind`` is derived from; nothing is imported to find out."""
    return next((one for one in kind.__mro__ if f"{one.__module__}.{one.__qualname__}" in BASES), None)


def overridden(callback: Any, base: type) -> frozenset[str]:
    """Names of the base class's methods that the callback has its own of; inherited empty ones are never called."""
    found = set()
    for name, empty in vars(base).items():
        if name.startswith("_") or not inspect.isfunction(empty):
            continue
        if getattr(getattr(callback, name), "__func__", None) is not empty:
            found.add(name)
    return frozenset(found)


@attrs.define(eq=False)
class Slot:
    """One callback of a run.

    Attributes:
        callback: the object.
        where: its place in the recipe.
        name: its class, as a recipe names it.
        package: whose trainer drives it, one of the values of :data:`BASES`.
        events: what it overrides.
        on_error: ``stop``, ``disable`` or ``warn``.
        is_logger: whether it is one of Lightning's loggers.
    """

    callback: Any
    where: str
    name: str
    package: str
    events: frozenset[str]
    on_error: str
    is_logger: bool = False
    disabled: bool = False
    failures: int = 0

    def __str__(self) -> str:
        return f"{self.where} ({self.name})"


class Slots:
    """The callbacks of one package, called in the recipe's order.

    Attributes:
        current: the one that is being called, for errors about what it reads.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        self.all = list(slots)
        self.current: Slot | None = None
        self.trainer: Trainer
        self._calls: dict[str, list[tuple[Slot, Callable[..., Any]]]] = {}
        for slot in self.all:
            for event in slot.events:
                self._calls.setdefault(event, []).append((slot, getattr(slot.callback, event)))

    def hears(self, event: str) -> bool:
        """Whether any callback overrides the event."""
        return event in self._calls

    def call(self, event: str, *given: Any, then: Callable[[Slot, Any], None] | None = None, **named: Any) -> None:
        """Call an event of every callback that overrides it.

        Args:
            event: the method's name.
            given: its positional arguments.
            then: called after each callback with what it returned; what it raises counts as the callback's failure.
            named: its keyword arguments.
        """
        for slot, method in self._calls.get(event, ()):
            if slot.disabled:
                continue
            self.current = slot
            try:
                result = method(*given, **named)
                if then is not None:
                    then(slot, result)
            except Exception as problem:
                self.failed(slot, event, problem)
            finally:
                self.current = None

    def failed(self, slot: Slot, event: str, problem: Exception) -> None:
        """Go on without the callback, or with it, or not at all, as its ``on_error`` says."""
        if slot.on_error == "stop":
            if hasattr(problem, "add_note") and not isinstance(problem, HooktrainError):
                problem.add_note(f"raised by {slot} in {event}")
            raise problem
        slot.failures += 1
        if slot.on_error == "disable":
            slot.disabled = True
        elif slot.failures > 1:
            return
        what = "is left out from here on" if slot.disabled else "goes on being called, and is not reported again"
        step, rank = self.trainer.global_step, self.trainer.world.rank
        self.trainer.host.warn(
            f"{slot} failed in {event}, step {step}, rank {rank}, and {what} (on_error: {slot.on_error}):"
            f" {type(problem).__name__}: {problem}"
        )
