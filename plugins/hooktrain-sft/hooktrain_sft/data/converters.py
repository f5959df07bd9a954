"""The formats of this plugin: recognition and conversion of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hooktrain import DataError, PluginError
from hooktrain_sft.chat.roles import CALLERS, role_of
from hooktrain_sft.chat.tool_calls import as_calls, calls_in
from hooktrain_sft.config import ROLES, SFTDataConfig
from hooktrain_sft.data.columns import tools_in
from hooktrain_sft.data.formats import Example, Format
from hooktrain_sft.data.role_mapping import role_mapping_format
from hooktrain_sft.data.turns import read_turns
from hooktrain_sft.formatting import shown
from hooktrain_sft.json_text import loads, read_json

__all__ = ["known_formats", "own_formats"]

_COLUMNS = ("messages", "conversations", "conversation")


def known_formats(source: Any, config: Any, hooks: Any) -> dict[str, Format]:
    """Return all formats by name, in the order in which they are tried: those of other plugins before this one's own.

    Raises:
        PluginError: when two plugins register one of the same name.
    """
    formats: dict[str, Format] = {}
    for registered in hooks.register_formats(source=source, config=config):
        for name, made in registered.items():
            if name in formats:
                raise PluginError(
                    f"register_formats: two plugins register the format '{name}', expected one; block one of them under"
                    " `plugins.block`"
                )
            formats[name] = made
    return formats


def own_formats(source: Any, config: SFTDataConfig) -> dict[str, Format]:
    """Return this plugin's formats by name, in the order in which they are tried.

    Args:
        source: the source's config, whose options precede those of ``config``.
        config: the recipe's ``data``.
    """
    turns = frozenset(_COLUMNS)
    formats = (
        role_mapping_format(source, config),
        Format("input_ids", "'input_ids'", _has("input_ids"), _keep, "input_ids", frozenset()),
        Format("messages", "'messages' of {role, content}", _conversation("role"), _from_messages, "messages", turns),
        Format(
            "sharegpt", "'conversations' of {from, value}", _conversation("from"), _from_sharegpt, "messages", turns
        ),
        Format(
            "prompt_completion",
            "'prompt' and 'completion', both text or both messages",
            _prompt_and_completion,
            _from_prompt,
            "prompt",
            frozenset(),
        ),
        Format(
            "alpaca",
            "'instruction' and 'output'",
            _has("instruction", "output"),
            _from_alpaca,
            "messages",
            frozenset({"instruction", "input", "output", "history"}),
        ),
        Format("pairs", "'conversation' of {input, output}", _pairs, _from_pairs, "messages", turns),
        Format(
            "xlam",
            "'query', 'tools' and 'answers', a list of calls",
            _calls_of_query,
            _from_xlam,
            "messages",
            frozenset({"query", "answers"}),
        ),
        Format("text", "'text'", _has("text"), _keep, "text", frozenset()),
        Format("raw", "any, for a plugin's render_example", lambda columns, example: None, _keep, None),
    )
    return {made.name: made for made in formats}


def _keep(example: Example) -> Example:
    return example


def _has(*names: str) -> Callable[[Sequence[str], Example], str | None]:
    listed = " and ".join(f"'{name}'" for name in names)
    reason = f"the column{'s' if len(names) > 1 else ''} {listed}"
    return lambda columns, example: reason if all(name in columns for name in names) else None


def _prompt_and_completion(columns: Sequence[str], example: Example) -> str | None:
    reason = _has("prompt", "completion")(columns, example)
    text = isinstance(example.get("prompt"), str) and isinstance(example.get("completion"), str)
    return f"{reason}, text that is not put into the chat template" if reason and text else reason


# ------------------------------------------------------------------------------------------ conversations


def _conversation(field: str) -> Callable[[Sequence[str], Example], str | None]:
    """Return a function that recognises a column of messages whose role is in ``field``."""
    usual = {"role": "messages", "from": "conversations"}[field]

    def recognise(columns: Sequence[str], example: Example) -> str | None:
        for name in _COLUMNS:
            if name in columns:
                first = _first(example.get(name))
                if first is None and name == usual:
                    return f"the column '{name}'"
                if first is not None and field in first:
                    return f"the column '{name}', whose messages have '{field}'"
        return None

    return recognise


def _first(value: Any) -> Mapping[str, Any] | None:
    try:
        turns = read_turns(value, "")
    except DataError:
        return None
    return turns[0] if turns and isinstance(turns[0], Mapping) else None


def _column(example: Example, field: str) -> str:
    """Return the column with the conversation, the first whose messages have ``field``."""
    there = [name for name in _COLUMNS if name in example]
    if not there:
        raise DataError(
            f"given columns {', '.join(map(str, example))}, expected the column 'messages' as in the first example;"
            " give examples of one format, or make a source of each format"
        )
    if len(there) == 1:
        return there[0]
    return next((name for name in there if field in (_first(example[name]) or ())), there[0])


def _from_messages(example: Example) -> Example:
    name = "messages" if "messages" in example else _column(example, "role")
    messages = _messages(example[name], name)
    return example if messages is example.get("messages") else {**example, "messages": messages}


def _from_sharegpt(example: Example) -> Example:
    name = _column(example, "from")
    messages = _messages(example[name], name)
    system = example.get("system")
    if system and not (messages and isinstance(messages[0], Mapping) and messages[0].get("role") == "system"):
        messages = [{"role": "system", "content": system}, *messages]
    return {**example, "messages": messages}


def _from_prompt(example: Example) -> Example:
    """Read prompt and completion where both are messages; text stays as it is."""
    read: dict[str, Any] = {}
    for name in ("prompt", "completion"):
        value = example.get(name)
        if isinstance(value, str) and "role" not in (_first(value) or ()):
            return example
        if not isinstance(value, (str, list, Mapping)):
            return example
        read[name] = _messages(value, name)
    return {**example, **read}


def _messages(value: Any, where: str) -> Any:
    """Return messages with the roles that templates know, ``value`` itself where they have them."""
    if type(value) is list and all(type(turn) is dict and turn.get("role") in ROLES for turn in value):
        return value
    return [_message(turn, f"{where}[{index}]") for index, turn in enumerate(read_turns(value, where))]


def _message(turn: Any, where: str) -> Any:
    if not isinstance(turn, Mapping):
        return turn  # reading the messages refuses it
    if "role" not in turn and not (isinstance(turn.get("from"), str) and "value" in turn):
        if "from" in turn or "value" in turn:
            raise DataError(f"{where} is {shown(turn)}, expected a mapping with from and value; convert the column")
        return turn
    field, content = ("role", "content") if "role" in turn else ("from", "value")
    speaker = turn[field]
    role = speaker if field == "role" and speaker in ROLES else role_of(speaker)
    if field == "from" and role in ("function", "ipython"):
        role = "tool"
    if role is None:
        raise DataError(
            f"{where}.{field} is {shown(speaker)}, expected one of {', '.join(ROLES)} or a usual name for one; rename"
            f" it in the data, or write `data.role_mapping: {{user: {where.partition('[')[0]}.{field}.NAME, ...}}`"
        )
    rest = {name: value for name, value in turn.items() if name not in (field, content)}
    if isinstance(speaker, str) and speaker.strip().lower() in CALLERS:
        return {"role": role, "tool_calls": _calls(turn.get(content), f"{where}.{content}"), **rest}
    return {"role": role, **({"content": turn[content]} if content in turn else {}), **rest}


def _calls(value: Any, where: str) -> list[Any]:
    """Return the tool calls of a turn whose text is one, or a list of them."""
    try:
        calls = loads(value) if isinstance(value, str) else value
    except ValueError as problem:
        raise DataError(
            f"{where} is a function_call that is not JSON ({problem}), expected {{name, arguments}}; correct it"
        ) from None
    return as_calls(calls if isinstance(calls, list) else [calls])


# ------------------------------------------------------------------------------------- questions and answers


def _pairs(columns: Sequence[str], example: Example) -> str | None:
    for name in _COLUMNS:
        if name in columns and (fields := _pair_of(_first(example.get(name)))):
            return f"the column '{name}', whose entries have '{fields[0]}' and '{fields[1]}'"
    return None


def _pair_of(entry: Any) -> tuple[str, str] | None:
    """Return the fields of an entry that hold a question and its answer."""
    return next((pair for pair in _PAIRS if isinstance(entry, Mapping) and all(name in entry for name in pair)), None)


def _from_pairs(example: Example) -> Example:
    """Convert entries of a question with its answer to two turns each."""
    name = next((name for name in _COLUMNS if _pair_of(_first(example.get(name)))), "conversation")
    messages: list[dict[str, Any]] = []
    for index, entry in enumerate(read_turns(example.get(name), name)):
        where = f"{name}[{index}]"
        pair = _pair_of(entry)
        if pair is None:
            raise DataError(f"{where} is {shown(entry)}, expected a mapping with input and output; convert the column")
        for field in pair:
            if not isinstance(entry[field], str):
                raise DataError(f"{where}.{field} is {shown(entry[field])}, expected text; correct or remove it")
        if entry.get("system"):
            messages.append({"role": "system", "content": entry["system"]})
        rest = {field: value for field, value in entry.items() if field not in (*pair, "system")}
        messages.append({"role": "user", "content": entry[pair[0]]})
        messages.append({"role": "assistant", "content": entry[pair[1]], **rest})
    return {**example, "messages": messages}


_PAIRS = (
    *(("instruction", "output"), ("instruction", "response"), ("input", "output"), ("question", "answer")),
    *(("question", "response"), ("query", "answer"), ("query", "response"), ("prompt", "completion")),
    *(("prompt", "response"), ("user", "assistant"), ("human", "assistant"), ("human", "gpt")),
)
"""Fields of entries that are a question with its answer."""


def _calls_of_query(columns: Sequence[str], example: Example) -> str | None:
    if not all(name in columns for name in ("query", "answers", "tools")) or calls_in(example.get("answers")) is None:
        return None
    return "the columns 'query', 'tools' and 'answers', which are calls of these"


def _from_xlam(example: Example) -> Example:
    """Convert a query with the calls that answer it; without any, the answer is empty."""
    for name in ("query", "answers"):
        if example.get(name) is None or (name == "query" and not isinstance(example[name], str)):
            raise DataError(f"{name} is {shown(example.get(name))}, expected text; correct or remove the example")
    answers = example["answers"]
    calls = calls_in(answers)
    if calls is None and answers not in ([], "[]", ""):
        raise DataError(f"answers is {shown(answers)}, expected a list of {{name, arguments}}; correct the example")
    answer = {"role": "assistant", **({"content": ""} if calls is None else {"tool_calls": calls})}
    tools = tools_in(example.get("tools"))
    messages = [{"role": "user", "content": example["query"]}, answer]
    return {**example, "messages": messages, **({} if tools is None else {"tools": tools})}


def _from_alpaca(example: Example) -> Example:
    """Convert instruction and input to one user turn, the input on a line of its own."""
    messages = [{"role": "system", "content": example["system"]}] if example.get("system") else []
    history = example.get("history") or ()
    history = read_json(history, "history", "a list of pairs") if isinstance(history, str) else history
    for index, pair in enumerate(history):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise DataError(
                f"history[{index}] is {shown(pair)}, expected a pair [question, answer]; convert the column"
            )
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    for name in ("instruction", "output", *(["input"] if example.get("input") else [])):
        if not isinstance(example.get(name), str):
            raise DataError(f"{name} is {shown(example.get(name))}, expected text; correct or remove the example")
    asked = "\n".join([example["instruction"], *([example["input"]] if example.get("input") else [])])
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": example["output"]}]
    return {**example, "messages": messages}
