"""How Axolotl's recipes spread over devices: DeepSpeed, FSDP, parallel sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.deepspeed_json import translate_deepspeed, translate_deepspeed_file
from hooktrain_recipes.fsdp import set_fsdp
from hooktrain_recipes.reasons import COMPILE, MODEL_PARALLEL
from hooktrain_recipes.tables import linked
from hooktrain_recipes.values import flag, flag_of, number, whole

__all__ = ["set_strategy"]

_SHIPPED = re.compile(
    r"(?:.*/)?zero(?P<stage>[123])(?P<bf16>_bf16)?(?P<offload>_cpuoffload_(?:all|params))?(?P<compile>_torch_compile)?\.json"
)
"""The files that Axolotl brings along, by their names."""


def set_strategy(found: Collector, folder: Path) -> None:
    """Set ``strategy``."""
    given = found.get("deepspeed")
    if given is not None and given != "":
        found.set("strategy.type", "deepspeed")
        shipped = _SHIPPED.fullmatch(given) if isinstance(given, str) else None
        there = isinstance(given, str) and any(_there(place / given) for place in (folder, *folder.parents))
        if shipped and shipped["compile"]:
            COMPILE.refuse(found, "deepspeed")
        elif shipped and not there:
            linked(found, "deepspeed", _content(shipped), translate_deepspeed)
            found.translated("deepspeed", "strategy.type")
        else:
            translate_deepspeed_file(found, "deepspeed", folder)
            found.translated("deepspeed", "strategy.type")
    elif "deepspeed" in found:
        found.ignored("deepspeed", "null is the default")
    sharded = set_fsdp(found)
    if sharded and given:
        found.unsupported("deepspeed", "contradicts another key: fsdp", "keep one of them")
    _sizes(found, bool(given))
    if found.get("ddp_timeout") is not None:
        found.copy("ddp_timeout", "strategy.timeout", number)
    key = "ddp_find_unused_parameters"
    if flag_of(found.get(key)) and not sharded and not given:
        found.copy(key, "strategy.find_unused_parameters", flag)
    elif key in found:
        found.ignored(
            key, "not needed: parameters that get no gradient are allowed" if found.get(key) else "the default"
        )


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _content(shipped: re.Match[str]) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": int(shipped["stage"]), "overlap_comm": True, "contiguous_gradients": True}
    offload = shipped["offload"] or ""
    if offload.endswith("all"):
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload:
        zero["offload_param"] = {"device": "cpu"}
    made: dict[str, Any] = {"zero_optimization": zero, "gradient_clipping": "auto"}
    if shipped["bf16"]:
        made["bf16"] = {"enabled": True}
    return made


def _sizes(found: Collector, deepspeed: bool) -> None:
    for key in ("context_parallel_size", "sequence_parallel_degree"):
        if found.get(key) not in (None, 0, 1):
            found.copy(key, "strategy.sequence_parallel", whole)
        elif key in found:
            found.ignored(key, "sequences are not divided")
    for key in ("tensor_parallel_size", "expert_parallel_size"):
        if found.get(key) not in (None, 0, 1):
            MODEL_PARALLEL.refuse(found, key)
        elif key in found:
            found.ignored(key, "one rank each")
    shards = found.get("dp_shard_size")
    if shards not in (None, 0, 1) and not deepspeed:
        found.set("strategy.type", "torch")
        found.copy("dp_shard_size", "strategy.data_parallel", lambda size: "fsdp2" if whole(size) > 1 else "ddp")
        found.translated("dp_shard_size", "strategy.type")
    elif "dp_shard_size" in found:
        found.ignored("dp_shard_size", "weights are not divided")
    if "dp_replicate_size" in found:
        found.ignored("dp_replicate_size", "weights are divided over all ranks, which changes no number")
    for key in ("heads_k_stride", "ring_attn_func"):
        if key in found:
            found.ignored(key, "ranks of a sequence exchange heads, which gives the same numbers")
