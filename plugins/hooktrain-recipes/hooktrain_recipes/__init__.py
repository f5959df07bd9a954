"""Dialects: recipes of other programs that hooktrain reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_recipes.plugin import RecipesPlugin as RecipesPlugin

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
