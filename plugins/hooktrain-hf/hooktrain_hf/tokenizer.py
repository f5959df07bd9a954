"""Tokenizers for the recipe's tokenizer type ``huggingface``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from hooktrain import ModelError, field
from hooktrain_hf.gguf_cache import gguf_read_once
from hooktrain_hf.location import cannot_load, resolve_location
from hooktrain_hf.verbosity import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HFTokenizerConfig", "build_tokenizer", "end_of_turn_id"]

_KEY = "tokenizer.name_or_path (by default model.name_or_path)"


@attrs.frozen(kw_only=True)
class HFTokenizerConfig:
    """A tokenizer that ``AutoTokenizer`` loads."""

    shorthand: ClassVar[str] = "name_or_path"

    name_or_path: str = field(inherit="model.name_or_path")
    """A folder, a ``.gguf`` file, or a name on the hub; the model's by default."""
    gguf_file: str | None = field(default=None, inherit="model.gguf_file")
    """Name of a GGUF file in that folder or repository; the model's by default."""
    chat_template: str | None = field(default=None)
    """A Jinja chat template, or the path of a file that holds one; the tokenizer's own by default."""
    trust_remote_code: bool = field(default=False)
    """Whether Python code that comes with the tokenizer may run."""


def build_tokenizer(config: HFTokenizerConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer, without the network for anything that looks like a path.

    Raises:
        ModelError: it cannot be loaded, or the chat template's file cannot be read.
    """
    template = None if config.chat_template is None else _read_template(config.chat_template)
    location = resolve_location(config.name_or_path, config.gguf_file, _KEY)
    import transformers

    try:
        with quiet_transformers(), gguf_read_once(location):
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                location.name,
                trust_remote_code=config.trust_remote_code,
                **({"gguf_file": location.gguf_file} if location.gguf_file else {}),
            )
    except Exception as error:  # transformers, the hub and the tokenizers library each raise kinds of their own
        raise cannot_load(location, _KEY, "tokenizer", error) from error
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer  # type: ignore[no-any-return]


def _read_template(text_or_path: str) -> str:
    """Return a template's text; Jinja braces distinguish a text from a path."""
    if "{" in text_or_path:
        return text_or_path
    try:
        return Path(text_or_path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"tokenizer.chat_template: given '{text_or_path}', which cannot be read as a file; expected a path or the"
            " text of a Jinja template; correct the path"
        ) from error


def end_of_turn_id(tokenizer: Any) -> int | None:
    """Return the special token that the chat template puts after an assistant's answer, such as ``<|im_end|>``.

    Instruct models often end a turn with another token than ``tokenizer.eos_token``; generation that does not know it
    never stops.

    Returns:
        Its id; None without a chat template, or when the template puts no special token there.
    """
    from hooktrain_hf.compat import chat_template

    if not chat_template(tokenizer):
        return None
    answer = "Forty-two it is"
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template is a program, and may refuse these two turns
        return None
    _, found, tail = text.rpartition(answer)
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if found else []
    return next((int(id_) for id_ in ids if id_ in special), None)
