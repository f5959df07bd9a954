"""Plugin ``recipes``; a dialect's module is imported when dialects are asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hooktrain import hookimpl

if TYPE_CHECKING:
    from hooktrain import Dialect

__all__ = ["RecipesPlugin"]

DIALECTS = ("arctic", "axolotl", "llamafactory", "trl")
"""The modules of the dialects; each has a function ``dialect``."""


class RecipesPlugin:
    """Registers the dialects."""

    @hookimpl
    def register_recipe_dialects(self) -> list[Dialect]:
        return [importlib.import_module(f"hooktrain_recipes.{name}").dialect() for name in DIALECTS]
