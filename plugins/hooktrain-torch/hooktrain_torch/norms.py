"""The norm of all gradients, and clipping by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from hooktrain_torch.spread import is_spread

__all__ = ["Norms"]


class Norms:
    """What ``torch.nn.utils.clip_grad_norm_`` does, in two parts and with the same results.

    torch sorts the gradients by device and dtype at every call, which takes a small model four times as long as the
    norm itself. Here it is found out once whether there is more than one kind, and only then torch's own is called.

    Args:
        parameters: those whose gradients will be given.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = parameters
        kinds = {(type(p.data), p.device, p.dtype) for p in parameters}
        self._of_one_kind = len(kinds) == 1 and next(iter(kinds))[0] is Tensor

    def total(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of all gradients as one vector, shape (), over all ranks where they are spread."""
        if self._of_one_kind and gradients:
            return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # type: ignore[arg-type]
        norm = torch.nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if is_spread(norm) else norm

    def clip(self, gradients: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
        """Multiply gradients in place so that their norm is at most ``max_norm``.

        Args:
            gradients: of the parameters that have one.
            max_norm: the largest norm to leave.
            norm: what it is now, shape ().
        """
        if self._of_one_kind and gradients:
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))  # type: ignore[arg-type]
        else:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, max_norm, norm)
