"""Spans of the answers in a rendered conversation, proven for each conversation.

An answer begins where the prompt for it ends, as the template writes that prompt, and the text has to begin with it. It
ends where the template's loop continues with the next message. Some templates change the text of earlier turns (Qwen 3
drops their reasoning, Mistral moves tools to the last user turn), so that the text does not begin with an earlier
prompt. Then an answer begins after the generation prompt with which the template begins its turn.

Each prompt is rendered, which takes a time that grows with the square of the messages. In a conversation with more than
256 answers this is done for some of each kind; where all of them begin and end alike, so do the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from hooktrain import DataError
from hooktrain_sft.chat.generation_prompt import shared_prefix, start_after_header
from hooktrain_sft.chat.long_conversations import ALL, sample
from hooktrain_sft.chat.messages import Message, is_empty
from hooktrain_sft.chat.template import ChatTemplate, Scope
from hooktrain_sft.chat.template_trace import Span, Trace

__all__ = ["Answer", "Conversation"]


class Answer(NamedTuple):
    """Span of an answer in characters, its end-of-turn token included, and the rule that proved it."""

    start: int
    end: int
    rule: str


class _Form(NamedTuple):
    """How answers of one kind stand in their passes of the loop: the text before them, whether they have an end."""

    header: str
    has_end: bool
    rule: str


class Conversation:
    """A rendered conversation."""

    __slots__ = ("_forms", "_proofs", "messages", "scope", "template", "text", "trace")

    def __init__(self, template: ChatTemplate, messages: Sequence[Message], scope: Scope, trace: Trace) -> None:
        self.template, self.messages, self.scope, self.trace = template, messages, scope, trace
        self.text = trace.text
        self._forms: dict[Any, _Form] | None = None
        self._proofs = 0

    def answer(self, index: int) -> Answer:
        """Return the span of an assistant's message.

        Raises:
            DataError: when it cannot be proven.
        """
        if len(self.messages) <= 2 * ALL:
            return self._proven(index)
        if self._forms is None:
            self._forms = self._sampled_forms()
        form, region = self._forms.get(self._kind(index)), self.trace.regions.get(index)
        if form is not None and region is not None and self.text.startswith(form.header, region[0]):
            start = region[0] + len(form.header)
            ended = self.template.end_of_turn(self.text, start, region[1])
            if (ended is not None) == form.has_end:
                end = region[1] if ended is None else ended
                if self.text[start:end].strip() in self.template.nothing:
                    raise self.without_content(index)
                return Answer(start, end, form.rule)
        return self._proven(index)

    def _kind(self, index: int) -> Any:
        """Return what decides how a template begins and ends an answer, as far as messages nearby and fields do."""
        messages = self.messages
        before = messages[index - 1] if index else {}
        after = messages[index + 1]["role"] if index + 1 < len(messages) else ""
        fields = tuple(sorted(messages[index]))
        return before.get("role"), "tool_calls" in before, fields, after, index + 1 in self.trace.regions

    def _sampled_forms(self) -> dict[Any, _Form]:
        kinds: dict[Any, list[int]] = {}
        for index, message in enumerate(self.messages):
            if message["role"] == "assistant" and not is_empty(message):
                kinds.setdefault(self._kind(index), []).append(index)
        forms = {}
        for kind, answers in kinds.items():
            if len(answers) > ALL // 4:  # the others are proven when they are asked for
                found = {self._form(index) for index in sample(answers, ALL // 4)}
                form = found.pop()
                if form is not None and not found:
                    forms[kind] = form
        return forms

    def _form(self, index: int) -> _Form | None:
        region = self.trace.regions.get(index)
        try:
            start, end, rule = self._proven(index)
        except DataError:
            return None
        if region is None or start < region[0] or end > region[1]:
            return None
        has_end = self.template.end_of_turn(self.text, start, region[1]) is not None
        return _Form(self.text[region[0] : start], has_end, rule) if has_end or end == region[1] else None

    def _proven(self, index: int) -> Answer:
        self._proofs += 1
        if self._proofs > 2 * ALL and len(self.messages) > 2 * ALL:
            raise DataError(
                f"messages: {len(self.messages):,} messages, in which the chat template begins or ends answers of one"
                f" kind differently, so that each has to be proven by rendering all messages before it; expected at"
                f" most {2 * ALL} messages with this template; split the conversation, or mark the answers with"
                " {% generation %} in the template"
            )
        region = self.trace.regions.get(index)
        prompt: str | DataError
        try:
            prompt = self.template.render(self.messages[:index], self.scope, generation_prompt=True)
        except DataError as problem:
            prompt = problem
        if region is None:
            start, end, rule = self._between_prefixes(index, prompt)
        else:
            end = self._own_end(index, region)
            asks = isinstance(prompt, str) and self._asks(index, prompt)
            if asks and isinstance(prompt, str) and len(prompt) <= end and self.text.startswith(prompt):
                start, rule = len(prompt), "all after the generation prompt"
            else:
                start, rule = self._after_header(index, prompt), "after its header"
        end = self._end_of_turn(index, start, end)
        if self.text[start:end].strip() in self.template.nothing:
            raise self.without_content(index)
        return Answer(start, end, rule)

    def region(self, index: int) -> Span:
        """Return the span of all text that the template writes for a message.

        Raises:
            DataError: when the template does not go over the messages in a loop.
        """
        found = self.trace.regions.get(index)
        if found is None:
            raise DataError(
                f"messages[{index}]: the chat template's text for it is not known, as the template does not render the"
                " messages one after the other in a loop; remove `train` and weights from the message, or change the"
                " template"
            )
        return found

    def ends_before_its_content(self, index: int, end: int) -> bool:
        """Return whether the template writes an answer's content after messages that follow, such as results."""
        content = self.messages[index].get("content")
        if not content or index + 1 >= len(self.messages) or index + 1 in self.trace.regions:
            return False
        low, high = self.trace.regions.get(index, (end, end))
        return content.strip() not in self.text[low:end] and content.strip() in self.text[end:high]

    def next_opening(self, index: int, end: int) -> tuple[str, str, bool] | None:
        """Return the token that opens the turn after an answer, which a model has to write where turns have no end.

        Args:
            index: number of the answer.
            end: its end in the text.

        Returns:
            The white space before the token, the token, and whether both are in the text; behind the last message they
            are what precedes a user's turn, which may be the missing end. None where the next turn does not begin with
            a token of its own.
        """
        last = index + 1 == len(self.messages)
        trace = self.trace
        if last:
            try:
                trace = self.template.trace([*self.messages, {"role": "user", "content": "a"}], self.scope)
            except DataError:
                return None
            if trace.text[:end] != self.text[:end]:
                return None
            if self.text[end:] and not trace.text.startswith(self.text[end:], end) and self.text[end:].strip():
                opened = self.template.opening_token(self.text, end)  # a header that is always written follows
                return None if opened is None else (self.text[end : self.text.index(opened, end)], opened, True)
            # some templates write the end of a turn only if another follows
            ended = self.template.end_of_turn(trace.text, end, trace.regions.get(index, (end, end))[1])
            if ended is not None:
                return "", trace.text[end:ended], False
        region = trace.regions.get(index + 1)
        if region is None or region[0] < end or trace.text[end : region[0]].strip():
            return None
        token = self.template.opening_token(trace.text, end)
        if token is None:
            return None
        at = trace.text.index(token, end)
        return trace.text[end:at], token, not last

    def without_content(self, index: int) -> DataError:
        """Return the error for an answer of which the text holds nothing, so that only its end would be trained."""
        return DataError(
            f"messages[{index}]: the chat template renders nothing of its content, or marks nothing of it; give a"
            " tokenizer.chat_template that takes content as text, or correct the example"
        )

    def _asks(self, index: int, prompt: str) -> bool:
        """Return whether the prompt for an answer ends with a header that the template writes when asked for it."""
        before = self.messages[index - 1]["role"] if index else ""
        if before == "assistant":
            return False  # what it adds after an answer may be the end of that answer
        if before != "user":  # some ask with no header after the result of a call
            return prompt != self.template.render(self.messages[:index], self.scope)
        if self.template.asks is None:
            self.template.asks = prompt != self.template.render(self.messages[:index], self.scope)
        return self.template.asks

    def _own_end(self, index: int, region: Span) -> int:
        """Return the end of a message in its own pass of the loop.

        A template may write the following messages there as well, such as tool results, and skip them later. Then the
        message's own text is the part that is also written without them.
        """
        start, end = region
        if index + 1 == len(self.messages) or index + 1 in self.trace.regions:
            return end
        alone = self.template.trace(self.messages[: index + 1], self.scope)
        if index not in alone.regions:
            raise self.unstable(index, alone.text, "the conversation up to it")
        turn = alone.text[slice(*alone.regions[index])]
        return start + self.template.whole_tokens(turn, len(shared_prefix(turn, self.text[start:end])))

    def _after_header(self, index: int, prompt: str | DataError) -> int:
        try:
            start = start_after_header(self.template, self.messages, self.scope, self.trace, index)
        except DataError as problem:
            raise self._no_prompt(index, problem) from problem
        if start is None:
            raise self.unstable(index, prompt if isinstance(prompt, str) else "", "the prompt before it")
        return start

    def _end_of_turn(self, index: int, start: int, end: int) -> int:
        ended = self.template.end_of_turn(self.text, start, end)
        if ended is None:
            # some templates write the end of the last turn after their loop
            last = index + 1 == len(self.messages)
            until = self.text if last else self.template.render(self.messages[: index + 1], self.scope)
            if len(until) > end and self.text.startswith(until):
                ended = self.template.end_of_turn(self.text, start, len(until))
        return end if ended is None else ended

    def _between_prefixes(self, index: int, prompt: str | DataError) -> tuple[int, int, str]:
        """Return the span from the end of the prompt to the end of the conversation up to the answer, and the rule."""
        if isinstance(prompt, DataError):
            raise self._no_prompt(index, prompt) from prompt
        last = index + 1 == len(self.messages)
        until = self.text if last else self.template.render(self.messages[: index + 1], self.scope)
        for prefix, what in ((prompt, "the prompt before it"), (until, "the conversation up to it")):
            if not self.text.startswith(prefix):
                raise self.unstable(index, prefix, what)
        return len(prompt), max(len(until), len(prompt)), "all after the generation prompt"

    def _no_prompt(self, index: int, problem: DataError) -> DataError:
        if any(message["role"] == "user" for message in self.messages[:index]):
            return DataError(f"messages[{index}]: the prompt before it cannot be rendered: {problem}")
        return DataError(
            f"messages[{index}] is an answer without a question before it, which the chat template cannot prompt; begin"
            f" the conversation with a user message, or write `train: false` into it ({problem})"
        )

    def unstable(self, index: int, prefix: str, what: str) -> DataError:
        """Return the error for a prefix with which the text does not begin."""
        text, at = self.text, len(shared_prefix(prefix, self.text))
        return DataError(
            f"messages[{index}]: the chat template is not prefix-stable: {what} renders with {prefix[at : at + 40]!r}"
            f" at character {at}, all of it with {text[at : at + 40]!r} there, so that it is unknown which of it the"
            " model would write; mark it with {% generation %} in the template, or write `data.train_on:"
            " last_assistant` if only earlier turns differ"
        )
