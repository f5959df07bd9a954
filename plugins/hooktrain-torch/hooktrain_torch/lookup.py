"""Classes by the names that recipes give them."""

from __future__ import annotations

import importlib
from typing import Any

from hooktrain import HooktrainError, did_you_mean, require_trusted

__all__ = ["find_class"]


def find_class(name: str, home: str, where: str) -> Any:
    """Import what a recipe names.

    Args:
        name: in ``home``, or a dotted path.
        home: a module of torch.
        where: path in the recipe, for errors.

    Raises:
        HooktrainError: there is no such thing.
    """
    module, _, attribute = name.rpartition(".")
    found = None
    require_trusted(module or home, where)
    try:
        found = importlib.import_module(module or home)
        return getattr(found, attribute)
    except (ImportError, AttributeError) as problem:
        hint = "" if found is None else did_you_mean(attribute, [n for n in dir(found) if n[0].isupper()])
        raise HooktrainError(
            f"{where}: '{name}' cannot be found ({problem}){hint}; give a class of {home} or a dotted path"
        ) from problem
