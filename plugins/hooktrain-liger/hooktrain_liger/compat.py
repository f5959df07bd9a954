"""Internal names of liger_kernel, Triton and transformers, and attributes that only some objects have.

Seen to work with liger-kernel 0.8.5, Triton 3.9 and transformers 5.23. ``tests/plugins/liger/test_compat.py`` fails
when an upgrade breaks one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

__all__ = ["apply_function", "device_of", "interpreting", "logit_softcap", "quiet_backends", "supported_types"]


def supported_types() -> list[str]:
    """Return the ``model_type`` of every causal language model that this version of Liger has kernels for, sorted."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(set(MODEL_TYPE_TO_APPLY_LIGER_FN) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def apply_function(model_type: str) -> Callable[..., None]:
    """Return Liger's own function for one of the ``supported_types``."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    function: Callable[..., None] = MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]
    return function


def quiet_backends() -> None:
    """Silence Liger's warnings about optional compilers that are not installed, when a kernel is first run."""
    registry = logging.getLogger("liger_kernel.backends.registry")
    if registry.level == logging.NOTSET:
        registry.setLevel(logging.ERROR)


def interpreting() -> bool:
    """Return whether Triton runs kernels in Python on the CPU; it reads the variable when Liger is first imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def logit_softcap(hf_config: Any) -> float | None:
    """Return the bound that a model soft-caps its logits with, or None."""
    return getattr(hf_config.get_text_config(), "final_logit_softcapping", None) or None


def device_of(strategy: Any) -> str:
    """Return the ``device`` of a recipe's strategy; ``auto`` where its config has none."""
    return str(getattr(strategy, "device", "auto"))
