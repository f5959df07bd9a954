"""``hooktrain convert``, and recipes of other programs in the commands that run or show a recipe."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hooktrain.cli.options import as_json, host_of
from hooktrain.errors import HooktrainError, PluginError, RecipeError
from hooktrain.recipe.yaml_reader import read_recipe

if TYPE_CHECKING:
    from hooktrain.recipe.dialects import Translation

__all__ = ["convert", "foreign_refused", "read_own_or_translated", "refuse_foreign"]

UNSUPPORTED, NOT_A_RECIPE = 3, 4
"""Statuses of the command."""


@click.command(short_help="Translate another program's recipe.")
@click.argument("recipe", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--from", "dialect", metavar="NAME", help="The dialect of the file; it is recognised when omitted.")
@click.option("-o", "output", type=click.Path(path_type=Path), metavar="OUT", help="Write the recipe to this file.")
@click.option("--partial", is_flag=True, help="Write the recipe without the keys that are not supported.")
@click.option("-p", "switches", multiple=True, metavar="NAME", help="Load a plugin; no:NAME blocks one, no:* all.")
@as_json
def convert(
    recipe: Path, dialect: str | None, output: Path | None, partial: bool, switches: tuple[str, ...], as_json: bool
) -> int:
    """Convert another program's recipe to one of hooktrain's, with an account of every key.

    Without -o the recipe is printed, and the account goes to the standard error. What keeps the recipe from running on
    this machine, such as a package that is not installed, is listed and changes no status. Ends with status 3 when a
    key is not supported (the recipe is then written with --partial only), and with 4 when the file is no training
    recipe.
    """
    from hooktrain.recipe.commented_yaml import commented_yaml
    from hooktrain.recipe.dialects import dialects_of, recognise, translate

    raw = read_recipe(recipe)
    host = host_of(switches)
    if dialect is None:
        found = recognise(raw, host, str(recipe))
        if found is None:
            known = ", ".join(f"{each.name} ({each.summary})" for each in dialects_of(host).values())
            raise HooktrainError(
                f"{recipe}: no dialect recognises this file; give one with --from: {known or 'no plugin registers one'}"
            )
        dialect = found.name
    translation = translate(raw, dialect, recipe.absolute().parent, host, str(recipe))
    if translation.not_a_recipe:
        if as_json:
            click.echo(json.dumps({"dialect": dialect, "not_a_recipe": translation.not_a_recipe}, indent=2))
        else:
            click.echo(f"hooktrain: {recipe}: not a training recipe: {translation.not_a_recipe}", err=True)
        return NOT_A_RECIPE
    heading = f"Converted from {recipe.name} by `hooktrain convert --from {dialect}`."
    text = commented_yaml(translation, raw, heading) if partial or not translation.unsupported else ""
    if text and output is not None:
        _write(output, text)
    errors = _errors(recipe, translation, switches) if text else []
    if as_json:
        facts = {**_facts(translation, dialect, text, output), "errors": errors}
        click.echo(json.dumps(facts, indent=2, default=str))
    else:
        _print_account(translation, dialect, err=output is None)
        if errors:
            lines = (f"  - {each['where']}: {each['message']}" for each in errors)
            click.echo("\n".join(["", "before it runs here:", *lines]), err=output is None)
        if output is None:
            click.echo(text, nl=False)
        elif text:
            click.echo(f"\nwrote {output}; `hooktrain plan {output}` shows what it would run")
        if not text:
            click.echo(f"hooktrain: {recipe}: nothing is written; --partial writes what is supported", err=True)
    return UNSUPPORTED if translation.unsupported else 0


def _errors(path: Path, translation: Translation, switches: Sequence[str]) -> list[dict[str, str]]:
    """Return what `plan` lists as errors or as missing on this machine, as ``where`` and ``message``."""
    from hooktrain.inspection.plan import read_phases

    *_, facts = read_phases(path, switches=switches, estimates=False, translated=translation.recipe)
    return [*facts["complaints"], *facts["lacking"]]


def _write(output: Path, text: str) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise HooktrainError(f"-o {output}: cannot be written ({problem.strerror}); give another path") from problem


def _facts(translation: Translation, dialect: str, text: str, output: Path | None) -> dict[str, Any]:
    """The account as plain values."""
    return {
        "dialect": dialect,
        "translated": [{"key": each.key, "to": list(each.to)} for each in translation.translated],
        "ignored": [{"key": each.key, "reason": each.reason} for each in translation.ignored],
        "unsupported": [
            {"key": each.key, "reason": each.reason, "remedy": each.remedy} for each in translation.unsupported
        ],
        "notes": dict(translation.notes),
        "recipe": translation.recipe,
        "written": str(output) if text and output is not None else None,
    }


def _print_account(translation: Translation, dialect: str, err: bool) -> None:
    """Print what became of each key; on the standard error where the recipe goes to the standard output."""
    rows = [(each.key, "translated", ", ".join(each.to)) for each in translation.translated]
    rows += [(each.key, "no effect here", each.reason) for each in translation.ignored]
    rows += [(path, "added", f"{why}") for path, why in translation.notes.items()]
    rows += [(each.key, "NOT SUPPORTED", f"{each.reason}; {each.remedy}") for each in translation.unsupported]
    rows.insert(0, ("key", "", ""))
    wide = [max(len(row[at]) for row in rows) for at in (0, 1)]
    for key, kind, text in rows:
        click.echo(f"{key:<{wide[0]}}  {kind:<{wide[1]}}  {text}".rstrip(), err=err)
    counts = f"{len(translation.translated)} keys translated, {len(translation.ignored)} without effect here"
    click.echo(f"\n{dialect}: {counts}, {len(translation.unsupported)} not supported", err=err)


# -------------------------------------------------------------------------------------------- in other commands


def read_own_or_translated(recipe: Path, dialect: str | None, switches: Sequence[str]) -> dict[str, Any]:
    """Return what a recipe file says in hooktrain's keys; with a dialect it is translated.

    Raises:
        RecipeError: it cannot be read, or no dialect has this name.
        HooktrainError: it is no training recipe, or has keys that are not supported.
    """
    raw = read_recipe(recipe)
    if dialect is None:
        if {"code", "plugins"} & raw.keys():  # what these name would be loaded
            refuse_foreign(raw, recipe, switches)
        return raw
    from hooktrain.recipe.dialects import translate

    translation = translate(raw, dialect, recipe.absolute().parent, host_of(switches), str(recipe))
    if translation.not_a_recipe:
        raise HooktrainError(f"{recipe}: not a training recipe: {translation.not_a_recipe}; give another file")
    if translation.unsupported:
        count = len(translation.unsupported)
        lines = [f"  - {each.key}: {each.reason}; {each.remedy}" for each in translation.unsupported]
        raise HooktrainError(
            "\n".join(
                [
                    f"{recipe}: {count} key{'s' if count > 1 else ''} of {dialect} {'are' if count > 1 else 'is'}"
                    " not supported",
                    *lines,
                    f"`hooktrain convert {recipe} --from {dialect} --partial -o OUT` writes a recipe without"
                    f" {'them' if count > 1 else 'it'}",
                ]
            )
        )
    return translation.recipe


def refuse_foreign(raw: dict[str, Any], recipe: Path, switches: Sequence[str]) -> None:
    """Refuse a recipe that a dialect recognises, with the command that converts it; nothing that it names is loaded.

    Raises:
        HooktrainError: it is another program's.
    """
    from hooktrain.recipe.dialects import recognise

    found = recognise(raw, host_of(switches), str(recipe))
    if found is not None:
        raise HooktrainError(
            f"{recipe}: is a recipe of {found.summary}. Convert it with `hooktrain convert {recipe} --from {found.name}"
            f" -o OUT`, or add --from {found.name} to run it as it stands"
        )


@contextlib.contextmanager
def foreign_refused(recipe: Path, dialect: str | None, switches: Sequence[str]) -> Iterator[None]:
    """Say of a recipe that is found wrong inside that it is another program's, where a dialect recognises it."""
    try:
        yield
    except (RecipeError, PluginError):
        if dialect is None:
            with contextlib.suppress(PluginError):  # of a dialect: the first error is the user's
                refuse_foreign(read_recipe(recipe), recipe, switches)
        raise
