"""From text and spans to tokens and mask, and examples that are tokenized already."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
from hooktrain_sft.chat.render import Rendered, render_sft, render_text
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig
from hooktrain_sft.data.tokenize import Encoder, tokens_in_spans
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hooktrain import DataError
from tests.facts import facts
from tests.plugins.sft.masks import tokenizer_for, turns

IM = "<|im_start|> <|im_end|> <|endoftext|>"
SPECIAL = ["<s>", "</s>", "<|im_end|>"]
CORPUS = ["the answer is yes\n\n", "no  no\n", "  what? \n \n"] * 8


@cache
def made(kind: str) -> Any:
    """Tokenizers that differ in where they say that a token comes from."""
    backend = Tokenizer(models.BPE(byte_fallback=kind == "sentencepiece", unk_token=None))
    alphabet = []
    if kind == "sentencepiece":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
        special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = SPECIAL
        if kind == "trimmed":
            backend.post_processor = processors.ByteLevel(trim_offsets=True)
    if kind == "normalized":
        backend.normalizer = normalizers.NFC()
    if kind == "begins":
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


KINDS = ["bytes", "trimmed", "sentencepiece", "normalized"]
PIECES = st.sampled_from(
    ["the", " answer", "is ", "\n", "\n\n", " ", "  ", "<|im_end|>", "é", "e\u0301", "🙂", "yes", "\t", "?"]
)


PARTS = st.lists(st.tuples(st.lists(PIECES, max_size=5).map("".join), st.booleans()), min_size=1, max_size=6)


def example_of(parts: list[tuple[str, bool]]) -> Rendered:
    text, spans = "", []
    for part, trained in parts:
        if trained:
            spans.append((len(text), len(text) + len(part)))
        text += part
    return Rendered(text, tuple(spans))


@given(parts=PARTS, kind=st.sampled_from(KINDS))
@settings(max_examples=300, deadline=None)
def test_the_fast_way_marks_what_the_definition_marks(parts: list[tuple[str, bool]], kind: str) -> None:
    example = example_of(parts)
    text, spans = example.text, list(example.spans)
    tokenizer = made(kind)
    ((ids, mask),) = Encoder(tokenizer)([example])
    assert ids.tolist() == tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    # offsets without white space do not tell whether a token of white space lies across the edge of a span
    expected = defined(made("bytes" if kind == "trimmed" else kind), example)
    if spans == [(0, len(text))]:
        expected[:] = True  # all of it is trained wherever the tokenizer says that a token is
    assert mask.tolist() == expected.tolist()


def defined(tokenizer: Any, example: Rendered) -> Any:
    """The mask by definition, from what the tokenizer says of each token."""
    encoding = tokenizer.backend_tokenizer.encode(example.text, add_special_tokens=False)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return tokens_in_spans(offsets, example.text, [span for span in example.spans if span[0] < span[1]])


@given(examples=st.lists(PARTS.map(example_of), min_size=1, max_size=5), kind=st.sampled_from(KINDS))
@settings(max_examples=100, deadline=None)
def test_examples_do_not_depend_on_others_in_the_batch(examples: list[Rendered], kind: str) -> None:
    together = Encoder(made(kind))(examples)
    for example, (ids, mask) in zip(examples, together, strict=True):
        ((alone, mask_alone),) = Encoder(made(kind))([example])
        assert ids.tolist() == alone.tolist() and mask.tolist() == mask_alone.tolist()


def test_texts_that_are_normalized_are_marked_all_the_same() -> None:
    """The tokens do not write the text then, so that their places have to be asked for."""
    tokenizer = made("normalized")
    examples = [Rendered("the e\u0301 answer", ((7, 13),)), Rendered("the \u00e9 answer", ((6, 12),))]
    first, second = Encoder(tokenizer)(examples)
    assert first[0].tolist() == second[0].tolist() and first[1].tolist() == second[1].tolist()
    assert tokenizer.decode(first[0][first[1]]) == " answer"
    encoder = Encoder(tokenizer)
    for _ in range(2):  # once a batch is mostly such texts, the places of all are asked for
        assert all(mask.any() for _, mask in encoder(examples[:1] * 3))


def test_examples_in_flat_arrays() -> None:
    tokenizer, examples = (
        made("bytes"),
        [Rendered("the answer", ((4, 10),)), Rendered(), Rendered("no", (), (0,), (1,))],
    )
    examples.append(Rendered(ids=np.array([5, 6, 7], np.int32), mask=np.array([False, True, False])))
    examples.append(Rendered(ids=np.array([8], np.int32)))
    ids, mask, lengths = Encoder(tokenizer).flat(examples)
    assert (ids.dtype, mask.dtype, lengths.dtype) == (np.int32, np.bool_, np.int64)
    assert lengths.sum() == len(ids) == len(mask) and lengths[1] == 0
    listed = Encoder(tokenizer)(examples)
    assert np.concatenate([part for part, _ in listed]).tolist() == ids.tolist()
    assert np.concatenate([part for _, part in listed]).tolist() == mask.tolist()
    assert [len(part) for part, _ in listed] == lengths.tolist()
    assert listed[2][0][0] == 0 and listed[2][0][-1] == 1 and listed[2][1].tolist()[-1] is True
    assert listed[2][1].tolist()[:-1] == [False] * (lengths[2] - 1)
    assert (listed[3][0].tolist(), listed[3][1].tolist()) == ([5, 6, 7], [False, True, False])
    assert listed[4][1].tolist() == [True]
    assert Encoder(tokenizer)([]) == [] and Encoder(tokenizer).flat([])[2].shape == (0,)


def test_truncation_and_padding_of_the_tokenizer_are_not_obeyed() -> None:
    tokenizer = made("bytes")
    encoder = Encoder(tokenizer)
    expected = encoder([Rendered("the answer is yes")])[0][0].tolist()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=20)
    assert encoder([Rendered("the answer is yes")])[0][0].tolist() == expected


class Shouting(PreTrainedTokenizerFast):
    """A tokenizer class that does something to texts, as some models' do."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        loud = text.replace("yes", "no") if isinstance(text, str) else [one.replace("yes", "no") for one in text]
        return super()._encode_plus(loud, *args, **kwargs)


