"""PyTorch for hooktrain: optimizers, schedules, the ``torch`` strategy and ``full`` checkpoints.

Other packages import the names below from here. They are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain_torch.checkpoint_config import FullConfig
    from hooktrain_torch.compat import full_shape
    from hooktrain_torch.complete_state import (
        aliases,
        group_names,
        load_trained_state,
        parameter_names,
        require_groups,
        trained_state,
    )
    from hooktrain_torch.files import problem_of
    from hooktrain_torch.optimizers import decay_groups, require_betas
    from hooktrain_torch.ranks import Ranks, device_of, native_bf16
    from hooktrain_torch.sequence import SequenceGroup, data_world, divide
    from hooktrain_torch.stored_tensors import CheckpointTensors
    from hooktrain_torch.strategy import TorchStrategy
    from hooktrain_torch.strategy_config import TorchConfig

_HOMES = {
    "checkpoint_config": "FullConfig",
    "compat": "full_shape",
    "complete_state": "aliases group_names load_trained_state parameter_names require_groups trained_state",
    "files": "problem_of",
    "optimizers": "decay_groups require_betas",
    "ranks": "Ranks device_of native_bf16",
    "sequence": "SequenceGroup data_world divide",
    "stored_tensors": "CheckpointTensors",
    "strategy": "TorchStrategy",
    "strategy_config": "TorchConfig",
}
_HOME = {name: f"hooktrain_torch.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "CheckpointTensors",
    "FullConfig",
    "Ranks",
    "SequenceGroup",
    "TorchConfig",
    "TorchStrategy",
    "aliases",
    "data_world",
    "decay_groups",
    "device_of",
    "divide",
    "full_shape",
    "group_names",
    "load_trained_state",
    "native_bf16",
    "parameter_names",
    "problem_of",
    "require_betas",
    "require_groups",
    "trained_state",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hooktrain_torch' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
