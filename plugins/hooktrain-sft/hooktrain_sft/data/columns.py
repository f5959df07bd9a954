"""Columns beside a conversation: those with a settled meaning are used, and the others named.

A system prompt becomes the first turn and other names of ``tools`` are read. Pictures, sound and answers that people
disliked are refused. What is left is read by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from hooktrain import DataError
from hooktrain_sft.config import CausalDataConfig, RoleMapping, TokenDataConfig, paths_of
from hooktrain_sft.data.formats import CANONICAL, Example, Format
from hooktrain_sft.formatting import shown
from hooktrain_sft.json_text import loads

__all__ = ["CONTEXTS", "how_to_use", "read_columns", "tools_in"]

_SYSTEM = ("system", "system_prompt")
CONTEXTS = ("context", "passage", "background", "document")
"""Columns with a text that a question is about."""
_TOOLS = ("tool_defs", "functions")
_WITH_CHAT = frozenset({"tools", "chat_template_kwargs", "documents"})
_WITH_IDS = frozenset(
    {
        *("labels", "attention_mask", "assistant_masks", "completion_mask", "position_ids", "seq_lengths"),
        "token_weights",
        *("token_type_ids", "special_tokens_mask", "length"),
    }
)
_MEDIA = frozenset(
    {
        *("image", "images", "img", "imgs", "image_path", "image_paths", "pixel_values", "picture", "pictures"),
        *("audio", "audios", "audio_path", "audio_paths", "video", "videos", "video_path", "video_paths"),
        *("jpg", "jpeg", "png", "webp", "mp3", "wav", "flac", "mp4"),
    }
)
_DISLIKED = ("label", "kto_tag")
"""Columns that say of an answer whether people liked it, as in data for KTO."""


def read_columns(
    example: Any, original: Any, chosen: Format | None, config: TokenDataConfig
) -> tuple[Any, tuple[str, ...]]:
    """Read the columns beside those that hold the text.

    Args:
        example: a canonical example.
        original: the source's example that it is made of.
        chosen: the format that it was converted from, None for plain text.
        config: the recipe's ``data``.

    Returns:
        The example with what these columns add, and the names of the columns that are not used.

    Raises:
        DataError: when the example has pictures, sound or a disliked answer.
    """
    if not isinstance(example, Mapping):
        return example, ()
    kind, read = _read_by(example, chosen, config)
    if read is None or (example.keys() <= read and original.keys() <= read):
        return example, ()
    given = {**original, **example}
    rest = {name: value for name, value in given.items() if name not in read and not _is_nothing(value)}
    for name, value in rest.items():
        if name in _MEDIA or _is_media(value):
            raise DataError(
                f"{name} is {shown(value)}, but only text is trained; remove the column with `data.columns:"
                f" {{{name}: null}}`, or the examples that have one"
            )
    if not rest or kind not in ("messages", "prompt"):
        return example, tuple(rest)
    _assert_liked(rest, example)
    used = {name for name in _DISLIKED if _is_flag(rest.get(name))}
    changed = dict(example)
    if kind == "messages" or not isinstance(example["prompt"], str):
        used |= _take_system(changed, rest)
        used |= _take_tools(changed, rest)
    elif rest.get("tools"):
        raise DataError(
            "tools are given with a prompt and a completion of text, which no chat template renders; write"
            " `data.role_mapping: {user: prompt, assistant: completion}`, or remove them with `data.columns: {tools:"
            " null}`"
        )
    return changed, tuple(name for name in rest if name not in used)


def _read_by(example: Example, chosen: Format | None, config: TokenDataConfig) -> tuple[str, Set[str] | None]:
    """Return the first column that is rendered, and all that conversion and rendering read, None if not known."""
    if isinstance(config, CausalDataConfig):
        own = {config.text_column} if config.text_column in example else {"input_ids", *_WITH_IDS}
        return "text", own | (chosen.reads or set() if chosen else set())
    if chosen is None or chosen.reads is None:
        return "", None
    names = next((names for names in CANONICAL if all(name in example for name in names)), None)
    if names is None:
        return "", None
    if names == ("input_ids",):
        return "input_ids", chosen.reads | {"input_ids"} | _WITH_IDS
    is_chat = names == ("messages",) or (names[0] == "prompt" and not isinstance(example["prompt"], str))
    return names[0], chosen.reads | set(names) | (_WITH_CHAT if is_chat else set())


def how_to_use(unused: Sequence[str], format_name: str | None, mapping: RoleMapping) -> str:
    """Return what a recipe writes to use columns that it does not, for those that usually hold a part of the prompt."""
    system = next((name for name in _SYSTEM if name in unused), None)
    context = next((name for name in CONTEXTS if name in unused), None)
    if format_name == "alpaca" and context:
        return f"; to render {context} too, add `input: {context}` to `data.columns`"
    if format_name == "prompt_completion" and (system or context):
        mapping = {"user": "prompt", "assistant": "completion"}
    if "user" not in mapping or any("." in path for path in paths_of(mapping)):
        return ""
    columns = {role: list(paths_of(mapping, role)) for role in mapping}
    if system and "system" not in columns:
        columns = {"system": [system], **columns}
    if context:
        columns["user"].insert(0, context)
    if columns.keys() == mapping.keys() and not context:  # nothing to add
        return ""
    roles = (f"{role}: {c[0]}" if len(c) == 1 else f"{role}: [{', '.join(c)}]" for role, c in columns.items())
    listed = ", ".join(roles)
    return f"; to render {' and '.join(filter(None, (system, context)))} too, write `data.role_mapping: {{{listed}}}`"


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def _is_media(value: Any) -> bool:
    """Return whether a value is a picture or sound as ``datasets`` stores them, or a list of such."""
    if isinstance(value, (list, tuple)):
        return bool(value) and _is_media(value[0])
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def _assert_liked(columns: Example, example: Example) -> None:
    for name in _DISLIKED:
        value = columns.get(name)
        # of a prompt and its completion, also 0 says so
        unliked = type(value) in (int, float) and value == 0 and "completion" in example
        if unliked or (_is_flag(value) and str(value).strip().lower() == "false"):
            raise DataError(
                f"{name} is {shown(value)}, so that the answer is one to avoid, as in data for KTO; read only the"
                f" others with `only: {{{name}: true}}` at the source, or write `data.columns: {{{name}: null}}` if it"
                " has another meaning"
            )


def _take_system(example: dict[str, Any], columns: Example) -> set[str]:
    """Make a system prompt the first turn, unless the conversation has one; return the columns that it has."""
    field = "messages" if "messages" in example else "prompt"
    turns = example[field]
    used = set()
    for name in _SYSTEM:
        value = columns.get(name)
        if value is None or not isinstance(turns, list):
            continue
        if not isinstance(value, str):
            raise DataError(f"{name} is {shown(value)}, expected text; correct or remove the example")
        first = turns[0] if turns and isinstance(turns[0], Mapping) else {}
        if first.get("role") not in ("system", "developer"):
            example[field] = turns = [{"role": "system", "content": value}, *turns]
            used.add(name)
        elif first.get("content") == value:
            used.add(name)
    return used


def _take_tools(example: dict[str, Any], columns: Example) -> set[str]:
    """Read tools under other names, unless the example has ``tools``; return the column that they are from."""
    used = set()
    for name in _TOOLS:
        tools = tools_in(columns.get(name))
        if tools and (_is_nothing(example.get("tools")) or example["tools"] == tools):
            example["tools"] = tools
            used.add(name)
    return used


def tools_in(value: Any) -> list[Any] | None:
    """Return JSON schemas of tools as templates expect them; None where a value is something else."""
    try:
        value = loads(value) if isinstance(value, str) else value
        if not isinstance(value, Sequence):
            return None
        tools = [loads(tool) if isinstance(tool, str) else tool for tool in value]
    except ValueError:
        return None
    if not all(isinstance(tool, Mapping) and ("name" in tool or "function" in tool) for tool in tools):
        return None
    return [tool if "function" in tool else {"type": "function", "function": _schema(tool)} for tool in tools]


def _schema(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a function whose parameters are a JSON schema, also where they are given as a mapping of their own."""
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping) or isinstance(parameters.get("type"), str) or "properties" in parameters:
        return function
    if not all(isinstance(parameter, Mapping) for parameter in parameters.values()):
        return function
    return {**function, "parameters": {"type": "object", "properties": dict(parameters)}}
