"""The recipe's ``model.quantization``: how a frozen base is kept in 4 or 8 bits, and when that is refused.

Two libraries carry it. bitsandbytes has the 4-bit types, whose layers compute with exactly the weights that they
dequantize to, on processors and GPUs; torchao's 4 bits have no adapters in PEFT. torchao has ``int8``, of weights
alone: bitsandbytes' 8 bits round the inputs of a layer too, in float16, so that a loss would depend on how documents
share a batch, and a merged model would compute something else.
"""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from hooktrain import Complaint, ConfigDefaults, field, member, structure

if TYPE_CHECKING:
    from hooktrain import Recipe

__all__ = ["Quantization", "check", "check_setting", "objections", "quantization_of", "stored_quantization"]

_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_KEY = "model.quantization"


def _block(instance: Any, attribute: Any, value: int | None) -> None:
    if value is not None and value not in _BLOCKS:
        raise ValueError(f"given {value}, expected one of {', '.join(map(str, _BLOCKS))}")


@attrs.frozen(kw_only=True)
class Quantization:
    """How the linear layers of a base are kept; the head, embeddings and norms stay in ``weights_dtype``."""

    type: Literal["nf4", "fp4", "int8"] = field()
    """``nf4`` and ``fp4`` take half a byte for each weight, ``int8`` one byte."""
    double: bool = field(default=True)
    """4 bits: whether the scales are quantized as well, which saves 0.4 bits for each weight."""
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = field(default="auto")
    """4 bits: the type that weights are dequantized to and layers compute in; ``auto`` is that of a layer's inputs."""
    block: int | None = field(default=None, validator=_block)
    """4 bits: how many weights share a scale; 64 by default."""

    @property
    def package(self) -> str:
        """The package that has the layers."""
        return "torchao" if self.type == "int8" else "bitsandbytes"


def check_setting(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse a mapping that is no :class:`Quantization`; a validator of attrs."""
    if isinstance(value, Mapping):
        found = _structured(value)
        if isinstance(found, list):
            raise ValueError("; ".join(f"{one.where.rpartition('.')[2] or 'type'}: {one.message}" for one in found))


def quantization_of(config: Any) -> Quantization | None:
    """Return the quantization that a checked ``model`` asks for; None where it keeps its weights as they are."""
    given = config.quantization
    if given is None:
        return None
    found = _structured(given if isinstance(given, Mapping) else {"type": given})
    assert isinstance(found, Quantization)
    return found


def stored_quantization(hf_config: Any) -> str:
    """Return the method that a checkpoint's weights are quantized with, such as ``gptq``; empty for plain weights."""
    found = hf_config.to_dict().get("quantization_config") or {}
    method = found.get("quant_method", "") if isinstance(found, Mapping) else ""
    return str(method.value if isinstance(method, enum.Enum) else method)


def check(recipe: Recipe, config: Any) -> Iterator[Complaint]:
    """Yield why a recipe's ``model.quantization`` cannot be used."""
    quantization = quantization_of(config)
    if quantization is None:
        return
    if quantization.type == "int8" and isinstance(config.quantization, Mapping):
        for key in config.quantization.keys() - {"type"}:
            yield Complaint(f"{_KEY}.{key}", "given for int8, which has no such setting; remove it")
    if importlib.util.find_spec(quantization.package) is None:
        yield Complaint(
            _KEY,
            f"given {quantization.type}, which needs the package {quantization.package}, and that is not installed; run"
            f" `pip install {quantization.package}`",
            of_machine=True,
        )
    if config.from_config:
        yield Complaint(
            _KEY, "given with model.from_config, whose random weights have to be trained; remove one of them"
        )
    for reason in objections(recipe, f"{quantization.type}"):
        yield Complaint(_KEY, reason)


def objections(recipe: Recipe, given: str) -> Iterator[str]:
    """Yield why a run cannot have a quantized base.

    Args:
        recipe: of the run.
        given: what the weights are quantized with.
    """
    if not any(member(settings, ConfigDefaults, "freezes_model") for settings in recipe.settings.values()):
        yield (
            f"given {given} without an adapter, but quantized weights cannot be trained themselves; add an adapter,"
            " such as peft: {type: lora}, or train the unquantized model"
        )
    if member(recipe.strategy, ConfigDefaults, "shards_weights"):
        yield (
            f"given {given} with a strategy that shards weights over ranks, which packed weights do not support here;"
            " keep the base complete on each rank, as strategy: {type: torch, data_parallel: ddp} does, or remove the"
            " quantization"
        )
    elif not member(recipe.strategy, ConfigDefaults, "keeps_packed_weights"):
        yield (
            f"given {given} with a strategy that casts and exchanges the weights of a model, which packed weights do"
            " not survive; write strategy: {type: torch}"
        )


def _structured(given: Mapping[str, Any]) -> Quantization | list[Complaint]:
    complaints: list[Complaint] = []
    return structure(Quantization, given, _KEY, complaints) or complaints
