"""Start of an answer in its pass of the template's loop, where the text does not begin with the prompt for it.

An answer begins after the generation prompt, if the template begins the turn with it. The generation prompt of a
reasoning model may be longer than the header of a turn without reasoning, as in ``<|assistant|><think>``. Then the
answer begins after the part of it with which the template begins any answer at this place, provided that this part is
longer than the header of a user's turn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hooktrain import DataError
from hooktrain_sft.chat.messages import Message
from hooktrain_sft.chat.template import ChatTemplate, Scope
from hooktrain_sft.chat.template_trace import Trace

__all__ = ["shared_prefix", "start_after_header"]


def start_after_header(
    template: ChatTemplate, messages: Sequence[Message], scope: Scope, trace: Trace, index: int
) -> int | None:
    """Return the start in characters, or None when it cannot be proven.

    Args:
        template: the template that rendered the conversation.
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
    common = shared_prefix(one, other)
    if common.endswith(header) and turn.startswith(common):
        return start + len(common)  # the first turn may begin with text that precedes all turns
    length = template.whole_tokens(header, len(shared_prefix(shared_prefix(common, header), turn)))
    asked = _turn(template, scope, before, {"role": "user", "content": "a"}, [])
    return start + length if asked is not None and length > len(shared_prefix(asked, one)) else None


def shared_prefix(one: str, other: str) -> str:
    """Return the longest text with which both begin."""
    return os.path.commonprefix([one, other])  # noqa: RUF071 (characters are meant, not parts of a path)


def _turn(
    template: ChatTemplate, scope: Scope, before: Sequence[Message], message: Message, after: Sequence[Message]
) -> str | None:
    """Return the text of a message at a place; None where the template fails or has no pass of its loop for it."""
    try:
        trace = template.trace([*before, message, *after], scope)
    except DataError:
        return None
    region = trace.regions.get(len(before))
    return None if region is None else trace.text[slice(*region)]


def _generation_prompt(template: ChatTemplate, messages: Sequence[Message], scope: Scope, index: int) -> str | None:
    """Return the text that a generation prompt adds to the messages before the answer, or None when it is not clear.

    Without a user message before the answer, it is the text that it adds after the first one.
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
