"""Adapters to merge and the bases that they belong to, found in folders and runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hooktrain_hf import HFModelConfig, Location, first_line, quiet_transformers, resolve_location, torch_dtype

from hooktrain import CheckpointError, Complaint, ModelError, RecipeError, read_recipe, structure
from hooktrain_peft.adapter import ADAPTER_CONFIG, is_adapter
from hooktrain_peft.compat import stored_dtype

__all__ = ["MergeSource", "find_merge_source"]


class MergeSource(NamedTuple):
    """An adapter to merge and its base.

    Attributes:
        adapter: its folder.
        base: the model that it belongs to, as it is loaded.
        dtype: the precision of the merged weights: ``fp32``, ``bf16`` or ``fp16``.
    """

    adapter: Path
    base: HFModelConfig
    dtype: str


def find_merge_source(
    source: Path, base: str | None, dtype: str | None, trust_remote_code: bool = False
) -> MergeSource:
    """Find an adapter and the base that it was trained on.

    Args:
        source: a folder with an adapter, or a run's folder, whose newest export is used.
        base: the base, instead of the one that the run or the adapter names.
        dtype: precision of the merged weights; by default the one that the base is stored in.
        trust_remote_code: whether Python code that comes with the base may run.

    Raises:
        CheckpointError: there is no adapter.
        ModelError: there is no base.
    """
    source = source.expanduser()
    if is_adapter(source):
        adapter, model = source, _base_of_adapter(source)
    elif (source / "recipe.yaml").is_file() and not (source / "manifest.json").is_file():
        recipe = read_recipe(source / "recipe.yaml")
        adapter, model = _exported(source, recipe), _base_of_run(recipe)
    else:
        raise CheckpointError(f"merge: given '{source}', {_why_not(source)}")
    if base is not None:
        model = {"name_or_path": base}
    name = model.get("name_or_path")
    if not name:
        raise ModelError(f"merge: '{adapter / ADAPTER_CONFIG}' does not name the adapter's base; give it with --base")
    if trust_remote_code:
        model["trust_remote_code"] = True
    try:
        location = resolve_location(name, model.get("gguf_file"), "base", model.get("revision"))
    except ModelError as problem:
        raise ModelError(f"merge: the base of '{adapter}' cannot be found: {problem}; or give it with --base") from None
    dtype = dtype or _stored_dtype(location, bool(model.get("trust_remote_code")))
    if not model.get("quantization"):
        model["weights_dtype"] = dtype  # a quantized base is packed from the weights that the run packed it from
    complaints: list[Complaint] = []
    config = structure(HFModelConfig, model, "model", complaints)
    if config is None:
        raise RecipeError(complaints, str(source / "recipe.yaml"))
    return MergeSource(adapter, config, dtype)


def _exported(run: Path, recipe: Mapping[str, Any]) -> Path:
    """Return the newest adapter that a run exported."""
    entries = recipe.get("checkpoint") or []
    folders = [
        Path(entry.get("output_dir") or run / "export").expanduser()
        for entry in (entries if isinstance(entries, list) else [entries])
        if isinstance(entry, dict) and entry.get("type") == "huggingface"
    ]
    for folder in folders:
        if is_adapter(folder):
            return folder
        steps = [path for path in folder.glob("step-*") if is_adapter(path) and path.name[5:].isdigit()]
        if steps:
            return max(steps, key=lambda path: int(path.name[5:]))
        if (folder / "config.json").is_file():
            raise CheckpointError(f"merge: given '{run}', a run that exported merged weights to '{folder}'; use those")
    raise CheckpointError(
        f"merge: given '{run}', a run that has exported no adapter"
        f" ({'looked in ' + ', '.join(map(str, folders)) if folders else 'its recipe has no such checkpoint'});"
        " resume it with {type: huggingface, save_end_of_training: true} under checkpoint, or give an adapter's folder"
    )


def _base_of_run(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a recipe's model that identify the base, whatever the model's type."""
    names = ["name_or_path", "gguf_file", "revision", "hf_config_kwargs", "trust_remote_code", "quantization"]
    model = recipe.get("model")
    if not isinstance(model, dict):
        return {}
    names += ["weights_dtype"] if model.get("quantization") else []
    base = {name: model[name] for name in names if model.get(name)}
    if isinstance(base.get("quantization"), dict):
        base["quantization"] = {name: v for name, v in base["quantization"].items() if name != "compute_dtype"}
    return base


def _base_of_adapter(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        named = {"name_or_path": config.get("base_model_name_or_path"), "revision": config.get("revision")}
    except (OSError, ValueError, AttributeError) as problem:
        raise CheckpointError(f"merge: '{folder / ADAPTER_CONFIG}' cannot be read ({first_line(problem)})") from problem
    return {key: value for key, value in named.items() if value} if named["name_or_path"] else {}


def _why_not(source: Path) -> str:
    expected = f"expected a folder with an {ADAPTER_CONFIG}, or the folder of a run that exported one"
    if not source.exists():
        return f"which does not exist; {expected}; correct the path"
    if (source / "manifest.json").is_file():
        return (
            f"which is a checkpoint to resume from; {expected}; resume it with"
            " {type: huggingface, save_end_of_training: true} under checkpoint, and merge that export"
        )
    if (source / "config.json").is_file():
        return f"which contains a complete model, with nothing to merge; {expected}"
    return f"which contains no adapter; {expected}; correct the path"


def _stored_dtype(location: Location, trust_remote_code: bool) -> str:
    """Return the precision that a base is stored in, as recipes name it; ``fp32`` where it is another, or packed."""
    import transformers

    if location.gguf_file:
        return "fp32"
    try:
        with quiet_transformers(is_main=False):
            config = transformers.AutoConfig.from_pretrained(
                location.name, trust_remote_code=trust_remote_code, **location.options
            )
    except Exception:  # building the model fails too, with a better error
        return "fp32"
    known = {str(torch_dtype(name)).removeprefix("torch."): name for name in ("fp32", "bf16", "fp16")}
    return known.get(stored_dtype(config), "fp32")
