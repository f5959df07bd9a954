"""Finds what Lightning callbacks read and set of their trainer, in their source and before the run begins."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from hooktrain_callbacks.events import NEVER
from hooktrain_callbacks.proxy import Proxy

__all__ = ["UnsupportedUse", "unsupported_uses"]


class UnsupportedUse(NamedTuple):
    """A use of the trainer that has no counterpart in hooktrain.

    Attributes:
        text: the end of a sentence that begins with the callback.
        fatal: whether the run would be another one than the callback wants.
    """

    text: str
    fatal: bool


def unsupported_uses(callback: Any, base: type) -> Iterator[UnsupportedUse]:
    """Yield the uses of ``trainer.<name>`` in a callback's own methods that hooktrain does not support.

    Only names that are written out in the source are found; others fail when they are reached, with the same advice.
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
                    text = f"sets trainer.{missing} in {name}, which no callback can change here; remove it"
                else:
                    text = f"reads trainer.{missing} in {name}, which hooktrain does not have; that line will fail"
                yield UnsupportedUse(text, fatal=is_set)


def _paths(function: Any) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the dotted names that begin with ``trainer``, and whether they are assigned to."""
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


def _missing(proxy: type[Proxy], path: tuple[str, ...], is_set: bool) -> str | None:
    """Return the part of a path that the proxy does not have, or None."""
    for depth, step in enumerate(path):
        if is_set and depth == len(path) - 1:
            return None if step in proxy.settable else ".".join(path)
        if not hasattr(proxy, step):
            return ".".join(path[: depth + 1])
        inner = proxy.inner.get(step)
        if inner is None:
            return None
        proxy = inner
    return None
