"""Supervised fine-tuning for hooktrain: chat rendering, label masks, packing, batches and losses.

Other packages import from here only. Names are loaded when they are first used, since some need torch or transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_sft.chat.render import render_sft as render_sft
    from hooktrain_sft.chat.rendered import Rendered as Rendered
    from hooktrain_sft.config import CausalDataConfig as CausalDataConfig
    from hooktrain_sft.config import SFTDataConfig as SFTDataConfig
    from hooktrain_sft.config import SourceOptions as SourceOptions
    from hooktrain_sft.config import TokenDataConfig as TokenDataConfig
    from hooktrain_sft.data.collate import collate_flat as collate_flat
    from hooktrain_sft.data.collate import collate_stacked as collate_stacked
    from hooktrain_sft.data.formats import Format as Format
    from hooktrain_sft.data.packing import Bins as Bins
    from hooktrain_sft.loss.config import CrossEntropyConfig as CrossEntropyConfig
    from hooktrain_sft.loss.config import DFTLossConfig as DFTLossConfig
    from hooktrain_sft.loss.config import SFTLossConfig as SFTLossConfig
    from hooktrain_sft.loss.lm_head import HeadedForward as HeadedForward
    from hooktrain_sft.loss.lm_head import HeadLoss as HeadLoss
    from hooktrain_sft.loss.lm_head import replaced_forward as replaced_forward
    from hooktrain_sft.loss.log_probs import TokenLogProbs as TokenLogProbs
    from hooktrain_sft.loss.logit_transform import LogitTransform as LogitTransform
    from hooktrain_sft.loss.model_inspection import innermost as innermost
    from hooktrain_sft.loss.padded_documents import are_padded as are_padded
    from hooktrain_sft.loss.padded_documents import pad_documents as pad_documents
    from hooktrain_sft.loss.selective_loss import per_token as per_token

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
