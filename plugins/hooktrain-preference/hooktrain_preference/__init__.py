"""Preference training for hooktrain: pairs of answers, references, DPO and other losses.

Other packages import from here only. Names are loaded when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_preference.collate import collate_pairs as collate_pairs
    from hooktrain_preference.config import CPOLossConfig as CPOLossConfig
    from hooktrain_preference.config import DPOLossConfig as DPOLossConfig
    from hooktrain_preference.config import ORPOLossConfig as ORPOLossConfig
    from hooktrain_preference.config import PairLossConfig as PairLossConfig
    from hooktrain_preference.config import PreferenceDataConfig as PreferenceDataConfig
    from hooktrain_preference.config import SimPOLossConfig as SimPOLossConfig
    from hooktrain_preference.pair_loss import PairLoss as PairLoss
    from hooktrain_preference.pair_losses import Pairs as Pairs

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
