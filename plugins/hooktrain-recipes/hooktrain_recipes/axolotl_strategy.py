"""How Axolotl's recipes spread over devices: DeepSpeed, FSDP, parallel sizes."""

from __future__ import annotations

from pathlib import Path

from hooktrain import Collector
from hooktrain_recipes.deepspeed_json import translate_deepspeed_file
from hooktrain_recipes.fsdp import set_fsdp
from hooktrain_recipes.reasons import CONTRADICTION, MODEL_PARALLEL
from hooktrain_recipes.values import flag, flag_of, number, whole

__all__ = ["set_strategy"]


def set_strategy(found: Collector, folder: Path) -> None:
    """Set ``strategy``."""
    given = found.get("deepspeed")
    if given is not None and given != "":
        found.set("strategy.type", "deepspeed")
        translate_deepspeed_file(found, "deepspeed", folder)
        found.translated("deepspeed", "strategy.type")
    elif "deepspeed" in found:
        found.ignored("deepspeed", "null is the default")
    sharded = set_fsdp(found)
    if sharded and given:
        CONTRADICTION.refuse(found, "deepspeed", "fsdp")
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
