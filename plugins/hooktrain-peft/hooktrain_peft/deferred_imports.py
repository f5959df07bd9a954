"""bitsandbytes only where it is used: PEFT imports it, wherever it is installed, to have its name at hand."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["defer_bitsandbytes"]

_MODULE = "peft.helpers"


def defer_bitsandbytes() -> None:
    """Have ``peft.helpers`` do without bitsandbytes, which it can; others import it as they like."""
    known = any(isinstance(finder, _Finder) for finder in sys.meta_path)
    if not known and not {_MODULE, "bitsandbytes"} & sys.modules.keys():
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "bitsandbytes" and _importer() == _MODULE:
            raise ModuleNotFoundError(f"{name} is imported when it is used", name=name)
        return None


def _importer() -> str:
    """Return the name of the module whose import statement is executed."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "importlib._bootstrap"):
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__"))
