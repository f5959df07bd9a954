"""What an epoch holds and what a loss takes, told without preparing anything, for ``hooktrain plan``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hooktrain import DataEstimate, HooktrainError, Recipe, World
from hooktrain_sft.config import TokenDataConfig
from hooktrain_sft.data.fingerprint import row_fingerprint
from hooktrain_sft.data.prepare import prepare_data, row_limit
from hooktrain_sft.data.row_cache import RowCache, default_cache_dir
from hooktrain_sft.loss.chunked_linear import automatic_chunk_size

__all__ = ["data", "logits"]


def data(config: TokenDataConfig, recipe: Recipe, world: World, hooks: Any) -> DataEstimate:
    """Exact figures where all rows are in the cache; else the sources' rows, if their files say so quickly.

    Raises:
        HooktrainError: why not even those are known.
    """
    tokenizer = None
    names = [
        getattr(recipe.tokenizer, "name_or_path", None),
        *(_name(s) for s in (*config.sources, *config.eval_sources)),
    ]
    if all(name is not None and _is_here(str(name)) for name in names):  # else the network would be asked
        tokenizer = hooks.make_tokenizer(config=recipe.tokenizer)
    if tokenizer is not None and _is_cached(config, tokenizer, world, hooks):
        return _prepared(config, tokenizer, world, hooks)
    longest = config.max_length or (None if tokenizer is None else row_limit(tokenizer))
    rows, why = None, "tokens are not known before `hooktrain data` has prepared them"
    try:
        counts = [hooks.estimate_examples(config=source) for source in config.sources]
        if all(count is not None for count in counts):
            rows = round(sum(counts) * config.train_eval_split[0])
    except HooktrainError as problem:
        why = f"unknown before they are prepared: {problem}"
    if rows is not None and config.pack_samples:
        rows, why = None, f"{rows:,} rows in the files; packs are not known before `hooktrain data` has prepared them"
    elif rows is not None:
        why = f"rows counted in the files; {why}"
    return DataEstimate(sequences=rows, longest=longest, how=why)


def _name(source: Any) -> str | None:
    """What a source reads, without the split that may stand behind it."""
    name = getattr(source, "name_or_path", None)
    return None if name is None else name if _is_here(name) else str(name).rpartition(":")[0] or str(name)


def _is_here(name: str) -> bool:
    path = Path(name).expanduser()
    return path.exists() or any(mark in name for mark in "*?[")


def _is_cached(config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> bool:
    if not config.use_data_cache or any(getattr(source, "streaming", False) for source in config.sources):
        return False
    cache = RowCache(config.cache_dir or default_cache_dir())
    for source in (*config.sources, *config.eval_sources):
        fingerprint, _ = row_fingerprint(source, config, tokenizer, world, hooks)
        if fingerprint is None or not cache.has(fingerprint):
            return False
    return True


def _prepared(config: TokenDataConfig, tokenizer: Any, world: World, hooks: Any) -> DataEstimate:
    made = prepare_data(config, tokenizer, world, hooks)
    facts: Mapping[str, Any] = made.report["train"]
    rows: Any = made.train
    return DataEstimate(
        sequences=len(rows),
        tokens=int(rows.lengths.sum()),
        supervised=int(facts["tokens_trained"]),
        longest=int(made.report["max_length"]) if config.pack_samples else int(rows.lengths.max()),
        how="from the rows that are in the cache",
    )


def logits(recipe: Recipe, model: Any, tokens: int) -> Mapping[str, int]:
    """Logits of a chunk, the gradient of what the head reads, and that of the head where it is trained.

    Args:
        recipe: with this plugin's loss.
        model: the sketch of the model.
        tokens: of a micro-batch, all of them being supervised at most.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    get: Any = getattr(base, "get_output_embeddings", lambda: None)
    weight = getattr(get(), "weight", None)
    if weight is None:
        return {}
    vocabulary, width = weight.shape
    device = str(getattr(recipe.strategy, "device", "auto"))
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    chunk = recipe.loss.chunk_size or automatic_chunk_size(vocabulary, "cuda" if on_gpu else "cpu")
    made = {"logits": 2 * min(chunk, tokens) * vocabulary * 4, "gradient of hidden states": tokens * width * 4}
    if weight.requires_grad:
        made["gradient of the head"] = vocabulary * width * 4
    return made
