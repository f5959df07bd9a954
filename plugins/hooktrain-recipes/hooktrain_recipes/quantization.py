"""Quantized bases: the names that programs on top of transformers have for bitsandbytes' options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.reasons import QUANTIZED_BASE
from hooktrain_recipes.values import flag

__all__ = ["quantized_name", "set_quantization"]

_TYPES = {"nf4": "nf4", "fp4": "fp4"}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}
_KEY = "model.quantization"
_FOR_4_BITS = ("type", "double", "compute_dtype")
_STORED = re.compile(r"(?i)(^|[-_/.])(awq|gptq|aqlm|bnb|nf4|int4|int8|[248]bit)($|[-_/.])")
_OTHER = re.compile(r"(?i)(^|[-_/.])(nvfp4|mxfp4|fp8|fp4|w4a16|w8a8|qat)($|[-_/.])")


def set_quantization(
    found: Collector,
    bits: int,
    keys: tuple[str, ...],
    options: Mapping[str, str],
    *,
    adapter: bool,
    model: str,
    double: bool = False,
) -> None:
    """Set ``model.quantization``, and account for the keys that say it.

    Args:
        found: the translation.
        bits: 4 or 8; 0 for none.
        keys: those that ask for it, which the original has.
        options: the program's keys of ``type``, ``double`` and ``compute_dtype``.
        adapter: whether an adapter is trained.
        model: the key of the model's name.
        double: the program's default of ``double``.
    """
    known = [options[name] for name in _FOR_4_BITS if name in options and options[name] in found]
    stored = quantized_name(found.get(model))
    if stored and _OTHER.search(str(found.get(model))):
        QUANTIZED_BASE.refuse(found, model, "of a format that PEFT has no adapters for")
    elif (stored or bits) and not adapter:
        for key in keys or (model,):
            QUANTIZED_BASE.refuse(found, key, "without an adapter")
    if stored or not bits or not adapter:
        why = "the weights are quantized already" if stored else "used with 4 bits alone"
        for key in (*keys, *known):
            found.ignored(key, why)
        return
    if bits == 8:
        found.set(_KEY, "int8")
        for key in known:
            found.ignored(key, "used with 4 bits alone")
    else:
        found.set(f"{_KEY}.type", "nf4")
        found.set(f"{_KEY}.double", double)
        found.notes[f"{_KEY}.double"] = f"the default of {found.program}"
        for name, convert in (("type", _type), ("double", flag), ("compute_dtype", _dtype)):
            if name in options:
                found.copy(options[name], f"{_KEY}.{name}", convert)
    for key in keys:
        found.translated(key, _KEY if bits == 8 else f"{_KEY}.type")


def quantized_name(name: Any) -> bool:
    """Whether the name of a model says that its weights are quantized."""
    return isinstance(name, str) and bool(_STORED.search(name) or _OTHER.search(name))


def _type(value: Any) -> str:
    if not isinstance(value, str) or value not in _TYPES:
        raise ValueError(f"given {value!r:.40}, expected nf4 or fp4")
    return _TYPES[value]


def _dtype(value: Any) -> str:
    name = value.removeprefix("torch.") if isinstance(value, str) else ""
    if name not in _DTYPES:
        raise ValueError(f"given {value!r:.40}, expected bfloat16, float16 or float32")
    return _DTYPES[name]
