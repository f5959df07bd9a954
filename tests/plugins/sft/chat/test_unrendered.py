"""What an example says is rendered, or the report says that it is not; each kind with a template of a few lines."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hooktrain_sft.chat.render import render_sft
from hooktrain_sft.chat.rendered import Rendered
from hooktrain_sft.config import SFTDataConfig
from hooktrain_sft.data.tokenize import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from hooktrain import DataError
from tests.facts import facts
from tests.plugins.sft.masks import check, tokenizer_for, turns

IM = "<|im_start|> <|im_end|>"
HEAD = "<|im_start|>{{ m.role }}\n"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Rome"}}}
SAY_CALLS = "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.city }}]{% endfor %}"
LAST_ONLY = (
    "{% set at = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set at.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}" + HEAD + "{% if m.reasoning_content and (keep or loop.index0 > "
    "at.last) %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
)


def loop(body: str) -> str:
    return "{% for m in messages %}" + HEAD + body + "<|im_end|>\n{% endfor %}" + ASK


def tokenizer(template: str, special: str = IM) -> Any:
    made = tokenizer_for("chatml", special + " " * (hash(template) % 1000 + 1))
    made.chat_template = template
    return made


def render(template: str, messages: list[Any], **options: Any) -> Rendered:
    columns = {name: options.pop(name) for name in ("tools",) if name in options}
    config = SFTDataConfig(sources=(object(),), **options)
    return render_sft({"messages": messages, **columns}, tokenizer(template), config)


def thought(content: str, reasoning: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning_content": reasoning}


def asked(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def marked(rendered: Rendered) -> str:
    text = rendered.text
    for start, end in reversed(rendered.spans):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    return text


TALK = [asked("one?"), thought("1", "uno"), asked("two?"), thought("2", "due")]


# ------------------------------------------------------------------------------------------------------ reasoning


def test_an_earlier_answer_whose_reasoning_is_stripped_is_not_trained() -> None:
    rendered = render(LAST_ONLY, TALK)
    assert marked(rendered) == (
        "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\ntwo?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>due</think>2<|im_end|>»\n"
    )
    (note,) = rendered.notes
    # the variable that would render it is found by trying
    assert re.match(
        facts("messages[1] assistant: ", "reasoning", "`data.reasoning_turns: split`", "{keep: true}"), note
    )


def test_following_the_remedies_trains_it() -> None:
    split = render(LAST_ONLY, TALK, reasoning_turns="split")
    assert split.notes == ()
    assert list(map(marked, split.sequences)) == [
        "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n«<think>uno</think>1<|im_end|>»\n",
        "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\ntwo?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>due</think>2<|im_end|>»\n",
    ]
    kept = render(LAST_ONLY, TALK, chat_template_kwargs={"keep": True})
    assert kept.notes == () and "«<think>uno</think>1<|im_end|>»" in marked(kept)


def test_all_trains_it_without_and_says_so() -> None:
    rendered = render(LAST_ONLY, TALK, reasoning_turns="all")
    assert "«1<|im_end|>»" in marked(rendered)
    (note,) = rendered.notes
    assert re.match(facts("messages[1] assistant: ", "reasoning", "trained without"), note)
    removed = render(LAST_ONLY, TALK, drop_reasoning=True).notes
    assert [note.partition(": ")[0] for note in removed] == ["messages[1] assistant", "messages[3] assistant"]
    assert {note.partition(": ")[2] for note in removed} == {"its reasoning is removed (data.drop_reasoning)"}


def test_the_choice_of_answers_comes_first() -> None:
    last = render(LAST_ONLY, TALK, train_on="last_assistant")
    assert "«<think>due</think>2<|im_end|>»" in marked(last)
    assert [note.split(": ")[0] for note in last.notes] == ["messages[1] assistant"]
    (only,) = {marked(render(LAST_ONLY, TALK, train_on=on, reasoning_turns="split")) for on in ("last_assistant",)}
    assert only == marked(last)
    excluded = [TALK[0], {**TALK[1], "train": False}, *TALK[2:]]
    assert marked(render(LAST_ONLY, excluded, reasoning_turns="split")) == marked(last)


@pytest.mark.parametrize("options", [{"reasoning_turns": "last"}, {"reasoning_turns": "split"}])
def test_contradictions_of_the_recipe(options: Any) -> None:
    with pytest.raises(ValueError, match=facts("reasoning_turns", "drop_reasoning")):
        SFTDataConfig(sources=(1,), drop_reasoning=True, **options)
    with pytest.raises(ValueError, match=facts("reasoning_turns: split", "train_on")):
        SFTDataConfig(sources=(1,), reasoning_turns="split", train_on="all")


STRIPS = loop("{{ m.content.split('</think>')[-1].strip() if m.role == 'assistant' else m.content }}")


@pytest.mark.parametrize("content", ["<think>\nuno\n</think>\n\n1", "uno</think>1"])
def test_reasoning_that_is_cut_out_of_every_answer_is_refused(content: str) -> None:
    messages = [asked("one?"), {"role": "assistant", "content": content}]
    with pytest.raises(DataError, match=facts("messages[1] ", "reasoning", "`data.drop_reasoning: true`")):
        render(STRIPS, messages)
    assert "«1<|im_end|>»" in marked(render(STRIPS, messages, drop_reasoning=True))


def test_a_template_variable_that_renders_reasoning_is_named_and_renders_it() -> None:
    template = loop("{% if thinking %}{{ m.reasoning_content }}|{% endif %}{{ m.content }}")
    with pytest.raises(DataError, match=facts("`data.chat_template_kwargs: {thinking: true}`")):
        render(template, TALK[:2])
    assert "«uno|1<|im_end|>»" in marked(render(template, TALK[:2], chat_template_kwargs={"thinking": True}))


def test_reasoning_that_only_stands_in_the_content() -> None:
    """The same words do not prove that both parts are rendered."""
    with pytest.raises(DataError, match=facts("messages[1] ", "reasoning")):
        render(loop("{{ m.content }}"), [asked("one?"), thought("I think that it is 1.", "I think that it is 1.")])


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "thinking", "thinking": "uno"}, {"type": "text", "text": "1"}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "uno"}]}, {"type": "output_text", "text": "1"}],
        [{"type": "reasoning", "text": "uno"}, "1"],
    ],
)
def test_reasoning_in_parts(content: Any) -> None:
    messages = [asked("one?"), {"role": "assistant", "content": content}]
    assert "«<think>uno</think>1<|im_end|>»" in marked(render(LAST_ONLY, messages))
    # Mistral's templates take the parts themselves
    parts = loop(
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{{ '[' + p.thinking + ']' if p.type == 'thinking' else p.text }}{% endfor %}{% endif %}"
    )
    assert "«[uno]1<|im_end|>»" in marked(render(parts, messages))
    with pytest.raises(DataError, match=facts("messages[1] ", "reasoning")):
        render(loop("{{ m.content }}"), messages)  # and not as Python writes a list
    with pytest.raises(DataError, match=facts("messages[1].content[1] ", "after text")):
        render(
            LAST_ONLY, [asked("one?"), {"role": "assistant", "content": ["1", {"type": "thinking", "thinking": "x"}]}]
        )


# ------------------------------------------------------------------------------------------------ content and calls


def with_call(content: str | None = None, calls: int = 1) -> list[Any]:
    made = [
        {**CALL, "function": {**CALL["function"], "arguments": {"city": city}}} for city in ("Rome", "Oslo")[:calls]
    ]  # type: ignore[dict-item]
    results = [{"role": "tool", "content": "mild"}] * calls
    return [asked("Weather?"), {"role": "assistant", "content": content, "tool_calls": made}, *results]


def test_content_beside_a_call_that_is_not_rendered_is_counted() -> None:
    template = loop("{% if m.tool_calls %}" + SAY_CALLS + "{% else %}{{ m.content }}{% endif %}")
    rendered = render(template, with_call("I look."))
    assert "«[look Rome]<|im_end|>»" in marked(rendered)
    (note,) = rendered.notes
    assert re.match(facts("messages[1] assistant: ", "content", "tokenizer.chat_template"), note)
    assert render(template, with_call("")).notes == ()


def test_a_call_that_is_not_rendered_is_refused() -> None:
    first = loop("{{ m.content or '' }}" + SAY_CALLS.replace("or []", "[:1]"))
    with pytest.raises(DataError, match=facts("messages[1].tool_calls[1]:", "tokenizer.chat_template")):
        render(first.replace("m.tool_calls [:1]", "(m.tool_calls or [])[:1]"), with_call(calls=2))
    with pytest.raises(DataError, match=facts("messages[1].tool_calls[0].function.arguments.city:")):
        render(loop("{{ m.content or '' }}" + SAY_CALLS.replace(" {{ c.function.arguments.city }}", "")), with_call())
    both = render(loop("{{ m.content or '' }}" + SAY_CALLS), with_call("I look.", 2))
    assert "«I look.[look Rome][look Oslo]<|im_end|>»" in marked(both) and both.notes == ()


def test_openai_s_older_form_of_a_call() -> None:
    call = {"name": "look", "arguments": '{"city": "Rome"}'}
    messages = [
        asked("Weather?"),
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "look", "content": "mild"},
    ]
    knows_tools = loop("{{ m.content or '' if m.role != 'function' }}" + SAY_CALLS)
    rendered = render(knows_tools, messages)
    assert marked(rendered) == (
        "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n«[look Rome]<|im_end|>»\n"
        "<|im_start|>tool\nmild<|im_end|>\n"
    )
    assert rendered.notes == ()
    with pytest.raises(DataError, match=facts("messages[1].tool_calls[0]:")):
        render(loop("{{ m.content or '' }}"), messages)
    with pytest.raises(DataError, match=facts("messages[0] ", "tool_calls", "function_call")):
        render(knows_tools, [{"role": "assistant", "tool_calls": [CALL], "function_call": call}])


@pytest.mark.parametrize(("content", "text"), [({"temp": 7}, '{"temp": 7}'), ([1, "a"], '[1, "a"]'), (7, "7")])
def test_results_of_calls_may_be_any_value(content: Any, text: str) -> None:
    messages = [*with_call(), asked("So?")]
    messages[2] = {"role": "tool", "content": content}
    assert f"<|im_start|>tool\n{text}<|im_end|>" in render(loop("{{ m.content or '' }}" + SAY_CALLS), messages).text


# ---------------------------------------------------------------------------------------- messages that are no answers


def test_a_message_that_is_rendered_neither_in_training_nor_at_inference_is_counted() -> None:
    template = loop("{{ m.content }}").replace("in messages", "in messages if m.role != 'system'")
    messages = [{"role": "system", "content": "Be brief."}, *turns("Hello", "yes")]
    rendered = render(template, messages)
    (note,) = rendered.notes
    assert re.match(facts("messages[0] system: ", "not rendered", "tokenizer.chat_template"), note)
    assert render(template.replace("m.role != 'system'", "true"), messages).notes == ()


def test_a_message_that_only_inference_shows_is_refused_and_split_trains_after_it() -> None:
    """Mistral Nemo writes the system message into the last question, if nothing follows it."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.last and messages[0].role == 'system' %}"
        "{{ messages[0].content }}\n{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
        "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    messages = [{"role": "system", "content": "Be brief."}, *turns("Hello", "yes", "What?", "no")]
    with pytest.raises(
        DataError, match=facts("messages[0] (role system)", "messages[2]", "`data.reasoning_turns: split`")
    ):
        render(template, messages)
    rendered = render(template, messages, reasoning_turns="split")
    assert list(map(marked, rendered.sequences)) == [
        "[INST] Be brief.\nHello[/INST]«yes<|im_end|>»",
        "[INST] Hello[/INST]yes<|im_end|>[INST] Be brief.\nWhat?[/INST]«no<|im_end|>»",
    ]
    assert rendered.notes == ()


