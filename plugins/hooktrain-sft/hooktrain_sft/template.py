"""The tokenizer's chat template as a function from conversations to text."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from hooktrain import DataError

__all__ = ["ChatTemplate", "Span"]

Span = tuple[int, int]
"""Start and end of a piece of text, in characters, the end excluded."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplate:
    """One chat template with the special tokens of its tokenizer.

    Attributes:
        marks_generation: whether the template itself says what the model generates, with ``{% generation %}``.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._source = source
        self._special = dict(tokenizer.special_tokens_map)
        self.marks_generation = _GENERATION.search(source) is not None
        ends = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._ends = tuple(sorted(ends | ({tokenizer.eos_token} if tokenizer.eos_token else set())))

    @classmethod
    def of(cls, tokenizer: Any, tools: Sequence[Any] | None = None) -> ChatTemplate:
        """The template that ``tokenizer`` uses for a conversation with these ``tools``.

        Raises:
            DataError: when the tokenizer has none.
        """
        try:
            source: str = tokenizer.get_chat_template(None, tools)
        except (ValueError, AttributeError):
            raise DataError(
                "the tokenizer has no chat template, expected one to render 'messages' with; use the tokenizer of an"
                " instruct model or give it a chat_template"
            ) from None
        return _template(tokenizer, source)

    def render(
        self, conversations: Sequence[Sequence[Any]], tools: Sequence[Any] | None, generation_prompt: bool = False
    ) -> list[str]:
        """The text of each conversation.

        Args:
            conversations: lists of messages.
            tools: the tools that all of them offer.
            generation_prompt: whether to add what stands before an assistant's answer.

        Raises:
            DataError: when the template refuses or fails.
        """
        return self._render(conversations, tools, generation_prompt, marks=False)[0]

    def render_marked(self, messages: Sequence[Any], tools: Sequence[Any] | None) -> tuple[str, list[Span]]:
        """The text of a conversation and the spans inside ``{% generation %}``."""
        texts, spans = self._render([messages], tools, False, marks=True)
        return texts[0], [(start, end) for start, end in spans[0]]

    def _render(
        self, conversations: Sequence[Sequence[Any]], tools: Sequence[Any] | None, prompt: bool, marks: bool
    ) -> tuple[list[str], list[list[Span]]]:
        try:
            rendered: Any = render_jinja_template(
                conversations=[list(messages) for messages in conversations],
                tools=list(tools) if tools else None,
                chat_template=self._source,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self._special,
            )
        except Exception as problem:  # a template is a program and can fail in any way
            roles = ", ".join(str(message["role"]) for message in max(conversations, key=len))
            raise DataError(
                f"the chat template cannot render a conversation of {roles}: {type(problem).__name__}: {problem};"
                " change the row or the template"
            ) from problem
        texts, spans = rendered
        return texts, spans

    def end_of_turn(self, text: str, span: Span) -> int:
        """Where training on the turn ``span`` ends: behind its last special token if only white space follows that.

        ChatML ends a turn with ``<|im_end|>`` and a line break which nobody asks the model for.
        """
        start, end = span
        turn = text[start:end].rstrip()
        return start + len(turn) if turn.endswith(self._ends) else end


@functools.lru_cache(maxsize=8)
def _template(tokenizer: Any, source: str) -> ChatTemplate:
    return ChatTemplate(tokenizer, source)
