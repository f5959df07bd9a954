"""Tokenizers with the chat templates that people use, and masks written by hand to compare with."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hooktrain_sft.chat.render import Rendered, render_sft
from hooktrain_sft.config import SFTDataConfig
from hooktrain_sft.data.tokenize import Encoder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


@cache
def template(name: str) -> str:
    """One of the templates in this folder, or one that TRL ships."""
    if not name.startswith("trl:"):
        return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("the package trl, one of the test dependencies, is not installed")
    return (Path(spec.origin).parent / "chat_templates" / f"{name[4:]}.jinja").read_text(encoding="utf-8")


@cache
def tokenizer_for(name: str, special: str, bos: str = "", eos: str = "") -> Any:
    """A byte-level BPE tokenizer with these special tokens and the template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = ["Hello there! Yes, both. user assistant system model name arguments"] * 8
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special.split(), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(words, trainer)
    tokens = {"bos_token": bos or None, "eos_token": eos or None}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=special.split(), **tokens)
    made.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    made.chat_template = template(name)
    return made


def pieces_of(marked: str) -> list[tuple[str, bool]]:
    """Pieces of a text, and whether each is trained, from a text with what is trained in «»."""
    pieces = [(text, bool(index % 2)) for index, text in enumerate(re.split("[«»]", marked))]
    return [(text, trained) for text, trained in pieces if text]


def check(rendered: Rendered, tokenizer: Any, marked: str) -> None:
    """The text, each character of it, and its tokens are trained as ``marked`` says; every span has a rule."""
    pieces = pieces_of(marked)
    assert rendered.text == "".join(text for text, _ in pieces)
    expected = [trained for text, trained in pieces for _ in text]
    trained = [False] * len(rendered.text)
    for start, end in rendered.spans:
        trained[start:end] = [True] * (end - start)
    assert trained == expected
    assert len(rendered.rules) == len(rendered.spans)
    ((ids, mask),) = Encoder(tokenizer)([rendered])
    runs = [list(run) for _, run in groupby(zip(ids.tolist(), mask.tolist(), strict=True), key=lambda pair: pair[1])]
    decoded = [(tokenizer.decode([index for index, _ in run]), run[0][1]) for run in runs]
    assert decoded == pieces


def render(tokenizer: Any, messages: list[Any], variables: Any = None, **columns: Any) -> Rendered:
    config = SFTDataConfig(sources=(object(),), chat_template_kwargs=variables or {}, **columns.pop("config", {}))
    rendered = render_sft({"messages": messages, **columns}, tokenizer, config)
    tools = columns.get("tools")
    whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **(variables or {}))
    assert rendered.text == whole
    return rendered


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    made = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(contents)]
    return made if system is None else [{"role": "system", "content": system}, *made]
