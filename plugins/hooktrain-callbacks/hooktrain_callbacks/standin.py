"""Objects that stand for those of another trainer, and say which of their attributes there are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hooktrain_callbacks.slots import UnmappedError

if TYPE_CHECKING:
    from hooktrain_callbacks.slots import Slots

__all__ = ["StandIn", "unmapped"]


def unmapped(slots: Slots, what: str, verb: str = "reads") -> UnmappedError:
    """The error for something that a callback uses and that has no counterpart."""
    who = str(slots.current) if slots.current is not None else "a callback"
    return UnmappedError(
        f"{who} {verb} {what}, which has no counterpart in a hooktrain run; leave the callback out, or use a hook of"
        " hooktrain in its place (hooktrain hooks)"
    )


class StandIn:
    """Base of the stand-ins; what a subclass has as properties and methods is what a callback can read.

    Attributes:
        path: how a callback reaches the object.
        settable: what a callback may assign to.
        inner: attributes that are stand-ins themselves.
    """

    path: ClassVar[str] = "trainer"
    settable: ClassVar[frozenset[str]] = frozenset()
    inner: ClassVar[Mapping[str, type[StandIn]]] = {}

    def __init__(self, slots: Slots) -> None:
        object.__setattr__(self, "_slots", slots)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise unmapped(self._slots, f"{self.path}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.settable:
            raise unmapped(self._slots, f"{self.path}.{name}", "sets")
        super().__setattr__(name, value)

    def _put(self, **values: Any) -> None:
        """Set what no callback may set."""
        for name, value in values.items():
            object.__setattr__(self, name, value)
