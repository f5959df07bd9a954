"""hooktrain: a post-training engine for language models in which every moving part is a pluggy hook.

This is the whole public interface. Names are loaded when they are first used, so that importing the package costs
nothing and ``hooktrain --help`` needs no torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hooktrain import exports
from hooktrain.renamed import OldModules

if TYPE_CHECKING:
    from hooktrain.cache_folder import default_cache_dir as default_cache_dir
    from hooktrain.compare import differences as differences
    from hooktrain.compare import digest as digest
    from hooktrain.config import Bytes as Bytes
    from hooktrain.config import CheckpointConfig as CheckpointConfig
    from hooktrain.config import Seconds as Seconds
    from hooktrain.config import above as above
    from hooktrain.config import at_least as at_least
    from hooktrain.config import between as between
    from hooktrain.config import field as field
    from hooktrain.config import local_path as local_path
    from hooktrain.config import one_of as one_of
    from hooktrain.config import part as part
    from hooktrain.config import structure as structure
    from hooktrain.config import unstructure as unstructure
    from hooktrain.errors import CheckpointError as CheckpointError
    from hooktrain.errors import Complaint as Complaint
    from hooktrain.errors import DataError as DataError
    from hooktrain.errors import Failure as Failure
    from hooktrain.errors import HangError as HangError
    from hooktrain.errors import HooktrainError as HooktrainError
    from hooktrain.errors import HooktrainWarning as HooktrainWarning
    from hooktrain.errors import LoopHookError as LoopHookError
    from hooktrain.errors import ModelError as ModelError
    from hooktrain.errors import NonFiniteError as NonFiniteError
    from hooktrain.errors import PluginError as PluginError
    from hooktrain.errors import RanksDisagreeError as RanksDisagreeError
    from hooktrain.errors import RecipeError as RecipeError
    from hooktrain.errors import did_you_mean as did_you_mean
    from hooktrain.errors import failure_of as failure_of
    from hooktrain.exports import import_quietly as import_quietly
    from hooktrain.exports import lazy_exports as lazy_exports
    from hooktrain.markers import hookimpl as hookimpl
    from hooktrain.markers import hookspec as hookspec
    from hooktrain.masking import mask_text as mask_text
    from hooktrain.masking import masked as masked
    from hooktrain.plugin.config import PluginsConfig as PluginsConfig
    from hooktrain.plugin.discovery import require_trusted as require_trusted
    from hooktrain.plugin.info import API_VERSION as API_VERSION
    from hooktrain.plugin.info import PluginInfo as PluginInfo
    from hooktrain.plugin.manager import PluginHost as PluginHost
    from hooktrain.protocols import CheckpointEngine as CheckpointEngine
    from hooktrain.protocols import CheckpointEngineDefaults as CheckpointEngineDefaults
    from hooktrain.protocols import ConfigDefaults as ConfigDefaults
    from hooktrain.protocols import DatasetDefaults as DatasetDefaults
    from hooktrain.protocols import Loader as Loader
    from hooktrain.protocols import LoaderDefaults as LoaderDefaults
    from hooktrain.protocols import PlacedLoader as PlacedLoader
    from hooktrain.protocols import Scheduler as Scheduler
    from hooktrain.protocols import SchedulerDefaults as SchedulerDefaults
    from hooktrain.protocols import Strategy as Strategy
    from hooktrain.protocols import StrategyDefaults as StrategyDefaults
    from hooktrain.protocols import member as member
    from hooktrain.recipe.aliases import RecipeAlias as RecipeAlias
    from hooktrain.recipe.dialects import Collector as Collector
    from hooktrain.recipe.dialects import Dialect as Dialect
    from hooktrain.recipe.dialects import Ignored as Ignored
    from hooktrain.recipe.dialects import Translated as Translated
    from hooktrain.recipe.dialects import Translation as Translation
    from hooktrain.recipe.dialects import Unsupported as Unsupported
    from hooktrain.recipe.flat_values import flat_values as flat_values
    from hooktrain.recipe.model import Recipe as Recipe
    from hooktrain.recipe.yaml_reader import read_recipe as read_recipe
    from hooktrain.runs.files import RunFiles as RunFiles
    from hooktrain.runs.files import read_run as read_run
    from hooktrain.runs.files import recipe_differences as recipe_differences
    from hooktrain.training.batch_keys import document_keys as document_keys
    from hooktrain.training.batch_keys import padding_batch as padding_batch
    from hooktrain.training.dataloader import WindowLoader as WindowLoader
    from hooktrain.training.export_weights import save_exports_within as save_exports_within
    from hooktrain.training.extra_models import TrainedModels as TrainedModels
    from hooktrain.training.intervals import evaluation_steps as evaluation_steps
    from hooktrain.training.load import load as load
    from hooktrain.training.lr_find import LearningRates as LearningRates
    from hooktrain.training.lr_find import find_learning_rate as find_learning_rate
    from hooktrain.training.resume_check import provenance as provenance
    from hooktrain.training.resume_check import require_same as require_same
    from hooktrain.training.trainer import Trainer as Trainer
    from hooktrain.types import Batch as Batch
    from hooktrain.types import BatchCounts as BatchCounts
    from hooktrain.types import Data as Data
    from hooktrain.types import DataEstimate as DataEstimate
    from hooktrain.types import Dataset as Dataset
    from hooktrain.types import ExamplePreview as ExamplePreview
    from hooktrain.types import ExtraModel as ExtraModel
    from hooktrain.types import LossSum as LossSum
    from hooktrain.types import MemoryEstimate as MemoryEstimate
    from hooktrain.types import ModelEstimate as ModelEstimate
    from hooktrain.types import OptimizerStep as OptimizerStep
    from hooktrain.types import PerSecond as PerSecond
    from hooktrain.types import Shard as Shard
    from hooktrain.types import StepOutput as StepOutput
    from hooktrain.types import StoredTensors as StoredTensors
    from hooktrain.types import TrainedState as TrainedState
    from hooktrain.types import TrainerState as TrainerState
    from hooktrain.types import TrainerType as TrainerType
    from hooktrain.types import World as World
    from hooktrain.watched_metric import is_better as is_better
    from hooktrain.watched_metric import watched_value as watched_value

__getattr__, __dir__, __all__ = exports.lazy_exports(__name__, __file__)

if OldModules not in sys.meta_path:
    sys.meta_path.append(OldModules)
