"""Special tokens within someone's text, such as an end-of-turn token in a question about chat templates.

Tokenized as they stand, they become the tokens, and a part of a text looks like the end of a turn.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

from hooktrain import DataError
from hooktrain_sft.chat.messages import Message
from hooktrain_sft.chat.rendered import Rendered
from hooktrain_sft.chat.template import ChatTemplate
from hooktrain_sft.chat.template_trace import Span

__all__ = ["TextTokens"]

Handling = Literal["keep", "plain", "error"]

_OPEN, _CLOSE = "\ue000", "\ue001"
"""Private-use characters around the number of a token, while the conversation is rendered."""
_PLACE = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_ESCAPED = "\\ue000"


class TextTokens:
    """The special tokens within the texts of a conversation, and what is done with them.

    Attributes:
        messages: the messages to render.
    """

    def __init__(self, template: ChatTemplate, messages: list[Message], handling: Handling) -> None:
        """Find them in the messages.

        Raises:
            DataError: when there is one and ``handling`` is ``error``, or the text cannot be marked for ``plain``.
        """
        self._tokens: list[str] = []
        self._found: dict[int, str] = {}
        self._template, self._handling = template, handling
        search = (template.special or _PLACE).search
        suspects = [i for i, m in enumerate(messages) if len(m) > 2 or "content" not in m or search(m["content"])]
        self.messages = list(messages) if suspects else messages
        for index in suspects:
            self.messages[index] = self._read(index, messages[index])
        for index in range(len(messages)) if self._tokens else ():
            if any(_OPEN in text for text in _texts_of(messages[index])):
                raise DataError(
                    f"messages[{index}]: its text holds the private-use character U+E000, so that special tokens in the"
                    " conversation cannot be kept text; remove the character"
                )

    def restore(self, rendered: Rendered) -> Rendered:
        """Return the rendered example with its tokens as text where they were replaced, and a note for each message."""
        if not self._found:
            return rendered
        how = {"keep": "which become tokens; `data.special_tokens_in_text: plain` keeps them text"}
        notes = tuple(
            f"messages[{index}] {self.messages[index]['role']}: its text holds special tokens such as {token}, "
            + how.get(self._handling, "which are tokenized as text")
            for index, token in self._found.items()
        )
        sequences = tuple(map(self._restored, rendered.sequences))
        return attrs.evolve(self._restored(rendered), sequences=sequences, notes=rendered.notes + notes)

    def _read(self, index: int, message: Message) -> Message:
        pattern = self._template.special
        token = pattern and next((found[0] for text in _texts_of(message) if (found := pattern.search(text))), None)
        if not pattern or not token:
            return message
        self._found[index] = token
        if self._handling == "error":
            raise DataError(
                f"messages[{index}] (role {message['role']}): its text holds the special token {token!r}; correct the"
                " example, or write `data.special_tokens_in_text: plain` to tokenize it as text"
            )
        if self._handling == "keep":
            return message
        made = _with_texts(message, lambda text: pattern.sub(self._replace, text))
        assert isinstance(made, dict)
        return {**made, "role": message["role"]}

    def _replace(self, found: re.Match[str]) -> str:
        self._tokens.append(found[0])
        return f"{_OPEN}{len(self._tokens) - 1}{_CLOSE}"

    def _restored(self, rendered: Rendered) -> Rendered:
        if not self._tokens or not rendered.text:
            return rendered
        pieces: list[str] = []
        plain: list[Span] = []
        moves = [(0, 0)]  # from a place in the old text on, what a place in the new one is ahead
        length = at = 0
        for found in _PLACE.finditer(rendered.text):
            token = self._tokens[int(found[1])]
            pieces += [rendered.text[at : found.start()], token]
            length += found.start() - at
            plain.append((length, length + len(token)))
            length += len(token)
            at = found.end()
            moves.append((at, length - at))
        text = "".join([*pieces, rendered.text[at:]])
        if _ESCAPED in text:
            raise DataError(
                "the chat template escapes characters of a text that holds special tokens, so that"
                " `data.special_tokens_in_text: plain` is not possible with it; use keep or error"
            )
        begins = [begin for begin, _ in moves]

        def moved(place: int) -> int:
            return place + moves[bisect.bisect_right(begins, place) - 1][1]

        spans = tuple((moved(start), moved(end)) for start, end in rendered.spans)
        weights = tuple((moved(start), moved(end), weight) for start, end, weight in rendered.weights)
        return attrs.evolve(rendered, text=text, spans=spans, plain=tuple(plain), weights=weights)


def _texts_of(message: Message) -> Sequence[str]:
    """Return the texts of a message: contents, reasoning, names and values of calls; not its role."""
    return _texts({name: value for name, value in message.items() if name != "role"})


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in _texts(part)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return []


def _with_texts(value: Any, convert: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return convert(value)
    if isinstance(value, Mapping):
        return {convert(name): _with_texts(item, convert) for name, item in value.items()}
    return [_with_texts(item, convert) for item in value] if isinstance(value, list) else value
