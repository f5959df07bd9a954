"""Trained spans of a rendered conversation, for each value of ``data.train_on``."""

from __future__ import annotations

import bisect
import re
from collections.abc import Collection, Sequence

from hooktrain import DataError
from hooktrain_sft.chat.answer_spans import Conversation
from hooktrain_sft.chat.messages import Message, is_empty
from hooktrain_sft.chat.rendered import Rendered, WeightedSpan, product_of
from hooktrain_sft.chat.template_trace import Span
from hooktrain_sft.config import SFTDataConfig

__all__ = ["Choice", "add_spans", "answers_of"]

_EMPTY_REASONING = re.compile(r"\s*<think>\s*</think>\s*")
_END_OF_EMPTY_REASONING = re.compile(r"\s*</think>\s*")


class Choice:
    """Trained spans of an example; ``rules`` has one entry for each span.

    ``extents`` are the spans before anything is cut out, each with the number of its message where it is of one alone.
    """

    __slots__ = ("appended", "cuts", "extents", "notes", "rules", "spans", "weights")

    def __init__(self) -> None:
        self.appended = ""
        self.spans: list[Span] = []
        self.rules: list[str] = []
        self.notes: list[str] = []
        self.cuts: list[Span] = []
        self.extents: list[tuple[int, int, int | None]] = []
        self.weights: list[WeightedSpan] = []

    def add(self, start: int, end: int, rule: str, message: int | None = None) -> None:
        if start < end:
            self.spans.append((start, end))
            self.rules.append(rule)
            self.extents.append((start, end, message))

    def move(self, ahead: int) -> None:
        """Move the spans by a number of characters."""
        self.spans = [(start + ahead, end + ahead) for start, end in self.spans]
        self.weights = [(start + ahead, end + ahead, weight) for start, end, weight in self.weights]

    def rendered(self, text: str) -> Rendered:
        """Return the example with these spans."""
        return Rendered(
            text + self.appended,
            tuple(self.spans),
            rules=tuple(self.rules),
            notes=tuple(self.notes),
            weights=product_of(self.weights),
        )

    def apply_cuts(self) -> None:
        """Remove the cuts from the spans."""
        cuts: list[Span] = []
        for low, high in sorted(cut for cut in self.cuts if cut[0] < cut[1]):
            if cuts and low <= cuts[-1][1]:
                cuts[-1] = (cuts[-1][0], max(high, cuts[-1][1]))
            else:
                cuts.append((low, high))
        ends = [high for _, high in cuts]
        kept: list[tuple[Span, str]] = []
        for (start, end), rule in zip(self.spans, self.rules, strict=True):
            number, at = bisect.bisect_right(ends, start), start
            while number < len(cuts) and cuts[number][0] < end:
                low, high = cuts[number]
                kept.append(((at, max(at, low)), rule))
                number, at = number + 1, high
            kept.append(((at, end), rule))
        kept = [(span, rule) for span, rule in kept if span[0] < span[1]]
        self.spans, self.rules = [span for span, _ in kept], [rule for _, rule in kept]


def answers_of(messages: Sequence[Message], part: str, prompt: int) -> list[int]:
    """Return the answers that are trained by ``data.train_on``, empty ones included.

    Args:
        messages: the conversation.
        part: the value of ``data.train_on``.
        prompt: how many of the messages are a prompt, in which nothing is trained (unless ``part`` is ``all``).
    """
    if part == "completion":
        prompt = prompt or _after_last_question(messages)
    elif part == "all":
        prompt = 0
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= prompt]
    return answers[-1:] if part == "last_assistant" else answers


def add_spans(
    choice: Choice,
    chat: Conversation,
    config: SFTDataConfig,
    untrained: Collection[int],
    prompt: int,
    part: str | None = None,
) -> None:
    """Add the spans that are trained.

    Args:
        choice: receives them.
        chat: the rendered conversation.
        config: decides which they are.
        untrained: messages that are not trained.
        prompt: how many of the messages are a prompt, in which nothing is trained (unless ``part`` is ``all``).
        part: a value of ``data.train_on``, instead of the recipe's.

    Raises:
        DataError: when the spans cannot be proven.
    """
    part, mask_empty = part or config.trained_part, config.mask_empty_reasoning
    if part == "all":
        choice.add(0, len(chat.text), "all")
        _exclude(chat, choice, untrained, mask_empty, 0)
    elif part == "completion":
        begin = prompt or _after_last_question(chat.messages)
        _add_completion(chat, choice, begin)
        _exclude(chat, choice, [i for i in untrained if i >= begin], mask_empty, begin)
    else:
        answers = [i for i in answers_of(chat.messages, part, prompt) if i not in untrained]
        wanted = [i for i in answers if not is_empty(chat.messages[i])]
        if len(wanted) < len(answers):
            empty = sorted(set(answers).difference(wanted))
            choice.notes += [f"messages[{i}] assistant: empty, not trained" for i in empty]
        if chat.template.marks_generation:
            _add_generated(chat, choice, wanted)
        else:
            for index in wanted:
                _add_answer(chat, choice, index, config.train_stop)
        if mask_empty:
            choice.cuts += [cut for start, end in choice.spans for cut in _empty_reasoning(chat.text, start, end)]
    if choice.cuts:
        choice.apply_cuts()


