"""A row's conversation, checked and brought into the one form that chat templates expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hooktrain import DataError, did_you_mean
from hooktrain_sft.chat.tool_calls import plain, read_tool_calls
from hooktrain_sft.config import ROLES
from hooktrain_sft.formatting import shown

__all__ = ["REASONING", "Message", "Messages", "is_empty", "read_messages"]

Message = dict[str, Any]

_FLAGS = ("train", "training", "weight")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""What data sets and templates call an assistant's reasoning; a message that has any has the first two."""


class Messages(NamedTuple):
    """A conversation.

    Attributes:
        messages: each with a role and its content as one string.
        untrained: numbers of those that the data say not to train on.
        simple: whether none has more than role and content.
    """

    messages: list[Message]
    untrained: frozenset[int]
    simple: bool


def read_messages(given: Any, where: str = "messages") -> Messages:
    """The conversation of a row.

    Absent fields (None, as Arrow tables fill them in) are left out, as templates ask whether a field is there.
    ``train`` or ``training`` false, or ``weight`` 0, leave a message untrained, and are not shown to the template.

    Args:
        given: what the row holds.
        where: the column, for errors.

    Raises:
        DataError: when there is no conversation, or a message has no known role or no content.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise DataError(f"{where} is {shown(given)}, expected a list of {{role, content}}; convert the column")
    if not given:
        raise DataError(f"{where} is an empty list, expected at least one message; remove the row")
    messages: list[Message] = []
    untrained = []
    simple = True
    for index, message in enumerate(given):
        # most messages are just that, and are not copied
        if (
            type(message) is dict
            and len(message) == 2
            and type(message.get("content")) is str
            and message.get("role") in ROLES
        ):
            messages.append(message)
            continue
        read = _read_message(message, f"{where}[{index}]")
        if not _is_trained(read, f"{where}[{index}]"):
            untrained.append(index)
        messages.append(read)
        simple = simple and len(read) == 2
    return Messages(messages, frozenset(untrained), simple)


def is_empty(message: Message) -> bool:
    """Whether an answer says nothing at all, so that only its end could be trained."""
    content = message.get("content")
    if content and not content.isspace():
        return False
    return not (message.get("tool_calls") or any(message.get(name) for name in REASONING))


def _read_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {shown(message)}, expected a mapping with role and content; convert the column")
    read = {str(key): value for key, value in message.items() if value is not None}
    if "role" not in read:
        raise DataError(f"{where} has the fields {', '.join(map(str, message))}, expected 'role'; rename or add it")
    role = read["role"]
    if role not in ROLES:
        raise DataError(
            f"{where}.role is {shown(role)}, expected one of {', '.join(ROLES)}{did_you_mean(str(role), ROLES)};"
            " rename the role in the data"
        )
    calls = read.pop("tool_calls", None)
    if calls and role != "assistant":
        raise DataError(f"{where} (role {role}) has tool_calls, which only an assistant makes; correct the row")
    if "content" in read:
        read["content"] = _read_content(read["content"], f"{where}.content")
    elif not calls:
        raise DataError(f"{where} (role {role}) has no content, expected text; fill it in or remove the row")
    for name, value in read.items():
        if type(value) is not str:
            read[name] = plain(value)
    if calls:
        read["tool_calls"] = read_tool_calls(calls, f"{where}.tool_calls")
    # data sets call it so or so, and templates too; transformers fills in both from whichever is there
    reasoning = next((read[name] for name in REASONING if name in read), None)
    return read if reasoning is None else {"thinking": reasoning, **read, "reasoning_content": reasoning}


def _is_trained(message: Message, where: str) -> bool:
    """What the message's own flag says; takes it out of the message."""
    said = {}
    for name in _FLAGS:
        if name in message:
            value = message.pop(name)
            if value not in (0, 1):  # true and false are 1 and 0
                raise DataError(f"{where}.{name} is {shown(value)}, expected true or false, or 1 or 0; correct the row")
            said[name] = bool(value)
    if len(set(said.values())) > 1:
        raise DataError(f"{where} has {' and '.join(said)} that contradict each other, expected one; correct the row")
    if True in said.values() and message["role"] != "assistant":
        raise DataError(
            f"{where} (role {message['role']}) is to be trained, expected that of an assistant's turns only; remove"
            f" {next(iter(said))} from it, or write `data.train_on: all`"
        )
    return not said or True in said.values()


def _read_content(content: Any, where: str) -> str:
    """Text, or transformers' list of text parts, as text: only some templates iterate over parts."""
    if isinstance(content, str):
        return str(content)
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        texts = []
        for index, part in enumerate(content):
            kind = part.get("type", "text") if isinstance(part, Mapping) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise DataError(
                    f"{where}[{index}] is {shown(part)}, expected a text part {{type: text, text: ...}};"
                    " this plugin trains on text only"
                )
            texts.append(part["text"])
        return "".join(texts)
    raise DataError(f"{where} is {shown(content)}, expected text or a list of text parts; convert it")
