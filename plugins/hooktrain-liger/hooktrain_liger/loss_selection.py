"""Chooses the cross-entropy of Liger that computes the recipe's ``loss``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from hooktrain_liger.config import LigerModelConfig
from hooktrain_liger.head_loss import CrossEntropy, FusedLinearCrossEntropy

__all__ = ["head_loss"]

logger = logging.getLogger(__name__)


def head_loss(config: LigerModelConfig, loss: Any, transform: Any) -> tuple[Callable[..., Any] | None, str]:
    """Return the function for the hook ``make_head_loss`` of ``hooktrain-sft``, and its name.

    Args:
        config: the recipe's ``model``.
        loss: the recipe's ``loss``; the function must compute exactly this loss.
        transform: the model's change to the output of its LM head: ``multiplier`` and ``softcap``.

    Returns:
        None where the recipe disables both, or, with a warning, where Liger does not compute this loss.
    """
    from hooktrain_sft import DFTLossConfig, SFTLossConfig

    if not (config.fused_linear_cross_entropy or config.cross_entropy):
        return None, ""
    name = "fused_linear_cross_entropy" if config.fused_linear_cross_entropy else "cross_entropy"
    scaled = type(loss) is DFTLossConfig
    why = ""
    if type(loss) not in (SFTLossConfig, DFTLossConfig):
        why = "computes no such loss"
    elif scaled and config.cross_entropy:
        why = "weights no token by its probability"
    elif scaled and loss.z_loss:
        why = "weights the z-loss of a token by its probability too"
    if why:
        logger.warning("model.%s: not used, as Liger's kernel %s; plain PyTorch computes the loss instead", name, why)
        return None, ""
    common = (transform.multiplier, transform.softcap, loss.label_smoothing, loss.z_loss)
    if config.cross_entropy:
        return CrossEntropy(*common, loss.chunk_size), name
    if loss.chunk_size is not None:
        logger.warning("loss.chunk_size: not used, as Liger's %s chooses the size of its chunks itself", name)
    return FusedLinearCrossEntropy(*common, token_scaling=scaled), name
