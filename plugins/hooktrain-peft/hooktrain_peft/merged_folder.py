"""Merged models on disk, compared with the adapter on its base."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch
from hooktrain_hf import (
    build_model,
    first_line,
    is_quantized,
    quiet_transformers,
    replace_folder,
    resolve_location,
    temporary_folder,
    torch_dtype,
    write_model,
)
from torch import Tensor

from hooktrain import CheckpointError, World, local_path
from hooktrain_peft.adapter import load_adapter, on_dense_base
from hooktrain_peft.config import PLAIN_INITS, stored_init
from hooktrain_peft.merge_source import MergeSource
from hooktrain_peft.plain_base import Packing
from hooktrain_peft.weight_merge import merge_adapter

__all__ = ["MergeResult", "write_merged_folder"]

_LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 0.15}
"""Largest difference of logits as a share of their norm, as rounding in every layer causes it. Each layer is compared
in float32 when it is merged; this comparison finds weights that were tied, lost or written wrongly."""
_PROBE = 16
"""Tokens on which logits are compared."""


class MergeResult(NamedTuple):
    """Size, precision and accuracy of a merged model.

    Attributes:
        weights: number of weights of the merged model.
        dtype: their precision.
        difference: norm of the difference of its logits from the adapter's, as a share of theirs.
    """

    weights: int
    dtype: str
    difference: float


def write_merged_folder(source: MergeSource, output: Path) -> MergeResult:
    """Merge and write a model, load it again, and compare its logits with those of the adapter on its base.

    Args:
        source: the adapter to merge and its base.
        output: a folder that does not exist or is empty; it is written only after the comparison.

    Raises:
        CheckpointError: the folder cannot be written, or the logits differ.
        ModelError: base or adapter cannot be loaded, or the method cannot be merged.
    """
    try:
        output = local_path(output).absolute()
    except ValueError as problem:
        raise CheckpointError(f"merge: --output: {problem}") from None
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"merge: given --output '{output}', which exists; give a new folder, or remove that one")
    base, dtype = source.base, source.dtype
    tokenizer = _tokenizer(source)
    packing = Packing(base) if base.quantization and stored_init(source.adapter) in PLAIN_INITS else None
    plain_base = base if packing is None else attrs.evolve(base, quantization=None)
    built = build_model(plain_base, tokenizer, World())
    model = load_adapter(built, source.adapter, None, where="merge", packing=packing)
    del built
    packed = is_quantized(model)
    if packed:
        model.float()  # embeddings and norms, so that it computes with the weights that are merged, not rounded
    expected = _logits(model)
    merged = merge_adapter(on_dense_base(model, model.state_dict()) if packed else model)
    try:
        with temporary_folder(output) as folder:
            with quiet_transformers(is_main=False):
                write_model(merged, merged.state_dict(), folder, torch_dtype(dtype), tokenizer)
                if tokenizer is not None:
                    tokenizer.save_pretrained(folder)
            weights = sum(parameter.numel() for parameter in merged.parameters())
            del model, merged
            gc.collect()  # three models of this size need not be there at once
            plain: dict[str, Any] = {"gguf_file": None, "revision": None, "hf_config_kwargs": {}, "quantization": None}
            plain |= {"name_or_path": str(folder), "weights_dtype": dtype}
            written = attrs.evolve(base, **plain)
            difference = float((_logits(build_model(written, None, World())) - expected).norm() / expected.norm())
            if not difference <= _LIMITS[dtype]:
                raise CheckpointError(
                    f"merge: the logits of the merged model differ from the adapter's by {difference:.1e} of their"
                    f" size, expected at most {_LIMITS[dtype]:.0e} for {dtype}; nothing was written; try --dtype fp32,"
                    " or use the adapter together with its base"
                )
            if output.is_dir():
                output.rmdir()  # it is empty
            replace_folder(folder, output)
    except OSError as problem:
        raise CheckpointError(
            f"merge: '{output}' cannot be written ({first_line(problem)}); give a folder with enough space"
        ) from problem
    return MergeResult(weights, dtype, difference)


def _tokenizer(source: MergeSource) -> Any:
    """Load the adapter's tokenizer, or the base's; None where both have none."""
    import transformers

    places: list[tuple[str, dict[str, Any]]] = [(str(source.adapter), {})]
    location = resolve_location(source.base.name_or_path, source.base.gguf_file, "base", source.base.revision)
    places.append((location.name, location.options))
    if not (source.adapter / "tokenizer_config.json").is_file():
        places.pop(0)
    for name, more in places:
        try:
            with quiet_transformers(is_main=False):
                return transformers.AutoTokenizer.from_pretrained(
                    name, trust_remote_code=source.base.trust_remote_code, **more
                )
        except Exception:  # a base without a tokenizer can be merged too
            continue
    return None


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Return the logits of a few tokens from all over the vocabulary, shape (1, tokens, vocabulary)."""
    model.eval()
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, size - 1, _PROBE).long()[None]  # (1, tokens)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()
