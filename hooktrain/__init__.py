"""hooktrain: a post-training engine for language models in which every moving part is a pluggy hook.

This is the whole public interface. Names are loaded when they are first used, so that importing the package costs
nothing and ``hooktrain --help`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain.build import load
    from hooktrain.compare import differences, digest
    from hooktrain.config import CheckpointConfig, at_least, between, field, one_of, part, structure, unstructure
    from hooktrain.drift import provenance, require_same
    from hooktrain.errors import (
        CheckpointError,
        Complaint,
        DataError,
        HooktrainError,
        HooktrainWarning,
        ModelError,
        NonFiniteError,
        PluginError,
        RanksDisagreeError,
        RecipeError,
        SegmentError,
        did_you_mean,
    )
    from hooktrain.estimates import DataEstimate, MemoryEstimate, ModelEstimate
    from hooktrain.info import API_VERSION, PluginInfo
    from hooktrain.loader import WindowLoader, blank
    from hooktrain.markers import hookimpl, hookspec
    from hooktrain.parts import CheckpointEngine, Scheduler, Strategy
    from hooktrain.plugins import PluginHost
    from hooktrain.reading import read_recipe
    from hooktrain.recipe import Recipe
    from hooktrain.records import PluginsConfig
    from hooktrain.state import (
        Batch,
        BatchCounts,
        Data,
        Dataset,
        Fragment,
        LossSum,
        OptimizerStep,
        ShownRow,
        StepOutput,
        StoredTensors,
        TrainedState,
        TrainerState,
        TrainerType,
        World,
    )
    from hooktrain.trainer import Trainer

_HOMES = {
    "build": "load",
    "config": "CheckpointConfig at_least between field one_of part structure unstructure",
    "compare": "differences digest",
    "drift": "provenance require_same",
    "errors": "CheckpointError Complaint DataError HooktrainError HooktrainWarning ModelError NonFiniteError"
    " PluginError RanksDisagreeError RecipeError SegmentError did_you_mean",
    "estimates": "DataEstimate MemoryEstimate ModelEstimate",
    "info": "API_VERSION PluginInfo",
    "loader": "WindowLoader blank",
    "markers": "hookimpl hookspec",
    "parts": "CheckpointEngine Scheduler Strategy",
    "plugins": "PluginHost",
    "records": "PluginsConfig",
    "reading": "read_recipe",
    "recipe": "Recipe",
    "state": "Batch BatchCounts Data Dataset Fragment LossSum OptimizerStep ShownRow StepOutput StoredTensors"
    " TrainedState TrainerState TrainerType World",
    "trainer": "Trainer",
}
_HOME = {name: f"hooktrain.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "API_VERSION",
    "Batch",
    "BatchCounts",
    "CheckpointConfig",
    "CheckpointEngine",
    "CheckpointError",
    "Complaint",
    "Data",
    "DataError",
    "DataEstimate",
    "Dataset",
    "Fragment",
    "HooktrainError",
    "HooktrainWarning",
    "LossSum",
    "MemoryEstimate",
    "ModelError",
    "ModelEstimate",
    "NonFiniteError",
    "OptimizerStep",
    "PluginError",
    "PluginHost",
    "PluginInfo",
    "PluginsConfig",
    "RanksDisagreeError",
    "Recipe",
    "RecipeError",
    "Scheduler",
    "SegmentError",
    "ShownRow",
    "StepOutput",
    "StoredTensors",
    "Strategy",
    "TrainedState",
    "Trainer",
    "TrainerState",
    "TrainerType",
    "WindowLoader",
    "World",
    "at_least",
    "between",
    "blank",
    "did_you_mean",
    "differences",
    "digest",
    "field",
    "hookimpl",
    "hookspec",
    "load",
    "one_of",
    "part",
    "provenance",
    "read_recipe",
    "require_same",
    "structure",
    "unstructure",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hooktrain' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
