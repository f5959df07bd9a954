"""Start of an answer in its pass of the template's loop, where the text does not begin with the prompt for it.

An answer begins after the generation prompt, if the template begins the turn with it. The generation prompt of a
reasoning model may be longer than the header of a turn without reasoning, as in ``<|assistant|><think>``. Then the
answer begins after the part of it with which the template begins any answer at this place, provided that this part is
longer than the header of a user's turn. A turn that begins with its content, such as one that goes on after the result
of a call, has no header.

A template may write the header whether it is asked for it or not, or never. An empty generation prompt proves nothing
then: the header is what follows the last message, or what any turn begins with.
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
    if header.strip() and trace.text.startswith(header, start):
        return start + len(header)
    turn = trace.text[start:end]
    before, after = messages[:index], messages[index + 1 :]
    pair = _two_turns(template, scope, before, messages[index], after)
    if pair is None:
        return None
    one, other = pair
    common = shared_prefix(one, other)
    ahead = len(common) - len(header)
    if turn.startswith(common):
        if not common.strip():
            return start
        # the first turn may begin with text that precedes all turns, the header with the end of the turn before
        if header.strip() and (common.endswith(header) or header.endswith(common)):
            return start + len(common)
    asked = _question(template, scope, before)
    if asked is None:
        return None
    # text that any turn begins with here: the end of the one before, or what precedes all turns
    closing = template.whole_tokens(common, len(shared_prefix(common, asked)))
    if turn.startswith(common) and not common[closing:].strip():
        return start + closing
    if not header.strip():
        return start + template.whole_tokens(turn, len(shared_prefix(common, turn)))
    if ahead < 0 or not common.endswith(header) or not turn.startswith(common[:ahead]):
        ahead = 0
        if not turn[:1].isspace():
            header = header.lstrip()
    shared = shared_prefix(header, shared_prefix(turn[ahead:], common[ahead:]))
    length = ahead + template.whole_tokens(header, len(shared))
    return start + length if length > len(shared_prefix(asked, one)) else None


def shared_prefix(one: str, other: str) -> str:
    """Return the longest text with which both begin."""
    return os.path.commonprefix([one, other])  # noqa: RUF071 (characters are meant, not parts of a path)


def _two_turns(
    template: ChatTemplate, scope: Scope, before: Sequence[Message], answer: Message, after: Sequence[Message]
) -> tuple[str, str] | None:
    """Return the texts of two answers of other content at a place; None where the template renders none there."""
    kept = {name: value for name, value in answer.items() if name in ("role", "tool_calls")}
    # without the calls, the results that follow may be an error
    for message, rest in (({"role": "assistant"}, after), ({"role": "assistant"}, []), (kept, after)):
        one, other = (_turn(template, scope, before, {**message, "content": text}, rest) for text in ("a", "b"))
        if one is not None and other is not None and one != other:
            return one, other
    return None


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


def _question(template: ChatTemplate, scope: Scope, before: Sequence[Message]) -> str | None:
    """Return the text of a user's message at the place of an answer; None where there is no such text.

    Where two messages of a user in a row are an error, it is the text of the user's message before.
    """
    question = {"role": "user", "content": "a"}
    asked = _turn(template, scope, before, question, [])
    if asked is None and before and before[-1]["role"] == "user":
        asked = _turn(template, scope, before[:-1], question, [])
    return asked


def _generation_prompt(template: ChatTemplate, messages: Sequence[Message], scope: Scope, index: int) -> str | None:
    """Return the text that a generation prompt adds to the messages before the answer, or None when it is not clear.

    Earlier answers directly before it, to which some templates add none, are left out. Without a user message before
    the answer, it is the text that it adds after the first one.
    """
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if users and users[0] < index:
        count = next(i for i in range(index, 0, -1) if messages[i - 1]["role"] != "assistant")
    else:
        count = users[0] + 1 if users else index or 1
    before = messages[:count]
    prompted = template.trace(before, scope, generation_prompt=True)
    unprompted = template.trace(before, scope)
    last = count - 1
    if prompted.text == unprompted.text:
        return prompted.text[max(end for _, end in prompted.regions.values()) :] if prompted.regions else ""
    if prompted.text.startswith(unprompted.text):
        return prompted.text[len(unprompted.text) :]
    # without a generation prompt something else comes last, such as an end of text
    if last in prompted.regions and last in unprompted.regions:
        start = prompted.regions[last][0]
        turn = unprompted.text[slice(*unprompted.regions[last])]
        if prompted.text.startswith(turn, start):
            return prompted.text[start + len(turn) :]
    return None
