"""Optimizers by every name that transformers and the programs on top of it have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hooktrain import Collector, did_you_mean
from hooktrain_recipes.reasons import GROUPS, QUANTIZED_BASE, SCHEDULE, SMALL_STATES

__all__ = ["OPTIMIZERS", "add_group", "fit_strategy", "set_muon", "set_optimizer"]

_ADAMW: Mapping[str, Any] = {"type": "adamw"}
_ADAFACTOR: Mapping[str, Any] = {
    "type": "torch",
    "name": "transformers.optimization.Adafactor",
    "arguments": {"scale_parameter": False, "relative_step": False},
}

OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        (
            "adamw",
            "adamw_hf",
            "adamw_torch",
            "adamw_torch_fused",
            "adamw_torch_xla",
            "adamw_torch_npu_fused",
            "adamw_apex_fused",
        ),
        _ADAMW,
    ),
    **{name: {"type": "paged_adamw"} for name in ("paged_adamw", "paged_adamw_32bit")},
    **{name: {"type": "adamw_8bit"} for name in ("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit")},
    "adamw_torch_4bit": {"type": "adamw_4bit"},
    "paged_adamw_8bit": {"type": "paged_adamw_8bit"},
    "lion_8bit": {"type": "lion_8bit"},
    "paged_lion_8bit": {"type": "paged_lion_8bit"},
    "muon": {"type": "muon"},
    "adam": {"type": "adam"},
    "adafactor": _ADAFACTOR,
    "sgd": {"type": "sgd"},
    "adagrad": {"type": "torch", "name": "Adagrad"},
    "rmsprop": {"type": "torch", "name": "RMSprop"},
    **{
        theirs: {"type": "torch", "name": name, **({"arguments": arguments} if arguments else {})}
        for names, name, arguments in (
            ("lion lion_32bit paged_lion_32bit", "bitsandbytes.optim.Lion", {"betas": [0.9, 0.999]}),
            ("ademamix paged_ademamix_32bit", "bitsandbytes.optim.AdEMAMix", {}),
            ("rmsprop_bnb rmsprop_32bit", "bitsandbytes.optim.RMSprop", {}),
            ("grokadamw", "grokadamw.GrokAdamW", {}),
            ("optimi_adamw", "optimi.AdamW", {}),
        )
        for theirs in names.split()
    },
}
"""The optimizer here, by its name there. One of ``type: torch`` has neither betas nor decay of matrices alone."""

_SMALL = re.compile(
    r"8bit|4bit|fp8|galore|apollo|lomo|badam|adam_mini|came|flash_(adam|sgd|lion)|sinkgd|stable_adamw|anyprecision"
)
_GROUPED = ("dion", "normuon", "adopt_adamw")
_SMALL_HERE = ("adamw_8bit", "adamw_4bit", "lion_8bit", "paged_adamw_8bit", "paged_lion_8bit")
_NOT_MATRICES = "embed|lm_head|norm|bias"
"""Names of the weights that programs leave to AdamW beside Muon."""
_SCHEDULED = ("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd")


def set_optimizer(found: Collector, key: str, name: Any, said: str = "") -> str:
    """Set the optimizer's type, by its name there.

    Args:
        found: the translation.
        key: the key that names it; accounted for if the original has it.
        name: the name.
        said: why this one, where the original has no such key.

    Returns:
        The type here; empty where there is none.
    """
    made = OPTIMIZERS.get(str(name).lower().removeprefix("optimizernames."))
    if made is None:
        _refuse(found, key, str(name).lower())
        return ""
    for part, value in made.items():
        if key in found:
            found.set(f"optimizer.{part}", dict(value) if isinstance(value, Mapping) else value)
        else:
            found.default(f"optimizer.{part}", dict(value) if isinstance(value, Mapping) else value, said)
    if key in found:
        found.translated(key, *(f"optimizer.{part}" for part in made))
    return str(made["type"])


def add_group(found: Collector, *keys: str, **group: Any) -> None:
    """Add a group of parameters, which keys of the original ask for; some that it does not have are passed over."""
    place = f"optimizer.groups[{len(found.recipe.get('optimizer', {}).get('groups', []))}]"
    for name, value in group.items():
        found.set(f"{place}.{name}", value)
    for key in keys:
        if key in found:
            found.translated(key, *(f"{place}.{name}" for name in group))


def set_muon(found: Collector, key: str, *, adapter: bool, **settings: Any) -> None:
    """Set Muon's settings, and AdamW for the weights that are no matrices of layers.

    Args:
        found: the translation, whose recipe has rate and decay.
        key: the key that asks for Muon.
        adapter: whether an adapter is trained, which has matrices alone.
        settings: further ones of Muon.
    """
    optimizer = found.recipe["optimizer"]
    for name, value in settings.items():
        found.default(f"optimizer.{name}", value, f"as Muon is in {found.program}")
    if not adapter:
        rate = {name: optimizer[name] for name in ("lr", "weight_decay") if name in optimizer}
        add_group(found, key, match=_NOT_MATRICES, type="adamw", **rate)


def fit_strategy(found: Collector, optimizer: str, base: Iterable[str]) -> None:
    """Refuse small states and a quantized base where ranks share weights or states; page only where there is a GPU.

    Args:
        found: the translation, whose recipe is complete.
        optimizer: the key of the optimizer.
        base: keys that may have asked for a quantized base.
    """
    strategy = found.recipe.get("strategy", {})
    shared = strategy.get("type") == "deepspeed" or strategy.get("data_parallel") == "fsdp2"
    kind = str(found.recipe.get("optimizer", {}).get("type", ""))
    if shared and kind == "paged_adamw":
        found.set("optimizer.type", "adamw")  # the same numbers
    elif shared and kind in _SMALL_HERE:
        SMALL_STATES.refuse(found, optimizer, "while ranks share weights or states")
    elif strategy.get("type") == "deepspeed" and kind == "muon":
        GROUPS.refuse(found, optimizer, "Muon with DeepSpeed")
    elif kind.startswith("paged"):
        found.default("strategy.device", "cuda", "paged states need a GPU")
    for key in base if shared else ():
        if key in found and found.get(key) not in (None, False, 0):
            QUANTIZED_BASE.refuse(found, key, "while ranks share weights")
    for part in ("optimizer.type", "model.quantization", "model.quantization.type"):
        if shared and found.has(part):
            found.notes.setdefault(part, "not supported while ranks share weights or states")


def _refuse(found: Collector, key: str, name: str) -> None:
    if _SMALL.search(name):
        SMALL_STATES.refuse(found, key)
    elif name in _GROUPED:  # one optimizer for matrices and another for the rest
        GROUPS.refuse(found, key)
    elif name in _SCHEDULED:
        SCHEDULE.refuse(found, key, name)
    else:
        close = did_you_mean(name, [*OPTIMIZERS, *_SCHEDULED, *_GROUPED])
        found.unsupported(key, f"unknown optimizer '{name}'{close}", f"use one of {', '.join(OPTIMIZERS)}")
