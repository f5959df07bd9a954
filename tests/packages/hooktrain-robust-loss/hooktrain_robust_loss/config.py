"""The recipe's ``loss`` with ``type: robust``."""

from __future__ import annotations

from typing import ClassVar

import attrs
from hooktrain import at_least, between, field

__all__ = ["RobustLossConfig"]


@attrs.frozen(kw_only=True)
class RobustLossConfig:
    """Generalized cross-entropy, ``(1 - p^q) / q`` for a token of probability p."""

    needs_logits: ClassVar[bool] = True  # a model that makes none is refused when the recipe is read

    q: float = field(default=0.5, validator=between(0.001, 1))
    """How little unlikely tokens count: towards 0 it is cross-entropy, 1 is the mean absolute error."""
    chunk_size: int = field(default=1024, validator=at_least(1))
    """Tokens whose probabilities are held in single precision at a time; less takes less memory."""
