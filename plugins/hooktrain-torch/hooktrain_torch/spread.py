"""Telling tensors that are spread over ranks, without the import that makes them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["is_spread"]


def is_spread(value: Any) -> TypeGuard[DTensor]:
    """Whether a tensor is torch's ``DTensor``.

    Its module takes half a second to import, which every command would wait for; where it is not there, there are none.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
