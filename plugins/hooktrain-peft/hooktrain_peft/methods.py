"""Translation of a recipe's settings to a config of PEFT, with all errors at once."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain_hf import HFModelConfig, first_line

from hooktrain import Complaint, did_you_mean
from hooktrain_peft.compat import method_name, method_settings
from hooktrain_peft.config import ADAPTER_FILES, METHOD_KEYS, PeftSettings

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["check", "make_config", "why_unsupported"]

_VARIANTS = {
    "qlora": "is LoRA on a base in 4 bits; write type: lora and model.quantization: nf4",
    "dora": "is LoRA with a switch; write type: lora and use_dora: true",
    "rslora": "is LoRA with a switch; write type: lora and use_rslora: true",
}
"""Common names of variants, each with what to write instead."""

_UNSUPPORTED_METHODS = {
    "ADAPTION_PROMPT": "wraps the model in its own way, which the losses here do not support",
    "LILY": "averages over all tokens of a micro-batch, so that documents and sequences would change each other",
    "POLY": "needs the number of a task with each example, which examples here do not have",
    "XLORA": "mixes several trained adapters, and a run here trains one",
    "SHADOW": "adds a head that computes all logits of its own network, which the losses here do not call",
}
_PROMPTS = "puts virtual tokens before each sequence, so that packed conversations would share them and positions shift"
_LORA_INITS = (True, False, "gaussian", "orthogonal", "pissa", "olora", "mica", "loftq")
_UNSUPPORTED_INITS = {
    "eva": "needs a pass over the data before training",
    "corda": "needs a pass over the data before training",
    "lora_ga": "needs gradients before training",
}
_UNSUPPORTED_KEYS = {
    "alora_invocation_tokens": "becomes active once in a sequence, and packed sequences contain several conversations",
    "arrow_config": "mixes several trained adapters",
    "kasa_config": "rewrites the base, to which the adapter would no longer belong",
    "monteclora_config": "draws random samples ahead and keeps them, so that a resumed run would train another way",
}
_UNKNOWN_STEPS = 2**31
"""Steps of AdaLoRA until the length of the run is known."""
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
"""Fields of PEFT's configs that users do not set."""


def check(settings: PeftSettings, model: Any) -> Iterator[Complaint]:
    """Yield the errors in the settings that can be found without the model.

    Args:
        settings: the recipe's ``peft``.
        model: the recipe's ``model``.
    """
    used = [name for name in METHOD_KEYS if getattr(settings, name) is not None]
    used += ["config"] if settings.config else []
    if settings.adapter is not None:
        for name in used:
            yield Complaint(f"peft.{name}", "given together with peft.adapter, which has its own; remove one of them")
    elif settings.type is None:
        for name in [*used, *(name for name in ("keep", "merge_on_export") if getattr(settings, name))]:
            yield Complaint(f"peft.{name}", "given without a method; add peft.type, such as 'type: lora'")
        return
    if settings.type is not None:
        yield from _translate(settings)[2]
    yield from _check_kept(settings)
    init = settings.config.get("init_lora_weights", settings.init_lora_weights)
    yield from _check_init(settings, init, model.quantization if isinstance(model, HFModelConfig) else None)
    if isinstance(model, HFModelConfig) and model.from_config:
        yield Complaint(
            "peft",
            "given with model.from_config, onto whose random weights no one could load the adapter; give a pretrained"
            " model, or remove the section peft",
        )


def _check_kept(settings: PeftSettings) -> Iterator[Complaint]:
    if settings.keep and settings.merge_on_export:
        yield Complaint(
            "peft.keep", "given with peft.merge_on_export, after which there is no adapter; remove one of the two"
        )
    for name, folder in settings.keep.items():
        path = Path(folder).expanduser()
        if not re.fullmatch(r"\w[\w.-]*", name) or name == "default" or name.startswith("step-"):
            yield Complaint(
                f"peft.keep.{name}",
                "given as a name, expected letters, digits, dots and dashes, and not 'default' or"
                " 'step-...', which are folders of their own; choose another name",
            )
        elif missing := [file for file in ADAPTER_FILES if not (path / file).is_file()]:
            yield Complaint(
                f"peft.keep.{name}",
                f"given '{folder}', which has no {missing[0]}; expected the folder of a saved"
                " adapter; correct the path",
            )


def _check_init(settings: PeftSettings, init: Any, quantization: Any) -> Iterator[Complaint]:
    key, more = "peft.init_lora_weights", settings.config.get("loftq_config")
    if quantization and init == "mica":
        yield Complaint(
            key,
            "given 'mica' with model.quantization, whose unquantized weights it needs while it trains; remove one of"
            " them, or write pissa, olora, loftq, gaussian or true",
        )
    if init == "loftq" and not quantization:
        yield Complaint(
            key,
            "given 'loftq', which makes up for what quantization loses, without model.quantization; add it, such as"
            " nf4, or choose another initialization, such as pissa",
        )
    if more is not None and (init != "loftq" or not isinstance(more, Mapping) or set(more) - {"loftq_iter"}):
        yield Complaint(
            "peft.config.loftq_config",
            f"given {more!r}, expected {{loftq_iter: 5}} or another number, with init_lora_weights: loftq; the bits are"
            " those of model.quantization",
        )


