"""Config classes of the metrics."""

from __future__ import annotations

from typing import ClassVar

import attrs

from hooktrain import at_least, field

__all__ = [
    "EvaluateConfig",
    "ExactMatchConfig",
    "JsonConfig",
    "PerplexityConfig",
    "RougeLConfig",
    "TokenF1Config",
    "ToolCallConfig",
    "TopKConfig",
]


@attrs.frozen(kw_only=True)
class ExactMatchConfig:
    """Share of generated answers that equal those of the data."""

    normalize: bool = field(default=True)
    """Whether case, punctuation, English articles and white space are ignored, as SQuAD does."""


@attrs.frozen(kw_only=True)
class TokenF1Config:
    """F1 of the words of generated answers, as SQuAD counts them."""


@attrs.frozen(kw_only=True)
class RougeLConfig:
    """F1 of the longest common subsequence of words of generated answers."""


@attrs.frozen(kw_only=True)
class JsonConfig:
    """Share of generated answers that are JSON, bare or in a fence of backticks."""

    keys: tuple[str, ...] = field(default=())
    """Keys that an object must have."""


@attrs.frozen(kw_only=True)
class ToolCallConfig:
    """Share of answers whose tool calls are those of the data, in any order, of answers with calls in either."""

    names_only: bool = field(default=False)
    """Whether arguments are ignored."""


@attrs.frozen(kw_only=True)
class PerplexityConfig:
    """Exponential of the mean cross-entropy of the trained tokens, whatever the loss of the run."""


@attrs.frozen(kw_only=True)
class TopKConfig:
    """Share of trained tokens that are among the likeliest predictions."""

    k: int = field(default=5, validator=at_least(1))
    """How many predictions count."""


@attrs.frozen(kw_only=True)
class EvaluateConfig:
    """A metric of the package ``evaluate``, from a folder or file on this machine, over generated answers."""

    shorthand: ClassVar[str] = "path"

    path: str = field()
    """The folder or the ``.py`` file of the metric. It is code, which runs."""
    name: str | None = field(default=None)
    """Name of its values in log lines; the folder's when omitted."""
