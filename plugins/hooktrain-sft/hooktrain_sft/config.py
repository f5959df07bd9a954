"""Config classes for ``data``, and the options of sources."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs

from hooktrain import at_least, between, did_you_mean, field, part

__all__ = [
    "ROLES",
    "CausalDataConfig",
    "SFTDataConfig",
    "SourceOptions",
    "TokenDataConfig",
    "WeightRule",
    "check_role_mapping",
    "is_weight",
    "paths_of",
    "with_text_unit",
]

Overflow = Literal["auto", "error", "drop", "truncate", "split"]
OnEmpty = Literal["auto", "error", "drop"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""Roles that chat templates know."""

RoleMapping = Mapping[str, str | tuple[str, ...]]


@attrs.frozen(kw_only=True)
class SourceOptions:
    """Options that this plugin reads from a source's config, if it has fields of these names.

    Attributes:
        name_or_path: file, folder or hub name, for messages and known data sets.
        name: name of an evaluation set that is made of it.
        weight: share of an epoch, relative to other sources.
        streaming: whether its examples are read while training.
        format: as in :class:`SFTDataConfig`, as are the next three.
        columns: columns to rename or to remove.
        role_mapping: columns or entries with the turns of each role.
        content_key: field with the text of an entry.
    """

    name_or_path: str = ""
    name: str = ""
    weight: float | None = None
    streaming: bool = False
    format: str = ""
    columns: Mapping[str, str | None] = attrs.field(factory=dict)
    role_mapping: RoleMapping = attrs.field(factory=dict)
    content_key: str | None = None

    @classmethod
    def of(cls, source: Any, data: TokenDataConfig | None = None) -> SourceOptions:
        """Read the options of a source; those that it does not set are the recipe's under ``data``."""
        known = {field.name for field in attrs.fields(cls)}
        options: dict[str, Any] = {}
        configs: tuple[Any, ...] = (data, source)
        for config in configs:
            fields: dict[str, Any] = attrs.asdict(config, recurse=False) if attrs.has(type(config)) else {}
            options |= {name: value for name, value in fields.items() if value and name in known}
        return cls(**options)


def _shares(instance: Any, attribute: Any, value: tuple[float, float]) -> None:
    if min(value) < 0 or value[0] == 0 or not math.isclose(sum(value), 1.0, abs_tol=1e-9):
        raise ValueError(
            f"given {list(value)}, expected the shares of training and evaluation, not negative, the first above 0 and"
            " together 1; write for example [0.9, 0.1]"
        )


_LEAST, _MOST = 2.0**-149, (2 - 2.0**-23) * 2.0**127
"""The smallest and the largest positive number of float32."""


def is_weight(value: Any) -> bool:
    """Return whether a value is the weight of a token: 0, or a positive number that float32 holds."""
    return isinstance(value, (int, float)) and (value == 0 or _LEAST <= value <= _MOST)


def _weight(instance: Any, attribute: Any, value: float) -> None:
    if not is_weight(value):
        raise ValueError(f"given weight {value}, expected 0 or a positive number; write for example 0.5")


def _pattern(instance: Any, attribute: Any, value: str | None) -> None:
    try:
        re.compile(value or "")
    except re.error as problem:
        raise ValueError(f"given match '{value}', expected a regular expression ({problem}); correct it") from None


def _role(instance: Any, attribute: Any, value: str | None) -> None:
    if value is not None and value not in ROLES:
        raise ValueError(f"given role '{value}', expected one of {', '.join(ROLES)}{did_you_mean(value, ROLES)}")


@attrs.frozen(kw_only=True)
class WeightRule:
    """A factor on the weights of the trained tokens of some messages, or of parts of their text."""

    weight: float = field(validator=_weight)
    """The factor: 0 does not train these tokens."""
    role: str | None = field(default=None, validator=_role)
    """Role of the messages; by default all, and text that is no message."""
    match: str | None = field(default=None, validator=_pattern)
    """Regular expression of Python for the parts of a message's text, as the chat template renders it; ``.`` matches
    line breaks too. By default the complete message."""

    def __attrs_post_init__(self) -> None:
        if self.role is None and self.match is None:
            raise ValueError("given a weight alone, expected role, match or both with it; add one of them")


