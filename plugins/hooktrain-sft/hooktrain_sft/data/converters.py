"""The formats of this plugin: recognition and conversion of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hooktrain import DataError, PluginError
from hooktrain_sft.config import SFTDataConfig
from hooktrain_sft.data.formats import Example, Format
from hooktrain_sft.data.role_mapping import role_mapping_format
from hooktrain_sft.formatting import shown

__all__ = ["SHAREGPT_ROLES", "known_formats", "own_formats"]

SHAREGPT_ROLES = (
    dict.fromkeys(("human", "user", "prompter"), "user")
    | dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model", "bot"), "assistant")
    | dict.fromkeys(("tool", "observation", "function_response", "function", "ipython"), "tool")
    | {"system": "system", "developer": "developer", "function_call": "assistant"}
)
"""Roles by ShareGPT's names for them."""

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
    raw = Format("raw", "any, for a plugin's render_example", lambda columns, example: None, _keep, None)
    ids = Format("input_ids", "'input_ids'", _has("input_ids"), _keep, "input_ids")
    formats = (
        role_mapping_format(source, config),
        ids,
        Format("messages", "'messages' of {role, content}", _conversation("role"), _take_messages, "messages"),
        Format("sharegpt", "'conversations' of {from, value}", _conversation("from"), _from_sharegpt, "messages"),
        Format(
            "prompt_completion",
            "'prompt' and 'completion', both text or both messages",
            _has("prompt", "completion"),
            _keep,
            "prompt",
        ),
        Format("alpaca", "'instruction' and 'output'", _has("instruction", "output"), _from_alpaca, "messages"),
        Format("text", "'text'", _has("text"), _keep, "text"),
        raw,
    )
    return {made.name: made for made in formats}


def _keep(example: Example) -> Example:
    return example


def _has(*names: str) -> Callable[[Sequence[str], Example], str | None]:
    listed = " and ".join(f"'{name}'" for name in names)
    reason = f"the column{'s' if len(names) > 1 else ''} {listed}"
    return lambda columns, example: reason if all(name in columns for name in names) else None


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
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and value and isinstance(value[0], Mapping):
        return value[0]
    return None


def _column(example: Example, field: str) -> str:
    """Return the column with the conversation, the first whose messages have ``field``."""
    there = [name for name in _COLUMNS if name in example]
    if not there:
        raise DataError(
            f"given columns {', '.join(map(str, example))}, expected the column 'messages' as in the first example;"
            " give examples of one format, or make a source of each format"
        )
    return next((name for name in there if field in (_first(example[name]) or ())), there[0])


def _take_messages(example: Example) -> Example:
    name = "messages" if "messages" in example else _column(example, "role")
    return example if name == "messages" else {**example, "messages": example[name]}


def _from_sharegpt(example: Example) -> Example:
    name = _column(example, "from")
    turns = example[name]
    if not isinstance(turns, Sequence) or isinstance(turns, (str, bytes)):
        raise DataError(f"{name} is {shown(turns)}, expected a list of {{from, value}}; convert the column")
    messages = [_sharegpt_turn(turn, f"{name}[{index}]") for index, turn in enumerate(turns)]
    system = example.get("system")
    if system and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system})
    return {**example, "messages": messages}


def _sharegpt_turn(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("from"), str) or "value" not in turn:
        raise DataError(f"{where} is {shown(turn)}, expected a mapping with from and value; convert the column")
    speaker, value = turn["from"], turn["value"]
    role = SHAREGPT_ROLES.get(speaker)
    if role is None:
        raise DataError(
            f"{where}.from is {shown(speaker)}, expected one of {', '.join(SHAREGPT_ROLES)}; rename it in the data, or"
            f" write `data.role_mapping: {{user: {where.partition('[')[0]}.from.NAME, ...}}`"
        )
    rest = {name: field for name, field in turn.items() if name not in ("from", "value")}
    if speaker != "function_call":
        return {"role": role, "content": value, **rest}
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError as problem:
        raise DataError(
            f"{where}.value is a function_call that is not JSON ({problem}), expected {{name, arguments}}; correct it"
        ) from None
    calls = calls if isinstance(calls, list) else [calls]
    wrapped = [call if isinstance(call, Mapping) and "function" in call else {"function": call} for call in calls]
    return {"role": role, "tool_calls": [{"type": "function", **call} for call in wrapped], **rest}


def _from_alpaca(example: Example) -> Example:
    """Convert instruction and input to one user turn, the input on a line of its own."""
    messages = [{"role": "system", "content": example["system"]}] if example.get("system") else []
    history = example.get("history") or ()
    for index, pair in enumerate(history):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise DataError(
                f"history[{index}] is {shown(pair)}, expected a pair [question, answer]; convert the column"
            )
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    for name in ("instruction", "output"):
        if not isinstance(example.get(name), str):
            raise DataError(f"{name} is {shown(example.get(name))}, expected text; correct or remove the example")
    asked = "\n".join([example["instruction"], *([example["input"]] if example.get("input") else [])])
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": example["output"]}]
    return {**example, "messages": messages}
