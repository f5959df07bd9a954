"""Tokenizers for the recipe's tokenizer type ``huggingface``."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from hooktrain import ModelError, did_you_mean, field
from hooktrain_hf.gguf_cache import gguf_read_once
from hooktrain_hf.location import cannot_load, looks_like_path, resolve_location
from hooktrain_hf.verbosity import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HFTokenizerConfig", "added_tokens", "build_tokenizer", "end_of_turn_id", "read_template"]

_KEY = "tokenizer.name_or_path (by default model.name_or_path)"
_LIST = "extra_special_tokens"
_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt", ".json")
"""Endings of the names of files that hold a template."""
_ROLES = (*(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")), _LIST)
"""Names that tokenizers of transformers have for special tokens, the last one for any others."""

_added: weakref.WeakKeyDictionary[Any, frozenset[int]] = weakref.WeakKeyDictionary()


def _known_roles(instance: Any, attribute: Any, value: Mapping[str, Any]) -> None:
    for name, token in value.items():
        if name not in _ROLES:
            hint = did_you_mean(name, _ROLES)
            raise ValueError(f"given '{name}'{hint}, expected one of {', '.join(_ROLES)}")
        if name == _LIST:
            if not isinstance(token, (list, tuple)) or not all(isinstance(one, str) and one for one in token):
                raise ValueError(f"given {token!r} for {name}, expected a list of tokens")
        elif not isinstance(token, str) or not token:
            raise ValueError(f"given {token!r} for {name}, expected one token")


@attrs.frozen(kw_only=True)
class HFTokenizerConfig:
    """A tokenizer that ``AutoTokenizer`` loads."""

    shorthand: ClassVar[str] = "name_or_path"

    name_or_path: str = field(inherit="model.name_or_path")
    """A folder, a ``.gguf`` file, or a name on the hub; the model's by default."""
    gguf_file: str | None = field(default=None, inherit="model.gguf_file")
    """Name of a GGUF file in that folder or repository; the model's by default, where ``name_or_path`` is too."""
    revision: str | None = field(default=None, inherit="model.revision")
    """Branch, tag or commit of the repository on the hub; by default the model's, and its main branch where
    ``name_or_path`` is another than the model's."""
    chat_template: str | None = field(default=None)
    """A Jinja chat template, the path of a file that holds one, or the folder or hub name of a tokenizer that has one;
    the tokenizer's own by default."""
    add_tokens: tuple[str, ...] = field(default=())
    """Tokens to add where the tokenizer does not have them; the model's embedding grows, and they are trained."""
    special_tokens: Mapping[str, Any] = field(factory=dict, validator=_known_roles)
    """Special tokens by name, such as ``{eos_token: <|im_end|>, extra_special_tokens: [<|im_start|>]}``; those that the
    tokenizer does not have are added likewise."""
    trust_remote_code: bool = field(default=False)
    """Whether Python code that comes with the tokenizer may run."""


def build_tokenizer(config: HFTokenizerConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer, without the network for anything that looks like a path.

    Raises:
        ModelError: it cannot be loaded, or the chat template's file cannot be read.
    """
    template = None if config.chat_template is None else read_template(config.chat_template)
    location = resolve_location(config.name_or_path, config.gguf_file, _KEY, config.revision)
    import transformers

    try:
        with quiet_transformers(), gguf_read_once(location):
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                location.name,
                trust_remote_code=config.trust_remote_code,
                **location.options,
            )
    except Exception as error:  # transformers, the hub and the tokenizers library each raise kinds of their own
        raise cannot_load(location, _KEY, "tokenizer", error) from error
    if template is not None:
        tokenizer.chat_template = template
    _add_tokens(tokenizer, config)
    return tokenizer  # type: ignore[no-any-return]


def added_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the ids of the tokens that the recipe has added to a tokenizer."""
    return _added.get(tokenizer, frozenset())


def _add_tokens(tokenizer: Any, config: HFTokenizerConfig) -> None:
    """Add the recipe's tokens, and keep the ids of those that are new."""
    from transformers import AddedToken

    before = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in config.add_tokens])
    if config.special_tokens:
        values = {name: list(token) if name == _LIST else token for name, token in config.special_tokens.items()}
        tokenizer.add_special_tokens(values, replace_extra_special_tokens=False)
    _added[tokenizer] = frozenset(range(before, len(tokenizer)))


def read_template(given: str, *, offline: bool = False) -> str:
    """Return a template's text; Jinja braces distinguish a text from a path or name.

    ``offline`` does not load another tokenizer, whose template is then "".

    Raises:
        ModelError: there is no such file, or no such template.
    """
    if "{" in given:
        return given
    path = Path(given).expanduser()
    hub = not (path.exists() or path.suffix in _SUFFIXES or looks_like_path(given)) and given.count("/") == 1
    if path.is_dir() or hub:
        return "" if offline else _template_of(given)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"tokenizer.chat_template: given '{given}', which cannot be read as a file; expected a path, the text of a"
            " Jinja template, or the folder or hub name of a tokenizer; correct the path"
        ) from error


def _template_of(name: str) -> str:
    """Return the chat template of another tokenizer."""
    import transformers

    from hooktrain_hf.compat import chat_template

    location = resolve_location(name, None, "tokenizer.chat_template")
    try:
        with quiet_transformers():
            template: str = chat_template(transformers.AutoTokenizer.from_pretrained(location.name))
    except Exception as error:  # as in build_tokenizer
        raise cannot_load(location, "tokenizer.chat_template", "tokenizer", error) from error
    if not template:
        raise ModelError(
            f"tokenizer.chat_template: given '{name}', a tokenizer without a chat template; expected one that has one;"
            " give another"
        )
    return template


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
