"""What the blocks of a model keep, tile and compile: ``model.compile``, ``activation_offload`` and ``tiled_mlp``."""

from __future__ import annotations

from typing import Any

from hooktrain import Collector
from hooktrain_recipes.reasons import ACTIVATION_OFFLOAD, COMPILE
from hooktrain_recipes.values import flag_of

__all__ = ["OFFLOADED", "set_block_settings"]

OFFLOADED = ("offload", "unsloth", "legacy")
"""Words that ask for activations in the memory of the host; those with ``disk`` ask for a disk."""

_MODES = {
    "default": "default",
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
    "max-autotune-no-cudagraphs": "max-autotune-no-cudagraphs",
}
"""Modes of torch.compile without CUDA graphs, which attention over packed documents cannot be in."""
_COMPILE, _BACKEND, _MODE = "torch_compile", "torch_compile_backend", "torch_compile_mode"


def set_block_settings(
    found: Collector, *, offload: tuple[str, ...] = (), tiled: tuple[str, ...] = (), implied: bool = False
) -> None:
    """Set what the blocks of a model compile, offload and tile, and account for the keys that say it.

    Args:
        found: the translation, whose recipe has strategy and activation checkpointing.
        offload: keys that ask for activations in the memory of the host.
        tiled: keys that ask for MLPs in tiles.
        implied: whether a backend or a mode asks for compilation on its own, as with transformers' TrainingArguments.
    """
    stage = _stage(found)
    for key in tiled:
        if not flag_of(found.get(key)):
            _off(found, key)
        elif stage == 3:
            ACTIVATION_OFFLOAD.refuse(found, key, "tiles gather the weights of ZeRO 3 again and again; FSDP2 does not")
        else:
            _on(found, key, "model.tiled_mlp")
    for key in offload:
        _offload(found, key)
    _compile(found, stage, implied)


def _offload(found: Collector, key: str) -> None:
    value = found.get(key)
    kept = found.recipe.get("model", {}).get("activation_checkpointing")
    asked = value.startswith(OFFLOADED) if isinstance(value, str) and "disk" not in value else False
    if isinstance(value, str) and "disk" in value:
        ACTIVATION_OFFLOAD.refuse(found, key, "to a disk")
    elif not (asked or flag_of(value)):
        _off(found, key)
    elif found.recipe.get("strategy", {}).get("device") == "cpu":
        found.ignored(key, "activations of a processor are in the memory of the host already")
    elif kept is not True:
        ACTIVATION_OFFLOAD.refuse(found, key, "without activation checkpointing")
    else:
        _on(found, key, "model.activation_offload")


def _compile(found: Collector, stage: Any, implied: bool) -> None:
    keys = [key for key in (_COMPILE, _BACKEND, _MODE) if found.get(key) not in (None, "")]
    value = found.get(_COMPILE)
    if not (flag_of(value) or value == "auto" or (implied and keys not in ([], [_COMPILE]))):
        _off(found, _COMPILE)
        for key in (_BACKEND, _MODE):
            found.ignored(key, "used with torch_compile alone") if key in found else None
        return
    if conflict := _conflict(found, stage):
        for key in keys:
            COMPILE.refuse(found, key, conflict)
        return
    backend, mode = found.get(_BACKEND, "inductor"), found.get(_MODE, "default")
    if not isinstance(backend, str):
        found.unsupported(_BACKEND, f"given {backend!r:.40}, expected the name of a backend", "write inductor")
    elif not isinstance(mode, str) or mode not in _MODES:
        known = ", ".join(_MODES)
        found.unsupported(_MODE, f"given {mode!r:.40}, expected one of {known}", "write one of them")
    else:
        made = {"backend": backend, "mode": _MODES[mode]}
        other = {name: each for name, each in made.items() if each not in ("inductor", "default")}
        found.set("model.compile", other or True)
        for key in keys:
            found.translated(key, "model.compile")


def _conflict(found: Collector, stage: Any) -> str:
    model, strategy = found.recipe.get("model", {}), found.recipe.get("strategy", {})
    if stage == 3:
        return "with ZeRO 3, which gathers weights within graphs; FSDP2 does not"
    if strategy.get("sequence_parallel", 1) not in (None, 1):
        return "with ranks that share sequences"
    names = [name for name in ("activation_offload", "tiled_mlp") if model.get(name)]
    return f"with model.{names[0]}" if names else ""


def _stage(found: Collector) -> Any:
    strategy = found.recipe.get("strategy", {})
    zero = strategy.get("config", {}).get("zero_optimization", {}) if isinstance(strategy.get("config"), dict) else {}
    return strategy.get("zero_stage", zero.get("stage") if isinstance(zero, dict) else None)


def _on(found: Collector, key: str, to: str) -> None:
    found.set(to, True)
    found.translated(key, to)


def _off(found: Collector, key: str) -> None:
    if key in found and not found.accounted(key):
        found.ignored(key, "null is the default" if found.get(key) is None else "not used: this value asks for nothing")
