"""Estimates of an epoch's size and of a loss's memory for ``hooktrain plan``, without long work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from hooktrain import DataEstimate, HooktrainError, Recipe, RecipeError, World, default_cache_dir
from hooktrain_sft.compat import head_weight
from hooktrain_sft.config import SourceOptions, TokenDataConfig, with_text_unit
from hooktrain_sft.data.check_examples import check_examples
from hooktrain_sft.data.fingerprint import SequenceFingerprints
from hooktrain_sft.data.local_source import is_local
from hooktrain_sft.data.prepare import length_limit, prepare_data
from hooktrain_sft.data.row_cache import SequenceCache
from hooktrain_sft.loss.chunked_linear import automatic_chunk_size
from hooktrain_sft.loss.model_inspection import innermost

__all__ = ["data", "logits"]


def data(config: TokenDataConfig, recipe: Recipe, world: World, hooks: Any) -> DataEstimate:
    """Return exact figures where all examples are cached; otherwise the number of examples, if it is known quickly.

    Raises:
        RecipeError: no format fits the first example of a source on this machine.
    """
    if complaints := [*check_examples(config, world, hooks)]:
        raise RecipeError(complaints)
    tokenizer = None
    named = (recipe.tokenizer, *config.sources, *config.eval_sources)
    if all(map(is_local, named)):  # otherwise it might be downloaded
        tokenizer = hooks.make_tokenizer(config=recipe.tokenizer, world=world, recipe=recipe)
    positions = hooks.count_positions(config=recipe.model)
    if tokenizer is not None and _is_cached(config, tokenizer, world, hooks):
        return _prepared(config, tokenizer, world, hooks, positions)
    longest = config.max_length if tokenizer is None else length_limit(tokenizer, config, positions)
    longest = longest and longest * max(1, config.together)
    examples, why = None, "tokens are not known before `hooktrain data` has prepared them"
    try:
        counts = [hooks.estimate_examples(config=with_text_unit(source, config)) for source in config.sources]
        if all(count is not None for count in counts):
            held = config.held_out
            examples = max(1, sum(counts) - held) if isinstance(held, int) else round(sum(counts) * (1 - held))
    except HooktrainError as problem:
        why = f"unknown before they are prepared: {problem}"
    if examples is not None and config.pack_samples:
        why = f"{examples:,} examples in the files; packs are not known before `hooktrain data` has prepared them"
        examples = None
    elif examples is not None:
        why = f"examples counted in the files; {why}"
    return DataEstimate(sequences=examples, longest=longest, how=why)


def _is_cached(config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> bool:
    if not config.use_data_cache or any(SourceOptions.of(source).streaming for source in config.sources):
        return False
    cache = SequenceCache(config.cache_dir or default_cache_dir())
    fingerprints = SequenceFingerprints(config, tokenizer, world, hooks)
    for source in (*config.sources, *config.eval_sources):
        fingerprint, _ = fingerprints.of(source, quick=True)
        if fingerprint is None or not cache.has(fingerprint):
            return False
    return True


def _prepared(config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any, positions: int | None) -> DataEstimate:
    made = prepare_data(config, tokenizer, world, hooks, positions)
    facts: Mapping[str, Any] = made.report["train"]
    sequences: Any = made.train
    room = int(made.report["max_length"]) * max(1, config.together)
    dropped = facts["rows_in"] - facts["rows_kept"]
    how = "from the cached sequences" + (
        f"; {dropped:,} of {facts['rows_in']:,} examples are dropped" if dropped else ""
    )
    return DataEstimate(
        sequences=len(sequences),
        tokens=int(sequences.lengths.sum()),
        supervised=int(facts["tokens_trained"]),
        longest=room if config.pack_samples else int(sequences.lengths.max()),
        how=how,
    )


@runtime_checkable
class _WithDevice(Protocol):
    """A strategy config that names its device."""

    device: str


def logits(recipe: Recipe, model: Any, tokens: int) -> Mapping[str, int]:
    """Return the bytes of a chunk's logits, of the hidden states' gradient, and of the head's where it is trained.

    Args:
        recipe: with this plugin's loss.
        model: the meta model.
        tokens: of a micro-batch, all of which may be trained.
    """
    weight = head_weight(innermost(model))
    if weight is None:
        return {}
    vocabulary, width = weight.shape
    device = recipe.strategy.device if isinstance(recipe.strategy, _WithDevice) else "auto"
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    chunk = recipe.loss.chunk_size or automatic_chunk_size(vocabulary, "cuda" if on_gpu else "cpu")
    made = {"logits": 2 * min(chunk, tokens) * vocabulary * 4, "gradient of hidden states": tokens * width * 4}
    if weight.requires_grad:
        made["gradient of the head"] = vocabulary * width * 4
    return made
