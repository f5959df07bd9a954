"""Which format a source's rows have, and how they are brought into a form that can be rendered.

A canonical row has one of these, the first that is there counts: ``input_ids``; ``messages``; ``prompt`` with
``completion``; ``text``. All other columns stay, and some mean something: ``tools`` and ``chat_template_kwargs`` beside
conversations, masks beside ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

from hooktrain import DataError, did_you_mean

__all__ = ["CANONICAL", "Format", "Row", "choose_format", "setting"]

Row = Mapping[str, Any]

CANONICAL = (("input_ids",), ("messages",), ("prompt", "completion"), ("text",))
"""What a canonical row can hold, in the order in which rendering looks for it."""


@attrs.frozen
class Format:
    """One way in which data sets are written.

    Attributes:
        name: what a recipe calls it, under ``data.format``.
        columns: the columns that it needs, in words, for errors.
        recognise: given the columns and the first row, why they are this format, as part of a sentence, or None.
        convert: makes a canonical row of a row; raises a ``DataError`` that names the field.
        makes: the canonical column that ``convert`` gives, so that others are not taken for it; None leaves all.
        why: why it was chosen, one sentence; filled in by :func:`choose_format`.
    """

    name: str
    columns: str
    recognise: Callable[[Sequence[str], Row], str | None]
    convert: Callable[[Row], Row]
    makes: Literal["input_ids", "messages", "prompt", "text"] | None = "messages"
    why: str = ""


def choose_format(
    columns: Sequence[str], first_row: Row, source: Any, config: Any, formats: Mapping[str, Format]
) -> Format:
    """The format of a source's rows: what the source or the recipe says, or what the columns show.

    Args:
        columns: names of the source's columns.
        first_row: its first row.
        source: the source's config; its ``format``, ``role_mapping``, ``content_key`` and ``columns`` go before those
            of ``config``.
        config: what the recipe says under ``data``.
        formats: the formats by name, in the order in which they are tried.

    Returns:
        The format, with ``why`` it was chosen; its ``convert`` takes rows as the source has them, ``columns`` renamed.

    Raises:
        DataError: when the format is not known, or no format fits.
    """
    renamed = _renames(columns, setting(source, config, "columns"))
    names = [renamed.get(column, column) for column in columns]
    row = _rename(first_row, renamed) if renamed else first_row
    wanted = setting(source, config, "format") or "auto"
    if wanted != "auto" and wanted not in formats:
        raise DataError(
            f"data.format: given '{wanted}', expected auto or one of {', '.join(formats)}"
            f"{did_you_mean(wanted, formats)}; correct it, or enable the plugin that offers it"
        )
    if setting(source, config, "role_mapping"):
        if wanted not in ("auto", "role_mapping"):
            raise DataError(f"data.role_mapping: given with `data.format: {wanted}`, which has no use for it; drop one")
        wanted = "role_mapping"
    for name in formats if wanted == "auto" else (wanted,):
        chosen = formats[name]
        reason = chosen.recognise(names, row)
        if reason is None and wanted != "auto" and chosen.makes is not None:
            raise DataError(
                f"data.format: given '{wanted}', which needs {chosen.columns}, but the rows have the columns"
                f" {', '.join(map(str, columns))}; name them with `data.columns: {{ours: theirs}}` or change the format"
            )
        if reason is not None or wanted != "auto":
            why = f"format {name}, {'as the recipe says' if wanted != 'auto' else f'recognised by {reason}'}"
            if renamed:
                why += f", with {', '.join(f'{theirs} read as {ours}' for theirs, ours in renamed.items())}"
            return attrs.evolve(chosen, why=why, convert=_prepared(chosen, names, renamed))
    raise DataError(
        f"the rows have the columns {', '.join(map(str, columns))}, which is none of the known formats; expected"
        f" {'; '.join(f'{f.columns} ({f.name})' for f in formats.values() if f.columns)}; rename them with"
        " `data.columns: {ours: theirs}`, or say with `data.role_mapping: {user: ..., assistant: ...}` which columns"
        f" hold the turns{_hint(columns)}"
    )


def _hint(columns: Sequence[str]) -> str:
    if "chosen" in columns:
        return "; to train on the chosen side of preferences write `data.columns: {messages: chosen}`"
    return ""


def setting(source: Any, config: Any, name: str) -> Any:
    """What the source says, or else the recipe under ``data``; None where neither does."""
    return getattr(source, name, None) or getattr(config, name, None) or None


def _prepared(chosen: Format, columns: Sequence[str], renamed: Mapping[str, str]) -> Callable[[Row], Row]:
    """``convert`` after renaming, and without columns that rendering would look at before what ``convert`` makes."""
    place = next((index for index, names in enumerate(CANONICAL) if chosen.makes in names), 0)
    earlier = {name for names in CANONICAL[:place] for name in names} & set(columns)
    convert = chosen.convert
    if not renamed and not earlier:
        return convert

    def prepared(row: Row) -> Row:
        made = convert(_rename(row, renamed))
        return {name: value for name, value in made.items() if name not in earlier}

    return prepared


def _renames(columns: Sequence[str], wanted: Mapping[str, str] | None) -> dict[str, str]:
    """From the source's names to ours."""
    for ours, theirs in (wanted or {}).items():
        if theirs not in columns:
            raise DataError(
                f"data.columns.{ours}: given '{theirs}', which is none of the columns {', '.join(map(str, columns))}"
                f"{did_you_mean(theirs, columns)}; write the data set's own name"
            )
    return {theirs: ours for ours, theirs in (wanted or {}).items()}


def _rename(row: Row, renamed: Mapping[str, str]) -> Row:
    taken = set(renamed.values())
    kept = {name: value for name, value in row.items() if name not in renamed and name not in taken}
    return kept | {ours: row.get(theirs) for theirs, ours in renamed.items()}
