"""Optimizers by every name that transformers and the programs on top of it have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hooktrain import Collector, did_you_mean
from hooktrain_recipes.reasons import GROUPS, SCHEDULE, SMALL_STATES

__all__ = ["OPTIMIZERS", "set_optimizer"]

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
            "paged_adamw",  # with pages of the states in the host's memory, the same numbers
            "paged_adamw_32bit",
        ),
        _ADAMW,
    ),
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
_GROUPED = ("muon", "dion", "normuon", "adopt_adamw")
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
