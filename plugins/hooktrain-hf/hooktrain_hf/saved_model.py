"""Sections of a recipe that load a saved model, as ``hooktrain chat`` and ``hooktrain evaluate`` take one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooktrain_hf.compat import config_dtype
from hooktrain_hf.location import Location, resolve_location
from hooktrain_hf.model import torch_dtype
from hooktrain_hf.verbosity import quiet_transformers

_KEPT = ("weights_dtype", "dtype", "attn_implementation", "trust_remote_code", "type")
"""Keys of the run's model that say how a model is loaded, and not which."""
_PLACE = ("name_or_path", "gguf_file", "revision")


def describe_model(source: str, recipe: Mapping[str, Any], dtype: str | None) -> Mapping[str, Any] | None:
    """Return the sections ``model`` and ``tokenizer`` for a folder, a GGUF file or a hub name; None for another folder.

    Args:
        source: as the user wrote it.
        recipe: that of the run that it is from, or an empty one; its precision and attention are kept.
        dtype: precision to load the weights in, or None.

    Raises:
        ModelError: it is a path that does not exist, or no possible name.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        return None
    known = section_of(recipe, "model")
    location = resolve_location(source, None, "model")
    model = {name: known[name] for name in _KEPT if name in known} | {"name_or_path": source}
    model["weights_dtype"] = dtype or model.get("weights_dtype") or stored_dtype(location, model)
    own = not path.is_dir() or (path / "tokenizer_config.json").is_file()
    return {"model": model, "tokenizer": tokenizer_of(recipe, source if own else None)}


def section_of(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a recipe with its type, also where it is written for short."""
    given = recipe.get(name)
    written = given if isinstance(given, Mapping) else {"name_or_path": given} if given else {}
    return {"type": "huggingface", **written}


def tokenizer_of(recipe: Mapping[str, Any], source: str | None) -> dict[str, Any]:
    """Return the section of a tokenizer that is in another place than the recipe says, or None for that.

    What the recipe changes in it, such as the chat template, stays: an export has these changes already.
    """
    known = section_of(recipe, "tokenizer")
    if source is None:
        return known
    return {key: value for key, value in known.items() if key not in _PLACE} | {"name_or_path": source}


def stored_dtype(location: Location, model: Mapping[str, Any]) -> str:
    """Return the precision that a model is stored in, as recipes name it; ``fp32`` where it is another, or packed.

    Args:
        location: of the model.
        model: the recipe's section, which may say that code which comes with the model is trusted.
    """
    import transformers

    if location.gguf_file:
        return "fp32"
    try:
        with quiet_transformers(is_main=False):
            config = transformers.AutoConfig.from_pretrained(
                location.name, trust_remote_code=bool(model.get("trust_remote_code")), **location.options
            )
    except Exception:  # building the model fails too, with a better error
        return "fp32"
    known = {str(torch_dtype(name)).removeprefix("torch."): name for name in ("fp32", "bf16", "fp16")}
    return known.get(config_dtype(config), "fp32")
