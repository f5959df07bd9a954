"""Where in a rendered conversation each answer stands, proven for the conversation at hand.

An answer begins where the prompt for it ends, as the template writes that prompt, and the text has to begin with it. It
ends where the template's loop goes on to the next message. Some templates change what they wrote of earlier turns
(Qwen 3 drops their reasoning, Mistral moves tools to the last user turn), so that no earlier prompt is how the text
begins; there, an answer begins behind the generation prompt with which the template begins its turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from hooktrain import DataError
from hooktrain_sft.messages import Message
from hooktrain_sft.template import ChatTemplate, Scope
from hooktrain_sft.trace import Span, Trace

__all__ = ["Answer", "Conversation"]


class Answer(NamedTuple):
    """What the model writes in one turn, in characters, its end-of-turn token included; and what proved it."""

    start: int
    end: int
    rule: str


class Conversation:
    """A rendered conversation."""

    __slots__ = ("messages", "scope", "template", "text", "trace")

    def __init__(self, template: ChatTemplate, messages: Sequence[Message], scope: Scope, trace: Trace) -> None:
        self.template, self.messages, self.scope, self.trace = template, messages, scope, trace
        self.text = trace.text

    def answer(self, index: int) -> Answer:
        """Where the assistant's message of that number is.

        Raises:
            DataError: when it cannot be proven.
        """
        region = self.trace.regions.get(index)
        prompt: str | DataError
        try:
            prompt = self.template.render(self.messages[:index], self.scope, generation_prompt=True)
        except DataError as problem:
            prompt = problem
        if region is None:
            start, end, rule = self._between_prefixes(index, prompt)
        elif isinstance(prompt, str) and len(prompt) <= region[1] and self.text.startswith(prompt):
            start, end, rule = len(prompt), region[1], "prompt prefix"
        else:
            start, end, rule = self._behind_header(index, region, prompt), region[1], "template's loop"
        end = self._end_of_turn(index, start, end)
        if self.text[start:end].strip() in self.template.nothing:
            raise self.says_nothing(index)
        return Answer(start, end, rule)

    def region(self, index: int) -> Span:
        """All that the template writes for a message.

        Raises:
            DataError: when the template does not go over the messages in a loop.
        """
        found = self.trace.regions.get(index)
        if found is None:
            raise DataError(
                f"messages[{index}]: it is not known what the chat template writes for it, as it does not render the"
                " messages one after the other in a loop; remove `train` from the message, or change the template"
            )
        return found

    def says_nothing(self, index: int) -> DataError:
        """The error for an answer of which the text has nothing, so that only its end would be trained."""
        return DataError(
            f"messages[{index}]: the chat template renders nothing of what it says, or marks nothing of it; give a"
            " tokenizer.chat_template that takes content as text, or correct the row"
        )

    def _end_of_turn(self, index: int, start: int, end: int) -> int:
        ended = self.template.end_of_turn(self.text, start, end)
        if ended is None:
            # some templates write what ends a turn behind their loop
            last = index + 1 == len(self.messages)
            until = self.text if last else self.template.render(self.messages[: index + 1], self.scope)
            if len(until) > end and self.text.startswith(until):
                ended = self.template.end_of_turn(self.text, start, len(until))
        return end if ended is None else ended

    def _between_prefixes(self, index: int, prompt: str | DataError) -> tuple[int, int, str]:
        """The answer is what the conversation up to and including it has more than the prompt before it."""
        if isinstance(prompt, DataError):
            raise self._no_prompt(index, prompt) from prompt
        last = index + 1 == len(self.messages)
        until = self.text if last else self.template.render(self.messages[: index + 1], self.scope)
        for prefix, what in ((prompt, "the prompt before it"), (until, "the conversation up to it")):
            if not self.text.startswith(prefix):
                raise self._unstable(index, prefix, what)
        return len(prompt), max(len(until), len(prompt)), "prompt prefix"

    def _behind_header(self, index: int, region: Span, prompt: str | DataError) -> int:
        """The turn without the generation prompt, or without as much of it as any turn here begins with."""
        header = self._header(index, prompt)
        start, end = region
        if self.text.startswith(header, start):
            return start + len(header)
        # reasoning models are prompted with <think>, which turns without reasoning do not have
        turns = [self.text[start:end]]
        for content in ("a", "b"):
            said = {"role": "assistant", "content": content}
            if calls := self.messages[index].get("tool_calls"):
                said["tool_calls"] = calls
            other = self.template.trace([*self.messages[:index], said, *self.messages[index + 1 :]], self.scope)
            if index not in other.regions:
                raise self._unstable(index, prompt if isinstance(prompt, str) else "", "the prompt before it")
            turns.append(other.text[slice(*other.regions[index])])
        alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(header, *turns, strict=False))
        return start + self.template.whole_tokens(header, sum(1 for _ in alike))

    def _header(self, index: int, prompt: str | DataError) -> str:
        """What a generation prompt adds to the conversation before the answer.

        Where nothing is asked before it, that is what it adds after the first question.
        """
        users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        before = self.messages[: index if users and users[0] < index else users[0] + 1 if users else index or 1]
        try:
            asked = self.template.trace(before, self.scope, generation_prompt=True)
            unasked = self.template.trace(before, self.scope)
        except DataError as problem:
            raise self._no_prompt(index, problem) from problem
        if asked.text.startswith(unasked.text):
            return asked.text[len(unasked.text) :]
        # without a generation prompt something else comes last, such as an end of text
        last = len(before) - 1
        if last in asked.regions and last in unasked.regions:
            start = asked.regions[last][0]
            turn = unasked.text[slice(*unasked.regions[last])]
            if asked.text.startswith(turn, start):
                return asked.text[start + len(turn) :]
        raise self._unstable(index, prompt if isinstance(prompt, str) else asked.text, "the prompt before it")

    def _no_prompt(self, index: int, problem: DataError) -> DataError:
        if any(message["role"] == "user" for message in self.messages[:index]):
            return DataError(f"messages[{index}]: the prompt before it cannot be rendered: {problem}")
        return DataError(
            f"messages[{index}] is an answer without a question before it, which the chat template cannot prompt; begin"
            f" the conversation with a user message, or write `train: false` into it ({problem})"
        )

    def _unstable(self, index: int, prefix: str, what: str) -> DataError:
        text = self.text
        at = next(
            (i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), min(len(prefix), len(text))
        )
        return DataError(
            f"messages[{index}]: the chat template is not prefix-stable: {what} renders with {prefix[at : at + 40]!r}"
            f" at character {at}, all of it with {text[at : at + 40]!r} there, so that it is unknown which of it the"
            " model would write; mark it with {% generation %} in the template, or write `data.train_on:"
            " last_assistant` if only earlier turns differ"
        )
