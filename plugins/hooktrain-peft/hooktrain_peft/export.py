"""Exports of adapters and of merged models through the checkpoint engine ``huggingface``."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain_hf import is_quantized, write_model

from hooktrain import CheckpointError, ModelError
from hooktrain_peft.adapter import ADAPTER_WEIGHTS, on_dense_base, quiet_peft
from hooktrain_peft.compat import kept_settings
from hooktrain_peft.config import ADAPTER_FILES
from hooktrain_peft.weight_merge import copy_for_merge, merge_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

__all__ = ["write_adapter", "write_merged"]


def write_adapter(
    model: PeftModel,
    weights: Mapping[str, Tensor],
    folder: Path,
    dtype: Any,
    keep: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` for ``PeftModel.from_pretrained``.

    Other adapters of the model, which are not trained, are written to subfolders of their names.

    Args:
        model: base and adapter; it is not changed.
        weights: its weights, complete, on the host.
        folder: an existing folder.
        dtype: torch dtype of the written weights, or None for the one that they have.
        keep: folders of further adapters by their names, copied to subfolders.

    Returns:
        The written weights of the adapter that is trained.
    """
    active = model.active_adapter
    for name in model.peft_config.keys() - {active}:
        (folder / name).mkdir(exist_ok=True)
        _write_one(model, name, weights, folder / name, dtype)
    for name, source in (keep or {}).items():
        (folder / name).mkdir(exist_ok=True)
        for file in ADAPTER_FILES:
            shutil.copyfile(Path(source).expanduser() / file, folder / name / file)
    return _write_one(model, active, weights, folder, dtype)


def _write_one(
    model: PeftModel, name: str, weights: Mapping[str, Tensor], folder: Path, dtype: Any
) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    with quiet_peft(), kept_settings(model):
        # embeddings of new tokens are part of the adapter, all others stay with the base
        found = get_peft_model_state_dict(
            model, state_dict=dict(weights), adapter_name=name, save_embedding_layers=False
        )
        config = copy.deepcopy(model.peft_config[name])
    written: dict[str, Tensor] = {}
    places: set[int] = set()
    for key, tensor in found.items():
        kept = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        # the file format does not support shared memory
        written[key] = kept.clone() if kept.data_ptr() in places else kept
        places.add(kept.data_ptr())
    save_file(written, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(str(folder))
    return written


def write_merged(
    model: PeftModel, weights: Mapping[str, Tensor], folder: Path, dtype: Any, tokenizer: Any
) -> dict[str, Tensor]:
    """Write a complete model with the adapter merged in, for ``AutoModelForCausalLM.from_pretrained``.

    Args:
        model: base and adapter; it is not changed.
        weights: its weights, complete, on the host.
        folder: an existing folder.
        dtype: torch dtype of the written weights, or None for the one that they have, the embedding's where the base
            is quantized. Such a base is dequantized once, in float32, and merged before its weights are rounded.
        tokenizer: None, or the tokenizer that was trained with.

    Returns:
        The written weights.

    Raises:
        CheckpointError: the method cannot be merged.
    """
    packed = is_quantized(model)
    base: Any = model.get_base_model()
    dtype = base.get_input_embeddings().weight.dtype if packed and dtype is None else dtype
    try:
        merged = merge_adapter(on_dense_base(model, weights) if packed else copy_for_merge(model, weights))
    except ModelError as problem:
        raise CheckpointError(f"peft.merge_on_export: {problem}") from problem
    return write_model(merged, merged.state_dict(), folder, dtype, tokenizer)
