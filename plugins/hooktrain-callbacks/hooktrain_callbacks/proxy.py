"""Base of the objects that stand in for another trainer's, with an error for attributes that they do not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hooktrain_callbacks.callback_handler import UnmappedError

if TYPE_CHECKING:
    from hooktrain import Trainer
    from hooktrain_callbacks.callback_handler import CallbackHandler

__all__ = ["Proxy", "RunProxy", "assign", "unmapped"]


def unmapped(handler: CallbackHandler, what: str, verb: str = "reads") -> UnmappedError:
    """Return the error for an attribute that a callback uses and that has no counterpart."""
    who = str(handler.current) if handler.current is not None else "a callback"
    return UnmappedError(
        f"{who} {verb} {what}, which has no counterpart in a hooktrain run; remove the callback, or write a plugin with"
        " a hook in its place (`hooktrain hooks` lists them)"
    )


def assign(proxy: Proxy, **values: Any) -> None:
    """Set attributes that no callback may set."""
    for name, value in values.items():
        object.__setattr__(proxy, name, value)


class Proxy:
    """Base class; the properties and methods of a subclass are what a callback can read.

    Attributes:
        path: how a callback reaches the object.
        settable: attributes that a callback may assign to.
        inner: attributes that are proxies themselves.
    """

    path: ClassVar[str] = "trainer"
    settable: ClassVar[frozenset[str]] = frozenset()
    inner: ClassVar[Mapping[str, type[Proxy]]] = {}
    handler: CallbackHandler

    def __init__(self, handler: CallbackHandler) -> None:
        assign(self, handler=handler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "handler":
            raise AttributeError(name)
        raise unmapped(self.handler, f"{self.path}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.settable:
            raise unmapped(self.handler, f"{self.path}.{name}", "sets")
        super().__setattr__(name, value)


class RunProxy(Proxy):
    """A proxy of the run and its ranks."""

    run: Any = None

    def __init__(self, handler: CallbackHandler, run: Trainer) -> None:
        super().__init__(handler)
        assign(self, run=run)

    @property
    def is_global_zero(self) -> bool:
        return bool(self.run.world.is_main)

    @property
    def global_rank(self) -> int:
        return int(self.run.world.rank)

    @property
    def local_rank(self) -> int:
        return int(self.run.world.local_rank)

    @property
    def world_size(self) -> int:
        return int(self.run.world.world_size)
