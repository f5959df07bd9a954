"""DeepSpeed for hooktrain.

Other packages import the names below from here. They are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_deepspeed.checkpoint import DeepSpeedCheckpointConfig as DeepSpeedCheckpointConfig
    from hooktrain_deepspeed.config import DeepSpeedConfig as DeepSpeedConfig
    from hooktrain_deepspeed.strategy import DeepSpeedStrategy as DeepSpeedStrategy

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
