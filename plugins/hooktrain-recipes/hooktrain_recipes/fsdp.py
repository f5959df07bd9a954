"""FSDP's settings, as Axolotl, accelerate and transformers write them."""

from __future__ import annotations

from hooktrain import Collector
from hooktrain_recipes.values import flag, flag_of

__all__ = ["FSDP_KEYS", "set_fsdp", "set_fsdp_keys", "shard"]

FSDP_KEYS = {
    "auto_wrap_policy": "the blocks of the model are found",
    "transformer_layer_cls_to_wrap": "the blocks of the model are found",
    "min_num_params": "the blocks of the model are found",
    "size_based_auto_wrap": "the blocks of the model are found",
    "state_dict_type": "checkpoints are shards, and exports complete",
    "final_state_dict_type": "checkpoints are shards, and exports complete",
    "cpu_ram_efficient_loading": "how weights are loaded changes no number",
    "sync_module_states": "each rank has the same weights",
    "use_orig_params": "FSDP2 keeps the parameters as they are",
    "limit_all_gathers": "FSDP2 limits them itself",
    "backward_prefetch": "when weights are gathered changes no number",
    "backward_prefetch_policy": "when weights are gathered changes no number",
    "forward_prefetch": "when weights are gathered changes no number",
    "reshard_after_forward": "when weights are gathered changes no number",
    "cpu_offload_pin_memory": "used with offloading alone",
    "xla": "used on TPUs alone",
    "xla_fsdp_v2": "used on TPUs alone",
    "xla_fsdp_grad_ckpt": "used on TPUs alone",
    "version": "FSDP2 computes what FSDP1 does",
}
"""Keys of FSDP that change no number here, and why."""

_OFFLOAD = "shards stay on the devices; strategy: {type: deepspeed, offload: all} keeps them in the host's memory"
_PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "no": "fp32"}


def set_fsdp(found: Collector, fsdp: str = "fsdp", config: str = "fsdp_config") -> bool:
    """Set ``strategy`` for FSDP and account for its keys; returns whether the original asks for it."""
    words = found.get(fsdp)
    listed = words if isinstance(words, list) else str(words or "").replace(",", " ").split()
    listed = [] if listed == ["False"] else listed
    sharding = str(found.get(f"{config}.fsdp_sharding_strategy", found.get(f"{config}.sharding_strategy", ""))).upper()
    given = found.get(config)
    on = bool(listed) or (
        isinstance(given, dict) and bool(given) and (words is not None or fsdp not in found or not listed)
    )
    on = on and "no_shard" not in listed and sharding not in ("NO_SHARD", "3")
    if fsdp in found:
        found.ignored(fsdp, "not used") if not (on and listed) else None
    if on:
        shard(found, fsdp if listed else config)
    if given is None:
        found.ignored(config, "null is the default") if config in found else None
        return on
    if not isinstance(given, dict):
        found.unsupported(config, "expected a mapping", "write {name: value}; a file's content goes there")
        return on
    set_fsdp_keys(found, config, on)
    if not given:
        found.ignored(config, "empty")
    return on


def shard(found: Collector, key: str) -> None:
    """Shard over ranks with FSDP2, as a key asks for."""
    found.set("strategy.type", "torch")
    found.set("strategy.data_parallel", "fsdp2")
    found.translated(key, "strategy.type", "strategy.data_parallel")


def set_fsdp_keys(found: Collector, config: str, on: bool) -> None:
    """Account for the keys of an FSDP configuration, a mapping; ``on`` is whether weights are sharded."""
    for key, value in found.values[config].items():
        path, name = f"{config}.{key}", str(key).removeprefix("fsdp_")
        if name in ("offload_params", "cpu_offload") and flag_of(value):
            found.ignored(path, _OFFLOAD)
        elif name == "activation_checkpointing" and value is not None:
            if flag_of(value):
                found.copy(path, "model.activation_checkpointing", flag)
            else:
                found.ignored(path, "gradient_checkpointing says it")
        elif name == "sharding_strategy" and on:
            found.translated(path, "strategy.data_parallel")
        elif name == "mixed_precision_policy" and str(value) in _PRECISIONS:
            found.copy(path, "model.dtype", lambda policy: _PRECISIONS[str(policy)])
        elif value is None or name in FSDP_KEYS or name in ("offload_params", "cpu_offload", "sharding_strategy"):
            found.ignored(path, FSDP_KEYS.get(name, "not used"))
        else:
            found.unsupported(path, "unknown key of FSDP", "remove it")
