"""A tokenizer's chat template as a function from conversations to text."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hooktrain import DataError
from hooktrain_sft.chat.template_trace import CompiledTemplate, Span, Trace

__all__ = ["ChatTemplate", "Form", "Scope", "Span", "Trace"]

T = TypeVar("T")
Scope = Mapping[str, Any]
"""The variables of a template except for ``messages`` and ``add_generation_prompt``."""

Form = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts a message to a form that a template accepts; returns the message itself where it changes nothing."""

_OURS = ("messages", "tools", "documents", "add_generation_prompt")


class ChatTemplate:
    """A chat template with the special tokens of its tokenizer; it renders as ``apply_chat_template`` does.

    Attributes:
        marks_generation: whether the template marks the model's text with ``{% generation %}``.
        reads: the variables and fields that it reads, and its strings, which may name some.
        uses_date: whether the text depends on the day on which it is rendered.
        nothing: possible texts of a turn without content.
        special: pattern of the tokenizer's special tokens; None where it has none.
        rendered: places of messages, with the roles around them, whose content it is known to render.
        asks: whether it writes a header of an answer when asked for it, once that is known.
        keywords: for a kind of part that a text lacks, the variable that renders it.
        variables: names that it takes from its variables.
        applied: the forms that messages are given in.
        forms: for the parts that a text lacks, the form of the messages that was found to have the most of them.
    """

    def __init__(self, tokenizer: Any, source: str, eot_tokens: tuple[str, ...] = ()) -> None:
        try:
            self._compiled = CompiledTemplate(source)
        except Exception as problem:  # jinja's own errors, and those of transformers' extensions
            raise DataError(
                f"the chat template cannot be compiled: {type(problem).__name__}: {problem}; correct it"
            ) from problem
        self._scope: dict[str, Any] = {
            **self._compiled.globals,
            "tools": None,
            "documents": None,
            **tokenizer.special_tokens_map,
        }
        self.marks_generation = self._compiled.marks_generation
        self.reads = self._compiled.reads
        self.uses_date = "strftime_now" in self.reads
        self._bos = tokenizer.bos_token
        self._added = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        tokens = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
        self.special = re.compile(tokens) if tokens else None
        for token in eot_tokens:
            if (count := len(tokenizer(token, add_special_tokens=False)["input_ids"])) != 1:
                raise DataError(
                    f"data.eot_tokens: given '{token}', which the tokenizer makes {count} tokens of, expected one; add"
                    " it with tokenizer.add_tokens, or remove it"
                )
        self._ends = frozenset(special | ({tokenizer.eos_token} if tokenizer.eos_token else set()) | {*eot_tokens})
        self._end_lengths = sorted({len(end) for end in self._ends}, reverse=True)
        self._usual_end: tuple[str, ...] = ()  # the last one found, since most turns end alike
        self.nothing = self._ends | {""}
        self.rendered: set[tuple[int, str]] = set()
        self.forms: dict[Any, int] = {}
        self.asks: bool | None = None
        self.keywords: dict[Any, str] = {}
        self.variables = self._compiled.variables
        self.applied: tuple[Form, ...] = ()
        self._formed: dict[tuple[Form, ...], ChatTemplate] = {(): self}

    @classmethod
    def of(cls, tokenizer: Any, tools: Sequence[Any] | None = None, eot_tokens: tuple[str, ...] = ()) -> ChatTemplate:
        """Return the template that ``tokenizer`` uses for a conversation with these ``tools``.

        Args:
            tokenizer: the tokenizer.
            tools: those of the conversation.
            eot_tokens: tokens that end a turn, besides the special ones.

        Raises:
            DataError: when the tokenizer has none, or makes several tokens of one that ends a turn.
        """
        source = tokenizer.chat_template
        if not isinstance(source, str):
            try:
                source = tokenizer.get_chat_template(None, tools)
            except (ValueError, AttributeError):
                raise DataError(
                    "the tokenizer has no chat template, expected one to render 'messages' with; use the tokenizer of"
                    " an instruct model or give it a chat_template"
                ) from None
        return _template(tokenizer, source, eot_tokens)

    def with_forms(self, forms: tuple[Form, ...]) -> ChatTemplate:
        """Return the template that is given messages in these forms."""
        if forms not in self._formed:
            made = copy.copy(self)
            made.rendered, made.applied = set(), forms
            self._formed[forms] = made
        return self._formed[forms]

    def scope(self, tools: Sequence[Any] | None, variables: Mapping[str, Any] | None) -> Scope:
        """Return the variables that all renderings of an example share.

        Raises:
            DataError: when ``variables`` name one that is set from the example.
        """
        if not tools and not variables:
            return self._scope
        for name in variables or ():
            if name in _OURS:
                raise DataError(f"chat_template_kwargs.{name}: is set from the example; remove it")
        return {**self._scope, "tools": list(tools) if tools else None, **(variables or {})}

    def render(self, messages: Sequence[Any], scope: Scope, generation_prompt: bool = False) -> str:
        """Return the text of a conversation.

        Args:
            messages: the messages.
            scope: from :meth:`scope`.
            generation_prompt: whether to add the header of an assistant's answer.

        Raises:
            DataError: when the template fails.
        """
        return self._run(self._compiled.render, messages, scope, generation_prompt)

    def trace(self, messages: Sequence[Any], scope: Scope, generation_prompt: bool = False) -> Trace:
        """Return the text of a conversation with the span of each message; raises as :meth:`render` does."""
        return self._run(self._compiled.trace, messages, scope, generation_prompt)

    def _run(self, function: Callable[[dict[str, Any]], T], messages: Sequence[Any], scope: Scope, prompt: bool) -> T:
        formed = messages
        for form in self.applied:
            formed = [form(message) for message in formed]
        try:
            return function({**scope, "messages": formed, "add_generation_prompt": prompt})
        except Exception as problem:  # a template is a program and can fail in any way
            raise _failed(messages, problem) from problem

    def end_of_turn(self, text: str, start: int, end: int) -> int | None:
        """Return the end of the special token with which ``text[start:end]`` ends; None when it ends with none.

        White space after it is skipped: ChatML ends a turn with ``<|im_end|>`` and a line break, which the model does
        not have to write.
        """
        while end > start and text[end - 1].isspace():
            end -= 1
        if text.endswith(self._usual_end, start, end):
            return end
        for length in self._end_lengths:
            if end - length >= start and (found := text[end - length : end]) in self._ends:
                self._usual_end = (found,)
                return end
        return None

    def opening_token(self, text: str, start: int) -> str | None:
        """Return the added token with which ``text[start:]`` begins after white space, other than the first of all."""
        while start < len(text) and text[start].isspace():
            start += 1
        found = next((token for token in self._added if text.startswith(token, start)), None)
        return None if found == self._bos else found

    def whole_tokens(self, text: str, length: int) -> int:
        """Return the largest length up to ``length`` at which a cut of ``text`` splits no special token or tag."""
        for found in re.finditer("|".join(map(re.escape, self._added)) or "(?!)", text):
            if found.start() < length < found.end():
                return found.start()
        tag = text.rfind("<", 0, length)
        return tag if tag > text.rfind(">", 0, length) else length


def _failed(messages: Sequence[Any], problem: Exception) -> DataError:
    roles = [str(message["role"]) for message in messages]
    shown = ", ".join(roles if len(roles) <= 12 else [*roles[:6], f"... ({len(roles)} in all)", *roles[-3:]])
    return DataError(
        f"the chat template cannot render a conversation of {shown}: {type(problem).__name__}: {problem};"
        " change the example or the template"
    )


@functools.lru_cache(maxsize=8)
def _template(tokenizer: Any, source: str, eot_tokens: tuple[str, ...]) -> ChatTemplate:
    return ChatTemplate(tokenizer, source, eot_tokens)