def test_a_developer_message_is_a_system_message_where_the_template_knows_only_that() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *turns("Hello", "yes")]
    only_system = loop("{{ m.content }}").replace("in messages", "in messages if m.role != 'developer'")
    assert render(only_system, messages).text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert render(loop("{{ m.content }}"), messages).text.startswith("<|im_start|>developer\nBe brief.<|im_end|>")


def test_a_short_content_is_not_found_in_the_header() -> None:
    template = loop("{{ m.content if m.role == 'assistant' }}")
    rendered = render(template, turns("user", "assistant"))
    assert [note.split(": ")[0] for note in rendered.notes] == ["messages[0] user"]
    assert render(loop("{{ m.content }}"), turns("user", "assistant")).notes == ()


LINES = st.text(st.sampled_from("ab <>\n&\"'{}é🙂"), min_size=1, max_size=12).filter(str.strip)


@given(
    st.lists(LINES, min_size=2, max_size=5),
    st.sampled_from(["{{ m.content }}", "{{ m.content | trim }}", "{{ m.content | tojson }}"]),
)
@settings(max_examples=60, deadline=None)
def test_any_content_that_is_rendered_is_not_counted(contents: list[str], body: str) -> None:
    assert render(loop(body), turns(*contents)).notes == ()


@given(st.lists(LINES, min_size=2, max_size=5), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_any_question_that_is_dropped_is_counted(contents: list[str], dropped: int) -> None:
    dropped = min(dropped, len(contents) - 1) // 2 * 2
    template = loop("{{ m.content if loop.index0 != " + str(dropped) + " }}")
    rendered = render(template, turns(*contents))
    assert [note.split(": ")[0] for note in rendered.notes] == [f"messages[{dropped}] user"]


# --------------------------------------------------------------------------------------------------- headers and stops


def test_a_header_that_the_template_always_appends_is_not_trained() -> None:
    template = loop("{{ m.content }}").replace(ASK, "{{ '<|im_start|>assistant\n' }}")
    assert marked(render(template, turns("Hello", "yes", "What?", "no"))) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«yes<|im_end|>»\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n«no<|im_end|>»\n<|im_start|>assistant\n"
    )