def make_config(settings: PeftSettings) -> PeftConfig:
    """Make the config of PEFT from checked settings."""
    kind, arguments, _ = _translate(settings)
    assert kind is not None
    return _construct(kind, arguments)


def why_unsupported(config: PeftConfig) -> str:
    """Return why a method is not supported; an empty text where it is.

    Args:
        config: of a new adapter or of one that was trained elsewhere.
    """
    name, settings = method_name(config), method_settings(config)
    reason = _UNSUPPORTED_METHODS.get(name) or (_PROMPTS if config.is_prompt_learning else "")
    if reason:
        return f"'{name.lower()}' {reason}; choose another method, such as lora"
    init = settings.get("init_lora_weights", True)
    if init not in _LORA_INITS:
        why = _UNSUPPORTED_INITS.get(str(init), "does not give the same adapter on the same base each time")
        known = ", ".join(str(choice).lower() for choice in _LORA_INITS)
        return f"init_lora_weights is '{init}', which {why}; choose one of {known}"
    for key, reason in _UNSUPPORTED_KEYS.items():
        if settings.get(key) is not None:
            return f"{key} {reason}; remove it"
    return ""


def _translate(settings: PeftSettings) -> tuple[type | None, dict[str, Any], list[Complaint]]:
    """Return the config class, its arguments, and the errors in them."""
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
                Complaint(f"peft.{name}", f"given {value!r}, but {method} has no such setting; remove it")
            )
        elif place in settings.config:
            complaints.append(Complaint(f"peft.{name}", f"given together with peft.config.{place}; keep one of them"))
        else:
            arguments[place] = _plain(value)
    if method == "AdaLora":
        complaints += _adalora_defaults(arguments)
    if method == "Lora":
        _lora_defaults(arguments)
    if not complaints:
        try:
            reason = why_unsupported(_construct(kind, arguments))
        except Exception as problem:  # each config class has its own checks, some of them for optional packages
            reason = f"{method} refuses its settings ({first_line(problem)}); correct them"
        complaints += [Complaint("peft", reason)] if reason else []
    return kind, arguments, complaints


def _find(name: str) -> tuple[type | None, str]:
    """Return the config class of a method, named as in PEFT's enumeration or as its class, or why there is none."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    plain = _squeezed(name)
    if plain in _VARIANTS:
        return None, f"which {_VARIANTS[plain]}"
    for type_, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if plain in (_squeezed(type_.value), _squeezed(kind.__name__)):
            return kind, ""
    known = sorted(type_.value.lower() for type_ in PEFT_TYPE_TO_CONFIG_MAPPING)
    return None, f"which PEFT does not have{did_you_mean(name.lower(), known)}; expected one of {', '.join(known)}"


def _squeezed(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").removesuffix("config")


def _spellings(key: str, settings: PeftSettings) -> tuple[str, ...]:
    """Return the names that PEFT's config classes have for a key."""
    method = _squeezed(str(settings.type))
    names: dict[str, tuple[str, ...]] = {"dropout": ("lora_dropout", f"{method}_dropout")}
    names["alpha"] = ("lora_alpha", "alpha", f"{method}_alpha")
    if settings.allocates_ranks:
        names["r"] = ("init_r",)
    return names.get(key, (key,))


def _plain(value: Any) -> Any:
    """Convert tuples to lists and whole numbers to integers, as PEFT needs them."""
    if isinstance(value, tuple):
        return list(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _lora_defaults(arguments: dict[str, Any]) -> None:
    rank = arguments.setdefault("r", 16)
    if isinstance(rank, int):
        arguments.setdefault("lora_alpha", 2 * rank)
    if not arguments.get("target_parameters"):
        arguments.setdefault("target_modules", "all-linear")


def _adalora_defaults(arguments: dict[str, Any]) -> list[Complaint]:
    """Complete the settings of AdaLoRA, whose steps the run sets when it knows how many it has."""
    arguments.setdefault("target_modules", "all-linear")
    arguments.setdefault("total_step", _UNKNOWN_STEPS)
    first, last = arguments.get("init_r", 12), arguments.get("target_r", 8)
    if not (isinstance(first, int) and isinstance(last, int)) or 0 < last < first:
        return []
    return [
        Complaint(
            "peft.config.target_r",
            f"is {last}, and the rank at first, peft.r, is {first}; expected a smaller one in the end; change one",
        )
    ]


def _construct(kind: type, arguments: Mapping[str, Any]) -> PeftConfig:
    later: dict[str, Any] = {}
    if arguments.get("init_lora_weights") == "loftq":  # PEFT would want a package for its own way to make it
        later = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
        later["loftq_config"] |= arguments.get("loftq_config") or {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: PeftConfig = kind(**{**arguments, **({"init_lora_weights": True, "loftq_config": {}} if later else {})})
    for name, value in later.items():
        setattr(made, name, value)
    return made
