"""Formats of single answers that people like or not, as TRL writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from hooktrain_sft import Format, Rendered, render_sft

from hooktrain import DataError
from hooktrain_preference.answer_values import UNDESIRABLE, label_of, with_weight
from hooktrain_preference.config import KTODataConfig
from hooktrain_preference.formats import convert_pair, kind_of, read_answer, shown, with_system

__all__ = ["render_unpaired", "unpaired_format"]

_NEEDED = "'prompt', 'completion' and 'label', or 'messages' and 'label', or 'chosen' and 'rejected'"


def unpaired_format() -> Format:
    """Return the format of single answers."""

    def recognise(columns: Sequence[str], first: Mapping[str, Any]) -> str | None:
        for names in (("completion", "label"), ("messages", "label"), ("chosen", "rejected")):
            if set(names) <= set(columns):
                return f"the columns '{names[0]}' and '{names[1]}'"
        return None

    return Format("unpaired", _NEEDED, recognise, _convert, None, None)


def render_unpaired(example: Any, tokenizer: Any, config: KTODataConfig) -> Rendered:
    """Render a converted example, whose tokens weigh 1 where it is desirable and :data:`UNDESIRABLE` elsewhere.

    A pair makes two sequences.

    Raises:
        DataError: when it is no answer with a label, or cannot be rendered.
    """
    if not isinstance(example, Mapping) or "answers" not in example:
        given = ", ".join(map(str, example)) if isinstance(example, Mapping) else type(example).__name__
        missing = [name for name in ("completion", "label") if not isinstance(example, Mapping) or name not in example]
        raise DataError(
            f"given the columns {given}, expected {_NEEDED}; {' and '.join(missing or ['prompt'])} missing; name them"
            " with `data.columns: {completion: ..., label: ...}`"
        )
    rest = {name: value for name, value in example.items() if name not in ("answers", "messages", "text")}
    answers = example["answers"]
    equal = len(answers) == 2 and answers[0][1] == answers[1][1]
    sequences, notes = [], ["chosen and rejected are equal, not trained"] if equal else []
    for name, answer, desirable in answers:
        try:
            made = render_sft({**rest, "completion": answer}, tokenizer, config)
        except DataError as problem:
            raise DataError(f"{name}: {problem}") from problem
        notes += list(made.notes)
        if equal:
            made = attrs.evolve(made, spans=(), after=(), rules=())
        made = with_weight(made, 1.0 if desirable else UNDESIRABLE)
        if not desirable:
            made = attrs.evolve(made, rules=tuple(f"{rule}, undesirable" for rule in made.rules))
        sequences.append(attrs.evolve(made, notes=(), unused=()))
    return Rendered(sequences=tuple(sequences), notes=tuple(notes))


def _convert(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert an example to a prompt and answers with their names and labels."""
    if "completion" not in example and "messages" not in example and {"chosen", "rejected"} <= example.keys():
        pair = convert_pair(example)
        return {**pair, "answers": [("chosen", pair["chosen"], True), ("rejected", pair["rejected"], False)]}
    desirable = label_of(example)
    prompt, completion = _parts(example)
    prompt = with_system(prompt, example)
    return {**example, "prompt": prompt, "answers": [("completion", completion, desirable)]}


def _parts(example: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return prompt and completion, both text or both messages."""
    if "completion" not in example:
        turns = read_answer(example, "messages")
        if isinstance(turns, str) or len(turns) < 2 or turns[-1]["role"] != "assistant":
            last = kind_of(turns) if isinstance(turns, str) else f"ends with a message of {turns[-1]['role']}"
            raise DataError(
                f"messages {last}, expected a conversation that ends with an answer; correct or remove the example"
            )
        return turns[:-1], turns[-1:]
    prompt, completion = read_answer(example, "prompt"), read_answer(example, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}], completion
    if isinstance(completion, str):
        return prompt, [{"role": "assistant", "content": completion}]
    if completion[: len(prompt)] == prompt:
        completion = completion[len(prompt) :]
    if completion and completion[0]["role"] != "assistant":
        raise DataError(
            f"completion begins with a message of {completion[0]['role']} ({shown(completion[0].get('content'))}) that"
            " is not the prompt's, expected an answer; correct the example"
        )
    return prompt, completion