def _processes(instance: Any, attribute: Any, value: int | str) -> None:
    if value != "auto" and (not isinstance(value, int) or value < 1):
        raise ValueError(f"given {value}, expected auto or at least 1")


@attrs.frozen(kw_only=True)
class TokenDataConfig:
    """Options that conversations and plain text share.

    Attributes:
        together: how many sequences each example makes that stay together, such as the 2 of a preference pair: all are
            used or none, and all of them are in one sequence of the training set. 0 where they are independent.
        untrained: what is wrong with an example that ``on_empty`` is about, in words.
    """

    together: ClassVar[int] = 0
    untrained: ClassVar[str] = "no token is trained"

    sources: tuple[Any, ...] = part("source", many=True)
    """Sources of the examples to train on."""
    eval_sources: tuple[Any, ...] = part("source", many=True, affects_training=False)
    """Sources of the examples to evaluate on; each is a named set."""
    columns: Mapping[str, str | None] = field(factory=dict)
    """Columns to rename, as ``ours: theirs``, such as ``{prompt: question, completion: answer}``; ``{label: null}``
    removes one."""
    train_eval_split: tuple[float, float] = field(default=(1.0, 0.0), validator=_shares)
    """Shares of the examples of ``sources`` to train and to evaluate on; the latter are the set ``eval``."""
    val_size: int | None = field(default=None, validator=at_least(1))
    """Number of the examples of ``sources`` to evaluate on, in place of a share; they are the set ``eval``."""
    exact_deduplication: bool = field(default=False)
    """Whether examples are removed whose tokens are those of an earlier one, or of evaluation sets those of a training
    example; this happens before ``train_eval_split`` and ``val_size``, and the report counts them."""
    max_length: int | None = field(default=None, validator=at_least(2))
    """Longest sequence in tokens, and the size of a pack; the default is the tokenizer's own limit, or 8192."""
    pack_samples: bool = field(default=False)
    """Whether several documents share a sequence of ``max_length`` tokens; they do not see each other."""
    overflow: Literal["auto", "error", "drop", "truncate", "split"] = field(default="auto")
    """Handling of examples longer than ``max_length``; ``auto`` drops them up to ``max_dropped``, and above it the run
    stops as with ``error``."""
    on_empty: Literal["auto", "error", "drop"] = field(default="auto")
    """Handling of examples in which no token is trained; ``auto`` drops them up to ``max_dropped``, and above it the
    run stops as with ``error``."""
    max_dropped: float = field(default=0.1, validator=between(0.0, 1.0), affects_training=False)
    """Largest share of the training examples, and of those of each evaluation set, that ``auto`` drops; a written
    ``drop`` drops any number."""
    seed: int = field(default=42, inherit="seed")
    """Seed of the split into training and evaluation."""
    shuffle: bool = field(default=True)
    """Whether sequences are shuffled anew for every epoch."""
    group_by_length: bool = field(default=False)
    """Whether the sequences of a step have similar lengths; the order of the steps stays random."""
    workers: int = field(default=0, validator=at_least(0), aliases=("dl_num_workers",), affects_training=False)
    """Processes that collate ahead; 0 collates in the training process."""
    num_proc: int | Literal["auto"] = field(default="auto", validator=_processes, affects_training=False)
    """Processes that render and tokenize a source that is not streamed; ``auto`` uses several where it has enough
    examples and there are cores."""
    use_data_cache: bool = field(default=True, affects_training=False)
    """Whether tokenized examples are kept for later runs."""
    cache_dir: Path | None = field(default=None, affects_training=False)
    """Folder for them; the default is ``HOOKTRAIN_CACHE``, or ``hooktrain`` in the user's cache folder."""
    stream_buffer: int = field(default=10_000, validator=at_least(1))
    """Examples of a stream that are shuffled and packed together."""

    def __attrs_post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is missing or empty, expected at least one; add the data set to train on")
        made = ("train_eval_split" if self.train_eval_split[1] > 0 else "", "val_size" if self.val_size else "")
        given = [name for name in ("eval_sources" if self.eval_sources else "", *made) if name]
        if len(given) > 1:
            raise ValueError(f"{given[0]} is given together with {given[1]}, and each makes evaluation sets; keep one")
        weights = [SourceOptions.of(source).weight for source in self.sources]
        if None in weights and any(weights):
            raise ValueError(
                f"sources[{weights.index(None)}] has no weight, but another source has one; give every source a"
                " weight, or none"
            )

    @property
    def held_out(self) -> float | int:
        """The share of the examples that is evaluated on, or where ``val_size`` is given their number; 0 for none."""
        return self.val_size or self.train_eval_split[1]

    @property
    def source_weights(self) -> list[float] | None:
        """Weights of the sources; None where they have none."""
        weights = [SourceOptions.of(source).weight for source in self.sources]
        return [weight for weight in weights if weight is not None] or None


