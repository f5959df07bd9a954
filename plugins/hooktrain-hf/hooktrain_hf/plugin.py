"""Plugin ``hf``: implementations of hooks, each of which calls the module that does the work.

Importing transformers and datasets takes seconds, and so only the functions that use them do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from hooktrain import Complaint, RecipeAlias, StrategyDefaults, World, hookimpl, member
from hooktrain_hf import hookspecs
from hooktrain_hf.attention_names import check_attention
from hooktrain_hf.block_settings import check as check_blocks
from hooktrain_hf.deferred_imports import defer_torchao
from hooktrain_hf.export import HFCheckpointConfig, HFCheckpointEngine, write_model
from hooktrain_hf.frozen_model import ModelsConfig
from hooktrain_hf.model import HFModelConfig, build_model
from hooktrain_hf.quantization import check as check_quantization
from hooktrain_hf.source import HFSourceConfig, load_examples
from hooktrain_hf.tokenizer import HFTokenizerConfig, build_tokenizer

if TYPE_CHECKING:
    from datasets import IterableDataset
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hooktrain import Generation, GenerationSettings, Trainer
    from hooktrain_hf.file_rows import FileRows, RowStream, TableRows

__all__ = ["HFPlugin"]

defer_torchao()


class HFPlugin:
    """Registers ``huggingface`` for the kinds tokenizer, model, source and checkpoint."""

    def __init__(self) -> None:
        self._adopted: PreTrainedModel | None = None
        self._released: PreTrainedModel | None = None

    @hookimpl
    def register_hookspecs(self, pluginmanager: pluggy.PluginManager) -> None:
        pluginmanager.add_hookspecs(hookspecs)

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {
            "tokenizer": {"huggingface": HFTokenizerConfig},
            "model": {"huggingface": HFModelConfig},
            "source": {"huggingface": HFSourceConfig},
            "checkpoint": {"huggingface": HFCheckpointConfig},
            "settings": {"models": ModelsConfig},
        }

    @hookimpl
    def register_recipe_aliases(self) -> list[RecipeAlias]:
        theirs = dict.fromkeys(("huggingface_instruct", "huggingface_causal"), "huggingface")
        types = [f"data.{section}[].type" for section in ("sources", "eval_sources")]
        recomputed = RecipeAlias(
            key="model.disable_activation_checkpoint", to="model.activation_checkpointing", negated=True
        )
        return [recomputed, *(RecipeAlias(key=key, to=key, values=theirs) for key in types)]

    @hookimpl
    def check_recipe(self, recipe: Any) -> Iterator[Complaint]:
        if isinstance(recipe.model, HFModelConfig):
            yield from check_attention(recipe.model)
            yield from check_blocks(recipe, recipe.model)
            yield from check_quantization(recipe, recipe.model)
        model = recipe.model.name_or_path if isinstance(recipe.model, HFModelConfig) else ""
        for number, config in enumerate(recipe.checkpoint):
            if model and isinstance(config, HFCheckpointConfig) and config.output_dir:
                folder = os.path.abspath(config.output_dir)
                if os.path.abspath(os.path.expanduser(model)) in (
                    folder,
                    os.path.join(folder, os.path.basename(model)),
                ):
                    yield Complaint(
                        f"checkpoint[{number}].output_dir",
                        f"given '{config.output_dir}', the folder of model.name_or_path; the export would replace the"
                        " model that it was trained from; give another folder",
                    )

    @hookimpl
    def check_files(self, recipe: Any) -> Iterator[Complaint]:
        from hooktrain_hf.path_check import check_paths

        yield from check_paths(recipe)

    @hookimpl
    def make_tokenizer(self, config: Any) -> PreTrainedTokenizerBase | None:
        return build_tokenizer(config) if isinstance(config, HFTokenizerConfig) else None

    @hookimpl
    def make_model(self, config: Any, tokenizer: Any, world: World, recipe: Any) -> PreTrainedModel | None:
        return build_model(config, tokenizer, world, recipe=recipe) if isinstance(config, HFModelConfig) else None

    @hookimpl(trylast=True)
    def describe_model(self, source: str, recipe: Mapping[str, Any], dtype: str | None) -> Mapping[str, Any] | None:
        from hooktrain_hf.saved_model import describe_model

        return describe_model(source, recipe, dtype)

    @hookimpl
    def count_positions(self, config: Any) -> int | None:
        from hooktrain_hf.position_count import count_positions

        return count_positions(config)

    @hookimpl
    def make_meta_model(self, config: Any) -> PreTrainedModel | None:
        from hooktrain_hf.meta_model import make_meta_model

        return make_meta_model(config) if isinstance(config, HFModelConfig) else None

    @hookimpl
    def estimate_activations(self, recipe: Any, model: Any, sequences: int, tokens: int) -> Mapping[str, int] | None:
        from hooktrain_hf.activation_estimate import estimate_activations

        if not isinstance(recipe.model, HFModelConfig):
            return None
        return estimate_activations(recipe, model, sequences, tokens)

    @hookimpl
    def estimate_examples(self, config: Any) -> int | None:
        from hooktrain_hf.example_count import count_examples

        return count_examples(config) if isinstance(config, HFSourceConfig) else None

    @hookimpl
    def adopt_model(self, model: Any, config: Any, tokenizer: Any) -> PreTrainedModel | None:
        from hooktrain_hf.python_model import adopt_model

        self._adopted = adopt_model(model, config, tokenizer)
        return self._adopted

    @hookimpl
    def on_teardown(self) -> None:
        if self._adopted is not None:
            from hooktrain_hf.python_model import release_model

            release_model(self._adopted)
            self._adopted, self._released = None, self._adopted

    @hookimpl
    def on_evaluate_start(self, trainer: Trainer) -> None:
        if self._released is not None:  # evaluated after its run: as in it
            from hooktrain_hf.python_model import activate_model

            activate_model(self._released)

    @hookimpl
    def on_evaluate_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if self._released is not None:
            from hooktrain_hf.python_model import release_model

            release_model(self._released)

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        from hooktrain_hf.compat import unwrap_adapters
        from hooktrain_hf.embeddings import new_token_ids

        model: Any = unwrap_adapters(trainer.strategy.unwrap(trainer.model))
        if ids := new_token_ids(model):
            tokens = ", ".join(map(repr, trainer.tokenizer.convert_ids_to_tokens(list(ids[:5]))))
            more = ", ..." if len(ids) > 5 else ""
            trainer.say(
                f"model: {len(ids):,} tokens of the tokenizer are new to the {type(model).__name__} ({tokens}{more});"
                " their embeddings begin as the mean of the others"
            )

    @hookimpl
    def generate_answers(
        self, trainer: Trainer, model: Any, examples: Any, settings: GenerationSettings, seed: int
    ) -> list[Generation] | None:
        from transformers import PreTrainedModel

        from hooktrain_hf.compat import unwrap_adapters

        module: Any = trainer.strategy.unwrap(model)
        if not isinstance(unwrap_adapters(module), PreTrainedModel):
            return None
        from hooktrain_hf.generation import generations_of

        sharded = bool(member(trainer.strategy, StrategyDefaults, "shards_weights"))
        return generations_of(module, trainer.tokenizer, examples, settings, seed=seed, sharded=sharded)

    @hookimpl
    def stream_answer(
        self, model: Any, tokenizer: Any, messages: Any, settings: GenerationSettings, seed: int
    ) -> Iterator[str] | None:
        from transformers import PreTrainedModel

        from hooktrain_hf.compat import unwrap_adapters

        if not isinstance(unwrap_adapters(model), PreTrainedModel):
            return None
        from hooktrain_hf.generation import stream_answer

        return stream_answer(model, tokenizer, messages, settings, seed)

    @hookimpl
    def load_source(self, config: Any, world: World) -> FileRows | RowStream | TableRows | IterableDataset | None:
        return load_examples(config, world) if isinstance(config, HFSourceConfig) else None

    @hookimpl
    def fingerprint_source(self, config: Any, quick: bool) -> str | None:
        if not isinstance(config, HFSourceConfig):
            return None
        from hooktrain_hf.source_fingerprint import fingerprint

        return fingerprint(config, quick)

    @hookimpl
    def make_checkpoint_engine(self, config: Any, run_dir: Path, world: World) -> HFCheckpointEngine | None:
        return HFCheckpointEngine(config, run_dir, world) if isinstance(config, HFCheckpointConfig) else None

    @hookimpl(trylast=True)
    def export_model(
        self, module: Any, weights: Mapping[str, Tensor], folder: Path, dtype: Any, tokenizer: Any
    ) -> Mapping[str, Tensor] | None:
        from transformers import PreTrainedModel

        return write_model(module, weights, folder, dtype, tokenizer) if isinstance(module, PreTrainedModel) else None
