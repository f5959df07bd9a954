"""Checks of ``model.attn_implementation`` before a model is loaded, whose errors would be blamed on its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from hooktrain import Complaint, ModelError, did_you_mean

__all__ = ["check_attention", "require_attention"]

_KEY = "model.attn_implementation"
_PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
    "flash_attention_4": ("flash_attn", "flash-attn-4"),
}
"""Module and package of each; transformers replaces all of them with kernels of the hub where ``kernels`` is there."""


def check_attention(config: Any) -> Iterator[Complaint]:
    """Yield why a recipe's ``model.attn_implementation`` cannot be used on this machine."""
    module, package = _PACKAGES.get(config.attn_implementation, ("", ""))
    if module and not any(map(importlib.util.find_spec, (module, "kernels"))):
        yield Complaint(
            _KEY,
            f"given '{config.attn_implementation}', which needs the package {package}, and that is not installed; write"
            f" auto, which keeps packed documents apart without it, or run `pip install {package}`",
            of_machine=True,
        )


def require_attention(config: Any) -> None:
    """Raise ModelError for an implementation that is not installed, or that transformers does not know."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for found in check_attention(config):
        raise ModelError(str(found))
    name = config.attn_implementation
    known = sorted({"auto", "documents", "eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()} - {"documents_eager"})
    known = [one for one in known if one.isidentifier()]
    if name.isidentifier() and name not in known and name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        raise ModelError(
            f"{_KEY}: given '{name}', which transformers does not know{did_you_mean(name, known)}; expected one of"
            f" {', '.join(known)}, or the name of a kernel on the hub, as in owner/name; write auto"
        )
