"""Scores of texts against tables that were worked out by hand."""

from __future__ import annotations

import pytest
from hooktrain_evals import exact_match, rouge_l, token_f1, tool_calls_in
from hooktrain_evals.tool_calls import is_json, tool_call_match


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "rouge"),
    [
        # words in common / longest common subsequence, of so many and so many words
        ("the cat sat on the mat", "the cat lay on the mat", 2 * 3 / (4 + 4), 2 * 5 / (6 + 6)),
        ("police killed the gunman", "police kill the gunman", 2 * 2 / (3 + 3), 2 * 3 / (4 + 4)),
        ("the gunman kill police", "police kill the gunman", 2 * 3 / (3 + 3), 2 * 2 / (4 + 4)),
        ("Forty-two.", "forty two", 0.0, 1.0),
        ("yes yes yes", "yes", 2 * 1 / (3 + 1), 2 * 1 / (3 + 1)),
        ("a b c d", "d c b a", 1.0, 2 * 1 / (4 + 4)),
        ("nothing alike", "other words", 0.0, 0.0),
        ("", "something", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("das Äpfelchen", "Äpfelchen", 2 * 1 / (2 + 1), 2 * 1 / (2 + 1)),
    ],
)
def test_f1_and_rouge(prediction: str, reference: str, f1: float, rouge: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(f1)
    assert rouge_l(prediction, reference) == pytest.approx(rouge)
    assert rouge_l(reference, prediction) == pytest.approx(rouge), "F1 has no sides"


def test_exact_match() -> None:
    assert exact_match(" The answer: 42! ", "answer 42") == 1
    assert exact_match("The answer", "answer", normalize=False) == 0
    assert exact_match(" 42\n", "42", normalize=False) == 1
    assert exact_match("43", "42") == 0


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": 1}', True),
        ('```json\n{"a": [1, 2]}\n```', True),
        ("[]", True),
        ('Here it is: {"a": 1}', False),
        ("{'a': 1}", False),
        ('{"a": NaN}', False),
        ("", False),
        ("[" * 100_000, False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json(text: str, valid: bool) -> None:
    assert is_json(text) is valid
    assert is_json(text, keys=("a",)) is (valid and "a" in text)


CALL = '{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{CALL}\n</tool_call>",
        f"[TOOL_CALLS] [{CALL}]",
        f"I look it up {{now}}. {CALL} Wait.",
        '{"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": "{\\"days\\": 2, \\"city\\": \\"Oslo\\"}"}}]}',
        '{"name": "weather", "parameters": {"days": 2, "city": "Oslo"}}',
    ],
)
def test_tool_calls_of_many_forms_are_the_same_call(text: str) -> None:
    assert tool_calls_in(text) == [("weather", {"city": "Oslo", "days": 2})]
    assert tool_call_match(text, f"<tool_call>{CALL}</tool_call>") == 1


def test_other_tool_calls_do_not_match() -> None:
    other = CALL.replace("Oslo", "Bergen")
    assert tool_call_match(other, CALL) == 0
    assert tool_call_match(other, CALL, names_only=True) == 1
    assert tool_call_match(f"{CALL}{other}", f"{other}{CALL}") == 1, "in any order"
    assert tool_call_match(CALL, f"{CALL}{CALL}") == 0 == tool_call_match(f"{CALL}{CALL}", CALL)
    assert tool_call_match("It rains.", CALL) == 0 == tool_call_match(CALL, "It rains.")
    assert tool_call_match("It rains.", "Sun.") is None
