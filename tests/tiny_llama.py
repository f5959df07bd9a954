"""A tiny Llama with a tiny chat tokenizer, made on the spot, so that no test needs a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 300 tokens; its eos is not the chat's end of turn, as in many instruct models."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.train_from_iterator(
        ["What is the answer? Forty-two it is. user assistant system"] * 3,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    wrapped.add_special_tokens({"additional_special_tokens": special[1:]})
    wrapped.chat_template = TEMPLATE
    return wrapped


def tiny_llama(tokenizer: PreTrainedTokenizerFast, tied: bool = True, **more: Any) -> LlamaForCausalLM:
    """A Llama of 2 layers and 16 channels with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
        **more,
    )
    return LlamaForCausalLM(config)


def save_tiny_llama(folder: Path) -> Path:
    """A folder that transformers loads a model and a tokenizer from."""
    tokenizer = make_tokenizer()
    tiny_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
