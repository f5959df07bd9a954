"""Formats of pairs, their masks, what becomes of pairs that cannot be used, and the errors about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hooktrain_preference import collate_pairs

from hooktrain import Data, DataError, RecipeError, Trainer
from hooktrain.testing import make_tokenizer
from tests.plugins.preference.conftest import PAIRS, messages

TOKENIZER = make_tokenizer()
ASKED, GOOD, BAD = "What is the answer?", "Forty-two it is.", "What?"
CHAT = "<|im_start|>user\nWhat is the answer?<|im_end|>\n<|im_start|>assistant\n"


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


USER, CHOSEN, REJECTED = turn("user", ASKED), turn("assistant", GOOD), turn("assistant", BAD)


def texts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is not trained and what is, of each document of a sequence."""
    starts = np.flatnonzero(row["position_ids"] == 0)[1:]
    parts = zip(np.split(row["input_ids"], starts), np.split(row["labels"], starts), strict=True)
    return [(TOKENIZER.decode(ids[labels == -100]), TOKENIZER.decode(ids[labels != -100])) for ids, labels in parts]


PLAIN = [(ASKED, f" {GOOD}<|endoftext|>"), (f"{ASKED} ", f"{BAD}<|endoftext|>")]
"""Where the white space before a word is a part of its token, it is trained."""
TURNS = [(f"{CHAT}\n", f"{GOOD}<|im_end|>"), (f"{CHAT}\n", f"{BAD}<|im_end|>")]