def test_a_tokenizer_class_with_its_own_rules_is_used() -> None:
    plain = made("bytes")
    tokenizer = Shouting(tokenizer_object=plain.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    texts = ["yes yes", "yes"]
    pairs = Encoder(tokenizer)([Rendered(text, ((0, 2),)) for text in texts])
    assert [plain.decode(ids) for ids, _ in pairs] == ["no no", "no"]
    assert pairs[1][1].all()


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match=facts("tokenizer", "Slow", "tokenizer.json")):
        Encoder(Slow())


def test_one_thread_encodes_while_another_renders() -> None:
    tokenizer = tokenizer_for("trl:qwen2_5", IM, eos="<|im_end|>")
    config, encoder = SFTDataConfig(sources=(1,)), Encoder(tokenizer)
    examples = [{"messages": turns(f"Hello {i}", f"yes {i}", "What?", "no " * i)} for i in range(200)]
    expected = [render_sft(example, tokenizer, config) for example in examples]
    texts, problems = [(r.text, r.spans) for r in expected], []

    def encode() -> None:
        try:
            for _ in range(5):
                results.append(encoder.flat(expected)[0].tolist())
        except BaseException as problem:
            problems.append(problem)

    results: list[Any] = []
    threads = [threading.Thread(target=encode) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        again = [render_sft(example, tokenizer, config) for example in examples]
        assert [(r.text, r.spans) for r in again] == texts
    for thread in threads:
        thread.join()
    assert not problems and all(result == results[0] for result in results)


# ------------------------------------------------------------------------------------------ text and ids


def tokens(example: Any, tokenizer: Any, **options: Any) -> tuple[list[int], list[bool], Rendered]:
    rendered = render_sft(example, tokenizer, SFTDataConfig(sources=(1,), **options))
    ((ids, mask),) = Encoder(tokenizer)([rendered])
    return ids.tolist(), mask.tolist(), rendered


@pytest.mark.parametrize("kind", ["bytes", "begins"])
def test_prompt_and_completion_as_text(kind: str) -> None:
    tokenizer = made(kind)
    ids, mask, rendered = tokens({"prompt": "the answer is", "completion": " yes"}, tokenizer)
    begin = "<s>" if kind == "begins" else ""
    assert tokenizer.decode(ids) == f"{begin}the answer is yes</s>"
    assert tokenizer.decode([i for i, trained in zip(ids, mask, strict=True) if trained]) == " yes</s>"
    assert rendered.rules == ("completion",)
    ids, mask, _ = tokens({"prompt": "<s>the", "completion": " answer</s>"}, tokenizer)
    assert tokenizer.decode(ids) == "<s>the answer</s>"
    everything = tokens({"prompt": "the", "completion": " answer"}, tokenizer, train_on="all")
    assert everything[1][-2:] == [True, True] and everything[1].count(False) == (kind == "begins")
    empty = tokens({"prompt": "the", "completion": " "}, tokenizer)
    assert not any(empty[1]) and empty[2].notes == ("completion: empty, not trained",)


def test_prompt_and_completion_as_messages() -> None:
    tokenizer = tokenizer_for("chatml", IM, eos="<|im_end|>")
    talk = turns("Hello", "yes", "What?", "no", "Why?", "so")
    example = {"prompt": talk[:3], "completion": talk[3:]}
    prompt = (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
    )
    spans = {
        "assistant": ["no<|im_end|>", "so<|im_end|>"],
        "last_assistant": ["so<|im_end|>"],
        "completion": [
            "no<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>",
        ],
    }
    for train_on, expected in spans.items():
        rendered = tokens(example, tokenizer, train_on=train_on)[2]
        assert rendered.text.startswith(prompt)
        assert [rendered.text[start:end] for start, end in rendered.spans] == expected
    with pytest.raises(DataError, match=facts("prompt", "'x' (str)", "completion")):
        tokens({"prompt": "x", "completion": talk[3:]}, tokenizer)
    with pytest.raises(DataError, match=facts("completion[0]", "user", "content")):
        tokens({"prompt": talk[:3], "completion": [{"role": "user"}]}, tokenizer)


def test_plain_text() -> None:
    tokenizer = made("begins")
    ids, mask, rendered = tokens({"text": "the answer"}, tokenizer)
    assert tokenizer.decode(ids) == "<s>the answer</s>" and mask == [False, *[True] * (len(ids) - 1)]
    assert rendered.rules == ("text",)
    with pytest.raises(DataError, match=facts("text", "None (NoneType)")):
        tokens({"text": None}, tokenizer)


@pytest.mark.parametrize(
    ("columns", "mask", "rule"),
    [
        ({}, [1, 1, 1, 1], "all"),
        ({"labels": None}, [1, 1, 1, 1], "all"),
        ({"labels": [-100, 6, -100, 8]}, [0, 1, 0, 1], "labels"),
        ({"assistant_masks": [0, 0, 1, 1]}, [0, 0, 1, 1], "assistant_masks"),
        (
            {"completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]},
            [0, 1, 0, 1],
            "assistant_masks and completion_mask",
        ),
        ({"completion_mask": [False, True, True, True]}, [0, 1, 1, 1], "completion_mask"),
    ],
)
def test_examples_of_ids(columns: Any, mask: list[int], rule: str) -> None:
    example = {"input_ids": [5, 6, 7, 8], **columns}
    ids, trained, rendered = tokens(example, made("bytes"))
    assert (ids, trained, rendered.rules) == ([5, 6, 7, 8], [bool(one) for one in mask], (rule,))
    assert all(tokens(example, made("bytes"), train_on="all")[1])


def test_padding_of_examples_of_ids_is_removed() -> None:
    example = {
        "input_ids": [0, 0, 6, 0, 8, 0],
        "labels": [-100, -100, 6, -100, 8, -100],
        "attention_mask": [0, 0, 1, 1, 1, 0],
    }
    assert tokens(example, made("bytes"))[:2] == ([6, 0, 8], [True, False, True])
    assert tokens({"input_ids": [1, 2], "attention_mask": [0, 0]}, made("bytes"))[0] == []


@pytest.mark.parametrize(
    ("example", "complaint"),
    [
        ({"input_ids": [5, 10**6]}, facts("input_ids[1]", "1000000", "0 to")),
        ({"input_ids": [-1]}, facts("input_ids[0]", "-1", "0 to")),
        ({"input_ids": "5 6"}, facts("input_ids", "'5 6' (str)", "list")),
        ({"input_ids": [[5], [6]]}, facts("input_ids", "[[5], [6]]")),
        ({"input_ids": [[5], [6, 7]]}, facts("input_ids", "[[5], [6, 7]]")),
        ({"input_ids": [5.5]}, facts("input_ids", "[5.5]")),
        ({"input_ids": [5, 6], "labels": [5]}, facts("labels", "1", "2", "input_ids")),
        ({"input_ids": [5, 6], "labels": [6, -100]}, facts("labels[0]", "6", "-100", "5")),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, facts("attention_mask", "gaps", "input_ids")),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 1]}, facts("attention_mask", "2 entries", "3", "input_ids")),
    ],
)
def test_examples_of_ids_that_do_not_fit(example: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        tokens(example, made("bytes"))


def test_causal_examples_of_ids() -> None:
    tokenizer, config = made("bytes"), CausalDataConfig(sources=(1,))
    rendered = render_text({"input_ids": [5, 6], "labels": [-100, 6]}, tokenizer, config)
    assert Encoder(tokenizer)([rendered])[0][1].tolist() == [True, True]
    assert render_text({"input_ids": [5, 6], "text": "the"}, tokenizer, config).text == "the"
