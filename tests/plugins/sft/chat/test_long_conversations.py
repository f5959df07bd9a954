"""Conversations of thousands of turns: the work grows with them, counted in messages given to the template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hooktrain_sft.chat import answer_spans
from hooktrain_sft.chat.render import render_chat
from hooktrain_sft.chat.template_trace import CompiledTemplate
from hooktrain_sft.chat.trained_spans import Choice
from hooktrain_sft.config import SFTDataConfig
from hooktrain_sft.data.token_bytes import Surfaces
from hooktrain_sft.data.tokenize import tokens_in_spans

from hooktrain import DataError

CONFIG = SFTDataConfig(sources=("rows.jsonl",))
TEMPLATES = Path(__file__).parent.parent / "templates"


def conversation(turns: int) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": f"{role} number {number} says something"}
        for number in range(turns // 2)
        for role in ("user", "assistant")
    ]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Messages that templates have rendered; both methods still do what they do."""
    found = [0]
    for name in ("render", "trace"):
        real = getattr(CompiledTemplate, name)

        def counted(self: Any, variables: Any, real: Callable[..., Any] = real) -> Any:
            found[0] += len(variables["messages"])
            return real(self, variables)

        monkeypatch.setattr(CompiledTemplate, name, counted)
    return found


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "plain", "forgetful", "generation"])
def test_work_grows_with_the_turns(make_tokenizer: Callable[..., Any], work: list[int], name: str) -> None:
    tokenizer = make_tokenizer(name)
    spent = []
    for turns in (600, 1200):
        work[0] = 0
        made = render_chat({"messages": conversation(turns)}, tokenizer, CONFIG)
        assert len(made.spans) == turns // 2
        spent.append(work[0])
    assert spent[1] <= 2.2 * spent[0], spent


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "plain", "forgetful", "stripping", "default_system"])
def test_the_spans_are_those_that_all_prompts_prove(
    make_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    messages = conversation(60)
    messages.insert(20, {"role": "assistant", "content": "another answer right after one"})
    if name == "mistral":
        del messages[20]
    proven = render_chat({"messages": messages}, make_tokenizer(name), CONFIG)
    monkeypatch.setattr(answer_spans, "ALL", 12)
    sampled = render_chat({"messages": messages}, make_tokenizer(name), CONFIG)
    assert (sampled.text, sampled.spans, sampled.notes) == (proven.text, proven.spans, proven.notes)


def test_a_template_whose_answers_cannot_be_sampled_is_refused_and_not_waited_for(
    make_tokenizer: Callable[..., Any], work: list[int]
) -> None:
    """It writes a number before each answer, so that no answer begins as another does."""
    numbered = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' + (loop.index0 | string) + '\n'"
        " + message['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' + (messages | length | string) + '\n' }}{% endif %}"
    )
    tokenizer = make_tokenizer(numbered)
    assert len(render_chat({"messages": conversation(40)}, tokenizer, CONFIG).spans) == 20
    work[0] = 0
    with pytest.raises(DataError, match=r"3,000 messages.*expected at most 512"):
        render_chat({"messages": conversation(3000)}, tokenizer, CONFIG)
    assert work[0] < 1000 * 3000


def test_split_does_not_make_gigabytes(make_tokenizer: Callable[..., Any]) -> None:
    config = SFTDataConfig(sources=("rows.jsonl",), reasoning_turns="split")
    with pytest.raises(DataError, match="split the conversation"):
        render_chat({"messages": conversation(4000)}, make_tokenizer(), config)


def test_a_missing_part_is_found_by_its_marker_among_many(make_tokenizer: Callable[..., Any]) -> None:
    dropping = make_tokenizer(
        "{% for message in messages %}{% if message['role'] != 'system' %}{{ '<|im_start|>' + message['role'] + '\n'"
        " + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    messages: Sequence[dict[str, Any]] = [{"role": "system", "content": "be kind to everybody"}, *conversation(12)]
    made = render_chat({"messages": messages}, dropping, CONFIG)
    assert any("messages[0] system: it is not rendered" in note for note in made.notes)


def test_cuts_take_what_each_of_them_covers() -> None:
    choice = Choice()
    for start in range(0, 100, 10):
        choice.add(start, start + 8, f"rule {start}")
    choice.cuts = [(62, 75), (5, 12), (3, 6), (31, 34), (33, 36), (90, 200), (50, 50)]
    choice.apply_cuts()
    assert choice.spans == [
        *((0, 3), (12, 18), (20, 28), (30, 31), (36, 38), (40, 48), (50, 58), (60, 62), (75, 78), (80, 88)),
    ]
    assert choice.rules == [f"rule {start // 10 * 10}" for start, _ in choice.spans]


def test_many_spans_mark_the_tokens_that_each_of_them_marks() -> None:
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.integers(1, 6, 2000))
    offsets = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    text = "".join(rng.choice(list("ab \n"), int(ends[-1])))
    edges = np.sort(rng.choice(int(ends[-1]), 400, replace=False)).tolist()
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    one_by_one = np.any([tokens_in_spans(offsets, text, [span]) for span in spans], axis=0)
    assert (tokens_in_spans(offsets, text, spans) == one_by_one).all()


def test_many_spans_of_a_text_that_is_not_ascii(make_tokenizer: Callable[..., Any]) -> None:
    backend = make_tokenizer().backend_tokenizer
    text = "aé€😀 b" * 50
    ids = np.array(backend.encode(text, add_special_tokens=False).ids, np.int32)
    spans = [(start, start + 3) for start in range(0, len(text) - 3, 6)]
    surfaces = Surfaces(backend)
    assert surfaces.write(ids.tolist(), text.encode())
    one_by_one = np.any([surfaces.mask(ids, [text], [text.encode()], [[span]]) for span in spans], axis=0)
    assert (surfaces.mask(ids, [text], [text.encode()], [spans]) == one_by_one).all()
