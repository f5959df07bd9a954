"""JSON and tool calls in answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["is_json", "tool_call_match", "tool_calls_in"]

_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)
_DECODER = json.JSONDecoder()
_ARGUMENTS = ("arguments", "parameters")


def is_json(text: str, keys: tuple[str, ...] = ()) -> bool:
    """Return whether a text is JSON, bare or in a fence of three backticks.

    Args:
        text: the answer.
        keys: which an object must have.
    """
    text = text.strip()
    fenced = _FENCE.match(text)
    try:
        found = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(found, dict) and all(key in found for key in keys))


def tool_calls_in(text: str) -> list[tuple[str, Any]]:
    """Return the tool calls in an answer, each with its name and its arguments.

    A call is a JSON object with ``name`` and ``arguments`` or ``parameters``, possibly in ``function``, wherever it
    stands: within ``<tool_call>``, after ``[TOOL_CALLS]``, in a list or alone. Arguments as text are read as JSON.
    """
    return [call for value in _values(text) for call in _calls(value)]


def tool_call_match(prediction: str, reference: str, names_only: bool = False) -> float | None:
    """Return 1 where an answer has the calls of the reference, in any order, and no others; 0 elsewhere.

    Args:
        prediction: the answer of the model.
        reference: that of the data.
        names_only: whether arguments are ignored.

    Returns:
        None where neither has a call.
    """
    found, expected = (
        [(name, None if names_only else arguments) for name, arguments in tool_calls_in(text)]
        for text in (prediction, reference)
    )
    if not found and not expected:
        return None
    rest = list(expected)
    for call in found:
        if call not in rest:
            return 0.0
        rest.remove(call)
    return float(not rest)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _values(text: str) -> Iterator[Any]:
    """Yield the JSON objects and lists of a text that lie in no other one."""
    at = 0
    while (begin := min((found for sign in "{[" if (found := text.find(sign, at)) >= 0), default=-1)) >= 0:
        try:
            value, at = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError):
            at = begin + 1
            continue
        yield value


def _calls(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for each in value:
            yield from _calls(each)
    if not isinstance(value, Mapping):
        return
    inner = value.get("function")
    call = inner if isinstance(inner, Mapping) else value
    key = next((each for each in _ARGUMENTS if each in call), None)
    if isinstance(call.get("name"), str) and key is not None:
        yield call["name"], _read(call[key])
    elif isinstance(value.get("tool_calls"), list):
        yield from _calls(value["tool_calls"])


def _read(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
