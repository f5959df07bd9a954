"""What a model does to the output of its LM head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from torch import Tensor

__all__ = ["LogitTransform"]


@attrs.frozen
class LogitTransform:
    """Logits from the output of an LM head: a factor, then soft-capping.

    Attributes:
        multiplier: factor on all logits.
        softcap: logits are squeezed into (-softcap, softcap) with tanh; None leaves them.
    """

    multiplier: float = 1.0
    softcap: float | None = None

    @classmethod
    def candidates(cls, config: Any) -> Iterator[LogitTransform]:
        """Read from a transformers config, the likeliest first; which one is right shows on the model's own logits.

        Cohere, Granite, Falcon-H1 and Gemma have names of their own for it, and what Granite divides by
        HyperCLOVA X multiplies with.
        """
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        factor = _number(text, "logit_scale") * _number(text, "lm_head_multiplier")
        scaling = _number(text, "logits_scaling")
        cap = getattr(text, "final_logit_softcapping", None)
        softcap = float(cap) if cap else None
        made = [cls(factor / scaling, softcap), cls(factor * scaling, softcap), cls()]
        yield from dict.fromkeys(made)

    def __call__(self, logits: Tensor) -> Tensor:
        """Transformed logits, of the same shape."""
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def forward_(self, logits: Tensor) -> Tensor:
        """The same in place."""
        if self.softcap is not None:
            return logits.mul_(self.multiplier / self.softcap).tanh_().mul_(self.softcap)
        return logits.mul_(self.multiplier) if self.multiplier != 1.0 else logits

    def backward_(self, gradient: Tensor, transformed: Tensor) -> Tensor:
        """Turn the gradient of transformed logits into that of the head's output, in place; uses up both."""
        if self.softcap is not None:
            gradient.addcmul_(gradient, transformed.div_(self.softcap).square_(), value=-1.0)
        return gradient.mul_(self.multiplier) if self.multiplier != 1.0 else gradient


def _number(config: Any, name: str) -> float:
    return float(getattr(config, name, None) or 1.0)
