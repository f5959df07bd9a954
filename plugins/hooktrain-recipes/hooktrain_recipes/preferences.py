"""Preferences in recipes of other programs: the trainer type, the loss, the reference, and the pairs of a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.reasons import PREFERENCES
from hooktrain_recipes.values import number, positive

__all__ = ["UNCUT", "copy_loss", "set_dpo_variant", "set_loss", "set_pairs", "set_uncut", "without_dropout"]

UNCUT = "prompts and answers are never cut: a longer pair is dropped"
_VARIANTS = (
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard"),
    *("apo_zero", "apo_down", "discopop", "sft"),
)
"""Losses of DPO by TRL's names."""


def set_loss(found: Collector, key: str, kind: str, why: str = "") -> None:
    """Set trainer type and loss; ``key`` says so, or ``why`` where none does."""
    for to, value in (("type", kind if kind in ("kto", "reward") else "preference"), ("loss.type", kind)):
        found.set(to, value)
        found.notes[to] = why or f"from {key}"  # shown where the key is refused as well
        if key:
            found.translated(key, to)


def set_dpo_variant(found: Collector, key: str, weights: str) -> None:
    """Set the variant of DPO by TRL's name, or several with their weights; others are refused by name."""
    given, factors = found.get(key), found.get(weights)
    names = given if isinstance(given, list) else [given]
    factors = factors if isinstance(factors, list) else [1.0] * len(names)
    if not names or not set(names) <= set(_VARIANTS) or len(factors) != len(names):
        PREFERENCES.refuse(found, key, f"the loss {' with '.join(map(str, names)):.60}")
    elif len(names) == 1 and factors == [1]:
        found.copy(key, "loss.loss_type", lambda _: names[0])
    else:
        made = {str(name): positive(factor) for name, factor in zip(names, factors, strict=True)}
        found.set("loss.loss_type", made)
        for name in made:
            found.translated(key, f"loss.loss_type.{name}")
            found.translated(weights, f"loss.loss_type.{name}") if weights in found else None
    if weights in found:
        found.ignored(weights, "one loss has the weight 1")


def copy_loss(found: Collector, key: str, to: str, kinds: tuple[str, ...], *, zero: bool = False) -> None:
    """Copy a number of a loss, where the recipe's loss is one of some kinds; other losses do not have it."""
    if key not in found:
        return
    loss = found.recipe.get("loss", {})
    if found.get(key) is None:
        found.ignored(key, "null is the default")
    elif {loss.get("type"), loss.get("loss_type")} & set(kinds):
        found.copy(key, f"loss.{to}", number if zero else positive)
    else:
        found.ignored(key, "this loss has no such number")


def set_uncut(found: Collector, program: str) -> None:
    """Drop pairs that are too long, which the other program cuts."""
    found.default("data.overflow", "drop", f"{program} cuts what is longer; here a pair is used whole or not at all")


def without_dropout(found: Collector, key: str) -> None:
    """Set the adapter's dropout to 0, as TRL's trainers of preferences do for all of the model; ``key`` is its own."""
    found.default("peft.dropout", 0.0, f"{found.program} turns dropout off for preferences")
    if key in found:
        found.ignored(key, "dropout is turned off for preferences, also there")


def set_pairs(found: Collector, key: str, to: str, parts: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """Write a format of pairs into the recipe, and its name and columns at a source; returns its path.

    Args:
        found: the translation.
        key: the key that says it.
        to: path of the source.
        parts: the format, as ``prompts.pairs`` has it.
        columns: columns of the source by ours, where they have other names.
    """
    known = found.recipe.setdefault("prompts", {}).setdefault("pairs", {})
    made, name = {part: value for part, value in parts.items() if value not in ("", {}, False)}, "pairs"
    while known.get(name, made) != made:
        name += "_"
    known[name] = made
    found.set(f"{to}.format", name)
    found.translated(key, f"{to}.format", f"prompts.pairs.{name}")
    if renamed := {ours: column for ours, column in columns.items() if column != ours}:
        found.set(f"{to}.columns", renamed)
        found.translated(key, f"{to}.columns")
    return f"prompts.pairs.{name}"
