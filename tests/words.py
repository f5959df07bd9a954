"""Words that the project no longer uses, found in names, in headings and in texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

__all__ = ["NAMES", "PHRASES", "in_python", "in_text"]

NAMES: Mapping[str, str] = {
    **dict.fromkeys(("hear", "hears", "heard", "hearing", "listens", "listener", "listening"), "is called, observes"),
    **dict.fromkeys(("surround", "surrounds", "surrounded", "surrounding"), "wrap"),
    **dict.fromkeys(("segment", "segments"), "loop hook"),
    **dict.fromkeys(("boundary", "boundaries"), "event"),
    **dict.fromkeys(("announce", "announces", "announced"), "emit"),
    **dict.fromkeys(("sketch", "sketched", "sketches"), "meta model"),
    **dict.fromkeys(("spread", "spreads"), "sharded"),
    **dict.fromkeys(("stretch", "stretches", "fragment", "fragments"), "shard"),
    "blank": "padding batch",
    **dict.fromkeys(("drift", "drifts"), "resume compatibility, changes"),
    "neutral": "affects_training",
    **dict.fromkeys(("tolerance", "tolerated", "tolerate"), "error policy"),
    "ledger": "hook timer",
    "waits": "device syncs",
    **dict.fromkeys(("occupation", "occupied"), "run lock"),
    "idle": "unused",
    "arrangement": "ordering",
    **dict.fromkeys(("mend", "mended", "mends"), "fix"),
    **dict.fromkeys(("seal", "sealed", "sealing", "seals"), "commit"),
    **dict.fromkeys(("claims", "claimed", "claimant"), "implements, can_load"),
}
"""Parts of names, and what to say in their place."""

PHRASES: Mapping[str, str] = {
    "in hand": "passed from Python",
    "put right": "fix",
    "told of": "reported",
    "by itself": "automatically, alone",
    "all the same": "anyway",
    "open window": "begin_step",
    "window weight": "denominator",
    "everyone hears": "every implementation is called",
}

_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_PHRASE = re.compile(r"\b(" + "|".join(phrase.replace(" ", r"[\s_]+") for phrase in PHRASES) + r")\b", re.IGNORECASE)


def in_python(text: str) -> Iterator[tuple[str, int]]:
    """Yield the names in a module that hold such a word, and the phrases in its texts, each with its line."""
    for node in ast.walk(ast.parse(text)):
        for name in _names(node):
            if {part.lower() for part in _PART.findall(name)} & NAMES.keys():
                yield name, getattr(node, "lineno", 1)
    yield from _phrases(text)


def in_text(text: str) -> Iterator[tuple[str, int]]:
    """Yield such words in the headings of a document, and the phrases in it, each with its line."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            for word in re.findall(r"[a-z]+", line.lower()):
                if word in NAMES:
                    yield word, number
    yield from _phrases(text)


def _phrases(text: str) -> Iterator[tuple[str, int]]:
    for found in _PHRASE.finditer(text):
        yield " ".join(found[0].lower().replace("_", " ").split()), text.count("\n", 0, found.start()) + 1


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node binds or spells as a keyword."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr
    elif isinstance(node, ast.alias) and node.asname:
        yield node.asname
