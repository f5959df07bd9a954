"""Number of tokens for which a model has positions, from its config."""

from __future__ import annotations

import sys
from typing import Any

from hooktrain import ModelError
from hooktrain_hf.compat import counts_positions, model_class, position_limit, unwrap_adapters
from hooktrain_hf.gguf_cache import gguf_read_once
from hooktrain_hf.model import HFModelConfig, load_config, location_of
from hooktrain_hf.verbosity import quiet_transformers

__all__ = ["count_positions", "positions_of"]


def count_positions(config: Any) -> int | None:
    """Return how many tokens a recipe's model, or a model passed from Python, can tell apart by their positions.

    Returns:
        None for a model without a limit, such as one with rotary embeddings; where the config is not on this machine,
        is broken, which the model's own loading reports; and for models of others.
    """
    if isinstance(config, HFModelConfig):
        try:
            location = location_of(config)
            with quiet_transformers(), gguf_read_once(location):
                return positions_of(load_config(config, location, offline=True))
        except ModelError:
            return None
    if "transformers" not in sys.modules:
        return None
    from transformers import PreTrainedModel

    inner = unwrap_adapters(config)
    return positions_of(inner.config) if isinstance(inner, PreTrainedModel) else None


def positions_of(hf_config: Any) -> int | None:
    """Return how many tokens a model of this config has positions for; None where nothing limits them."""
    limit = position_limit(hf_config)
    if limit is None:
        return None
    kind = model_class(hf_config)
    own = vars(sys.modules[kind.__module__]).values() if kind is not None else ()
    if any(isinstance(each, type) and counts_positions(each) for each in own):
        limit -= hf_config.pad_token_id + 1  # the first token's position
    return max(limit, 1)
