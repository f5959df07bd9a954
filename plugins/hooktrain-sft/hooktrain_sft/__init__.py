"""Supervised fine-tuning for hooktrain: chat rendering, label masks, packing, batches and losses.

Other packages import from here only. Names are loaded when they are first used, since some need torch or transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain_sft.chat.rendered import Rendered
    from hooktrain_sft.config import CausalDataConfig, SFTDataConfig, SourceOptions, TokenDataConfig
    from hooktrain_sft.data.collate import collate_flat, collate_stacked, document_keys
    from hooktrain_sft.data.formats import Format
    from hooktrain_sft.data.packing import Bins
    from hooktrain_sft.loss.config import CrossEntropyConfig, DFTLossConfig, SFTLossConfig
    from hooktrain_sft.loss.lm_head import HeadedForward, HeadLoss
    from hooktrain_sft.loss.logit_transform import LogitTransform
    from hooktrain_sft.loss.selective_loss import per_token

_HOMES = {
    "chat.rendered": "Rendered",
    "config": "CausalDataConfig SFTDataConfig SourceOptions TokenDataConfig",
    "data.collate": "collate_flat collate_stacked document_keys",
    "data.formats": "Format",
    "data.packing": "Bins",
    "loss.config": "CrossEntropyConfig DFTLossConfig SFTLossConfig",
    "loss.lm_head": "HeadLoss HeadedForward",
    "loss.logit_transform": "LogitTransform",
    "loss.selective_loss": "per_token",
}
_HOME = {name: f"hooktrain_sft.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Bins",
    "CausalDataConfig",
    "CrossEntropyConfig",
    "DFTLossConfig",
    "Format",
    "HeadLoss",
    "HeadedForward",
    "LogitTransform",
    "Rendered",
    "SFTDataConfig",
    "SFTLossConfig",
    "SourceOptions",
    "TokenDataConfig",
    "collate_flat",
    "collate_stacked",
    "document_keys",
    "per_token",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hooktrain_sft' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
