"""Rows to text, and which of it is trained.

Nothing is found by searching for it. A template with ``{% generation %}`` says itself what the model generates; for
any other, an answer is what the conversation up to and including it has more than the prompt that comes before it.
That only means something if both are how the whole text begins, which is asserted for every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from hooktrain import DataError
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig
from hooktrain_sft.messages import read_messages, read_tools
from hooktrain_sft.template import ChatTemplate, Span

__all__ = ["Rendered", "render_chat", "render_text"]


@attrs.frozen(eq=False)
class Rendered:
    """A row as the tokenizer gets it, or already as ids.

    Attributes:
        text: all of the text; no token is added to it but ``before`` and ``after``.
        spans: the parts of ``text`` that are trained, in characters, in order; a token is trained when it lies
            within one of them.
        before: ids put before the text, not trained.
        after: ids put after the text, trained.
        rules: for each span, the message that it is and what proved it, such as
            ``messages[1] assistant: prompt prefix``; for ids, one for all of them. Empty when a plugin says nothing.
        notes: what a user may want to know, such as ``messages[3] assistant: empty, not trained``.
        ids: the tokens of a row that was tokenized before, shape (tokens,); all of the above but ``rules`` and
            ``notes`` is then left empty.
        mask: which of ``ids`` are trained, shape (tokens,).
    """

    text: str = ""
    spans: tuple[Span, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    rules: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ids: NDArray[np.int32] | None = None
    mask: NDArray[np.bool_] | None = None


def render_text(row: Any, tokenizer: Any, config: CausalDataConfig) -> Rendered:
    """A row of plain text, all of it trained.

    Raises:
        DataError: when the row has no text.
    """
    column = config.text_column
    if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
        given = f"columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else type(row).__name__
        raise DataError(
            f"given {given}, expected text in the column '{column}'; name another with `data.text_column`, or use"
            " `type: sft` for rows with messages"
        )
    text = row[column]
    # text that was written with its special tokens does not get them twice
    bos = config.add_bos and tokenizer.bos_token and not text.startswith(tokenizer.bos_token)
    eos = config.add_eos and tokenizer.eos_token and not text.endswith(tokenizer.eos_token)
    return Rendered(
        text,
        ((0, len(text)),),
        before=(tokenizer.bos_token_id,) if bos else (),
        after=(tokenizer.eos_token_id,) if eos else (),
    )


def render_chat(row: Any, tokenizer: Any, config: SFTDataConfig) -> Rendered:
    """A row with ``messages`` (and ``tools``), rendered with the tokenizer's chat template.

    Raises:
        DataError: when the row is no conversation, or the template cannot render it or not one turn after the other.
    """
    messages = read_messages(row)
    tools = read_tools(row)
    template = ChatTemplate.of(tokenizer, tools)
    part = config.trained_part
    if part == "all":
        text = template.render([messages], tools)[0]
        _assert_tools_are_rendered(template, messages, tools, text)
        return Rendered(text, ((0, len(text)),))
    if template.marks_generation:
        text, spans = template.render_marked(messages, tools)
    else:
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        text, spans = _answer_spans(template, messages, tools, answers[-1:] if part == "last_assistant" else answers)
    _assert_tools_are_rendered(template, messages, tools, text)
    if part == "last_assistant":
        spans = spans[-1:]
    return Rendered(text, tuple((start, template.end_of_turn(text, (start, end))) for start, end in spans))


def _assert_tools_are_rendered(
    template: ChatTemplate, messages: Sequence[Any], tools: Sequence[Any] | None, text: str
) -> None:
    """A template that knows no tools leaves them out without a word, and an empty answer would be trained instead."""
    advice = "give a tokenizer.chat_template that renders them, or remove them from the row"
    if tools and template.render([messages], None)[0] == text:
        raise DataError(f"tools: given {len(tools)}, but the chat template renders none of them; {advice}")
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            without = {key: value for key, value in message.items() if key != "tool_calls"}
            if template.render([[*messages[:index], without, *messages[index + 1 :]]], tools)[0] == text:
                raise DataError(f"messages[{index}].tool_calls: the chat template renders none of them; {advice}")


def _answer_spans(
    template: ChatTemplate, messages: Sequence[Any], tools: Sequence[Any] | None, answers: Sequence[int]
) -> tuple[str, list[Span]]:
    """The whole text, and where in it the messages numbered ``answers`` stand.

    Only prefixes that end at an answer are rendered: what comes between two answers may be rendered in any way (as one
    block of tool results, for example) without moving them.
    """
    text, *until = template.render([messages, *(messages[: i + 1] for i in answers if i + 1 < len(messages))], tools)
    prompts = _render_prompts(template, messages, tools, answers)
    spans = []
    for index, prompt, answered in zip(answers, prompts, [*until, text], strict=False):
        _assert_prefix(prompt, text, f"the prompt before messages[{index}]")
        _assert_prefix(answered, text, f"the conversation up to messages[{index}]")
        if len(answered) < len(prompt):
            _assert_prefix(prompt, answered, f"the prompt before messages[{index}]")
        spans.append((len(prompt), len(answered)))
    return text, spans


def _render_prompts(
    template: ChatTemplate, messages: Sequence[Any], tools: Sequence[Any] | None, answers: Sequence[int]
) -> list[str]:
    try:
        return template.render([messages[:i] for i in answers], tools, generation_prompt=True)
    except DataError as problem:
        if not answers or answers[0] > 0:
            raise
        raise DataError(
            f"the conversation begins with an assistant turn, which the chat template cannot prompt ({problem});"
            " begin it with a system or user message"
        ) from problem


def _assert_prefix(prefix: str, text: str, what: str) -> None:
    if text.startswith(prefix):
        return
    at = next((i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), min(len(prefix), len(text)))
    raise DataError(
        f"the chat template is not prefix-stable: {what} renders with {prefix[at : at + 40]!r} at character {at}, the"
        f" longer text with {text[at : at + 40]!r} there, so that it is unknown which of it the model would write; mark"
        " it with {% generation %} in the template, change the row, or write `data.train_on: last_assistant` if only"
        " earlier turns differ"
    )