def test_a_header_that_the_template_never_asks_with_is_not_trained() -> None:
    template = loop("{{ m.content }}").replace(ASK, "")
    assert "<|im_start|>assistant\n«yes<|im_end|>»\n" in marked(render(template, turns("Hello", "yes")))
    # a turn without a header is trained from its beginning on
    bare = "{% for m in messages %}{{ '[' + m.content + ']' if m.role == 'user' else m.content + '<|im_end|>' }}{% endfor %}"
    assert marked(render(bare, turns("Hello", "yes", "What?", "no"))) == "[Hello]«yes<|im_end|>»[What?]«no<|im_end|>»"


def test_an_answer_after_an_answer() -> None:
    messages = [*turns("Hello", "yes"), {"role": "assistant", "content": "and no"}]
    assert marked(render(loop("{{ m.content }}"), messages)).endswith(
        "<|im_start|>assistant\n«yes<|im_end|>»\n<|im_start|>assistant\n«and no<|im_end|>»\n"
    )


NO_END = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}" + ASK


@pytest.mark.parametrize(("stop", "notes"), [("auto", 2), ("next_header", 0)])
def test_where_turns_have_no_end_the_next_header_s_token_is_trained(stop: str, notes: int) -> None:
    rendered = render(NO_END, turns("Hello", "yes", "What?", "no"), train_stop=stop)
    check(
        rendered,
        tokenizer(NO_END),
        "<|im_start|>user\nHello<|im_start|>assistant\n«yes<|im_start|>»user\nWhat?<|im_start|>assistant\n«no<|im_start|>»",
    )
    assert len(rendered.notes) == notes and all("<|im_start|>" in note for note in rendered.notes)
    none = render(NO_END, turns("Hello", "yes"), train_stop="none")
    assert marked(none) == "<|im_start|>user\nHello<|im_start|>assistant\n«yes»"
    assert re.match(facts("messages[1] assistant: ", "no end-of-turn token"), none.notes[0])


