"""PyTorch for hooktrain: optimizers, schedules, the ``torch`` strategy and ``full`` checkpoints.

Other packages import the names below from here. They are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_torch.checkpoint_config import FullConfig as FullConfig
    from hooktrain_torch.compat import full_shape as full_shape
    from hooktrain_torch.complete_state import aliases as aliases
    from hooktrain_torch.complete_state import group_names as group_names
    from hooktrain_torch.complete_state import load_trained_state as load_trained_state
    from hooktrain_torch.complete_state import parameter_names as parameter_names
    from hooktrain_torch.complete_state import require_groups as require_groups
    from hooktrain_torch.complete_state import trained_state as trained_state
    from hooktrain_torch.files import problem_of as problem_of
    from hooktrain_torch.frozen_models import place_frozen as place_frozen
    from hooktrain_torch.optimizer_groups import GroupConfig as GroupConfig
    from hooktrain_torch.optimizer_groups import group_complaints as group_complaints
    from hooktrain_torch.optimizer_groups import parameter_groups as parameter_groups
    from hooktrain_torch.optimizer_groups import require_betas as require_betas
    from hooktrain_torch.ranks import Ranks as Ranks
    from hooktrain_torch.ranks import device_of as device_of
    from hooktrain_torch.ranks import native_bf16 as native_bf16
    from hooktrain_torch.sequence import SequenceGroup as SequenceGroup
    from hooktrain_torch.sequence import data_world as data_world
    from hooktrain_torch.sequence import divide as divide
    from hooktrain_torch.stored_tensors import CheckpointTensors as CheckpointTensors
    from hooktrain_torch.strategy import TorchStrategy as TorchStrategy
    from hooktrain_torch.strategy_config import TorchConfig as TorchConfig

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
