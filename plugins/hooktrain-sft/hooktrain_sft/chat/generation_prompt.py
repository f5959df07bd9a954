"""Where an answer begins in its turn of the template's loop, when no prompt is how the whole text begins.

It begins behind the generation prompt, if the template begins the turn with it. Templates of reasoning models ask for
more than a turn without reasoning has, such as ``<|assistant|><think>``; there it begins behind as much of it as any
answer at this place is given, provided that this is more than a user's turn begins with.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hooktrain import DataError
from hooktrain_sft.chat.messages import Message
from hooktrain_sft.chat.template import ChatTemplate, Scope
from hooktrain_sft.chat.template_trace import Trace

__all__ = ["shared_beginning", "start_behind_header"]


def start_behind_header(
    template: ChatTemplate, messages: Sequence[Message], scope: Scope, trace: Trace, index: int
) -> int | None:
    """The place in characters, or None when it cannot be proven.

    Args:
        template: what rendered the conversation.
        messages: the conversation.
        scope: the template's other variables.
        trace: the rendered conversation, which has a region for the message.
        index: number of the assistant's message.

    Raises:
        DataError: when the template cannot ask for an answer at this place.
    """
    header = _generation_prompt(template, messages, scope, index)
    if header is None:
        return None
    start, end = trace.regions[index]
    if trace.text.startswith(header, start):
        return start + len(header)
    turn = trace.text[start:end]
    before, after = messages[:index], messages[index + 1 :]
    kept = {name: value for name, value in messages[index].items() if name in ("role", "tool_calls")}
    one, other = (_turn(template, scope, before, {**kept, "content": content}, after) for content in ("a", "b"))
    if one is None or other is None:
        return None
    unsaid = shared_beginning(one, other)
    if unsaid.endswith(header) and turn.startswith(unsaid):
        return start + len(unsaid)  # the first turn may begin with what stands before all turns
    length = template.whole_tokens(header, len(shared_beginning(shared_beginning(unsaid, header), turn)))
    asked = _turn(template, scope, before, {"role": "user", "content": "a"}, [])
    return start + length if asked is not None and length > len(shared_beginning(asked, one)) else None


def shared_beginning(one: str, other: str) -> str:
    """The longest text with which both begin."""
    if other.startswith(one):
        return one
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return one[: sum(1 for _ in alike)]


def _turn(
    template: ChatTemplate, scope: Scope, before: Sequence[Message], message: Message, after: Sequence[Message]
) -> str | None:
    """What the template writes for a message there; None where it refuses, or has no turn of its loop for it."""
    try:
        trace = template.trace([*before, message, *after], scope)
    except DataError:
        return None
    region = trace.regions.get(len(before))
    return None if region is None else trace.text[slice(*region)]


def _generation_prompt(template: ChatTemplate, messages: Sequence[Message], scope: Scope, index: int) -> str | None:
    """What a generation prompt adds to the messages before the answer, or None when that is not clear.

    Where nothing is asked before the answer, it is what it adds after the first question.
    """
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    before = messages[: index if users and users[0] < index else users[0] + 1 if users else index or 1]
    prompted = template.trace(before, scope, generation_prompt=True)
    unprompted = template.trace(before, scope)
    if prompted.text.startswith(unprompted.text):
        return prompted.text[len(unprompted.text) :]
    # without a generation prompt something else comes last, such as an end of text
    last = len(before) - 1
    if last in prompted.regions and last in unprompted.regions:
        start = prompted.regions[last][0]
        turn = unprompted.text[slice(*unprompted.regions[last])]
        if prompted.text.startswith(turn, start):
            return prompted.text[start + len(turn) :]
    return None
