"""Parts of a conversation that its rendered text does not hold.

A part is a text of a message: its content, its reasoning, a tool call's name or argument. A text that stands in the
message's own turn, word for word, is rendered. Any other is replaced by a marker, and the conversation is rendered once
more: where the marker is missing from that text, the template drops the part.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from hooktrain import DataError
from hooktrain_sft.chat.messages import REASONING, Message, end_of_reasoning
from hooktrain_sft.chat.template import ChatTemplate, Scope
from hooktrain_sft.chat.template_trace import Trace

__all__ = ["Unrendered", "find_unrendered"]

Kind = Literal["content", "reasoning", "call"]

_LONG = 12
"""Characters from which on a text that stands in a turn is taken for the part itself, not for a word of the header."""

_ALONE = 2048
"""Texts of a conversation up to which each is tried alone, for each of which all messages are rendered."""
_REMEMBERED = 1 << 18
"""Places of messages up to which a template keeps what it is known to render."""
_MARKER = re.compile("zqx[a-j]+xqz")
_TAG = r"</?[\w|:]{1,40}>|\[/?[A-Z]{1,40}\]"
_TEXT = re.compile(rf"(?P<tag>{_TAG})|(?:(?!{_TAG})[^\n])+")
"""A tag; or a line, or what lies between two tags in it: templates move tags, and trim white space, but keep this."""


class Unrendered(NamedTuple):
    """A part that the text does not hold.

    Attributes:
        message: number of the message.
        kind: ``content``, ``reasoning``, also within the content, or ``call``.
        where: its place in the message, such as ``tool_calls[1].function.arguments.city``.
        whole: whether nothing of the message is rendered.
    """

    message: int
    kind: Kind
    where: str
    whole: bool


class _Part(NamedTuple):
    message: int
    kind: Kind
    where: str
    marker: str


def find_unrendered(
    template: ChatTemplate,
    messages: Sequence[Message],
    scope: Scope,
    trace: Trace,
    generation_prompt: bool = False,
    only: int | None = None,
) -> list[Unrendered]:
    """Return the parts of ``messages`` that the rendered text does not hold.

    Args:
        template: the template that rendered the conversation.
        messages: the conversation.
        scope: the template's other variables.
        trace: the rendered conversation.
        generation_prompt: whether it was rendered with the header of an answer.
        only: the message to look for; all by default.
    """
    doubtful = list(_doubtful(template, messages, trace, only))
    if not doubtful:
        return []
    marked = _Marked(messages, doubtful)
    try:
        text = template.render(marked.messages, scope, generation_prompt)
    except DataError:
        # it fails on one of the markers, so each is tried alone; a part on whose marker it fails is one that it reads
        if len(marked.parts) > _ALONE:
            raise DataError(
                f"messages: {len(marked.parts):,} texts in {len(messages):,} messages, of which the chat template fails"
                f" on others in their place, so that each has to be tried alone; expected at most {_ALONE:,}; split the"
                " conversation"
            ) from None
        lost = []
        for number, part in enumerate(marked.parts):
            alone = _Marked(messages, doubtful, only=number).messages
            try:
                text = template.render(alone, scope, generation_prompt)
            except DataError:
                continue
            if part.marker not in text:
                lost.append(part)
    else:
        written = set(_MARKER.findall(text))
        lost = [part for part in marked.parts if part.marker not in written]
    if not lost:
        roles = _roles(messages)
        if len(template.rendered) < _REMEMBERED:
            template.rendered |= {(index, roles) for index in doubtful if len(messages[index]) == 2}
        return []
    total, missing = (Counter(part.message for part in parts) for parts in (marked.parts, lost))
    made = [Unrendered(p.message, p.kind, p.where, missing[p.message] == total[p.message]) for p in lost]
    return list(dict.fromkeys(made))


def _doubtful(template: ChatTemplate, messages: Sequence[Message], trace: Trace, only: int | None) -> Iterator[int]:
    """Yield the messages whose texts do not all stand in their own turn."""
    at = 0
    roles = ""
    for index, message in enumerate(messages):
        if only is not None and index != only:
            continue
        if "tool_calls" in message:
            yield index
            continue
        region = trace.regions.get(index)
        low, high = region or (at, len(trace.text))
        for text in (message.get("reasoning_content"), message.get("content")):
            if not text or not (text := text.strip()):
                continue
            found = trace.text.find(text, low, high)
            if found < 0:
                yield index
                break
            if len(text) < _LONG:
                roles = roles or _roles(messages)
                if (index, roles) not in template.rendered:
                    yield index
                    break
            # what follows has to stand somewhere else
            low = found + len(text)
        else:
            if region is None:
                at = low


def _roles(messages: Sequence[Message]) -> str:
    """Return what decides, of short contents of plain messages, whether a template renders them."""
    return "\n".join([message["role"] for message in messages])


class _Marked:
    """Messages of which every text is replaced by a marker, or ``only`` the one of that number."""

    def __init__(self, messages: Sequence[Message], indices: Sequence[int], only: int | None = None) -> None:
        self.parts: list[_Part] = []
        self._only = only
        self.messages = list(messages)
        for index in indices:
            self.messages[index] = self._message(index, messages[index])

    def _mark(self, index: int, kind: Kind, where: str, text: Any) -> Any:
        number = len(self.parts)
        # letters only: a template may parse numbers, and escapes other characters
        marker = "zqx" + "".join(chr(ord("a") + int(digit)) for digit in str(number)) + "xqz"
        self.parts.append(_Part(index, kind, where, marker))
        return marker if self._only in (None, number) else text

    def _message(self, index: int, message: Message) -> Message:
        made = dict(message)
        content = message.get("content")
        if content:
            end = end_of_reasoning(content) if message["role"] == "assistant" else 0

            def mark(found: re.Match[str]) -> str:
                text = found[0]
                if found["tag"] or not (word := text.strip()):
                    return text
                kind: Kind = "reasoning" if found.end() <= end else "content"
                return text.replace(word, str(self._mark(index, kind, "content", word)))

            made["content"] = _TEXT.sub(mark, content)
        if message.get("reasoning_content"):
            marked = self._mark(index, "reasoning", "reasoning", message["reasoning_content"])
            made |= {name: marked for name in REASONING if name in message}
        if "tool_calls" in message:
            made["tool_calls"] = [
                self._call(index, f"tool_calls[{number}]", call) for number, call in enumerate(message["tool_calls"])
            ]
        return made

    def _call(self, index: int, where: str, call: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._call(index, f"{where}.function", call["function"])}
        made = {**call, "name": self._mark(index, "call", f"{where}.name", call["name"])}
        if call.get("arguments"):
            made["arguments"] = self._values(index, f"{where}.arguments", call["arguments"])
        return made

    def _values(self, index: int, where: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._values(index, f"{where}.{name}", item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._values(index, f"{where}[{number}]", item) for number, item in enumerate(value)]
        if value is None or value == "" or isinstance(value, bool):
            return value
        return self._mark(index, "call", where, value)