FORMATS: Mapping[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "text": ({"prompt": f"{ASKED} ", "chosen": GOOD, "rejected": BAD}, PLAIN),
    "text, implicit prompt": (
        {"chosen": f"{ASKED} {GOOD}", "rejected": f"{ASKED} {BAD}"},
        [(ASKED, f" {GOOD}<|endoftext|>"), (ASKED, f" {BAD}<|endoftext|>")],
    ),
    "messages": ({"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]}, TURNS),
    "messages, implicit prompt": ({"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, TURNS),
    "messages, answers that begin with the prompt": (
        {"prompt": [USER], "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
        TURNS,
    ),
    "messages, one answer that begins with the prompt": (
        {"prompt": [USER], "chosen": [USER, CHOSEN], "rejected": [REJECTED]},
        TURNS,
    ),
    "messages, answers as text": ({"prompt": [USER], "chosen": GOOD, "rejected": BAD}, TURNS),
    "messages, one alone": ({"prompt": [USER], "chosen": CHOSEN, "rejected": REJECTED}, TURNS),
    "UltraFeedback, binarized": (
        {
            "prompt": ASKED,
            "prompt_id": "ab",
            "chosen": [USER, CHOSEN],
            "rejected": [USER, REJECTED],
            "messages": [USER, CHOSEN],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        TURNS,
    ),
    "a prompt of text for messages": ({"prompt": ASKED, "chosen": [CHOSEN], "rejected": [REJECTED]}, TURNS),
}


@pytest.mark.parametrize(("example", "expected"), FORMATS.values(), ids=FORMATS)
def test_formats(prepare: Callable[..., Data], example: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    data = prepare([example])
    assert len(data.train) == 1
    assert texts(data.train[0]) == expected


def test_a_system_turn_and_other_names_of_columns(prepare: Callable[..., Data]) -> None:
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    example = {"system": "No.", "question": [USER], "good": [CHOSEN], "bad": [REJECTED]}
    (chosen, _), (rejected, answer) = texts(prepare([example], columns=columns).train[0])
    assert chosen == rejected == f"<|im_start|>system\nNo.<|im_end|>\n{CHAT}\n" and answer == f"{BAD}<|im_end|>"


ERRORS: Mapping[str, tuple[dict[str, Any], str]] = {
    "no rejected": (
        {"prompt": ASKED, "chosen": GOOD},
        r"example 0.*: given the columns prompt, chosen, expected 'chosen' and 'rejected', .* rejected missing; name"
        r" them with `data.columns: \{chosen: ..., rejected: ...\}`",
    ),
    "null": ({"prompt": ASKED, "chosen": GOOD, "rejected": None}, r"rejected is missing, expected text or a list of"),
    "number": ({"prompt": ASKED, "chosen": GOOD, "rejected": 3}, r"rejected is of type int, expected text or a list"),
    "mixed": ({"chosen": [USER, CHOSEN], "rejected": BAD}, r"chosen is a list and rejected text, expected both"),
    "prompts of text": (
        {"chosen": f"Is it? {GOOD}", "rejected": BAD},
        r"the prompts differ: chosen begins with 'Is it",
    ),
    "prompts of messages": (
        {"chosen": [USER, CHOSEN], "rejected": [turn("user", "Is it?"), REJECTED]},
        r"the prompts differ: chosen begins with 'What is the answer\?' and rejected with 'Is it\?', expected a message",
    ),
    "later prompts": (
        {
            "chosen": [USER, CHOSEN, turn("user", "No?"), CHOSEN],
            "rejected": [USER, CHOSEN, turn("user", "It?"), CHOSEN],
        },
        r"the prompts differ: chosen continues after 2 common messages with one of user \('No\?'\), expected an answer",
    ),
    "another prompt": (
        {"prompt": "Is it?", "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
        r"prompt is 'Is it\?', but the conversations of chosen and rejected ask 'What is the answer\?', expected the same",
    ),
    "a question as an answer": (
        {"prompt": [USER], "chosen": [CHOSEN], "rejected": [USER]},
        r"rejected begins with a message of user that is not the prompt's, expected an answer",
    ),
    "a prompt that one answer does not begin with": (
        {"prompt": [USER], "chosen": [USER, CHOSEN], "rejected": [turn("user", "Is it?"), REJECTED]},
        r"rejected begins with a message of user that is not the prompt's, expected an answer or the same prompt",
    ),
    "system with text": (
        {"system": "No.", "prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        r"system is given with a prompt of text, which no chat template renders; .* `data.columns: \{system: null\}`",
    ),
}


@pytest.mark.parametrize(("example", "text"), ERRORS.values(), ids=ERRORS)
def test_errors_name_what_is_wrong(prepare: Callable[..., Data], example: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        prepare([example])


@pytest.mark.parametrize("chosen", [GOOD, ""], ids=["equal", "empty"])
def test_pairs_without_a_preference_are_dropped_or_refused(prepare: Callable[..., Data], chosen: str) -> None:
    bad = {"prompt": ASKED, "chosen": chosen, "rejected": GOOD}
    examples = [*messages(), bad]
    with pytest.raises(
        DataError, match=r"in 1 of 9 examples an answer is empty, or both are equal.*`data.on_empty: drop`"
    ):
        prepare(examples, max_dropped=0.0)
    data = prepare(examples, on_empty="drop")
    assert len(data.train) == 8 and data.report["train"]["rows_empty"] == 1
    assert all(len(texts(data.train[number])) == 2 for number in range(8))
    notes = " ".join(data.report["warnings"])
    assert ("chosen and rejected are equal, not trained" if chosen else "completion: empty, not trained") in notes


def test_a_pair_with_one_long_answer_is_dropped_with_both(prepare: Callable[..., Data]) -> None:
    long = (ASKED, GOOD, "It is. " * 30)
    examples = messages([*PAIRS[:3], long, *PAIRS[3:]])
    with pytest.raises(DataError, match=r"1 of 9 examples are longer .* choose `data.overflow:` drop; without"):
        prepare(examples, max_length=40)
    data = prepare(examples, max_length=40, overflow="drop")
    kept = [texts(data.train[number]) for number in range(len(data.train))]
    assert [answers[0][1] for answers in kept] == [f"{chosen}<|im_end|>" for _, chosen, _ in PAIRS]
    assert [answers[1][1] for answers in kept] == [f"{rejected}<|im_end|>" for _, _, rejected in PAIRS]
    facts = data.report["train"]
    assert facts["tokens_in"] == facts["tokens_kept"] + facts["tokens_dropped"] and facts["rows_kept"] == 8


def test_packs_hold_pairs_and_never_a_half(prepare: Callable[..., Data]) -> None:
    data = prepare(messages(), max_length=48, pack_samples=True, eval_sources=[])
    found = [texts(data.train[number]) for number in range(len(data.train))]
    assert len(found) < 8 and max(len(row["input_ids"]) for row in (data.train[n] for n in range(len(found)))) <= 96
    answers = sorted((c[1], r[1]) for row in found for c, r in zip(row[::2], row[1::2], strict=True))
    assert answers == sorted((f"{c}<|im_end|>", f"{r}<|im_end|>") for _, c, r in PAIRS)
    batch = collate_pairs([data.train[0], data.train[1]])
    assert batch["denominator"] == len(found[0] + found[1]) / 2
    assert sum(batch["answer_lengths"]) == int((batch["labels"] != -100).sum())


def test_splits_duplicates_and_weights_of_sources_keep_pairs_together(prepare: Callable[..., Data]) -> None:
    data = prepare(messages() + messages(PAIRS[:1]), exact_deduplication=True, val_size=2)
    assert (len(data.train), len(data.evaluation["eval"])) == (6, 2) and data.report["train"]["rows_duplicate"] == 1
    good = {f"{chosen}<|im_end|>" for _, chosen, _ in PAIRS}
    for rows in (data.train, data.evaluation["eval"]):
        assert {texts(rows[number])[0][1] for number in range(len(rows))} <= good


def test_repeated_pairs_stay_pairs(prepare: Callable[..., Data], recipe: dict[str, Any], tmp_path: Path) -> None:
    prepare(messages(PAIRS[:2]), messages(PAIRS[2:]))  # writes the files
    sources = [
        {"type": "huggingface", "name_or_path": str(tmp_path / f"set-{number}.jsonl"), "weight": 1} for number in (0, 1)
    ]
    rows = prepare(sources=sources).train
    pairs = [tuple(answer for _, answer in texts(rows[number])) for number in range(len(rows))]
    known = {(f"{c}<|im_end|>", f"{r}<|im_end|>") for _, c, r in PAIRS}
    assert len(pairs) == 8 and set(pairs) <= known and len(set(pairs)) < 8


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"overflow": "truncate"}, r"data.overflow: given 'truncate' \(text\), expected one of auto, error, drop"),
        ({"train_on": "all"}, r"train_on: given all of the text, which includes the prompt that both answers share"),
        ({"reasoning_turns": "split"}, r"reasoning_turns: given split, .* expected last or all"),
    ],
    ids=str,
)
def test_options_that_pairs_cannot_have(prepare: Callable[..., Data], data: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        prepare(messages(), **data)


def test_sft_renders_as_without_this_plugin(run_chat: Callable[..., Trainer]) -> None:
    """A second plugin that renders would delay errors about formats and hide columns that are not used."""
    trainer = run_chat(train_iters=1)
    assert len(trainer.host.implementations("render_example")) == 1
