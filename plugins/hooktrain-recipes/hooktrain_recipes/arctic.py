"""The dialect ``arctic``: recipes of ArcticTraining."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from hooktrain import Collector, Translation
from hooktrain_recipes.tables import Row, apply

__all__ = ["ROWS", "dialect"]

ROWS: tuple[Row, ...] = ()


@attrs.frozen
class _Dialect:
    name: str = "arctic"
    summary: str = "ArcticTraining"

    def recognises(self, raw: Mapping[str, Any]) -> bool:
        return False

    def translate(self, raw: Mapping[str, Any], folder: Path) -> Translation:
        found = Collector(raw, "ArcticTraining")
        apply(found, ROWS)
        return found.translation()


def dialect() -> _Dialect:
    return _Dialect()
