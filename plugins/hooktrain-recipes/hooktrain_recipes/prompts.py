"""Plugin ``prompts``: formats of instructions whose prompts the recipe writes, without a chat template."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import DataError, field, hookimpl, unstructure
from hooktrain_recipes.conversations import Messages
from hooktrain_recipes.pairs import PARTS, Pairs, recognise_pairs

if TYPE_CHECKING:
    from hooktrain_sft import Format

    from hooktrain import Recipe

__all__ = ["PromptsPlugin", "PromptsSettings"]

_PLACES = ("instruction", "input", "system")
_PARTS = {
    "prompt": _PLACES,
    "without_input": _PLACES,
    "system": ("system",),
    "default_system": (),
    "answer": ("output",),
}
"""The texts of a format, and the places that each may have."""


def _check_formats(_: Any, __: Any, value: Mapping[str, Mapping[str, str]]) -> None:
    for name, parts in value.items():
        if not isinstance(parts, Mapping) or "prompt" not in parts:
            raise ValueError(f"given {parts!r} for '{name}', expected a mapping with the text 'prompt'")
        for part, text in parts.items():
            if part not in _PARTS:
                raise ValueError(f"given '{part}' in '{name}', expected one of {', '.join(_PARTS)}")
            if not isinstance(text, str):
                raise ValueError(f"given {text!r} for '{name}.{part}', expected text")
            places_of(text, _PARTS[part] if part != "default_system" else None, f"{name}.{part}")


def _check_conversations(_: Any, __: Any, value: Mapping[str, Mapping[str, Any]]) -> None:
    kinds = {"fields": Mapping, "roles": Mapping, "without_system": bool}
    for name, parts in value.items():
        if not isinstance(parts, Mapping):
            raise ValueError(f"given {parts!r} for '{name}', expected a mapping of {', '.join(kinds)}")
        for part, given in parts.items():
            if part not in kinds:
                raise ValueError(f"given '{part}' in '{name}', expected one of {', '.join(kinds)}")
            texts = [text for pair in given.items() for text in pair] if isinstance(given, Mapping) else []
            if not isinstance(given, kinds[part]) or not all(isinstance(text, str) for text in texts):
                wanted = "true or false" if kinds[part] is bool else "names by name"
                raise ValueError(f"given {given!r} for '{name}.{part}', expected {wanted}")


def _check_pairs(_: Any, __: Any, value: Mapping[str, Mapping[str, Any]]) -> None:
    kinds: dict[str, Any] = {"fields": Mapping, "roles": Mapping, "prompt_columns": list, "system_column": bool}
    for name, parts in value.items():
        if not isinstance(parts, Mapping):
            raise ValueError(f"given {parts!r} for '{name}', expected a mapping of {', '.join([*PARTS, *kinds])}")
        for part, given in parts.items():
            if part not in kinds and part not in PARTS:
                raise ValueError(f"given '{part}' in '{name}', expected one of {', '.join([*PARTS, *kinds])}")
            texts = [text for pair in given.items() for text in pair] if isinstance(given, Mapping) else given
            if not isinstance(given, kinds.get(part, str)) or not (
                isinstance(given, bool) or all(isinstance(text, str) for text in texts)
            ):
                wanted = {list: "names", bool: "true or false"}.get(kinds.get(part, str), "text or names by name")
                raise ValueError(f"given {given!r} for '{name}.{part}', expected {wanted}")
            if part in PARTS:
                places_of(given, PARTS[part], f"{name}.{part}")


def places_of(text: str, known: tuple[str, ...] | None, where: str) -> set[str]:
    """Return the places of a text, such as ``{instruction}``; any, as plain text, where none are known.

    Raises:
        ValueError: where a place is none of the known ones, or is written as more than a name.
    """
    if known is None:
        return set()
    try:
        parsed = [(name, bool(form or conversion)) for _, name, form, conversion in string.Formatter().parse(text)]
    except ValueError as problem:
        raise ValueError(f"given {text!r} for '{where}': {problem}; write a brace of the text twice") from None
    places = {name for name, _ in parsed if name is not None}
    if odd := sorted(name for name, more in parsed if name is not None and (name not in known or more)):
        listed = ", ".join(f"{{{name}}}" for name in known)
        raise ValueError(f"given the place {{{odd[0]}}} in '{where}', expected one of {listed}")
    return places


@attrs.frozen(kw_only=True)
class PromptsSettings:
    """Formats of instructions, by names that `data.format` and a source's `format` take."""

    formats: Mapping[str, Mapping[str, str]] = field(factory=dict, validator=_check_formats)
    """For each, the text ``prompt`` with the places ``{instruction}`` and ``{input}``; ``without_input`` for examples
    with no input; ``system``, which writes a system text before it at ``{system}``; ``default_system``; ``answer``
    with ``{output}``. The columns are ``instruction`` and ``output``, and ``input`` and ``system`` if there are."""
    conversations: Mapping[str, Mapping[str, Any]] = field(factory=dict, validator=_check_conversations)
    """For each, how the column ``messages`` is written: ``fields``, names of fields of a message by ours, such as
    ``{role: speaker, content: said}``; ``roles``, our roles by those of the data, such as ``{narrator: assistant}``;
    ``without_system: true`` removes the messages of the system."""
    pairs: Mapping[str, Mapping[str, Any]] = field(factory=dict, validator=_check_pairs)
    """For each, how answers to a prompt are written, in the columns ``prompt``, ``chosen`` and ``rejected``. With the
    text ``prompt``, and ``with_system`` for examples with a text of the system, they are text, at the places
    ``{prompt}`` and ``{system}``; ``chosen`` and ``rejected`` are the texts of the answers. Without it they are
    messages: ``fields`` and ``roles`` are as in ``conversations``, and ``system_column: true`` begins with the column
    ``system``. Of an answer in several messages the last one counts; a prompt that no column has is what is before it.
    ``prompt_columns`` names the columns of the prompt: of text the first that is there, of messages all, joined by
    line ends."""


