"""From the settings of a recipe to a config of PEFT, with everything that is wrong told at once."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hooktrain_hf.location import first_line

from hooktrain import Complaint, did_you_mean
from hooktrain_peft.config import METHOD_KEYS, PeftSettings

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["check", "make_config", "unfit"]

_WORDS = {
    "qlora": "needs a base quantized to 4 bits (bitsandbytes, and a GPU), which this version does not train on; write"
    " type: lora, and model.weights_dtype: bf16 to keep the frozen base in half the memory",
    "dora": "is LoRA with a switch; write type: lora and use_dora: true",
    "rslora": "is LoRA with a switch; write type: lora and use_rslora: true",
}
"""What people call a method, and what they are to write instead."""

_UNFIT_METHODS = {
    "ADAPTION_PROMPT": "wraps the model in a way of its own, which the losses here cannot see through",
    "ADALORA": "moves ranks between layers after each step, which this version does not do",
    "LILY": "averages over all tokens of a micro-batch, so that documents and rows would change each other",
    "POLY": "needs the number of a task with each row, which rows here do not have",
    "XLORA": "mixes adapters that were trained before, one of which a run here trains",
    "SHADOW": "trains a second network on a loss of its own, where a run here has one loss",
}
_PROMPTS = "puts virtual tokens before each row, where packed conversations would share them and positions would shift"
_LORA_INITS = (True, False, "gaussian", "orthogonal", "pissa", "olora", "mica")
_UNFIT_INITS = {
    "eva": "needs a pass over the data before training",
    "corda": "needs a pass over the data before training",
    "lora_ga": "needs gradients before training",
    "loftq": "needs a quantized base",
}
_UNFIT_KEYS = {
    "alora_invocation_tokens": "switches on in the middle of a row, once, where a packed row holds several",
    "arrow_config": "mixes adapters that were trained before",
    "kasa_config": "rewrites the base, to which the adapter would no longer belong",
    "monteclora_config": "adds a loss of its own, where a run here has one loss",
}
_MANAGED = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}
"""Fields of PEFT's configs that are not the user's to set."""


def check(settings: PeftSettings, model: Any) -> Iterator[Complaint]:
    """Everything that is wrong with the settings, as far as it can be seen without the model.

    Args:
        settings: the recipe's ``peft``.
        model: the recipe's ``model``.
    """
    given = [name for name in METHOD_KEYS if getattr(settings, name) is not None]
    given += ["config"] if settings.config else []
    if settings.adapter is not None:
        for name in given:
            yield Complaint(
                f"peft.{name}", "given together with peft.adapter, which has its own; leave one of them out"
            )
    elif settings.type is None:
        for name in [*given, *(["merge_on_export"] if settings.merge_on_export else [])]:
            yield Complaint(f"peft.{name}", "given without a method; add peft.type, such as 'type: lora'")
        return
    if settings.type is not None:
        yield from _translate(settings)[2]
    if getattr(model, "from_config", False):
        yield Complaint(
            "peft",
            "given with model.from_config, whose random weights nobody could load the adapter onto; give a pretrained"
            " model, or train the whole one",
        )


def make_config(settings: PeftSettings) -> PeftConfig:
    """The config of PEFT; the settings have been checked."""
    kind, arguments, _ = _translate(settings)
    assert kind is not None
    return _construct(kind, arguments)


def unfit(config: PeftConfig) -> str:
    """Why a method cannot be trained here, or nothing.

    Args:
        config: of a new adapter or of one that was trained elsewhere.
    """
    name = str(getattr(config.peft_type, "value", config.peft_type))
    reason = _UNFIT_METHODS.get(name) or (_PROMPTS if config.is_prompt_learning else "")
    if reason:
        return f"'{name.lower()}' {reason}; choose another method, such as lora"
    init = getattr(config, "init_lora_weights", True)
    if init not in _LORA_INITS:
        why = _UNFIT_INITS.get(str(init), "is not one that gives the same adapter on the same base each time")
        known = ", ".join(str(choice).lower() for choice in _LORA_INITS)
        return f"init_lora_weights is '{init}', which {why}; choose one of {known}"
    for key, reason in _UNFIT_KEYS.items():
        if getattr(config, key, None) is not None:
            return f"{key} {reason}; leave it out"
    return ""


def _translate(settings: PeftSettings) -> tuple[type | None, dict[str, Any], list[Complaint]]:
    """The config class, its arguments, and what is wrong with them."""
    kind, refusal = _find(str(settings.type))
    if kind is None:
        return None, {}, [Complaint("peft.type", f"given '{settings.type}', {refusal}")]
    complaints: list[Complaint] = []
    method = kind.__name__.removesuffix("Config")
    fields = [item.name for item in dataclasses.fields(kind) if item.name not in _MANAGED]
    arguments: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    for name, value in settings.config.items():
        if name in fields:
            arguments[name] = value
        else:
            hint = did_you_mean(name, fields)
            complaints.append(
                Complaint(f"peft.config.{name}", f"unknown key{hint}; {method} takes {', '.join(sorted(fields))}")
            )
    for name in METHOD_KEYS:
        value = getattr(settings, name)
        if value is None:
            continue
        place = next((spelled for spelled in _spellings(name, settings) if spelled in fields), None)
        if place is None:
            complaints.append(
                Complaint(f"peft.{name}", f"given {value!r}, but {method} has no such setting; leave it out")
            )
        elif place in settings.config:
            complaints.append(Complaint(f"peft.{name}", f"given together with peft.config.{place}; keep one of them"))
        else:
            arguments[place] = _plain(value)
    if method == "Lora":
        _lora_defaults(arguments)
    if not complaints:
        try:
            reason = unfit(_construct(kind, arguments))
        except Exception as problem:  # each config class has checks of its own, some of them for optional packages
            reason = f"{method} refuses its settings ({first_line(problem)}); correct them"
        complaints += [Complaint("peft", reason)] if reason else []
    return kind, arguments, complaints


def _find(name: str) -> tuple[type | None, str]:
    """The config class of a method, written as in PEFT's enumeration or as its class, or why there is none."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    plain = _squeezed(name)
    if plain in _WORDS:
        return None, f"which {_WORDS[plain]}"
    for type_, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if plain in (_squeezed(type_.value), _squeezed(kind.__name__)):
            return kind, ""
    known = sorted(type_.value.lower() for type_ in PEFT_TYPE_TO_CONFIG_MAPPING)
    return None, f"which PEFT does not have{did_you_mean(name.lower(), known)}; expected one of {', '.join(known)}"


def _squeezed(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").removesuffix("config")


def _spellings(key: str, settings: PeftSettings) -> tuple[str, ...]:
    """The names that PEFT's config classes have for a key."""
    method = _squeezed(str(settings.type))
    names = {"alpha": ("lora_alpha", "alpha", f"{method}_alpha"), "dropout": ("lora_dropout", f"{method}_dropout")}
    return names.get(key, (key,))


def _plain(value: Any) -> Any:
    """Lists where PEFT wants them, and whole numbers without a point."""
    if isinstance(value, tuple):
        return list(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _lora_defaults(arguments: dict[str, Any]) -> None:
    rank = arguments.setdefault("r", 16)
    if isinstance(rank, int):
        arguments.setdefault("lora_alpha", 2 * rank)
    if not arguments.get("target_parameters"):
        arguments.setdefault("target_modules", "all-linear")


def _construct(kind: type, arguments: Mapping[str, Any]) -> PeftConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: PeftConfig = kind(**arguments)
    return made