def test_a_token_that_is_not_special_ends_turns_where_the_recipe_says_so() -> None:
    template = NO_END.replace("{{ m.content }}", "{{ m.content }}~\n")
    talk = turns("Hello", "yes", "What?", "no")
    without = "<|im_start|>user\nHello~\n<|im_start|>assistant\n«yes~\n<|im_start|>»user\nWhat?~\n"
    assert marked(render(template, talk)).startswith(without)
    rendered = render(template, talk, eot_tokens=("~",))
    ends = "<|im_start|>user\nHello~\n<|im_start|>assistant\n«yes~»\n<|im_start|>user\nWhat?~\n<|im_start|>assistant\n«no~»\n"
    check(rendered, tokenizer(template), ends)
    assert not rendered.notes
    with pytest.raises(DataError, match=facts("data.eot_tokens", "'~~no', which", "add_tokens")):
        render(template, talk, eot_tokens=("~~no",))


def test_a_header_that_is_always_appended_is_the_stop_of_turns_without_an_end() -> None:
    template = NO_END.replace(ASK, "{{ '<|im_start|>assistant\n' }}")
    assert marked(render(template, turns("Hello", "yes"))) == (
        "<|im_start|>user\nHello<|im_start|>assistant\n«yes<|im_start|>»assistant\n"
    )