class PromptsPlugin:
    """Registers the formats of the recipe's section ``prompts``.

    Args:
        formats: the formats of instructions by name, for a plugin that is made without a recipe.
    """

    def __init__(self, formats: Mapping[str, Mapping[str, str]] | None = None) -> None:
        # plain values, which prepared data is compared by
        self.formats = {name: dict(parts) for name, parts in (formats or {}).items()}
        self.conversations: dict[str, dict[str, Any]] = {}
        self.pairs: dict[str, dict[str, Any]] = {}

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"prompts": PromptsSettings}}

    @hookimpl
    def unused_hooks(self, recipe: Recipe) -> list[str]:
        given = recipe.settings["prompts"]
        self.formats = {name: dict(parts) for name, parts in given.formats.items()}
        self.conversations = {name: unstructure(parts) for name, parts in given.conversations.items()}
        self.pairs = {name: unstructure(parts) for name, parts in given.pairs.items()}
        return []

    @hookimpl(optionalhook=True)
    def register_formats(self, source: Any, config: Any) -> Mapping[str, Format]:
        from hooktrain_sft import Format, SourceOptions

        name = SourceOptions.of(source, config).format  # a format of the recipe is never recognised, only named
        if name in self.conversations:
            read = Messages(**self.conversations[name])
            return {name: Format(name, "'messages'", _recognise_messages, read)}
        if name in self.pairs:
            return {name: Format(name, "'chosen' and 'rejected'", recognise_pairs, Pairs(**self.pairs[name]), None)}
        if name == "alpaca_joined":
            return {name: Format(name, "'instruction' and 'output'", _recognise, _joined, "messages", _COLUMNS)}
        if name not in self.formats:
            return {}
        columns = "'instruction' and 'output'"
        return {name: Format(name, columns, _recognise, _Converter(self.formats[name]), "prompt", _COLUMNS)}


_COLUMNS = frozenset({"instruction", "input", "system", "output"})


def _recognise(columns: Sequence[str], example: Mapping[str, Any]) -> str | None:
    return "the columns 'instruction' and 'output'" if {"instruction", "output"} <= set(columns) else None


def _recognise_messages(columns: Sequence[str], example: Mapping[str, Any]) -> str | None:
    return "the column 'messages'" if "messages" in columns else None


def _joined(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """Make a conversation of an instruction with its input right behind it."""
    texts = [example.get(name) or "" for name in ("system", "instruction", "input", "output")]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"given {texts!r:.80}, expected texts; correct or remove the example")
    system, instruction, more, output = texts
    turns = [("system", system)] if system else []
    turns += [("user", instruction + more), ("assistant", output)]
    rest = {name: value for name, value in example.items() if name not in _COLUMNS}
    return {**rest, "messages": [{"role": role, "content": content} for role, content in turns]}


class _Converter:
    """Makes a prompt and its completion of an example."""

    def __init__(self, parts: Mapping[str, str]) -> None:
        self.prompt = parts["prompt"]
        self.without_input = parts.get("without_input", self.prompt)
        self.system, self.default_system = parts.get("system", "{system}"), parts.get("default_system", "")
        self.answer = parts.get("answer", "{output}")

    def __call__(self, example: Mapping[str, Any]) -> Mapping[str, Any]:
        values = {name: example.get(name) for name in ("instruction", "input", "system", "output")}
        for name, value in values.items():
            if not isinstance(value, str) and (value is not None or name in ("instruction", "output")):
                raise DataError(f"{name} is {value!r:.80}, expected text; correct or remove the example")
        system = values["system"] or self.default_system
        form = self.prompt if values["input"] else self.without_input
        prompt = self.system.format(system=system) if system else ""
        prompt += form.format(instruction=values["instruction"], input=values["input"] or "", system=system)
        rest = {name: value for name, value in example.items() if name not in values}
        return {**rest, "prompt": prompt, "completion": self.answer.format(output=values["output"])}
