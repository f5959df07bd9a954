"""Formats of preference data, as TRL and UltraFeedback write them, converted to a prompt and two answers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from hooktrain_sft import Format, Rendered, render_sft

from hooktrain import DataError
from hooktrain_preference.answer_values import margin_of, with_weight
from hooktrain_preference.config import PreferenceDataConfig, RewardDataConfig

__all__ = ["convert_pair", "kind_of", "preference_format", "read_answer", "render_pair", "shown", "with_system"]

_NEEDED = "'chosen' and 'rejected', both text or both messages, with 'prompt' or a common beginning"


def preference_format() -> Format:
    """Return the format of pairs."""

    def recognise(columns: Sequence[str], first: Mapping[str, Any]) -> str | None:
        return "the columns 'chosen' and 'rejected'" if {"chosen", "rejected"} <= set(columns) else None

    return Format("preference", _NEEDED, recognise, convert_pair, None, None)


def render_pair(example: Any, tokenizer: Any, config: PreferenceDataConfig) -> Rendered:
    """Render a converted example: two sequences, the chosen answer and the rejected one, each after the prompt.

    For a reward model the tokens of both weigh 1 more than the margin of the pair.

    Raises:
        DataError: when it is no pair, or an answer cannot be rendered.
    """
    if not isinstance(example, Mapping) or not {"prompt", "chosen", "rejected"} <= example.keys():
        given = ", ".join(map(str, example)) if isinstance(example, Mapping) else type(example).__name__
        missing = [name for name in ("chosen", "rejected") if not isinstance(example, Mapping) or name not in example]
        raise DataError(
            f"given the columns {given}, expected {_NEEDED}; {' and '.join(missing or ['prompt'])} missing; name them"
            " with `data.columns: {chosen: ..., rejected: ...}`"
        )
    equal = example["chosen"] == example["rejected"]
    margin = margin_of(example) if isinstance(config, RewardDataConfig) else 0.0
    rest = {name: value for name, value in example.items() if name not in ("chosen", "rejected", "messages", "text")}
    sequences, notes = [], ["chosen and rejected are equal, not trained"] if equal else []
    for name in ("chosen", "rejected"):
        try:
            made = render_sft({**rest, "completion": example[name]}, tokenizer, config)
        except DataError as problem:
            raise DataError(f"{name}: {problem}") from problem
        notes += [f"{name}: {note}" for note in made.notes]
        if equal:
            made = attrs.evolve(made, spans=(), after=(), rules=(), weights=())
        made = with_weight(made, 1.0 + margin) if isinstance(config, RewardDataConfig) else made
        sequences.append(attrs.evolve(made, notes=(), unused=()))
    return Rendered(sequences=tuple(sequences), notes=tuple(notes))


def convert_pair(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert an example to a prompt and two answers, all of them text or all messages."""
    chosen, rejected = read_answer(example, "chosen"), read_answer(example, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(
            f"chosen is {kind_of(chosen)} and rejected {kind_of(rejected)}, expected both to be text or both messages;"
            " convert one of the columns"
        )
    prompt = example.get("prompt")
    if prompt is None:
        prompt, chosen, rejected = _without_prompt(chosen, rejected)
    else:
        prompt, chosen, rejected = _with_prompt(read_answer(example, "prompt"), chosen, rejected)
    prompt = with_system(prompt, example)
    return {**example, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def with_system(prompt: Any, example: Mapping[str, Any]) -> Any:
    """Return a prompt after the system turn of a column beside it, if there is one."""
    name = next((name for name in ("system", "system_prompt") if example.get(name)), None)
    if name is None or (not isinstance(prompt, str) and prompt and prompt[0]["role"] == "system"):
        return prompt
    if isinstance(prompt, str):
        raise DataError(
            f"{name} is given with a prompt of text, which no chat template renders; write prompt, chosen and rejected"
            f" as messages, or remove it with `data.columns: {{{name}: null}}`"
        )
    return [{"role": "system", "content": example[name]}, *prompt]


def read_answer(example: Mapping[str, Any], name: str) -> Any:
    """Read a column of text or messages; a single message is a list of one."""
    value = example.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [value]  # a single message
    if not isinstance(value, Sequence) or not all(isinstance(turn, Mapping) and "role" in turn for turn in value):
        raise DataError(
            f"{name} is {kind_of(value)}, expected text or a list of {{role, content}}; correct or remove the example"
        )
    # Arrow fills fields that are absent in a message with null
    return [{key: each for key, each in turn.items() if each is not None} for turn in value]


def kind_of(value: Any) -> str:
    """Return what a value is, in words."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, (list, tuple)) else f"of type {type(value).__name__}"


def _with_prompt(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Return the parts of an example whose prompt is a column; answers of messages may begin with it."""
    if isinstance(prompt, str) and isinstance(chosen, str):
        return prompt, chosen, rejected
    if isinstance(prompt, str):
        asked = [{"role": "user", "content": prompt}]
        if chosen and chosen[0]["role"] == "assistant" and rejected and rejected[0]["role"] == "assistant":
            return asked, chosen, rejected
        common, first, second = _without_prompt(chosen, rejected)
        questions = [turn.get("content") for turn in common if turn["role"] == "user"]
        if prompt not in questions:
            raise DataError(
                f"prompt is {shown(prompt)}, but the conversations of chosen and rejected ask"
                f" {shown(questions[0] if questions else '')}, expected the same; correct it, or remove the column"
                " with `data.columns: {prompt: null}`"
            )
        return common, first, second
    if isinstance(chosen, str):
        return prompt, *([{"role": "assistant", "content": answer}] for answer in (chosen, rejected))
    size = len(prompt)
    chosen, rejected = (
        answer[size:] if answer[:size] == prompt and len(answer) > size else answer for answer in (chosen, rejected)
    )
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer and answer[0]["role"] != "assistant":
            raise DataError(
                f"{name} begins with a message of {answer[0]['role']} that is not the prompt's, expected an answer or"
                " the same prompt; correct the example"
            )
    return prompt, chosen, rejected


def _without_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Return the common beginning of two texts or conversations, and what follows in each."""
    same = itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    size = sum(1 for _ in same)
    if isinstance(chosen, str):
        size = _before_a_word(chosen, rejected, size)
    elif chosen == rejected:
        size -= 1  # the answer itself, which equal conversations share
    else:
        size = min(size, len(chosen) - 1, len(rejected) - 1)
    if size < 1:
        first = "a text" if isinstance(chosen, str) else "a message"
        raise DataError(
            f"the prompts differ: chosen begins with {shown(_beginning(chosen))} and rejected with"
            f" {shown(_beginning(rejected))}, expected {first} that both begin with; correct the example, or give the"
            " prompt in a column 'prompt'"
        )
    prompt, first, second = chosen[:size], chosen[size:], rejected[size:]
    for name, answer in (("chosen", first), ("rejected", second)):
        if not isinstance(answer, str) and answer and answer[0]["role"] != "assistant":
            raise DataError(
                f"the prompts differ: {name} continues after {size} common messages with one of {answer[0]['role']}"
                f" ({shown(answer[0].get('content'))}), expected an answer; correct or remove the example"
            )
    return prompt, first, second


def _before_a_word(chosen: str, rejected: str, size: int) -> int:
    """Return where two texts that share so many characters begin to differ, moved back to the beginning of a word."""
    if chosen == rejected:
        return size
    while size > 0 and not (chosen[size - 1].isspace() or chosen[size : size + 1].isspace()):
        size -= 1
    return size - 1 if size and chosen[size - 1] == " " else size  # the white space before a word is part of its token


def _beginning(value: Any) -> Any:
    return value if isinstance(value, str) else value[0].get("content") if value else ""


def shown(value: Any) -> str:
    """Return a value as it stands in messages, shortened."""
    text = str(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
