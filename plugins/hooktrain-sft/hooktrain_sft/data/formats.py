"""Formats of examples: their recognition, and their conversion to canonical examples, which can be rendered.

A canonical example has ``input_ids``, ``messages``, ``prompt`` with ``completion``, or ``text``; the first of them that
is there counts. All other columns stay. Some have a meaning: ``tools`` and ``chat_template_kwargs`` with conversations,
masks with ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs

from hooktrain import DataError, did_you_mean
from hooktrain_sft.config import SFTDataConfig, SourceOptions

__all__ = ["CANONICAL", "Example", "Format", "choose_format", "lacking", "renamed_format", "without_template"]

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
    names = [name for name in (renamed.get(column, column) for column in columns) if name is not None]
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
                why += f", with {_described(renamed)}"
            reads = None if chosen.reads is None else chosen.reads | renamed.keys()
            return attrs.evolve(chosen, why=why, reads=reads, convert=_prepared(chosen, renamed))
    raise DataError(
        f"the examples have the columns {', '.join(map(str, columns))}, which fit no known format; {_remedy(example)};"
        " all formats are in `hooktrain guide data-and-masks`"
    )


def lacking(
    columns: Sequence[str],
    examples: Iterable[Any],
    source: Any,
    config: SFTDataConfig,
    formats: Mapping[str, Format],
) -> str:
    """Return what the first example lacks where one of ``examples`` has a known format with it, or nothing."""
    for index, example in enumerate(examples):
        more = [str(name) for name in example if name not in columns] if isinstance(example, Mapping) else []
        try:
            found = choose_format(list(example), example, source, config, formats) if more else None
        except DataError:
            continue
        if found is not None:
            lacks = ", ".join(f"'{name}'" for name in more)
            return f"has no {lacks}, unlike example {index} (format {found.name}); correct or remove it"
    return ""


def without_template(chosen: Format, first: Example, options: SourceOptions) -> str:
    """Return a remark on prompts and completions of text, where the recipe does not name their format; or nothing."""
    prompt, completion = (options.columns.get(name) or name for name in CANONICAL[2])
    if chosen.name != "prompt_completion" or options.format == chosen.name or not isinstance(first.get(prompt), str):
        return ""
    return (
        f"write `data.role_mapping: {{user: {prompt}, assistant: {completion}}}` to train '{prompt}' and '{completion}'"
        " as turns of the tokenizer's chat template; they are plain text without it, and `data.format:"
        f" {chosen.name}` confirms that"
    )


def renamed_format(columns: Sequence[str], wanted: Mapping[str, str | None]) -> Format:
    """Return the format of plain text or ids with columns renamed or removed."""
    renamed = _renames(columns, wanted)

    def convert(example: Example) -> Example:
        return _rename(example, renamed)

    why = f"format text, with {_described(renamed)}"
    return Format("text", "", lambda columns, example: None, convert, "text", frozenset(renamed), why)


def _described(renamed: Mapping[str, str | None]) -> str:
    return ", ".join(f"{theirs} read as {ours}" if ours else f"{theirs} removed" for theirs, ours in renamed.items())


def _remedy(example: Example) -> str:
    """Return what to write for the columns of an example, as likely as their names and values tell."""
    chosen = example.get("chosen")
    if chosen is None:
        return _fields(example) or _mapping(example) or _by_type(example)
    if isinstance(chosen, list) and any(isinstance(turn, Mapping) and turn.get("role") == "user" for turn in chosen):
        advice = "columns: {messages: chosen}"
    elif "prompt" in example:
        advice = "columns: {completion: chosen}"
    elif question := next((name for name in _QUESTIONS if name in example), None):
        system = next((f"system: {name}, " for name in ("system", "system_prompt") if name in example), "")
        advice = f"role_mapping: {{{system}user: {question}, assistant: chosen}}"
    else:
        advice = "columns: {text: chosen}"
    pairs = "to train on these preferences write `type: preference`; " if "rejected" in example else ""
    return f"{pairs}to train on the chosen answers alone write `data.{advice}`"


_QUESTIONS = ("question", "input", "instruction", "query", "problem", "prompt")
"""Names of columns that hold what an answer answers."""
_ANSWERS = ("response", "answer", "output", "completion", "solution")


def _mapping(example: Example) -> str:
    """Return the mapping of columns with usual names for a question and its answer."""
    question, answer, system, context = (
        next((name for name in names if isinstance(example.get(name), str)), None)
        for names in (_QUESTIONS, _ANSWERS, ("system", "system_prompt"), ("context",))
    )
    if not question or not answer:
        return ""
    roles = (f"system: {system}, " if system else "") + f"user: {f'[{context}, {question}]' if context else question}"
    return f"write `data.role_mapping: {{{roles}, assistant: {answer}}}`"


def _fields(example: Example) -> str:
    """Return what to write for a column that is named as one of conversations are, with the fields of its entries."""
    for name in ("messages", "conversations", "conversation"):
        value = example.get(name)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            return (
                f"the entries of '{name}' have the fields {', '.join(map(str, value[0]))}; {_of_entries(name, value)}"
            )
    return ""


def _of_entries(name: str, entries: Sequence[Any]) -> str:
    """Return the mapping of the entries of a list, of whose texts the shortest is taken for the name of the role."""
    texts = sorted((len(value), field) for field, value in entries[0].items() if isinstance(value, str))
    if len(texts) < 2:
        return f"write `data.role_mapping: {{user: {name}.FIELD.NAME, assistant: {name}.FIELD.NAME}}`"
    role, content = texts[0][1], texts[-1][1]
    named = [str(entry[role]) for entry in entries if isinstance(entry, Mapping) and entry.get(role)]
    user, assistant = [*dict.fromkeys(who for who in named if who.isidentifier() and who != "system"), "A", "B"][:2]
    mapping = f"data.role_mapping: {{user: {name}.{role}.{user}, assistant: {name}.{role}.{assistant}}}"
    return f"write `{mapping}` and `data.content_key: {content}`"


def _by_type(example: Example) -> str:
    """Return what to write for columns with unusual names, by what they hold."""
    texts = [str(name) for name, value in example.items() if isinstance(value, str)]
    if len(texts) > 1:
        return f"write `data.role_mapping: {{user: {texts[0]}, assistant: {texts[1]}}}` with the columns of the turns"
    if texts:
        return f"to train on plain text write `data.columns: {{text: {texts[0]}}}`"
    turns = next((str(n) for n, value in example.items() if isinstance(value, list) and _is_mapping(value)), "")
    if turns:
        return f"if '{turns}' holds the turns, write `data.columns: {{messages: {turns}}}`"
    return "rename them with `data.columns: {ours: theirs}`, or convert the file"


def _is_mapping(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[0], Mapping)


def _prepared(chosen: Format, renamed: Mapping[str, str | None]) -> Callable[[Example], Example]:
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


def _renames(columns: Sequence[str], wanted: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the canonical names by the source's names, None for a column that is removed."""
    made: dict[str, str | None] = {}
    for ours, given in wanted.items():
        theirs = ours if given is None else given
        if theirs not in columns:
            raise DataError(
                f"data.columns.{ours}: given '{theirs}', expected one of the columns {', '.join(map(str, columns))}"
                f"{did_you_mean(theirs, columns)}; write the data set's own name"
            )
        if theirs in made:
            raise DataError(f"data.columns.{ours}: given '{theirs}' a second time; remove one of the two")
        made[theirs] = None if given is None else ours
    return made


def _rename(example: Example, renamed: Mapping[str, str | None]) -> Example:
    taken = set(renamed.values())
    kept = {name: value for name, value in example.items() if name not in renamed and name not in taken}
    return kept | {ours: example.get(theirs) for theirs, ours in renamed.items() if ours is not None}
