"""Check of the sources' first examples before any data are prepared, for ``hooktrain plan``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from hooktrain import Complaint, DataError, World
from hooktrain_sft.config import TokenDataConfig
from hooktrain_sft.data.local_source import is_local
from hooktrain_sft.data.source_reader import label_of, open_source

__all__ = ["check_examples"]


def check_examples(config: TokenDataConfig, world: World, hooks: Any) -> Iterator[Complaint]:
    """Yield a complaint for each source on this machine whose first example no format fits."""
    for key, sources in (("sources", config.sources), ("eval_sources", config.eval_sources)):
        for number, source in enumerate(sources):
            try:
                if is_local(source):
                    _check_first(source, config, world, hooks)
            except DataError as problem:
                yield Complaint(f"data.{key}[{number}]", str(problem).removeprefix("data.sources: "))


def _check_first(source: Any, config: TokenDataConfig, world: World, hooks: Any) -> None:
    opened = open_source(_streamed(source), config, world, hooks)
    first = next(iter(opened))
    if opened.format is not None:
        try:
            opened.format.convert(first)
        except DataError as problem:
            raise DataError(f"{label_of(source)}, example 0: {problem}") from problem


def _streamed(source: Any) -> Any:
    """Return a source that is read no further than needed, without its drawing of a sample."""
    names = {item.name for item in attrs.fields(type(source))} if attrs.has(type(source)) else set()
    changed = {"streaming": True, "sample_ratio": None, "sample_count": None}
    return attrs.evolve(source, **changed) if changed.keys() <= names else source
