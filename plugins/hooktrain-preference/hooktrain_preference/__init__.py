"""Preference training for hooktrain: pairs of answers, references, DPO and other losses, KTO, and reward models.

Other packages import from here only. Names are loaded when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_preference.collate import collate_pairs as collate_pairs
    from hooktrain_preference.collate import collate_rewards as collate_rewards
    from hooktrain_preference.collate import collate_unpaired as collate_unpaired
    from hooktrain_preference.config import KTODataConfig as KTODataConfig
    from hooktrain_preference.config import PreferenceDataConfig as PreferenceDataConfig
    from hooktrain_preference.config import RewardDataConfig as RewardDataConfig
    from hooktrain_preference.config import RewardModelConfig as RewardModelConfig
    from hooktrain_preference.kto_loss import KTOLoss as KTOLoss
    from hooktrain_preference.loss_config import CPOLossConfig as CPOLossConfig
    from hooktrain_preference.loss_config import DPOLossConfig as DPOLossConfig
    from hooktrain_preference.loss_config import KTOLossConfig as KTOLossConfig
    from hooktrain_preference.loss_config import ORPOLossConfig as ORPOLossConfig
    from hooktrain_preference.loss_config import PairLossConfig as PairLossConfig
    from hooktrain_preference.loss_config import RewardLossConfig as RewardLossConfig
    from hooktrain_preference.loss_config import SimPOLossConfig as SimPOLossConfig
    from hooktrain_preference.pair_loss import PairLoss as PairLoss
    from hooktrain_preference.pair_losses import Pairs as Pairs
    from hooktrain_preference.reward_loss import RewardLoss as RewardLoss

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
