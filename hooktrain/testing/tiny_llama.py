"""A tiny Llama, a tokenizer with a chat template, and conversations, without a network.

transformers is a dependency of plugins and not of the engine; it is imported when one of these is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain.errors import HooktrainError, did_you_mean

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = [
    "CHAT_TEMPLATE",
    "FORMATS",
    "PRELOAD",
    "make_llama",
    "make_tokenizer",
    "sample_rows",
    "save_llama",
    "write_rows",
]

PRELOAD = tuple("datasets transformers transformers.models.llama.modeling_llama".split())  # noqa: SIM905
"""Modules that take seconds to import, for the server of forked processes."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_QUESTION = "What is the answer?"
_ANSWERS = ("Forty-two it is.", "What?", "The answer is the answer.", "It is forty-two, is it?", "No.", "user it is")
_CORPUS = ("What is the answer? Forty-two it is. user assistant system",) * 3


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as problem:
        raise HooktrainError(
            "hooktrain.testing: tiny language models and tokenizers need transformers, which is not installed; install"
            " hooktrain-hf and hooktrain-sft, or use the trainer type 'tiny', which needs neither"
        ) from problem
    return transformers


def make_tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE of at most 300 tokens; its eos is not the chat's end of turn, as in many chat models."""
    transformers = _transformers()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_CORPUS, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    wrapped.add_special_tokens({"additional_special_tokens": special[1:]})
    wrapped.chat_template = template
    tokenizer: PreTrainedTokenizerFast = wrapped
    return tokenizer


def make_llama(tokenizer: PreTrainedTokenizerFast, tied: bool = True, **config: Any) -> LlamaForCausalLM:
    """Make a Llama of 2 layers and 16 channels with random weights, always the same.

    Args:
        tokenizer: the tokenizer whose vocabulary it has.
        tied: whether the head shares the weights of the embedding.
        config: fields of ``LlamaConfig``.
    """
    import torch

    transformers = _transformers()
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.5,
    }
    torch.manual_seed(0)
    made: LlamaForCausalLM = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**size, "tie_word_embeddings": tied, **config})
    )
    return made


def save_llama(folder: Path | str, tied: bool = True, **config: Any) -> Path:
    """Write a tiny model and its tokenizer to a folder, as transformers loads them; returns the folder."""
    tokenizer = make_tokenizer()
    make_llama(tokenizer, tied, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


FORMATS: Mapping[str, Callable[[str, str], dict[str, Any]]] = {
    "messages": lambda said, answer: {
        "messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    },
    "sharegpt": lambda said, answer: {
        "conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": answer}]
    },
    "prompt_completion": lambda said, answer: {"prompt": said, "completion": answer},
    "alpaca": lambda said, answer: {"instruction": said, "input": "", "output": answer},
    "text": lambda said, answer: {"text": f"{said} {answer}"},
}
"""A question and its answer as an example, by the format's name."""


def sample_rows(format: str = "messages", count: int = 6) -> list[dict[str, Any]]:
    """Make short conversations whose answers are of different lengths.

    Args:
        format: ``messages``, ``sharegpt``, ``prompt_completion``, ``alpaca`` or ``text``.
        count: how many; after six they repeat.

    Raises:
        ValueError: for another format.
    """
    if format not in FORMATS:
        raise ValueError(
            f"sample_rows: given the format '{format}'{did_you_mean(format, FORMATS)}, expected one of"
            f" {', '.join(FORMATS)}"
        )
    return [FORMATS[format](_QUESTION, _ANSWERS[number % len(_ANSWERS)]) for number in range(count)]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]] | str = "messages") -> Path:
    """Write examples, or sample examples of a format, as JSON lines; returns the path."""
    found = sample_rows(rows) if isinstance(rows, str) else rows
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    return path
