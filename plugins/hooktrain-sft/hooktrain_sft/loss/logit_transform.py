"""Transforms of the output of an LM head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from torch import Tensor

from hooktrain_sft.compat import logit_settings

__all__ = ["LogitTransform"]


@attrs.frozen
class LogitTransform:
    """A factor on the output of an LM head, then soft-capping.

    Attributes:
        multiplier: factor on all logits.
        softcap: limit of the logits, applied with tanh; None applies none.
    """

    multiplier: float = 1.0
    softcap: float | None = None

    @classmethod
    def candidates(cls, model: Any) -> Iterator[LogitTransform]:
        """Yield the transforms that a model's config may mean, the likeliest first; the model's own logits decide."""
        factor, divisor, softcap = logit_settings(model)
        yield from dict.fromkeys([cls(factor / divisor, softcap), cls(factor * divisor, softcap), cls()])

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the transformed logits, of the same shape."""
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def forward_(self, logits: Tensor) -> Tensor:
        """Transform logits in place."""
        if self.softcap is not None:
            return logits.mul_(self.multiplier / self.softcap).tanh_().mul_(self.softcap)
        return logits.mul_(self.multiplier) if self.multiplier != 1.0 else logits

    def backward_(self, gradient: Tensor, transformed: Tensor) -> Tensor:
        """Turn the gradient of transformed logits into that of the head's output, in place; overwrites both."""
        if self.softcap is not None:
            gradient.addcmul_(gradient, transformed.div_(self.softcap).square_(), value=-1.0)
        return gradient.mul_(self.multiplier) if self.multiplier != 1.0 else gradient
