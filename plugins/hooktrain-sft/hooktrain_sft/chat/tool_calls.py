"""Tools and tool calls, converted from the forms in data sets and Arrow tables to the one that templates expect.

Arrow gives every entry of a list the fields of all entries, with None where an entry had none. So a field of a call's
arguments or of a tool's schema that is None counts as absent. Arguments in which null has a meaning are written as JSON
text, which is read unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from hooktrain import DataError
from hooktrain_sft.formatting import shown
from hooktrain_sft.json_text import loads, read_json

__all__ = ["arguments_as_text", "as_calls", "calls_in", "plain", "read_tool_calls", "read_tools"]


def read_tools(tools: Any) -> list[Any] | None:
    """Read the tools of an example: a list of JSON schemas, or that list as JSON text.

    Raises:
        DataError: when ``tools`` is something else.
    """
    if not tools:
        return None
    if isinstance(tools, str):
        tools = read_json(tools, "tools", "a list of JSON schemas") if tools.strip() else None
        if not tools:
            return None
    else:
        tools = _without_none(tools)
    if not isinstance(tools, list):
        raise DataError(f"tools is {shown(tools)}, expected a list of JSON schemas; convert the column")
    read = [read_json(t, f"tools[{i}]", "a JSON schema") if isinstance(t, str) else t for i, t in enumerate(tools)]
    for index, tool in enumerate(read):
        if not isinstance(tool, dict):
            raise DataError(f"tools[{index}] is {shown(tool)}, expected a JSON schema; convert the column")
    return read


def read_tool_calls(calls: Any, where: str) -> list[Any]:
    """Read an assistant's tool calls; each becomes a mapping, with its arguments as a mapping.

    Raises:
        DataError: when they are something else, or text that is not JSON.
    """
    from_json = isinstance(calls, str)
    if isinstance(calls, str):
        calls = read_json(calls, where, "a list of tool calls")
    if isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
        raise DataError(f"{where} is {shown(calls)}, expected a list of tool calls; convert the column")
    return [_read_call(call, f"{where}[{index}]", from_json) for index, call in enumerate(calls)]


def calls_in(value: Any) -> Any:
    """Return the tool calls of a value that is a list of them, one, or JSON text of these; None for anything else."""
    calls = value
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            return None
        try:
            calls = loads(value)
        except ValueError:
            return None
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not calls or not isinstance(calls, list) or not all(map(_is_call, calls)):
        return None
    return json.dumps(as_calls(calls)) if isinstance(value, str) else as_calls(calls)  # in text, null is a value


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return isinstance(function, Mapping) and isinstance(function.get("name"), str) and "arguments" in function


def as_calls(calls: Sequence[Any]) -> list[Any]:
    """Return calls in the form of ``tool_calls``, for those that are a name with arguments."""
    wrapped = [call if isinstance(call, Mapping) and "function" in call else {"function": call} for call in calls]
    return [{"type": "function", **call} for call in wrapped]


def _read_call(call: Any, where: str, from_json: bool) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise DataError(f"{where} is {shown(call)}, expected a mapping with function or name; convert the column")
    read = {str(name): plain(value) for name, value in call.items() if value is not None}
    function, path = read, where
    if "function" in read:
        path = f"{where}.function"
        if not isinstance(read["function"], dict):
            raise DataError(f"{path} is {shown(read['function'])}, expected a mapping with name and arguments")
        function = read["function"] = {name: value for name, value in read["function"].items() if value is not None}
    if not isinstance(function.get("name"), str):
        raise DataError(f"{path} has the fields {', '.join(function) or 'none'}, expected 'name'; rename or add it")
    arguments = function.get("arguments")
    if arguments is not None:
        if isinstance(arguments, str):
            arguments = read_json(arguments or "{}", f"{path}.arguments", "the arguments as JSON")
        elif not from_json:
            arguments = _without_none(arguments)
        if not isinstance(arguments, dict):
            raise DataError(
                f"{path}.arguments is {shown(arguments)}, expected a mapping of names to values; correct it"
            )
        function["arguments"] = arguments
    return read


def arguments_as_text(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the messages with the arguments of their calls as JSON text, which some templates concatenate."""

    def as_text(call: Mapping[str, Any]) -> dict[str, Any]:
        made = {name: as_text(value) if name == "function" else value for name, value in call.items()}
        if "arguments" in made and not isinstance(made["arguments"], str):
            made["arguments"] = json.dumps(made["arguments"], ensure_ascii=False)
        return made

    return [
        {**message, "tool_calls": [as_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


@runtime_checkable
class _ArrayLike(Protocol):
    """Arrays and scalars of numpy, torch and others."""

    def tolist(self) -> Any: ...


def plain(value: Any) -> Any:
    """Convert a value to JSON's types; any other object becomes the name of its type, as in transformers."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return plain(value.tolist()) if isinstance(value, _ArrayLike) else f"<{type(value).__name__}>"


def _without_none(value: Any) -> Any:
    """Remove fields that are None; entries of lists stay."""
    if isinstance(value, Mapping):
        return {str(name): _without_none(item) for name, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return plain(value)