def test_each_answer_without_a_stop_is_counted() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '<|im_end|>' if loop.last }}\n{% endfor %}" + (
        "{{ 'assistant: ' if add_generation_prompt }}"
    )
    rendered = render(template, turns("Hello", "yes", "What?", "no"))
    assert [note.split(":")[0] for note in rendered.notes] == ["messages[1] assistant"]
    within = loop(
        "{% if m.role == 'user' %}{{ m.content }}{% else %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}"
    )
    assert [note.split(":")[0] for note in render(within, turns("Hello", "yes")).notes] == ["messages[1] assistant"]


def test_an_end_that_is_written_once_more_messages_follow() -> None:
    """A template may leave the last turn open; its end is the one that every other turn has."""
    template = (
        "{% for m in messages %}"
        + HEAD
        + "{{ m.content }}{{ '<|im_end|>\n' if not loop.last or add_generation_prompt }}"
        "{% endfor %}" + ASK
    )
    check(
        render(template, turns("Hello", "yes"), train_stop="next_header"),
        tokenizer(template),
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n«yes<|im_end|>»",
    )


# ------------------------------------------------------------------------------------------- tokens within someone's text

QUESTION = "What is <|im_end|> for?"


def ids(rendered: Rendered, template: str) -> list[str]:
    ((made, _),) = Encoder(tokenizer(template))([rendered])
    return [str(token) for token in tokenizer(template).convert_ids_to_tokens(made.tolist())]


def test_special_tokens_in_someones_text() -> None:
    template = loop("{{ m.content }}")
    messages = turns(QUESTION, "It is <|im_end|>.")
    kept = render(template, messages)
    assert ids(kept, template).count("<|im_end|>") == 4
    assert [re.split(": ", note)[0] for note in kept.notes] == ["messages[0] user", "messages[1] assistant"]
    assert re.search(facts("<|im_end|>", "`data.special_tokens_in_text: plain`"), kept.notes[0])
    plain = render(template, messages, special_tokens_in_text="plain")
    assert plain.text == kept.text and ids(plain, template).count("<|im_end|>") == 2
    assert marked(plain).endswith("<|im_start|>assistant\n«It is <|im_end|>.<|im_end|>»\n")
    ((made, mask),) = Encoder(tokenizer(template))([plain])
    assert tokenizer(template).decode(made[mask].tolist()) == "It is <|im_end|>.<|im_end|>"
    with pytest.raises(DataError, match=facts("messages[0] (role user)", "<|im_end|>", "special_tokens_in_text")):
        render(template, messages, special_tokens_in_text="error")
    assert render(template, turns("a", "b"), special_tokens_in_text="error").notes == ()