def check_role_mapping(mapping: RoleMapping) -> None:
    """Raise a ``ValueError`` for an unknown role, or a path that is no column, list of them, or column.field.value."""
    for role in mapping:
        if role not in ROLES:
            raise ValueError(f"given the role '{role}', expected one of {', '.join(ROLES)}{did_you_mean(role, ROLES)}")
        paths = paths_of(mapping, role)
        for path in paths or ("",):
            if path.count(".") not in ((0, 2) if len(paths) == 1 else (0,)) or not all(path.split(".")):
                raise ValueError(
                    f"given '{path}' for {role}, expected a column, such as question, a list of columns, or"
                    " column.field.value, such as conversations.from.human"
                )


def paths_of(mapping: RoleMapping, *roles: str) -> tuple[str, ...]:
    """Return the columns, or entries of columns, that a mapping names for roles; for all by default."""
    named = [mapping[role] for role in roles or mapping if role in mapping]
    return tuple(path for paths in named for path in ((paths,) if isinstance(paths, str) else paths))


def _role_paths(instance: Any, attribute: Any, value: RoleMapping) -> None:
    check_role_mapping(value)


@attrs.frozen(kw_only=True)
class SFTDataConfig(TokenDataConfig):
    """Conversations, or prompts with completions; the answers are trained.

    Examples with ``messages`` and, if there are any, ``tools`` are rendered with the tokenizer's template. Other
    formats are converted to such examples, or are text or ids already.
    """

    format: str = field(default="auto")
    """Format of the examples; ``auto`` recognises it by the columns. A source may have its own ``format``."""
    role_mapping: Mapping[str, str | tuple[str, ...]] = field(factory=dict, validator=_role_paths)
    """Column with the turn of each role, such as ``{user: question, assistant: response}``, or a list of columns whose
    texts make the turn, one below the other; or the entries of a column of turns, such as ``conversations.from.human``.
    Entries keep their order."""
    content_key: str | None = field(default=None)
    """Field with the text, of entries that ``role_mapping`` names; by default content, text, message or value."""
    chat_template_kwargs: Mapping[str, Any] = field(factory=dict)
    """Variables for the chat template, such as ``{enable_thinking: false}``; an example's own column precedes."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = field(default="assistant")
    """Part that carries a loss: every ``assistant`` turn, the ``last_assistant`` one, the ``completion``, which is all
    text after the prompt or the last user turn, or ``all`` of the text."""
    mask_inputs: bool = field(default=True)
    """False trains on everything, prompts included, for any ``train_on``."""
    mask_empty_reasoning: bool = field(default=False)
    """Whether an empty ``<think></think>`` at the beginning of an answer is not trained."""
    drop_reasoning: bool = field(default=False)
    """Whether the reasoning of messages is removed, for chat templates that render none."""
    reasoning_turns: Literal["last", "all", "split"] | None = field(default=None)
    """Handling of answers whose reasoning the chat template renders only until the next question. ``last``, the
    default, does not train them; ``split`` makes a sequence of each answer, after the prompt that it has at inference;
    ``all`` trains them without their reasoning, and is implied by ``drop_reasoning``."""
    train_stop: Literal["auto", "none", "next_header"] = field(default="auto")
    """Last trained token of an answer where the chat template writes no end-of-turn token: the token that opens the
    next turn, which ``auto`` reports and ``next_header`` does not, or ``none``."""
    eot_tokens: tuple[str, ...] = field(default=())
    """Tokens that end a turn where the chat template writes one that is no special token of the tokenizer; each must be
    a single token, and the first that ends an answer is trained."""
    weights: tuple[WeightRule, ...] = field(default=())
    """Weights of trained tokens, such as ``[{role: tool, weight: 0.2}, {match: "[0-9]+", weight: 2}]``. A token's
    weight is the product of those of all rules that fit it, and of the ``weight`` that its message and its part of the
    content have in the data."""
    special_tokens_in_text: Literal["keep", "plain", "error"] = field(default="keep")
    """Handling of special tokens within the text of messages: ``keep`` makes tokens of them and counts them, ``plain``
    tokenizes them as text."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.drop_reasoning and self.reasoning_turns in ("last", "split"):
            raise ValueError(
                f"reasoning_turns: {self.reasoning_turns} is given together with drop_reasoning: true, after which"
                " there is no reasoning; remove one of them"
            )
        for index, rule in enumerate(self.weights):
            if rule.role not in (None, "assistant") and self.trained_part not in ("all", "completion"):
                raise ValueError(
                    f"weights[{index}].role: given {rule.role}, but `train_on: {self.train_on}` trains only messages of"
                    " the assistant; remove the rule, or write `train_on: all` or `train_on: completion`"
                )
        if self.reasoning_turns == "split" and self.trained_part == "all":
            raise ValueError(
                "reasoning_turns: split, which makes a sequence of each answer, is given together with training on all"
                " of the text; remove it, or choose another train_on"
            )

    @property
    def reasoning(self) -> Literal["last", "all", "split"]:
        """``reasoning_turns``, with what it is where the recipe is silent."""
        return self.reasoning_turns or ("all" if self.drop_reasoning else "last")

    @property
    def trained_part(self) -> str:
        """``train_on``, or ``all`` where ``mask_inputs`` is false."""
        return self.train_on if self.mask_inputs else "all"


