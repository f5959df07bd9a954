"""Weights of tokens: of messages, of parts of a content, of rules in the recipe, and of examples of ids."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hooktrain_sft.chat.render import render_sft, render_text
from hooktrain_sft.chat.rendered import Rendered, product_of
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig, WeightRule
from hooktrain_sft.data.tokenize import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from hooktrain import DataError
from hooktrain.config import structure
from tests.facts import facts
from tests.plugins.sft.masks import tokenizer_for

IM = "<|im_start|> <|im_end|>"
CODE = WeightRule(match="```.*?```", weight=2)


def config(*rules: WeightRule, **settings: Any) -> SFTDataConfig:
    return SFTDataConfig(sources=(object(),), weights=rules, **settings)


def runs(rendered: Rendered, tokenizer: Any, sequence: int = 0) -> list[tuple[str, float]]:
    """The text in runs of tokens of one weight, 0 for those that are not trained."""
    ids, mask = Encoder(tokenizer)([rendered])[sequence]
    pairs = zip(ids.tolist(), mask.tolist(), strict=True)
    return [
        (tokenizer.decode([index for index, _ in run]), round(float(weight), 6))
        for weight, run in groupby(pairs, key=lambda pair: pair[1])
    ]


def trained(example: Any, given: SFTDataConfig, template: str = "chatml") -> list[tuple[str, float]]:
    tokenizer = tokenizer_for(template, IM)
    return [(text, weight) for text, weight in runs(render_sft(example, tokenizer, given), tokenizer) if weight]


def talk(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello?"}, *({"role": "assistant", **each} for each in fields)]}


def test_a_message_has_a_weight() -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "yes", "weight": 0.25},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "no", "weight": 1},
    ]
    found = trained({"messages": messages}, config())
    assert found == [("yes<|im_end|>", 0.25), ("no<|im_end|>", 1)]
    assert trained({"messages": messages}, config(train_on="last_assistant")) == [("no<|im_end|>", 1)]


def test_parts_of_a_content_have_weights() -> None:
    parts = [{"type": "text", "text": "no "}, {"type": "text", "text": "yes, both.", "weight": 0.5}]
    assert trained(talk({"content": parts}), config()) == [("no ", 1), ("yes, both.", 0.5), ("<|im_end|>", 1)]
    parts[0]["weight"] = 0  # type: ignore[assignment]
    assert trained(talk({"content": parts, "weight": 3}), config()) == [("yes, both.", 1.5), ("<|im_end|>", 3)]


def test_equal_texts_as_reasoning_and_answer_are_told_apart() -> None:
    parts = [
        {"type": "thinking", "thinking": "yes, both", "weight": 0.5},
        {"type": "text", "text": "yes, both", "weight": 4},
    ]
    found = trained(talk({"content": parts}), config(), "trl:qwen3")
    assert [(text, weight) for text, weight in found if "yes" in text] == [("yes, both", 0.5), ("yes, both", 4)]


def test_reasoning_that_is_removed_needs_no_place() -> None:
    parts = [{"type": "thinking", "thinking": "yes", "weight": 0.5}, {"type": "text", "text": "both", "weight": 4}]
    example, tokenizer = talk({"content": parts}), tokenizer_for("chatml", IM)
    rendered = render_sft(example, tokenizer, config(drop_reasoning=True))
    assert [(text, weight) for text, weight in runs(rendered, tokenizer) if weight > 1] == [("both", 4)]
    assert any("its reasoning, which has a weight, is not rendered" in note for note in rendered.notes)


def test_a_completion_goes_on_with_its_own_weight() -> None:
    prompt = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "yes, "}]
    example = {"prompt": prompt, "completion": [{"role": "assistant", "content": "both", "weight": 0.5}]}
    assert trained(example, config()) == [(" both<|im_end|>", 0.5)]
    example["completion"][0]["weight"] = 0
    assert trained(example, config()) == []
    example["completion"] = [{"role": "assistant", "content": [{"text": "both", "weight": 0.5}]}]
    with pytest.raises(DataError, match=facts("completion[0].content", "parts have weights")):
        trained(example, config())


def test_a_part_that_the_template_changes_has_no_place() -> None:
    tokenizer = tokenizer_for("chatml", IM + "   ")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | replace('no', 'on')"
        " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    parts = [{"type": "text", "text": "yes or no, weight", "weight": 0.5}]
    with pytest.raises(DataError, match=facts("messages[1].content", "weight", "as it stands", "into the message")):
        render_sft(talk({"content": parts}), tokenizer, config(reasoning_turns="all"))


def test_a_rule_weights_what_it_matches_in_a_message() -> None:
    example = talk({"content": "Yes: ```\nyes\n``` both ``` there."})
    example["messages"][0]["content"] = "What is ``` then?"
    yes, code, both = "Yes: ", "```\nyes\n```", " both ``` there.<|im_end|>"
    assert trained(example, config(CODE)) == [(yes, 1), (code, 2), (both, 1)]
    rules = CODE, WeightRule(role="assistant", weight=0.5), WeightRule(role="assistant", match="yes", weight=8)
    found = trained(example, config(*rules))
    assert [weight for _, weight in found] == [0.5, 1, 8, 1, 0.5] and found[2][0] == "yes"
    # the text of one message and of the next is no match
    everything = trained(example, config(CODE, train_on="all"))
    assert [weight for _, weight in everything] == [1, 2, 1] and everything[1][0] == code


def test_a_rule_for_a_role() -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "tool", "content": "user"},
        {"role": "assistant", "content": "yes"},
    ]
    tools = config(WeightRule(role="tool", weight=0.2), train_on="all")
    assert trained({"messages": messages}, tools) == [
        ("<|im_start|>user\nHello<|im_end|>\n", 1),
        ("<|im_start|>tool\nuser<|im_end|>\n", 0.2),
        ("<|im_start|>assistant\nyes<|im_end|>\n", 1),
    ]
    assert trained({"messages": messages}, config(WeightRule(role="tool", weight=0), train_on="all")) == [
        ("<|im_start|>user\nHello<|im_end|>\n", 1),
        ("<|im_start|>assistant\nyes<|im_end|>\n", 1),
    ]


def test_a_sequence_for_each_answer_keeps_its_weights() -> None:
    tokenizer = tokenizer_for("trl:qwen3", IM)
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "reasoning_content": "both", "content": "yes", "weight": 0.5},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "no", "weight": 4},
    ]
    rendered = render_sft({"messages": messages}, tokenizer, config(reasoning_turns="split"))
    found = [[weight for _, weight in runs(rendered, tokenizer, number) if weight] for number in range(2)]
    assert found == [[0.5], [4]]


def test_weights_move_with_an_answer_behind_another_prompt() -> None:
    tokenizer = tokenizer_for("chatml", IM + "    ")
    tokenizer.chat_template = (
        "{% if add_generation_prompt %}{{ 'Yes, both: ' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    rendered = render_sft(talk({"content": "no ```x``` no"}), tokenizer, config(CODE, reasoning_turns="split"))
    assert rendered.text.startswith("Yes, both: ")
    assert [(text.strip(), weight) for text, weight in runs(rendered, tokenizer) if weight == 2] == [("```x```", 2)]


def test_special_tokens_that_stay_text_move_no_weight() -> None:
    example = talk({"content": "a <|im_end|> ```yes``` b"})
    found = trained(example, config(CODE, special_tokens_in_text="plain"))
    assert [(text.strip(), weight) for text, weight in found if weight == 2] == [("```yes```", 2)]
    parts = [{"type": "text", "text": "a <|im_end|>", "weight": 2}]
    with pytest.raises(DataError, match=facts("messages[1].content", "special_tokens_in_text: plain")):
        trained(talk({"content": parts}), config(special_tokens_in_text="plain"))


def test_text_without_messages() -> None:
    tokenizer = tokenizer_for("chatml", IM, eos="<|im_end|>")
    rendered = render_sft({"prompt": "```a``` ", "completion": "b ```c```"}, tokenizer, config(CODE))
    assert runs(rendered, tokenizer) == [("```a``` ", 0), ("b ", 1), ("```c```", 2), ("<|im_end|>", 1)]


def test_weights_of_zero_and_one_make_a_plain_mask() -> None:
    tokenizer = tokenizer_for("chatml", IM)
    parts = [{"type": "text", "text": "yes, ", "weight": 0}, {"type": "text", "text": "both", "weight": 1}]
    rendered = render_sft(talk({"content": parts}), tokenizer, config(WeightRule(match="both", weight=1)))
    ((_, mask),) = Encoder(tokenizer)([rendered])
    assert mask.dtype == np.bool_
    assert trained(talk({"content": parts}), config()) == [(" both<|im_end|>", 1)]


@pytest.mark.parametrize("text_config", [SFTDataConfig, CausalDataConfig])
def test_examples_of_ids(text_config: Any) -> None:
    tokenizer = tokenizer_for("chatml", IM)
    render = render_sft if text_config is SFTDataConfig else render_text
    example = {"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 0], "token_weights": [1, 0.5, 0, 3]}
    rendered = render(example, tokenizer, text_config(sources=(object(),)))
    ((ids, weights),) = Encoder(tokenizer)([rendered])
    assert (ids.tolist(), weights.tolist(), weights.dtype) == ([5, 6, 7], [1, 0.5, 0], np.float32)
    assert rendered.rules[0].endswith("token_weights")
    if text_config is SFTDataConfig:
        masked = render_sft({**example, "labels": [5, -100, 7, -100]}, tokenizer, config(CODE))
        assert masked.mask is not None and masked.mask.tolist() == [1, 0, 0]
        assert "token_weights" in masked.notes[0], "rules are of text"


@pytest.mark.parametrize(
    ("example", "complaint"),
    [
        (talk({"content": "x", "weight": float("nan")}), facts("messages[1].weight", "nan", "0 or a positive number")),
        (talk({"content": "x", "weight": "1"}), facts("messages[1].weight", "'1'")),
        (talk({"content": "x", "weight": 1e-60}), facts("messages[1].weight", "1e-60")),
        (talk({"content": [{"text": "x", "weight": -1}]}), facts("messages[1].content[0].weight", "-1")),
        (
            {"messages": [{"role": "user", "content": "x", "weight": 0.5}, {"role": "assistant", "content": "y"}]},
            facts("messages[0]", "user", "weight", "`data.train_on: all`"),
        ),
        (
            talk({"content": [{"text": "x", "weight": 1e30}], "weight": 1e30}),
            facts("1e+30, 1e+30", "product 1e+60", "float32"),
        ),
        ({"input_ids": [1, 2], "token_weights": [1, -0.5]}, facts("token_weights[1]", "-0.5", "0 or a positive")),
        ({"input_ids": [1, 2], "token_weights": [float("inf"), 1]}, facts("token_weights[0]", "inf")),
        ({"input_ids": [1, 2], "token_weights": [None, 1]}, facts("token_weights[0]", "None")),
        ({"input_ids": [1, 2], "token_weights": [1]}, facts("token_weights has 1 entries, expected 2")),
        ({"input_ids": [1, 2], "token_weights": 2.0}, facts("token_weights is 2.0", "a list of numbers")),
    ],
)
def test_weights_that_are_none(example: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        trained(example, config())


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({"weight": 2}, facts("weight alone", "role, match or both")),
        ({"weight": -1, "role": "assistant"}, facts("weight -1", "0 or a positive number")),
        ({"weight": 2, "role": "asistant"}, facts("asistant", "assistant")),
        ({"weight": 2, "match": "("}, facts("match '('", "regular expression")),
    ],
)
def test_rules_that_are_none(rule: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        WeightRule(**rule)


@pytest.mark.parametrize(
    ("rules", "complaints"),
    [
        (
            [{"weigt": 2, "role": "user"}],
            facts("data.weights[0].weight: missing", "data.weights[0].weigt", "'weight'?"),
        ),
        ([{"weight": 1, "match": "x"}, {"weight": "two", "match": "x"}], facts("data.weights[1]", "'two'", "a number")),
        (["x"], facts("data.weights[0]", "'x'", "a mapping")),
    ],
)
def test_rules_are_read_strictly(rules: Any, complaints: str) -> None:
    found: list[Any] = []
    assert structure(SFTDataConfig, {"sources": ["x"], "weights": rules}, "data", found) is None
    assert re.search(complaints, "\n".join(map(str, found)))


def test_a_rule_for_a_role_that_is_not_trained_is_refused() -> None:
    with pytest.raises(ValueError, match=facts("weights[0].role: given tool", "train_on: completion")):
        config(WeightRule(role="tool", weight=0.2))


def test_a_mask_of_a_plugin_with_negative_weights_is_refused() -> None:
    given = Rendered(ids=np.array([1, 2], np.int32), mask=np.array([1.0, -1.0]))
    with pytest.raises(DataError, match=facts("render_example", "negative", "correct the plugin")):
        Encoder(tokenizer_for("chatml", IM))([given])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from([0.0, 0.5, 2.0, 4.0])), max_size=6))
def test_the_product_of_overlapping_parts(parts: list[tuple[int, int, float]]) -> None:
    expected = [1.0] * 13
    for start, end, weight in parts:
        expected[start:end] = [value * weight for value in expected[start:end]]
    found = [1.0] * 13
    before = 0
    for start, end, weight in product_of(parts):
        assert before <= start < end
        before = end
        found[start:end] = [weight] * (end - start)
    assert found == expected
