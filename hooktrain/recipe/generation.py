"""Settings of generated answers."""

from __future__ import annotations

import attrs

from hooktrain.config import at_least, between, field

__all__ = ["GenerationSettings"]


@attrs.frozen(kw_only=True)
class GenerationSettings:
    """How answers are generated."""

    max_new_tokens: int = field(default=128, validator=at_least(1), affects_training=False)
    """Longest answer, in tokens; an end of turn ends it earlier."""
    temperature: float = field(default=0.0, validator=at_least(0), affects_training=False)
    """Divides the logits before a token is drawn; 0 takes the likeliest."""
    top_p: float = field(default=1.0, validator=between(0, 1), affects_training=False)
    """Draw from the likeliest tokens whose probabilities add up to this."""
    top_k: int = field(default=0, validator=at_least(0), affects_training=False)
    """Draw from so many of the likeliest tokens; 0 from all."""
    batch_size: int = field(default=8, validator=at_least(1), affects_training=False)
    """Answers that each rank generates at once."""
