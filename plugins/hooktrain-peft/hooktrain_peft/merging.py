"""Merging an adapter into its base on disk, and proving the result."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch
from hooktrain_hf.export import write_model
from hooktrain_hf.location import first_line, resolve
from hooktrain_hf.model import build_model, torch_dtype
from hooktrain_hf.quiet import quiet_transformers
from hooktrain_hf.swap import replace_folder, temporary_folder
from torch import Tensor

from hooktrain import CheckpointError, World
from hooktrain_peft.adapt import load_adapter
from hooktrain_peft.finding import Found
from hooktrain_peft.merge import merge

__all__ = ["Merged", "merge_to"]

_LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 0.15}
"""How far logits may differ, as a share of their norm: what rounding in every layer comes to. That a layer computes the
same is proven in float32 as it is merged; this finds what was tied, lost or written wrongly."""
_PROBE = 16
"""Tokens on which logits are compared."""


class Merged(NamedTuple):
    """What came of it.

    Attributes:
        weights: how many numbers the merged model has.
        dtype: their precision.
        difference: norm of the difference of its logits from the adapter's, as a share of theirs.
    """

    weights: int
    dtype: str
    difference: float


def merge_to(found: Found, output: Path) -> Merged:
    """Merge, write, load what was written, and compare its logits with those of the adapter on its base.

    Args:
        found: what is to be merged.
        output: a folder that does not exist or is empty; nothing is there before all is proven.

    Raises:
        CheckpointError: the folder cannot be had, or the merged model is not what the adapter on its base is.
        ModelError: base or adapter cannot be loaded, or the method cannot be merged.
    """
    output = output.expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"merge: given --output '{output}', which exists; give a new folder, or remove that one")
    base, dtype = found.base, found.base.weights_dtype
    tokenizer = _tokenizer(found)
    model = load_adapter(build_model(base, tokenizer, World()), found.adapter, None, where="merge")
    expected = _logits(model)
    merged = merge(model)
    try:
        with temporary_folder(output) as folder:
            with quiet_transformers(is_main=False):
                write_model(merged, merged.state_dict(), folder, torch_dtype(dtype), tokenizer)
                if tokenizer is not None:
                    tokenizer.save_pretrained(folder)
            weights = sum(parameter.numel() for parameter in merged.parameters())
            del model, merged
            gc.collect()  # three models of this size need not be there at once
            written = attrs.evolve(base, name_or_path=str(folder), gguf_file=None, hf_config_kwargs={})
            difference = float((_logits(build_model(written, None, World())) - expected).norm() / expected.norm())
            if not difference <= _LIMITS[dtype]:
                raise CheckpointError(
                    f"merge: the logits of the merged model differ from the adapter's by {difference:.1e} of their"
                    f" size, expected at most {_LIMITS[dtype]:.0e} for {dtype}; nothing was written; try --dtype fp32,"
                    " or use the adapter as it is"
                )
            if output.is_dir():
                output.rmdir()  # empty, and so that it is no folder to be kept
            replace_folder(folder, output)
    except OSError as problem:
        raise CheckpointError(
            f"merge: '{output}' cannot be written ({first_line(problem)}); give a folder with enough space"
        ) from problem
    return Merged(weights, dtype, difference)


def _tokenizer(found: Found) -> Any:
    """The adapter's tokenizer, or the base's, or None."""
    import transformers

    places: list[tuple[str, dict[str, Any]]] = [(str(found.adapter), {})]
    location = resolve(found.base.name_or_path, found.base.gguf_file, "base")
    places.append((location.name, {"gguf_file": location.gguf_file} if location.gguf_file else {}))
    if not (found.adapter / "tokenizer_config.json").is_file():
        places.pop(0)
    for name, more in places:
        try:
            with quiet_transformers(is_main=False):
                return transformers.AutoTokenizer.from_pretrained(
                    name, trust_remote_code=found.base.trust_remote_code, **more
                )
        except Exception:  # a base without a tokenizer can be merged all the same
            continue
    return None


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Logits of a few tokens from all over the vocabulary, shape (1, tokens, vocabulary)."""
    model.eval()
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, size - 1, _PROBE).long()[None]  # (1, tokens)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()
