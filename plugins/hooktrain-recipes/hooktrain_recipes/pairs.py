"""Formats of preference data that the recipe writes: a prompt and its answers, as text or as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hooktrain import DataError
from hooktrain_recipes.conversations import Messages

__all__ = ["ANSWERS", "PARTS", "Pairs", "recognise_pairs"]

ANSWERS = ("chosen", "rejected", "completion")
"""Columns of answers: two of a pair, or one that is good or bad."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "system"),
    "with_system": ("prompt", "system"),
    **{name: (name,) for name in ANSWERS},
}
"""The texts of a format, and the places that each may have."""
_OTHER = {"chosen": "chosen_response", "rejected": "rejected_response"}


def recognise_pairs(columns: Sequence[str], example: Mapping[str, Any]) -> str | None:
    """Return why examples are of this format."""
    for name in ("chosen", "completion"):
        if {name, _OTHER.get(name, name)} & set(columns):
            return f"the column '{name}'"
    return None


class Pairs:
    """Makes a prompt and its answers of an example.

    Args:
        prompt: the text of the prompt; without it, prompt and answers are messages.
        with_system: its text where the example has a text of the system.
        fields: names of fields of a message, by ours.
        roles: our roles, by those of the data.
        prompt_columns: columns of the prompt: of text the first that is there, of messages all, joined by line ends.
        system_column: whether the column ``system`` is a message before the others.
        answers: texts of the answers, by their columns.
    """

    def __init__(
        self,
        prompt: str = "",
        with_system: str = "",
        fields: Mapping[str, str] | None = None,
        roles: Mapping[str, str] | None = None,
        prompt_columns: Sequence[str] = ("prompt",),
        system_column: bool = False,
        **answers: str,
    ) -> None:
        self.prompt, self.with_system, self.answers = prompt, with_system or prompt, answers
        self.messages, self.content = Messages(fields, roles), (fields or {}).get("content", "content")
        self.columns, self.system_column = list(prompt_columns), system_column

    def __call__(self, example: Mapping[str, Any]) -> Mapping[str, Any]:
        given = {name: self._given(example, name) for name in ANSWERS}
        answers = {name: value for name, value in given.items() if value is not None}
        if not answers:
            raise DataError(f"given the columns {', '.join(example)}, expected chosen and rejected, or completion")
        used = {*ANSWERS, *_OTHER.values(), *self.columns, "prompt", "system", "messages", "text"}
        rest = {name: value for name, value in example.items() if name not in used}
        first = next(iter(answers.values()))
        prompt: Any
        if self.prompt:
            prompt = self._text_of_prompt(example, first)
            made: dict[str, Any] = {name: self._text(value, name) for name, value in answers.items()}
            made = {name: self.answers.get(name, f"{{{name}}}").format(**{name: text}) for name, text in made.items()}
        else:
            prompt = self._messages_of_prompt(example, first)
            made = {name: self._turns(value, "assistant")[-1:] for name, value in answers.items()}
        if "completion" in made:
            made["answers"] = [("completion", made["completion"], self._label(example))]
        return {**rest, "prompt": prompt, **made}

    @staticmethod
    def _label(example: Mapping[str, Any]) -> bool:
        label = example.get("label")
        if label not in (True, False):
            raise DataError(f"label is {label!r:.80}, expected true or false; correct or remove the example")
        return bool(label)

    @staticmethod
    def _given(example: Mapping[str, Any], name: str) -> Any:
        value = example.get(name)
        return example.get(_OTHER[name]) if value is None and name in _OTHER else value

    def _text_of_prompt(self, example: Mapping[str, Any], answer: Any) -> str:
        asked = next((example[name] for name in self.columns if example.get(name) is not None), None)
        if asked is None and isinstance(answer, list) and answer:  # the conversation begins with it
            asked = answer[:1]
        text, system = self._text(asked, "prompt"), example.get("system") or ""
        return (self.with_system if system else self.prompt).format(prompt=text, system=system)

    def _text(self, value: Any, name: str) -> str:
        """The text of a value; of messages that of the last one."""
        turn = value[-1] if isinstance(value, list) and value else value
        text = turn.get(self.content) if isinstance(turn, Mapping) else turn
        if not isinstance(text, str):
            raise DataError(f"{name} is {value!r:.80}, expected text or messages; correct or remove the example")
        return text

    def _messages_of_prompt(self, example: Mapping[str, Any], answer: Any) -> list[Mapping[str, Any]]:
        parts = [example[name] for name in self.columns if example.get(name)]
        if not parts:
            turns = self._turns(answer, "assistant")[:-1]
        elif all(isinstance(part, str) for part in parts):
            turns = self._turns("\n".join(parts), "user")
        else:
            turns = self._turns(parts[0], "user")
        system = example.get("system") if self.system_column else None
        if system and not (turns and turns[0].get("role") == "system"):
            turns = [{"role": "system", "content": system}, *turns]
        return turns

    def _turns(self, value: Any, role: str) -> list[Mapping[str, Any]]:
        if isinstance(value, str):
            return [{"role": role, "content": value}]
        turns = self.messages.turns([value] if isinstance(value, Mapping) else value)
        # Arrow fills fields that are absent in a message with null
        return [{name: each for name, each in turn.items() if each is not None} for turn in turns]
