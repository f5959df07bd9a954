"""Adapters on a frozen base for hooktrain: LoRA and the other methods of PEFT.

Other packages import from here only. Names are loaded when they are first used: importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_peft.adapter import add_adapter as add_adapter
    from hooktrain_peft.adapter import load_adapter as load_adapter
    from hooktrain_peft.config import PeftSettings as PeftSettings
    from hooktrain_peft.weight_merge import merge_adapter as merge_adapter

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