def _add_answer(chat: Conversation, choice: Choice, index: int, train_stop: str) -> None:
    """Add an answer, with the token that opens the next turn where the template writes no end of it."""
    start, end, rule = chat.answer(index)
    if chat.ends_before_its_content(index, end):
        choice.notes.append(
            f"messages[{index}] assistant: the chat template writes its content after the result of its call, and the"
            " content is not trained; give a tokenizer.chat_template that writes it before"
        )
    rule = f"messages[{index}] assistant: {rule}"
    if chat.template.end_of_turn(chat.text, start, end) is not None:
        choice.add(start, end, rule, index)
        return
    opening = chat.next_opening(index, end) if train_stop != "none" else None
    if opening is None:
        choice.add(start, end, rule, index)
        choice.notes.append(
            f"messages[{index}] assistant: no end-of-turn token is trained, so that the model does not learn to stop"
            " there; give a tokenizer.chat_template that writes one"
        )
        return
    gap, token, is_in_text = opening
    if not is_in_text and not chat.text.startswith(gap + token, end):  # a header may follow already
        choice.appended = gap + token
    choice.add(start, end + len(gap) + len(token), f"{rule}, next header's token", index)
    if train_stop == "auto":
        choice.notes.append(
            f"messages[{index}] assistant: the chat template writes no end-of-turn token, so the token that opens the"
            f" next turn, here {token}, is trained as the answer's last (data.train_stop)"
        )


def _after_last_question(messages: Sequence[Message]) -> int:
    return 1 + max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)


def _add_completion(chat: Conversation, choice: Choice, begin: int) -> None:
    """Add the span from the end of the prompt to the end of the last turn, tool results included."""
    messages = chat.messages
    if begin >= len(messages):
        return
    if all(is_empty(message) for message in messages[begin:]):
        choice.notes.append(f"messages[{begin}] {messages[begin]['role']}: empty, not trained")
        return
    first = begin if messages[begin]["role"] == "assistant" else None
    start = chat.region(begin)[0] if first is None else chat.answer(first).start
    last = len(messages) - 1
    if messages[last]["role"] == "assistant" and not is_empty(messages[last]):
        end = chat.answer(last).end
    else:
        low, high = chat.region(last)
        end = chat.template.end_of_turn(chat.text, low, high) or high
    choice.add(start, end, "completion")


def _exclude(
    chat: Conversation, choice: Choice, untrained: Collection[int], mask_empty_reasoning: bool, begin: int
) -> None:
    untrained = set(untrained)
    choice.cuts += [chat.region(index) for index in sorted(untrained)]
    if mask_empty_reasoning and choice.spans:
        for index in range(begin, len(chat.messages)):
            message = chat.messages[index]
            if message["role"] == "assistant" and index not in untrained and not is_empty(message):
                start, end, _ = chat.answer(index)
                choice.cuts += _empty_reasoning(chat.text, start, end)


def _empty_reasoning(text: str, start: int, end: int) -> list[Span]:
    """Return the empty reasoning with which an answer begins, or its end where the prompt holds the opening tag."""
    opened = text.endswith("<think>", 0, len(text[:start].rstrip()))
    found = (_END_OF_EMPTY_REASONING if opened else _EMPTY_REASONING).match(text, start, end)
    return [found.span()] if found else []


def _add_generated(chat: Conversation, choice: Choice, wanted: Sequence[int]) -> None:
    """Add the spans that the template marks with ``{% generation %}``, of the messages in ``wanted``."""
    answers = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    in_order = answers if len(answers) == len(chat.trace.generated) else None
    with_content = set()
    regions = sorted((*chat.trace.regions[i], i) for i in answers if i in chat.trace.regions)
    trained = set(wanted)
    for place, (start, end) in enumerate(chat.trace.generated):
        at = bisect.bisect_right(regions, (start, len(chat.text) + 1)) - 1  # the last that begins before it
        index = regions[at][2] if at >= 0 and end <= regions[at][1] else None
        if index is None and in_order is not None:
            index = in_order[place]
        if index is None and len(wanted) < len(answers):
            index = _after_all(chat, start, answers[-1])
        if index is None or index in trained:
            ended = chat.template.end_of_turn(chat.text, start, end)
            name = "template" if index is None else f"messages[{index}] assistant"
            if ended is None:
                choice.notes.append(
                    f"{name}: no end-of-turn token is trained, so that the model does not learn to stop there; include"
                    " the end of the turn in the chat template's {% generation %}"
                )
            choice.add(start, end if ended is None else ended, f"{name}: {{% generation %}}", index)
        if chat.text[start:end].strip() not in chat.template.nothing:
            with_content.add(index)
    if None not in with_content:
        for index in wanted:
            if index not in with_content:
                raise chat.without_content(index)


def _after_all(chat: Conversation, start: int, last: int) -> int:
    """Return the last message's number, for a marked span after all messages."""
    if start < max((high for _, high in chat.trace.regions.values()), default=len(chat.text)):
        raise DataError(
            f"the chat template's {{% generation %}} marks {chat.text[start : start + 40]!r}, which belongs to no"
            " single message, so that it is unknown whether to train it; write `data.train_on: assistant` and no"
            " `train: false` in the example, or change the template"
        )
    return last
