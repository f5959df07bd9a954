"""hooktrain: a post-training engine for language models in which every moving part is a pluggy hook.

This is the whole public interface. Names are loaded when they are first used, so that importing the package costs
nothing and ``hooktrain --help`` needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from hooktrain.renamed import OldModules, old_import

if TYPE_CHECKING:
    from hooktrain.cache_folder import default_cache_dir
    from hooktrain.compare import differences, digest
    from hooktrain.config import CheckpointConfig, at_least, between, field, one_of, part, structure, unstructure
    from hooktrain.errors import (
        CheckpointError,
        Complaint,
        DataError,
        Failure,
        HooktrainError,
        HooktrainWarning,
        LoopHookError,
        ModelError,
        NonFiniteError,
        PluginError,
        RanksDisagreeError,
        RecipeError,
        did_you_mean,
        failure_of,
    )
    from hooktrain.markers import hookimpl, hookspec
    from hooktrain.plugin.config import PluginsConfig
    from hooktrain.plugin.info import API_VERSION, PluginInfo
    from hooktrain.plugin.manager import PluginHost
    from hooktrain.protocols import CheckpointEngine, Loader, PlacedLoader, Scheduler, Strategy
    from hooktrain.recipe.model import Recipe
    from hooktrain.recipe.yaml_reader import read_recipe
    from hooktrain.training.dataloader import WindowLoader, padding_batch
    from hooktrain.training.load import load
    from hooktrain.training.resume_check import provenance, require_same
    from hooktrain.training.trainer import Trainer
    from hooktrain.types import (
        Batch,
        BatchCounts,
        Data,
        DataEstimate,
        Dataset,
        ExamplePreview,
        LossSum,
        MemoryEstimate,
        ModelEstimate,
        OptimizerStep,
        Shard,
        StepOutput,
        StoredTensors,
        TrainedState,
        TrainerState,
        TrainerType,
        World,
    )

_HOMES = {
    "cache_folder": "default_cache_dir",
    "compare": "differences digest",
    "config": "CheckpointConfig at_least between field one_of part structure unstructure",
    "errors": "CheckpointError Complaint DataError Failure HooktrainError HooktrainWarning ModelError NonFiniteError"
    " PluginError RanksDisagreeError RecipeError LoopHookError did_you_mean failure_of",
    "markers": "hookimpl hookspec",
    "plugin.config": "PluginsConfig",
    "plugin.info": "API_VERSION PluginInfo",
    "plugin.manager": "PluginHost",
    "protocols": "CheckpointEngine Loader PlacedLoader Scheduler Strategy",
    "recipe.model": "Recipe",
    "recipe.yaml_reader": "read_recipe",
    "training.dataloader": "WindowLoader padding_batch",
    "training.load": "load",
    "training.resume_check": "provenance require_same",
    "training.trainer": "Trainer",
    "types": "Batch BatchCounts Data DataEstimate Dataset Shard LossSum MemoryEstimate ModelEstimate OptimizerStep"
    " ExamplePreview StepOutput StoredTensors TrainedState TrainerState TrainerType World",
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
    "Shard",
    "Failure",
    "HooktrainError",
    "HooktrainWarning",
    "Loader",
    "LossSum",
    "MemoryEstimate",
    "ModelError",
    "ModelEstimate",
    "NonFiniteError",
    "OptimizerStep",
    "PlacedLoader",
    "PluginError",
    "PluginHost",
    "PluginInfo",
    "PluginsConfig",
    "RanksDisagreeError",
    "Recipe",
    "RecipeError",
    "Scheduler",
    "LoopHookError",
    "ExamplePreview",
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
    "default_cache_dir",
    "padding_batch",
    "did_you_mean",
    "differences",
    "digest",
    "failure_of",
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
        raise old_import("hooktrain", name)
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


if OldModules not in sys.meta_path:
    sys.meta_path.append(OldModules)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
