"""Sections of a recipe that load a saved adapter on its base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooktrain_hf import first_line, resolve_location, section_of, stored_dtype, tokenizer_of

from hooktrain import CheckpointError, ModelError
from hooktrain_peft.adapter import ADAPTER_CONFIG

__all__ = ["describe_adapter"]

_BASE = "write the base with -o model.name_or_path=..."


def describe_adapter(folder: Path, recipe: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """Return the sections ``model``, ``tokenizer`` and ``peft`` for an adapter.

    Args:
        folder: of the adapter.
        recipe: that of the run that trained it, whose model is the base; or one with the base that the user named; or
            an empty one, and the base is the one that the adapter names.
        dtype: precision to load the base in; by default that of the recipe, or the one that the base is stored in.

    Raises:
        CheckpointError: the adapter's config cannot be read.
        ModelError: the base is not named, or cannot be found.
    """
    model = section_of(recipe, "model")
    if not model.get("name_or_path"):
        model |= _base_of(folder)
    if not model.get("name_or_path"):
        raise ModelError(f"'{folder / ADAPTER_CONFIG}' does not name the adapter's base; {_BASE}")
    try:
        location = resolve_location(model["name_or_path"], model.get("gguf_file"), "base", model.get("revision"))
    except ModelError as problem:
        raise ModelError(f"the base of '{folder}' cannot be found: {problem}; or {_BASE}") from None
    if not model.get("quantization"):  # a quantized base is packed from the weights that the run packed it from
        model["weights_dtype"] = dtype or model.get("weights_dtype") or stored_dtype(location, model)
    own = (folder / "tokenizer_config.json").is_file()
    tokenizer = tokenizer_of(recipe, str(folder) if own else None)
    return {"model": model, "tokenizer": tokenizer, "peft": {"adapter": str(folder)}}


def _base_of(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        named = {"name_or_path": config.get("base_model_name_or_path"), "revision": config.get("revision")}
    except (OSError, ValueError, AttributeError) as problem:
        raise CheckpointError(f"'{folder / ADAPTER_CONFIG}' cannot be read ({first_line(problem)})") from problem
    return {key: value for key, value in named.items() if value} if named["name_or_path"] else {}
