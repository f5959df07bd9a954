"""The callbacks of a run: which events each of them overrides, and what happens when one fails."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import HooktrainError

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["BASES", "CallbackHandler", "LoadedCallback", "UnmappedError", "base_of", "overridden"]

BASES = {
    "transformers.trainer_callback.TrainerCallback": "transformers",
    "lightning.pytorch.callbacks.callback.Callback": "lightning.pytorch",
    "pytorch_lightning.callbacks.callback.Callback": "pytorch_lightning",
    "lightning.pytorch.loggers.logger.Logger": "lightning.pytorch",
    "pytorch_lightning.loggers.logger.Logger": "pytorch_lightning",
}
"""Base classes of callbacks (and of Lightning's loggers), and the package whose trainer calls them."""


class UnmappedError(HooktrainError, AttributeError):
    """A callback reads or sets something of its own trainer that has no counterpart in hooktrain."""


def base_of(kind: type) -> type | None:
    """Return the class in :data:`BASES` that ``kind`` is derived from, without importing one."""
    return next((one for one in kind.__mro__ if f"{one.__module__}.{one.__qualname__}" in BASES), None)


def overridden(callback: Any, base: type) -> frozenset[str]:
    """Return the methods of the base class that a callback overrides; those that it inherits are empty."""
    found = set()
    for name, empty in vars(base).items():
        if name.startswith("_") or not inspect.isfunction(empty):
            continue
        method = getattr(callback, name)
        if not (inspect.ismethod(method) and method.__func__ is empty):
            found.add(name)
    return frozenset(found)


@attrs.define(eq=False)
class LoadedCallback:
    """One callback of a run.

    Attributes:
        callback: the object.
        where: its position in the recipe.
        name: its class, as a recipe names it.
        package: whose trainer calls it, one of the values of :data:`BASES`.
        events: the methods that it overrides.
        on_error: ``stop``, ``disable`` or ``warn``.
        is_logger: whether it is one of Lightning's loggers.
        disabled: whether it failed and is not called any more.
        failures: how often it has failed.
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


class CallbackHandler:
    """Calls the callbacks of one package in the recipe's order.

    Attributes:
        current: the one that is being called, for errors about what it reads.
    """

    def __init__(self, callbacks: Iterable[LoadedCallback]) -> None:
        self.callbacks = list(callbacks)
        self.current: LoadedCallback | None = None
        self.trainer: Trainer
        self._calls: dict[str, list[tuple[LoadedCallback, Callable[..., Any]]]] = {}
        for loaded in self.callbacks:
            for event in loaded.events:
                self._calls.setdefault(event, []).append((loaded, getattr(loaded.callback, event)))

    def implements(self, event: str) -> bool:
        """Return whether any callback overrides the event."""
        return event in self._calls

    def call(
        self, event: str, *arguments: Any, then: Callable[[LoadedCallback, Any], None] | None = None, **named: Any
    ) -> None:
        """Call an event of every callback that overrides it.

        Args:
            event: the method's name.
            arguments: its positional arguments.
            then: called after each callback with its result; what it raises counts as the callback's failure.
            named: its keyword arguments.
        """
        for loaded, method in self._calls.get(event, ()):
            if loaded.disabled:
                continue
            self.current = loaded
            try:
                result = method(*arguments, **named)
                if then is not None:
                    then(loaded, result)
            except Exception as problem:
                self.failed(loaded, event, problem)
            finally:
                self.current = None

    def failed(self, loaded: LoadedCallback, event: str, problem: Exception) -> None:
        """Raise, disable the callback or warn, as its ``on_error`` says."""
        if loaded.on_error == "stop":
            if sys.version_info >= (3, 11) and not isinstance(problem, HooktrainError):
                problem.add_note(f"raised by {loaded} in {event}")
            raise problem
        loaded.failures += 1
        if loaded.on_error == "disable":
            loaded.disabled = True
        elif loaded.failures > 1:
            return
        what = "is disabled for the rest of the run" if loaded.disabled else "is called again, without further warnings"
        step, rank = self.trainer.global_step, self.trainer.world.rank
        self.trainer.host.warn(
            f"{loaded} failed in {event}, step {step}, rank {rank}, and {what} (on_error: {loaded.on_error}):"
            f" {type(problem).__name__}: {problem}"
        )
