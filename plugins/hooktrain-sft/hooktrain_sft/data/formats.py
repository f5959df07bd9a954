"""Formats of examples: their recognition, and their conversion to canonical examples, which can be rendered.

A canonical example has ``input_ids``, ``messages``, ``prompt`` with ``completion``, or ``text``; the first of them that
is there counts. All other columns stay. Some have a meaning: ``tools`` and ``chat_template_kwargs`` with conversations,
masks with ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

from hooktrain import DataError, did_you_mean
from hooktrain_sft.config import SFTDataConfig, SourceOptions

__all__ = ["CANONICAL", "Example", "Format", "choose_format"]

Example = Mapping[str, Any]

CANONICAL = (("input_ids",), ("messages",), ("prompt", "completion"), ("text",))
"""Columns of canonical examples, in the order in which rendering looks for them."""


@attrs.frozen
class Format:
    """A format of examples.

    Attributes:
        name: its name in a recipe, under ``data.format``.
        columns: the columns that it needs, in words, for errors.
        recognise: from the columns and the first example to the reason why they are of this format, as part of a
            sentence, or None.
        convert: from an example to a canonical one; raises a ``DataError`` that names the field.
        makes: the canonical column that ``convert`` returns; the ones that rendering would look at first are removed.
            None keeps all.
        reads: the columns that ``convert`` reads and that rendering does not; None where they are not known, so that no
            column is reported as not used.
        why: the reason for the choice, one sentence; filled in by :func:`choose_format`.
    """

    name: str
    columns: str
    recognise: Callable[[Sequence[str], Example], str | None]
    convert: Callable[[Example], Example]
    makes: Literal["input_ids", "messages", "prompt", "text"] | None = "messages"
    reads: frozenset[str] | None = None
    why: str = ""


def choose_format(
    columns: Sequence[str], first: Example, source: Any, config: SFTDataConfig, formats: Mapping[str, Format]
) -> Format:
    """Choose the format of a source's examples, by the options of the source or the recipe or by the columns.

    Args:
        columns: names of the source's columns.
        first: its first example.
        source: the source's config, whose options precede those of ``config``.
        config: the recipe's ``data``.
        formats: the formats by name, in the order in which they are tried.

    Returns:
        The format with the reason for the choice; its ``convert`` takes the source's own examples and renames columns.

    Raises:
        DataError: when the format is not known, or no format fits.
    """
    options = SourceOptions.of(source, config)
    renamed = _renames(columns, options.columns)
    names = [renamed.get(column, column) for column in columns]
    example = _rename(first, renamed) if renamed else first
    wanted = options.format
    if wanted != "auto" and wanted not in formats:
        raise DataError(
            f"data.format: given '{wanted}', expected auto or one of {', '.join(formats)}"
            f"{did_you_mean(wanted, formats)}; correct it, or enable the plugin that registers it"
        )
    if options.role_mapping:
        if wanted not in ("auto", "role_mapping"):
            raise DataError(f"data.role_mapping: given with `data.format: {wanted}`, which does not use it; remove one")
        wanted = "role_mapping"
    for name in formats if wanted == "auto" else (wanted,):
        chosen = formats[name]
        reason = chosen.recognise(names, example)
        if reason is None and wanted != "auto" and chosen.makes is not None:
            raise DataError(
                f"data.format: given '{wanted}', which needs {chosen.columns}, but the examples have the columns"
                f" {', '.join(map(str, columns))}; name them with `data.columns: {{ours: theirs}}` or change the format"
            )
        if reason is not None or wanted != "auto":
            why = f"format {name}, {'set in the recipe' if wanted != 'auto' else f'recognised by {reason}'}"
            if renamed:
                why += f", with {', '.join(f'{theirs} read as {ours}' for theirs, ours in renamed.items())}"
            reads = None if chosen.reads is None else chosen.reads | renamed.keys()
            return attrs.evolve(chosen, why=why, reads=reads, convert=_prepared(chosen, renamed))
    raise DataError(
        f"the examples have the columns {', '.join(map(str, columns))}, which fit no known format; expected"
        f" {'; '.join(f'{f.columns} ({f.name})' for f in formats.values() if f.columns)}; rename them with"
        " `data.columns: {ours: theirs}`, or set `data.role_mapping: {user: ..., assistant: ...}` to the columns that"
        f" hold the turns{_hint(example)}"
    )


def _hint(example: Example) -> str:
    """Return how to train on the chosen answers of preferences, with their prompts."""
    chosen = example.get("chosen")
    if chosen is None:
        return ""
    if isinstance(chosen, list) and any(isinstance(turn, Mapping) and turn.get("role") == "user" for turn in chosen):
        advice = "columns: {messages: chosen}"
    elif "prompt" in example:
        advice = "columns: {completion: chosen}"
    elif question := next((name for name in _QUESTIONS if name in example), None):
        system = next((f"system: {name}, " for name in ("system", "system_prompt") if name in example), "")
        advice = f"role_mapping: {{{system}user: {question}, assistant: chosen}}"
    else:
        advice = "columns: {text: chosen}"
    return f"; to train on the chosen answers of preferences write `data.{advice}`"


_QUESTIONS = ("question", "input", "instruction", "query", "problem")
"""Names of columns that hold what the chosen answer answers."""


def _prepared(chosen: Format, renamed: Mapping[str, str]) -> Callable[[Example], Example]:
    """Return ``convert`` after renaming, without the columns that rendering would look at before its result."""
    place = next((index for index, names in enumerate(CANONICAL) if chosen.makes in names), 0)
    earlier = {name for names in CANONICAL[:place] for name in names}
    convert = chosen.convert
    if not renamed and not earlier:
        return convert

    def prepared(example: Example) -> Example:
        made = convert(_rename(example, renamed) if renamed else example)
        if chosen.makes is not None and not all(name in made for name in CANONICAL[place]):
            raise DataError(
                f"given columns {', '.join(map(str, example))}, expected {chosen.columns} as in the first example; give"
                " examples of one format, or make a source of each format"
            )
        if earlier.isdisjoint(made):
            return made
        return {name: value for name, value in made.items() if name not in earlier}

    return prepared


def _renames(columns: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the canonical names by the source's names."""
    for ours, theirs in wanted.items():
        if theirs not in columns:
            raise DataError(
                f"data.columns.{ours}: given '{theirs}', expected one of the columns {', '.join(map(str, columns))}"
                f"{did_you_mean(theirs, columns)}; write the data set's own name"
            )
    return {theirs: ours for ours, theirs in wanted.items()}


def _rename(example: Example, renamed: Mapping[str, str]) -> Example:
    taken = set(renamed.values())
    kept = {name: value for name, value in example.items() if name not in renamed and name not in taken}
    return kept | {ours: example.get(theirs) for theirs, ours in renamed.items()}
