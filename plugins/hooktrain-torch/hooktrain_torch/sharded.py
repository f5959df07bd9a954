"""Detection of tensors that are sharded over ranks, without importing the module that makes them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["is_sharded"]


def is_sharded(value: Any) -> TypeGuard[DTensor]:
    """Return whether a tensor is torch's ``DTensor``.

    The module of ``DTensor`` takes half a second to import, which every command would wait for. While it is not
    imported, there is no such tensor.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
