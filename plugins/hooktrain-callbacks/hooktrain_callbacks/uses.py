"""What Lightning callbacks read and set of their trainer, found in their source before the run begins."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from hooktrain_callbacks.mapping import NEVER
from hooktrain_callbacks.standin import StandIn

__all__ = ["Use", "uses"]


class Use(NamedTuple):
    """Something without a counterpart.

    Attributes:
        text: the end of a sentence that begins with the callback.
        fatal: whether the run would be another one than the callback wants.
    """

    text: str
    fatal: bool


def uses(callback: Any, base: type) -> Iterator[Use]:
    """What a callback's own methods do with ``trainer.<name>`` that hooktrain has no counterpart for.

    Only what is written out in its source is seen; the rest fails when it is reached, with the same advice.
    """
    from hooktrain_callbacks.lightning_trainer import LightningTrainer

    seen = set()
    for kind in type(callback).__mro__[: type(callback).__mro__.index(base)]:
        for name, function in vars(kind).items():
            if name in NEVER or not inspect.isfunction(function):
                continue
            for path, is_set in _paths(function):
                missing = _missing(LightningTrainer, path, is_set)
                if missing is None or (missing, is_set) in seen:
                    continue
                seen.add((missing, is_set))
                if is_set:
                    yield Use(
                        f"sets trainer.{missing} in {name}, which cannot be changed in a hooktrain run; leave it out",
                        True,
                    )
                else:
                    yield Use(
                        f"reads trainer.{missing} in {name}, which has no counterpart in hooktrain; it fails if it gets"
                        " there",
                        False,
                    )


def _paths(function: Any) -> Iterator[tuple[tuple[str, ...], bool]]:
    """The dotted names that begin with a parameter ``trainer``, and whether they are assigned to."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return
    inner = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        steps: list[str] = []
        at: ast.expr = node
        while isinstance(at, ast.Attribute):
            inner.add(id(at))
            steps.insert(0, at.attr)
            at = at.value
        if isinstance(at, ast.Name) and at.id == "trainer":
            yield tuple(steps), isinstance(node.ctx, ast.Store)


def _missing(standin: type[StandIn], path: tuple[str, ...], is_set: bool) -> str | None:
    """The part of a path that the stand-in lacks, or None."""
    for depth, step in enumerate(path):
        if is_set and depth == len(path) - 1:
            return None if step in standin.settable else ".".join(path)
        if not hasattr(standin, step):
            return ".".join(path[: depth + 1])
        inner = standin.inner.get(step)
        if inner is None:
            return None
        standin = inner
    return None
