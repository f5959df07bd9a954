"""NEFTune: noise on the embeddings while training (Jain et al., 2023, arXiv 2310.05914)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import ModelError, PluginInfo, at_least, field, hookimpl
from hooktrain_sft.compat import input_embeddings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from hooktrain import Batch, Trainer

__all__ = ["NEFTunePlugin", "NEFTuneSettings", "document_lengths"]


@attrs.frozen(kw_only=True)
class NEFTuneSettings:
    """Noise on the embeddings in training, which makes a model repeat its training data less."""

    noise_alpha: float = field(default=0.0, validator=at_least(0), aliases=("alpha",))
    """Uniform noise of at most ``noise_alpha / sqrt(tokens of the document * hidden size)`` is added; 5 to 15 is usual,
    0 adds none."""


class NEFTunePlugin:
    """Adds noise to the output of the embedding in training micro-batches.

    The noise depends only on the run's seed, the rank, the step and the micro-batch's number in it. So a resumed run
    repeats it, and dropout draws the same numbers with and without it.
    """

    hooktrain_plugin = PluginInfo(
        changes_gradients=True, active_when=lambda recipe: recipe.settings["neftune"].noise_alpha > 0
    )

    def __init__(self) -> None:
        self._step, self._number = -1, 0
        self._hook: Any = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"neftune": NEFTuneSettings}}

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        self._alpha = trainer.recipe.settings["neftune"].noise_alpha
        self._embedding = _embedding(trainer.model)

    @hookimpl
    def on_microbatch_start(self, trainer: Trainer, batch: Batch) -> None:
        self._number = self._number + 1 if self._step == trainer.global_step else 0
        self._step = trainer.global_step
        place = f"{trainer.recipe.seed} {trainer.world.rank} {self._step} {self._number}"
        seed = int.from_bytes(hashlib.blake2b(place.encode(), digest_size=7).digest(), "big")
        lengths, alpha = document_lengths(batch), self._alpha

        def add_noise(module: Module, args: Any, embedded: Tensor) -> Tensor:
            return noisy(embedded, lengths, alpha, seed)

        self._hook = self._embedding.register_forward_hook(add_noise)

    @hookimpl
    def on_microbatch_end(self) -> None:
        self._remove()

    @hookimpl
    def on_teardown(self) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def document_lengths(batch: Batch) -> Tensor:
    """Return the number of tokens in each token's document, shape (sequences, tokens), without a device sync.

    A document begins where ``position_ids`` do not continue. Without position ids each sequence is a document, of the
    tokens that its ``attention_mask`` keeps.
    """
    import torch

    ids, positions, mask = batch["input_ids"], batch.get("position_ids"), batch.get("attention_mask")
    if positions is None or positions.shape != ids.shape:
        real = ids.new_full((len(ids), 1), ids.shape[1]) if mask is None else mask.sum(1, keepdim=True)
        expanded: Tensor = real.expand_as(ids)
        return expanded
    begins = torch.ones_like(positions)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    document = begins.reshape(-1).cumsum(0) - 1
    lengths = torch.zeros_like(document).scatter_add_(0, document, torch.ones_like(document))
    return lengths[document].view_as(ids)


def noisy(embedded: Tensor, lengths: Tensor, alpha: float, seed: int) -> Tensor:
    """Return embeddings of shape (sequences, tokens, hidden) with uniform noise, smaller for longer documents."""
    import torch

    if lengths.numel() != embedded.shape[:-1].numel():
        raise ModelError(
            f"neftune: the embedding gave {tuple(embedded.shape[:-1])} tokens for a batch of {tuple(lengths.shape)},"
            " expected one for each; remove neftune from the recipe"
        )
    generator = torch.Generator(embedded.device).manual_seed(seed)
    noise = torch.empty_like(embedded).uniform_(-1, 1, generator=generator)
    scale = alpha / (lengths * embedded.shape[-1]).to(torch.float32).sqrt()
    return embedded + noise * scale.view(*embedded.shape[:-1], 1).to(embedded.dtype)


def _embedding(model: Module) -> Module:
    from hooktrain_sft.loss.model_inspection import innermost

    inner = innermost(model)
    embedding = input_embeddings(inner)
    if embedding is None:
        raise ModelError(
            f"neftune: {type(inner).__name__} has no get_input_embeddings(), expected a transformers model; remove"
            " neftune from the recipe"
        )
    return embedding
