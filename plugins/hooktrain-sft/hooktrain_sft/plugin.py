"""The plugin: the trainer types ``sft`` and ``causal`` with their data and loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

from hooktrain import Data, TrainerType, World, hookimpl
from hooktrain_sft import hookspecs
from hooktrain_sft.config import CausalDataConfig, SFTDataConfig, SFTLossConfig, TokenDataConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hooktrain_sft.formats import Format
    from hooktrain_sft.packing import Bins

__all__ = ["SFTPlugin"]


class SFTPlugin:
    """Chat rendering, label masks, packing, batches and the loss of supervised fine-tuning."""

    @hookimpl
    def register_hookspecs(self, pluginmanager: pluggy.PluginManager) -> None:
        pluginmanager.add_hookspecs(hookspecs)

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"data": {"sft": SFTDataConfig, "causal": CausalDataConfig}, "loss": {"sft": SFTLossConfig}}

    @hookimpl
    def register_trainer_types(self) -> Mapping[str, TrainerType]:
        parts: dict[str, Sequence[str]] = {
            "tokenizer": ("huggingface", "*"),
            "source": ("huggingface", "*"),
            "model": ("huggingface", "liger", "*"),
            "optimizer": ("adamw", "*"),
            "scheduler": ("cosine", "*"),
            "strategy": ("torch", "deepspeed", "*"),
            "loss": ("sft", "*"),
            "checkpoint": ("full", "huggingface", "*"),
        }
        return {
            "sft": TrainerType({**parts, "data": ("sft",)}, "supervised fine-tuning on conversations"),
            "causal": TrainerType({**parts, "data": ("causal",)}, "next-token training on plain text"),
        }

    # imports that need torch or transformers wait until they are used: listings load this module too

    @hookimpl
    def make_data(self, config: Any, tokenizer: Any, world: World, hooks: Any) -> Data | None:
        if not isinstance(config, TokenDataConfig):
            return None
        from hooktrain_sft.prepare import prepare_data

        return prepare_data(config, tokenizer, world, hooks)

    @hookimpl
    def make_loss(self, config: Any) -> Callable[..., Any] | None:
        if not isinstance(config, SFTLossConfig):
            return None
        from hooktrain_sft.loss import SFTLoss

        return SFTLoss(config)

    @hookimpl(trylast=True)
    def register_formats(self, source: Any, config: Any) -> Mapping[str, Format]:
        from hooktrain_sft.convert import own_formats

        return own_formats(source, config)

    @hookimpl(trylast=True)
    def render_row(self, row: Any, tokenizer: Any, config: Any) -> Any:
        from hooktrain_sft.render import render_chat, render_text

        if isinstance(config, SFTDataConfig):
            return render_chat(row, tokenizer, config)
        if isinstance(config, CausalDataConfig):
            return render_text(row, tokenizer, config)
        return None

    @hookimpl(trylast=True)
    def pack_rows(self, lengths: NDArray[np.int64], max_length: int) -> Bins:
        from hooktrain_sft.packing import best_fit_decreasing

        return best_fit_decreasing(lengths, max_length)
