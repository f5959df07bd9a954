"""accelerate's launcher configuration, and the names that TRL's command line has for some."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hooktrain import Collector
from hooktrain_recipes.deepspeed_json import file_beside, translate_deepspeed_file
from hooktrain_recipes.fsdp import set_fsdp_keys, shard
from hooktrain_recipes.reasons import FP8, MODEL_PARALLEL, NVME
from hooktrain_recipes.tables import linked
from hooktrain_recipes.values import flag_of, number

__all__ = ["translate_accelerate"]

_NAMED: Mapping[str, Mapping[str, Any]] = {
    "single_gpu": {"distributed_type": "NO"},
    "multi_gpu": {"distributed_type": "MULTI_GPU"},
    **{f"zero{n}": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": n}} for n in (1, 2, 3)},
    **{f"fsdp{n}": {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": n}} for n in (1, 2)},
}
"""Configurations that come with TRL."""
_LAUNCH = "ranks are started with --nproc, torchrun or a scheduler"


def translate_accelerate(found: Collector, key: str, folder: Path) -> None:
    """Account for a key that names a configuration of accelerate: one that comes with TRL, or a YAML file."""
    name = found.values[key]
    if name is None:
        found.ignored(key, "null is the default")
        return
    if isinstance(name, str) and name in _NAMED:
        held: Any = _NAMED[name]
    else:
        path = file_beside(found, key, name, folder)
        if path is None:
            return
        try:
            held = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as problem:
            found.unsupported(key, f"the file '{name}' cannot be read ({problem})", "correct the file")
            return
    if not isinstance(held, Mapping):
        found.unsupported(key, f"the file '{name}' holds no mapping", "correct the file")
        return
    linked(found, key, held, lambda inner, at: _accelerate(inner, at, folder))


def _accelerate(found: Collector, key: str, folder: Path) -> None:
    held: Mapping[str, Any] = found.values[key]
    kind = str(held.get("distributed_type", "NO")).upper()
    for name, value in held.items():
        path = f"{key}.{name}"
        if name == "distributed_type":
            _kind(found, path, kind)
        elif name == "mixed_precision" and value == "fp8":
            FP8.refuse(found, path)
        elif name == "mixed_precision" and value in ("bf16", "fp16"):
            found.ignored(path, "the recipe's own precision is used")
        elif name == "gradient_clipping":
            found.copy(path, "gradient_clipping", number)
        elif name == "use_cpu" and flag_of(value):
            found.set("strategy.device", "cpu")
            found.translated(path, "strategy.device")
        elif name not in ("deepspeed_config", "fsdp_config"):
            found.ignored(path, _LAUNCH)
    for name, wanted, translate in (
        ("deepspeed_config", "DEEPSPEED", _deepspeed),
        ("fsdp_config", "FSDP", lambda found, path, folder: set_fsdp_keys(found, path, True)),
    ):
        path = f"{key}.{name}"
        if path not in found:
            continue
        if kind != wanted or not isinstance(found.values[path], Mapping):
            found.ignored(path, f"not used with distributed_type {kind}")
        else:
            translate(found, path, folder)


def _kind(found: Collector, path: str, kind: str) -> None:
    if kind == "DEEPSPEED":
        found.set("strategy.type", "deepspeed")
        found.translated(path, "strategy.type")
    elif kind == "FSDP":
        shard(found, path)
    elif kind in ("MEGATRON_LM", "TP"):
        MODEL_PARALLEL.refuse(found, path)
    else:
        found.ignored(path, "ranks have complete models by default")


def _deepspeed(found: Collector, key: str, folder: Path) -> None:
    for name, value in found.values[key].items():
        path = f"{key}.{name}"
        if value in (None, "none", False):
            found.ignored(path, "not used")
        elif name == "deepspeed_config_file":
            translate_deepspeed_file(found, path, folder)
        elif name == "zero_stage":
            found.copy(path, "strategy.zero_stage")
        elif name in ("offload_optimizer_device", "offload_param_device") and value == "cpu":
            part = name.removesuffix("_device")
            found.set(f"strategy.config.zero_optimization.{part}.device", "cpu")
            found.translated(path, f"strategy.config.zero_optimization.{part}.device")
        elif name in ("offload_optimizer_device", "offload_param_device"):
            NVME.refuse(found, path)
        elif name == "gradient_clipping" and value != "auto":
            found.copy(path, "gradient_clipping", number)
        else:
            found.ignored(path, "set by the strategy and the recipe")