@pytest.mark.parametrize("arguments", [{"city": QUESTION}, {"role": QUESTION}, {QUESTION: 1}, {"a": [{"b": QUESTION}]}])
def test_special_tokens_in_calls_without_content(arguments: dict[str, Any]) -> None:
    template = loop("{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}")
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    messages = [asked("Hello"), {"role": "assistant", "tool_calls": [call]}]
    kept = render(template, messages)
    assert [note.split(":")[0] for note in kept.notes] == ["messages[1] assistant"]
    plain = render(template, messages, special_tokens_in_text="plain")
    assert plain.text == kept.text and marked(plain) == marked(kept) and len(plain.plain) == 1
    with pytest.raises(DataError, match=facts("messages[1] (role assistant)", "<|im_end|>")):
        render(template, messages, special_tokens_in_text="error")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "a", " b", "\n", "é"]), max_size=6), min_size=2)
)
def test_plain_text_is_the_text_itself(contents: list[list[str]]) -> None:
    template = loop("{{ m.content }}")
    messages = turns(*("x" + "".join(pieces) for pieces in contents[: len(contents) // 2 * 2]))
    kept, plain = render(template, messages), render(template, messages, special_tokens_in_text="plain")
    assert (plain.text, plain.spans, plain.rules) == (kept.text, kept.spans, kept.rules)
    found = [plain.text[start:end] for start, end in plain.plain]
    assert found == re.findall(r"<\|im_end\|>|<\|im_start\|>", "".join(m["content"] for m in messages))
    assert ids(plain, template).count("<|im_start|>") == len(messages)


def test_text_that_cannot_be_told_from_places_of_tokens() -> None:
    messages = turns("\ue0007\ue001", QUESTION)
    with pytest.raises(DataError, match=facts("messages[0]", "U+E000", "remove")):
        render(loop("{{ m.content }}"), messages, special_tokens_in_text="plain")
    assert "\ue0007\ue001" in render(loop("{{ m.content }}"), turns("\ue0007\ue001", "yes")).text
    escaping = loop("{{ m.content | tojson(ensure_ascii=true) }}")
    with pytest.raises(DataError, match=facts("special_tokens_in_text: plain", "keep or error")):
        render(escaping, turns(QUESTION, "yes"), special_tokens_in_text="plain")


def test_plain_and_other_examples_in_one_batch() -> None:
    template = loop("{{ m.content }}")
    one = render(template, turns(QUESTION, "yes"), special_tokens_in_text="plain")
    other = render(template, turns("Hello", "yes"))
    encoder = Encoder(tokenizer(template))
    together = encoder([one, other])
    for example, (made, mask) in zip((one, other), together, strict=True):
        ((alone, alone_mask),) = encoder([example])
        assert made.tolist() == alone.tolist() and mask.tolist() == alone_mask.tolist()


# ----------------------------------------------------------------------------------------------------------- prefills


def test_an_answer_that_the_prompt_begins_is_continued() -> None:
    example = {
        "prompt": [asked("two and two?"), {"role": "assistant", "content": "It is"}],
        "completion": [{"role": "assistant", "content": " 4."}],
    }
    template = loop("{{ m.content }}")
    rendered = render_sft(example, tokenizer(template), SFTDataConfig(sources=(1,)))
    check(
        rendered,
        tokenizer(template),
        "<|im_start|>user\ntwo and two?<|im_end|>\n<|im_start|>assistant\nIt is« 4.<|im_end|>»\n",
    )
