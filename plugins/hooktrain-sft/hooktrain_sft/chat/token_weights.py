"""Weights of the parts of a rendered text, from the data and from the recipe's ``data.weights``."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hooktrain import DataError
from hooktrain_sft.chat.answer_spans import Conversation
from hooktrain_sft.chat.messages import Message, MessageWeight
from hooktrain_sft.chat.rendered import WeightedSpan, fitting_note
from hooktrain_sft.chat.trained_spans import Choice
from hooktrain_sft.config import WeightRule

__all__ = ["Weighting", "matches"]


class Weighting(NamedTuple):
    """What decides the weights of a conversation.

    Attributes:
        messages: the conversation, with the roles that the data give.
        given: weights of messages in the data, by number.
        rules: the recipe's.
        without_reasoning: whether answers are trained whose reasoning the text does not hold.
    """

    messages: Sequence[Message]
    given: Mapping[int, MessageWeight]
    rules: Sequence[WeightRule]
    without_reasoning: bool

    def add_to(self, choice: Choice, chat: Conversation) -> None:
        """Add the weights of the chosen spans.

        Raises:
            DataError: when it is not known which text is a message's that has a weight.
        """
        if not self.given and not self.rules:
            return
        text = chat.text + choice.appended
        for start, end, index in self._extents(choice, chat):
            role = None if index is None else self.messages[index]["role"]
            own = MessageWeight(1.0) if index is None else self.given.get(index, MessageWeight(1.0))
            choice.weights.append((start, end, own.weight))
            if index is not None and own.parts:
                choice.weights += self._parts(choice, text, start, end, index)
            for number, rule in enumerate(self.rules):
                if rule.role in (None, role):
                    found = list(matches(text, start, end, rule))
                    choice.weights += found
                    choice.notes += [fitting_note(number)] if found else []
        choice.weights = [(start, end, weight) for start, end, weight in choice.weights if weight != 1]

    def _extents(self, choice: Choice, chat: Conversation) -> Iterator[tuple[int, int, int | None]]:
        """Yield the trained text by message, None for text of no message."""
        roles = {rule.role for rule in self.rules if rule.role is not None}
        named = {*self.given, *(index for index, message in enumerate(self.messages) if message["role"] in roles)}
        starts: list[tuple[int, int, int]] = []
        for start, end, index in choice.extents:
            if index is not None:
                yield start, end, index
                continue
            starts = starts or sorted((*chat.region(index), index) for index in {*chat.trace.regions, *named})
            at = start
            while at < end:
                place = bisect.bisect_right(starts, (at, math.inf, 0)) - 1
                until = min(end, starts[place + 1][0] if place + 1 < len(starts) else end)
                within = place >= 0 and at < starts[place][1]
                until = min(until, starts[place][1]) if within else until
                yield at, until, starts[place][2] if within else None
                at = until

    def _parts(self, choice: Choice, text: str, start: int, end: int, index: int) -> Iterator[WeightedSpan]:
        """Yield the parts of a message's content in its text, reasoning before the rest."""
        own, has_calls = self.given[index].parts, "tool_calls" in self.messages[index]
        at = start
        for kind, joint in (("reasoning", "\n"), ("content", "")):
            parts = [(part, weight) for of, part, weight in own if of == kind]
            whole = joint.join(part for part, _ in parts)
            shown = whole.strip()
            if not shown:
                continue
            # behind an answer without calls stands its end alone, before it perhaps the same text as reasoning
            find = text.find if kind == "reasoning" or has_calls else text.rfind
            found = find(shown, at, end)
            if found < 0 and all(weight == 1 for _, weight in parts):
                continue
            if found < 0 and kind == "reasoning" and self.without_reasoning:
                choice.notes.append(f"messages[{index}] assistant: its reasoning, which has a weight, is not rendered")
                continue
            if found < 0:
                raise DataError(
                    f"messages[{index}].content: a part of its {kind} has a weight, but the chat template does not"
                    " render the text as it stands; give a tokenizer.chat_template that does, or write the weight into"
                    " the message"
                )
            at = found + len(shown)
            place = found - (len(whole) - len(whole.lstrip()))
            for part, weight in parts:
                yield max(place, found), min(place + len(part), at), weight
                place += len(part) + len(joint)


def matches(text: str, start: int, end: int, rule: WeightRule) -> Iterator[WeightedSpan]:
    """Yield the parts of ``text[start:end]`` that a rule fits, with its weight."""
    if rule.match is None:
        yield start, end, rule.weight
        return
    for found in re.finditer(rule.match, text[start:end], re.DOTALL):
        if found[0]:
            yield start + found.start(), start + found.end(), rule.weight