@attrs.frozen(kw_only=True)
class CausalDataConfig(TokenDataConfig):
    """Examples of plain text or of ``input_ids``, all of it trained; packed, and split where they are too long."""

    pack_samples: bool = field(default=True)
    """Whether several documents share a sequence of ``max_length`` tokens; they do not see each other."""
    overflow: Literal["auto", "error", "drop", "truncate", "split"] = field(default="split")
    """Handling of examples longer than ``max_length``; ``auto`` drops them up to ``max_dropped``."""
    on_empty: Literal["auto", "error", "drop"] = field(default="error")
    """Handling of examples in which no token is trained; ``auto`` drops them up to ``max_dropped``."""
    text_column: str = field(default="text")
    """The column that holds the text."""
    text_unit: Literal["file", "paragraph", "line"] = field(default="file")
    """Part of a text file that is an example; blank lines part paragraphs. Line breaks within it are kept."""
    add_bos: bool = field(default=True)
    """Whether an example begins with the tokenizer's beginning-of-sequence token, where it has one."""
    add_eos: bool = field(default=True)
    """Whether an example ends with the tokenizer's end-of-sequence token, where it has one; it is trained."""


def with_text_unit(source: Any, data: TokenDataConfig) -> Any:
    """Return a source's config with the ``text_unit`` of ``data``, if it has a field of that name without a value."""
    if isinstance(data, CausalDataConfig) and attrs.has(type(source)):
        fields: dict[str, Any] = attrs.asdict(source, recurse=False)
        if "text_unit" in fields and fields["text_unit"] is None:
            return attrs.evolve(source, text_unit=data.text_unit)
    return source
