"""What a recipe can say under ``data`` for the trainer types of this plugin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from hooktrain import at_least, did_you_mean, field, part

__all__ = ["ROLES", "CausalDataConfig", "SFTDataConfig", "TokenDataConfig", "check_role_mapping"]

Overflow = Literal["error", "drop", "truncate", "split"]
OnEmpty = Literal["error", "drop"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Roles that chat templates know."""


def _shares(instance: Any, attribute: Any, value: tuple[float, float]) -> None:
    if min(value) < 0 or value[0] == 0 or not math.isclose(sum(value), 1.0, abs_tol=1e-9):
        raise ValueError(
            f"given {list(value)}, expected the shares of training and evaluation, not negative, the first above 0 and"
            " together 1; write for example [0.9, 0.1]"
        )


@attrs.frozen(kw_only=True)
class TokenDataConfig:
    """What both kinds of data have in common."""

    sources: tuple[Any, ...] = part("source", many=True)
    """Where the rows to train on come from."""
    eval_sources: tuple[Any, ...] = part("source", many=True, affects_training=False)
    """Where the rows to evaluate on come from; each is a named set of its own."""
    train_eval_split: tuple[float, float] = field(default=(1.0, 0.0), validator=_shares)
    """Shares of the rows of ``sources`` to train and to evaluate on; the latter are the set ``eval``."""
    max_length: int | None = field(default=None, validator=at_least(2))
    """Longest row in tokens, and the size of a packed row; the tokenizer's own limit when left out, or 8192."""
    pack_samples: bool = field(default=False)
    """Whether several rows share one of ``max_length`` tokens; they do not see each other."""
    overflow: Literal["error", "drop", "truncate", "split"] = field(default="error")
    """What happens to a row longer than ``max_length``."""
    on_empty: Literal["error", "drop"] = field(default="error")
    """What happens to a row in which no token is trained."""
    seed: int = field(default=42, inherit="seed")
    """Seed of the division into training and evaluation."""
    shuffle: bool = field(default=True)
    """Whether every epoch has an order of its own."""
    group_by_length: bool = field(default=False)
    """Whether the rows of a step have like lengths; the order stays random otherwise."""
    workers: int = field(default=0, validator=at_least(0), aliases=("dl_num_workers",), affects_training=False)
    """Processes that collate ahead; 0 collates in the training process."""
    use_data_cache: bool = field(default=True, affects_training=False)
    """Whether tokenized rows are kept for later runs."""
    cache_dir: Path | None = field(default=None, affects_training=False)
    """Where; ``HOOKTRAIN_CACHE``, or ``hooktrain`` in the user's cache folder when left out."""
    stream_buffer: int = field(default=10_000, validator=at_least(1))
    """Rows of a stream that are shuffled and packed together."""

    def __attrs_post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is missing or empty, expected at least one; add the data set to train on")
        if self.eval_sources and self.train_eval_split[1] > 0:
            raise ValueError(
                "eval_sources is given together with train_eval_split, which makes an evaluation set of its own;"
                " keep one"
            )
        weighted = [getattr(source, "weight", None) is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError(
                f"sources[{weighted.index(False)}] has no weight, but another source has one; give every source a"
                " weight, or none"
            )


def check_role_mapping(mapping: Mapping[str, str]) -> None:
    """Raises a ``ValueError`` when a role is not known, or a path is neither ``column`` nor ``column.field.value``."""
    for role, path in mapping.items():
        if role not in ROLES:
            raise ValueError(f"given the role '{role}', expected one of {', '.join(ROLES)}{did_you_mean(role, ROLES)}")
        if path.count(".") not in (0, 2) or not all(path.split(".")):
            raise ValueError(
                f"given '{path}' for {role}, expected a column, such as question, or column.field.value, such as"
                " conversations.from.human"
            )


def _role_paths(instance: Any, attribute: Any, value: Mapping[str, str]) -> None:
    check_role_mapping(value)


@attrs.frozen(kw_only=True)
class SFTDataConfig(TokenDataConfig):
    """Conversations, or prompts with completions; what is trained are the answers.

    Rows with ``messages`` and, if the model is to call any, ``tools`` are rendered with the tokenizer's template. Other
    formats become such rows, or are text or ids already.
    """

    format: str = field(default="auto")
    """How the rows are written; ``auto`` looks at the columns. A source may have a ``format`` of its own."""
    columns: Mapping[str, str] = field(factory=dict)
    """Columns to rename, as ``ours: theirs``, such as ``{prompt: question, completion: answer}``."""
    role_mapping: Mapping[str, str] = field(factory=dict, validator=_role_paths)
    """Which column holds the turn of which role, such as ``{user: question, assistant: response}``; or which entries of
    a column of turns, as ``conversations.from.human``. Rows keep their order."""
    content_key: str | None = field(default=None)
    """The field with the text, for entries that ``role_mapping`` finds; content, text, message or value if left out."""
    chat_template_kwargs: Mapping[str, Any] = field(factory=dict)
    """Variables for the chat template, such as ``{enable_thinking: false}``; a row's own column of that name wins."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = field(default="assistant")
    """What carries a loss: every ``assistant`` turn, the ``last_assistant`` one, the ``completion``, which is all that
    follows the prompt or the last user turn, or ``all`` of the text."""
    mask_inputs: bool = field(default=True)
    """False trains on everything, prompts included, whatever ``train_on`` says."""
    mask_empty_reasoning: bool = field(default=False)
    """Whether an empty ``<think></think>`` at the beginning of an answer is not trained."""
    drop_reasoning: bool = field(default=False)
    """Whether the reasoning of messages is left out; for chat templates that render none."""

    @property
    def trained_part(self) -> str:
        """``train_on`` with ``mask_inputs`` taken into account."""
        return self.train_on if self.mask_inputs else "all"


@attrs.frozen(kw_only=True)
class CausalDataConfig(TokenDataConfig):
    """Rows of plain text, or of ``input_ids``, all of it trained; packed, and split where they are too long."""

    pack_samples: bool = field(default=True)
    """Whether several rows share one of ``max_length`` tokens; they do not see each other."""
    overflow: Literal["error", "drop", "truncate", "split"] = field(default="split")
    """What happens to a row longer than ``max_length``."""
    text_column: str = field(default="text")
    """The column that holds the text."""
    add_bos: bool = field(default=True)
    """Whether a row begins with the tokenizer's beginning-of-sequence token, where it has one."""
    add_eos: bool = field(default=True)
    """Whether a row ends with the tokenizer's end-of-sequence token, where it has one; it is trained."""
