"""Rendering of a conversation, and what is done about parts of it that the template drops."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

import attrs

from hooktrain import DataError
from hooktrain_sft.chat.answer_spans import Conversation
from hooktrain_sft.chat.long_conversations import ALL, sample
from hooktrain_sft.chat.message_forms import assert_tools_are_rendered, converse
from hooktrain_sft.chat.messages import Message
from hooktrain_sft.chat.other_fields import not_rendered
from hooktrain_sft.chat.rendered import Rendered
from hooktrain_sft.chat.template import ChatTemplate, Scope
from hooktrain_sft.chat.token_weights import Weighting
from hooktrain_sft.chat.trained_spans import Choice, add_spans, answers_of
from hooktrain_sft.chat.unrendered import Unrendered, find_unrendered
from hooktrain_sft.config import SFTDataConfig

__all__ = ["ConversationRenderer"]

_MOST_SPLIT = 1_000_000
"""Messages in all sequences that ``split`` makes of a conversation, which grow with the square of its length."""


class ConversationRenderer:
    """Renders the conversations of an example with its template, its variables and the recipe's choices."""

    def __init__(
        self,
        template: ChatTemplate,
        scope: Scope,
        tools: Sequence[Any] | None,
        documents: Any,
        config: SFTDataConfig,
        weighting: Weighting,
    ) -> None:
        self.template, self.scope, self.tools, self.documents, self.config = template, scope, tools, documents, config
        self.weighting = weighting

    def render(
        self, messages: Sequence[Message], untrained: Collection[int], prompt: int = 0, prefill: str = ""
    ) -> Rendered:
        """Render a conversation as one sequence.

        Args:
            messages: the conversation.
            untrained: messages that the data exclude from training.
            prompt: how many of the messages are a prompt.
            prefill: text with which the first message after the prompt begins, which is not trained.

        Raises:
            DataError: when the template cannot render it, drops a part of it that is trained, or its trained spans are
                not proven.
        """
        chat, missing = self._converse(messages)
        choice = Choice()
        if missing:
            answers = set(answers_of(messages, self.config.trained_part, prompt)) - set(untrained)
            untrained = {*untrained, *self._judge(chat, missing, answers, choice.notes)}
        add_spans(choice, chat, self.config, untrained, prompt)
        if prefill:
            choice.cuts.append(_prefilled(chat, prompt, prefill))
            choice.apply_cuts()
        self.weighting.add_to(choice, chat)
        return self._rendered(choice, chat, chat.text)

    def split(
        self, messages: Sequence[Message], untrained: Collection[int], prompt: int = 0, prefill: str = ""
    ) -> Rendered:
        """Render each trained answer as a sequence of its own, after the prompt that the template writes for it."""
        answers = answers_of(messages, self.config.trained_part, prompt)
        wanted = [index for index in answers if index not in untrained]
        if not wanted:
            return self.render(messages, untrained, prompt, prefill)
        if sum(wanted) > _MOST_SPLIT:
            raise DataError(
                f"messages: `data.reasoning_turns: split` makes a sequence of each of {len(wanted):,} answers, with all"
                f" messages before it, {sum(wanted):,} messages in all; expected at most {_MOST_SPLIT:,}; split the"
                " conversation, or choose another value"
            )
        made = [self._answer(messages[: index + 1], prefill if index == prompt else "") for index in wanted]
        notes = tuple(note for one in made for note in one.notes)
        if wanted[-1] + 1 < len(messages):
            follows = wanted[-1] + 1
            notes += (
                f"messages[{follows}] {messages[follows]['role']}: it follows the last trained answer, and is in no"
                " sequence (data.reasoning_turns: split)",
            )
        unused = tuple(dict.fromkeys(name for one in made for name in one.unused))
        sequences = tuple(attrs.evolve(one, notes=(), unused=()) for one in made if one.spans)
        if len(sequences) > 1:
            return Rendered(sequences=sequences, notes=notes, unused=unused)
        return attrs.evolve((sequences or made)[-1], notes=notes, unused=unused)

    def _answer(self, messages: Sequence[Message], prefill: str) -> Rendered:
        """Render a conversation of which the last message is trained."""
        chat, missing = self._converse(messages)
        last = len(messages) - 1
        choice = Choice()
        self._judge(chat, [part for part in missing if part.message == last], {last}, choice.notes)
        add_spans(choice, chat, self.config, range(last), last, part="last_assistant")
        if prefill:
            choice.cuts.append(_prefilled(chat, last, prefill))
            choice.apply_cuts()
        self.weighting.add_to(choice, chat)
        asked = chat.template.trace(messages[:last], self.scope, generation_prompt=True)
        lost = find_unrendered(chat.template, messages[:last], self.scope, asked, generation_prompt=True)
        for part in lost:
            if messages[part.message]["role"] != "assistant":
                choice.notes.append(self._dropped(messages, part))
        if not choice.spans or chat.text.startswith(asked.text):
            return self._rendered(choice, chat, chat.text)
        # the template writes the turns before an answer in another way once the answer is there
        start = chat.answer(last).start
        choice.move(len(asked.text) - start)
        return self._rendered(choice, chat, asked.text + chat.text[start:])

    def _rendered(self, choice: Choice, chat: Conversation, text: str) -> Rendered:
        return attrs.evolve(choice.rendered(text), unused=not_rendered(chat, self.documents))

    def _converse(self, messages: Sequence[Message]) -> tuple[Conversation, list[Unrendered]]:
        chat, missing = converse(self.template, messages, self.scope)
        if self.tools:
            assert_tools_are_rendered(chat, self.tools)
        return chat, missing

    def _judge(
        self, chat: Conversation, missing: Sequence[Unrendered], answers: Collection[int], notes: list[str]
    ) -> set[int]:
        """Note the parts that are missing; return the answers that are not trained for it.

        Raises:
            DataError: when an answer would be trained without a part that no prompt of the template has, or after
                another conversation than at inference.
        """
        messages = chat.messages
        stripped = set()
        at_the_end: dict[Any, set[str]] = {}
        dropped: dict[int, Container[tuple[Any, ...]] | None] = {}
        sampled = sample(sorted(answers))
        for index, group in itertools.groupby(missing, key=lambda part: part.message):
            parts = list(group)
            if messages[index]["role"] != "assistant":
                self._judge_other(chat, parts[0], sampled, dropped, notes)
                continue
            if parts[0].whole and parts[0].kind == "content" and index in answers:
                raise chat.without_content(index)
            lost = {part.kind: part for part in reversed(parts)}  # the first of each kind
            alone: Collection[str] = lost
            if index < len(messages) - 1:
                kind = (tuple(lost), tuple(messages[index])) if len(messages) > 2 * ALL else index
                if kind not in at_the_end:
                    at_the_end[kind] = self._lost_at_the_end(chat, index)
                alone = at_the_end[kind]
            for kind, part in lost.items():
                notes.append(self._judge_answer(chat, part, kind in alone, index in answers))
                if index in answers and kind not in alone and self.config.reasoning == "last":
                    stripped.add(index)
        return stripped

    def _judge_answer(self, chat: Conversation, part: Unrendered, always: bool, trained: bool) -> str:
        """Return the note for a part of an answer that is missing, everywhere or because another question follows."""
        what = {"reasoning": "its reasoning", "content": "a part of its content", "call": "a tool call"}[part.kind]
        where = f"messages[{part.message}]"
        note = f"{where} assistant: {what} is not rendered by the chat template"
        if not trained:
            return f"{note}; the answer is not trained"
        if not always:
            if self.config.reasoning == "all":
                return f"{note}, as more messages follow, and the answer is trained without"
            return (
                f"{note}, as more messages follow, and the answer is not trained; `data.reasoning_turns: split` trains"
                " it in a sequence of its own"
                + self._keyword(chat, part, ", and `data.chat_template_kwargs:", "` renders it here")
            )
        if part.kind == "call":
            call = part.where.removesuffix(".name").removesuffix(".function")
            raise DataError(
                f"{where}.{call}: the chat template does not render it; give a tokenizer.chat_template that renders"
                " every tool call, or change the example"
            )
        if part.kind == "content" or self.config.drop_reasoning:
            return f"{note}, and the answer is trained without; give a tokenizer.chat_template that renders it"
        if self.config.reasoning_turns == "all":
            return f"{note}, and the answer is trained without"
        raise DataError(
            f"{where} has reasoning, which the chat template does not render;"
            + self._keyword(chat, part, " write `data.chat_template_kwargs:", "`, which renders it;")
            + " give a tokenizer.chat_template that renders it, or write `data.drop_reasoning: true`"
        )

    def _judge_other(
        self,
        chat: Conversation,
        part: Unrendered,
        answers: Sequence[int],
        dropped: dict[int, Container[tuple[Any, ...]] | None],
        notes: list[str],
    ) -> None:
        """Note a message that is no answer; raise where the prompt of a trained answer has what the text lacks.

        ``dropped`` is filled with the parts that the prompt of an answer lacks, for other messages.
        """
        messages, index = chat.messages, part.message
        for answer in answers:
            if answer < index:
                continue
            if answer not in dropped:
                dropped[answer] = self._lost_before(chat, answer)
            lost = dropped[answer]
            if lost is not None and part[:3] not in lost:
                raise DataError(
                    f"messages[{index}] (role {messages[index]['role']}): the chat template renders it in the prompt"
                    f" for messages[{answer}], but not once the answer is there, so that the answer would be trained"
                    " without it; write `data.reasoning_turns: split`, which trains each answer after its own prompt,"
                    " or give a tokenizer.chat_template that renders it"
                )
        notes.append(self._dropped(messages, part))

    def _lost_before(self, chat: Conversation, answer: int) -> Container[tuple[Any, ...]] | None:
        """Return the parts that the prompt for an answer lacks; None where the template renders no prompt there."""
        before = chat.messages[:answer]
        try:
            asked = chat.template.trace(before, self.scope, generation_prompt=True)
        except DataError:
            return None
        lost = find_unrendered(chat.template, before, self.scope, asked, generation_prompt=True)
        return {part[:3] for part in lost}

    def _dropped(self, messages: Sequence[Message], part: Unrendered) -> str:
        role = messages[part.message]["role"]
        return (
            f"messages[{part.message}] {role}: {'it' if part.whole else 'a part of it'} is not rendered by the chat"
            " template, in training and at inference; give a tokenizer.chat_template that renders it, or remove it"
        )

    def _lost_at_the_end(self, chat: Conversation, index: int) -> set[str]:
        """Return which kinds of parts are missing from an answer with which the conversation ends."""
        messages = chat.messages[: index + 1]
        try:
            trace = chat.template.trace(messages, self.scope)
        except DataError:
            return {"reasoning", "content", "call"}
        return {part.kind for part in find_unrendered(chat.template, messages, self.scope, trace, only=index)}

    def _keyword(self, chat: Conversation, part: Unrendered, before: str, after: str) -> str:
        """Return the variable with which the template renders a part, within two texts; empty where there is none."""
        known = self.template.keywords
        key = (part.kind, len(chat.messages) - part.message)
        if key not in known:
            known[key] = next(
                (
                    f" {{{name}: {str(value).lower()}}}"
                    for name in sorted(self.template.variables - set(self.scope))
                    for value in (True, False)
                    if self._renders(chat, part, {**self.scope, name: value})
                ),
                "",
            )
        return f"{before}{known[key]}{after}" if known[key] else ""

    def _renders(self, chat: Conversation, part: Unrendered, scope: Mapping[str, Any]) -> bool:
        try:
            trace = chat.template.trace(chat.messages, scope)
            lost = find_unrendered(chat.template, chat.messages, scope, trace)
        except DataError:
            return False
        return all(other[:3] != part[:3] for other in lost)


def _prefilled(chat: Conversation, index: int, prefill: str) -> tuple[int, int]:
    """Return the span of the text with which an answer begins in the prompt."""
    start, end, _ = chat.answer(index)
    given = prefill.lstrip()
    at = chat.text.find(given, start, end)
    if at < 0:
        raise DataError(
            f"prompt[{index}] is the beginning of the answer, {prefill[:40]!r}, which the chat template does not render"
            " as it stands; end the prompt with a user's message, or give a tokenizer.chat_template that renders it"
        )
    return start, at + len(given)
