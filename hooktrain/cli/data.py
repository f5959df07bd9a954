"""``hooktrain data``: the facts of a preparation, and examples with the trained tokens in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hooktrain.errors import HooktrainError
from hooktrain.inspection.terminal import console, is_terminal, show
from hooktrain.plugin.manager import PluginHost
from hooktrain.recipe.model import Recipe
from hooktrain.training.build import make_data, make_part
from hooktrain.types import ExamplePreview, World

__all__ = ["data_of", "print_data"]

_LABELS = {"rows_empty": "rows empty (no token trained)", "rows_cut": "rows cut (trained tokens lost)"}
"""Names of numbers that do not explain themselves."""
_BAR = 30
"""Widest bar of a histogram, in characters."""


def data_of(recipe: Recipe, host: PluginHost, show: int = 0, teacher: bool = False) -> dict[str, Any]:
    """Prepare a recipe's data; returns its report, and ``shown`` rows of each source.

    With ``teacher``, what the recipe's teacher says about the data is computed and kept before, as ``stored``.

    Raises:
        HooktrainError: whatever is wrong with the data.
    """
    world = World.from_environment()
    stored = _stored(recipe, host, world) if teacher else {}
    tokenizer, data = make_data(host, recipe, world)
    facts = {**data.report, "fingerprint": data.fingerprint, **stored}
    if show:
        rows = host.hooks.preview_examples(
            config=recipe.data, tokenizer=tokenizer, world=world, hooks=host.hooks, count=show
        )
        facts["shown"] = [attrs.asdict(row) for row in rows or ()]
        if rows is None:
            kind = recipe.types.get(type(recipe.data), type(recipe.data).__name__)
            facts["not_shown"] = (
                f"--show {show}: no plugin shows rows of the data '{kind}'; one does that implements preview_examples"
            )
    return facts


def _stored(recipe: Recipe, host: PluginHost, world: World) -> dict[str, Any]:
    """Have a plugin keep what the recipe's teacher says about the data; returns facts about it as ``stored``."""
    tokenizer = make_part(host, "make_tokenizer", recipe.tokenizer, world=world, recipe=recipe)
    given = {"recipe": recipe, "tokenizer": tokenizer, "world": world, "hooks": host.hooks}
    found = host.hooks.store_outputs(name="teacher", **given)
    if found is None:
        raise HooktrainError(
            "--teacher: the loss of the recipe reads nothing of a teacher that is computed ahead, expected one that"
            " does; write for example loss: {type: distill, top_k: 64}, or remove --teacher"
        )
    return {"stored": {"teacher": found}}


def print_data(facts: Mapping[str, Any]) -> None:
    """The facts of :func:`data_of` for people."""
    to = console()
    for row in facts.get("shown", ()):
        _print_row(to, ExamplePreview(**row))
    if facts.get("not_shown"):
        to.print(f"[yellow]{escape(facts['not_shown'])}[/]", soft_wrap=True)
    for source in facts.get("sources", ()):
        _print_source(to, source)
    sets = {"train": facts.get("train"), **facts.get("evaluation", {})}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    numbers = {name: _numbers(of) for name, of in sets.items() if isinstance(of, Mapping)}
    for name in numbers:
        table.add_column(name, justify="right")
    for key in dict.fromkeys(key for of in numbers.values() for key in of):
        table.add_row(_LABELS.get(key, key.replace("_", " ")), *(of.get(key, "") for of in numbers.values()))
    if numbers:
        show(to, table)
    for name, of in sets.items():
        for title, histogram in (of.get("histograms", {}) if isinstance(of, Mapping) else {}).items():
            _print_histogram(to, f"{name}: {title}", histogram["edges"], histogram["counts"])
    for model, stored in facts.get("stored", {}).items():
        for name, each in stored.items():
            size = f"{each['tokens']:,} tokens in {each['bytes'] / 1e6:,.1f} MB"
            to.print(escape(f"{model}, {name}: {size}, {each['seconds']:.1f} s: {each['path']}"), soft_wrap=True)
    for warning in facts.get("warnings", ()):
        to.print(f"[yellow]warning[/] {escape(str(warning))}", soft_wrap=True)
    if facts.get("summary"):
        to.print(escape(str(facts["summary"])), soft_wrap=True)


def _numbers(facts: Mapping[str, Any]) -> dict[str, str]:
    """The plain numbers of a set, and the share of its tokens that is trained."""
    found = {key: f"{value:,}" for key, value in facts.items() if isinstance(value, (int, float))}
    kept = facts.get("tokens_kept")
    if kept and "tokens_trained" in facts:
        found["share trained"] = f"{facts['tokens_trained'] / kept:.1%}"
    return found


def _print_source(to: Console, source: Mapping[str, Any]) -> None:
    heading = f"[bold]{escape(str(source.get('source')))}[/]"
    facts = [f"{source[key]:,} {key}" for key in ("rows", "tokens") if key in source]
    facts += [str(source["why"])] if source.get("why") else []
    facts += ["read from the cache" if source.get("cached") else f"prepared in {source.get('seconds', 0):.1f} s"]
    facts += [f"not cached: {source['not_cached']}"] if source.get("not_cached") else []
    to.print(f"{heading} ({escape(str(source.get('use', '')))}): {escape('; '.join(facts))}", soft_wrap=True)


def _print_histogram(to: Console, title: str, edges: Sequence[int], counts: Sequence[int]) -> None:
    to.print(f"\n[bold]{escape(title)}[/]")
    most = max([*counts, 1])
    width = len(f"{edges[-1]:,}")
    for begin, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
        to.print(f"{begin:>{width},} to {end - 1:>{width},}  {bar:<{_BAR}} {count:,}")


def _print_row(to: Console, row: ExamplePreview) -> None:
    """A row's text; what is trained in green, and where there is no colour between «»; the rules below it."""
    if is_terminal():
        to.rule(f"[bold]{escape(row.label)}[/]", align="left")
    else:
        to.print(f"─── {escape(row.label)} ───")
    plain = to.color_system is None or to.no_color
    text = Text()
    rules: dict[str, int] = {}
    for piece, trained, rule in row.pieces:
        if trained:
            number = rules.setdefault(rule, len(rules) + 1)
            text.append(f"«{piece}»" if plain else piece, "black on green")
            text.append(f"[{number}]", "bold green")
        else:
            text.append(piece, "dim")
    to.print(text, soft_wrap=True)  # what stands there, with every space
    for rule, number in rules.items():
        to.print(f"[bold green]\\[{number}][/] trained: {escape(rule)}", soft_wrap=True)
    if row.note:
        to.print(f"[dim]{escape(row.note)}[/]", soft_wrap=True)
    to.print()
