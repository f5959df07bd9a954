"""The recipe's settings of a model's blocks: what they keep, tile and compile, and when a recipe is refused.

This module is imported without torch.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from hooktrain import Complaint, ConfigDefaults, field, member, structure

if TYPE_CHECKING:
    from hooktrain import Recipe

__all__ = [
    "ON_HOST",
    "SELECTIVE",
    "Compilation",
    "check",
    "check_checkpointing",
    "check_compilation",
    "check_tile",
    "compilation_of",
    "kept_operators",
    "shown",
    "unknown_operators",
]

SELECTIVE = (
    *("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
    *("_scaled_dot_product_cudnn_attention", "_flash_attention_forward", "_efficient_attention_forward"),
    *("torch_attn::_varlen_attn", "hooktrain::document_attention"),
)
"""Operators whose results ``selective`` keeps, as torch names them: matrix products and attention."""


@attrs.frozen(kw_only=True)
class Compilation:
    """How the blocks of a decoder are compiled."""

    mode: Literal["default", "max-autotune-no-cudagraphs"] = field(default="default")
    """As torch.compile takes it. Modes with CUDA graphs are not among them: attention depends on the documents."""
    dynamic: bool | None = field(default=True)
    """Whether one graph serves all numbers of tokens. ``false`` makes one for each, which is faster where all
    micro-batches have equally many; null begins like ``false`` and continues like ``true``."""
    backend: str = field(default="inductor")
    """As torch.compile takes it; ``aot_eager`` and ``eager`` need no compiler and are no faster."""


def compilation_of(config: Any) -> Compilation | None:
    """Return the compilation that a checked ``model`` asks for; None where nothing is compiled."""
    given = config.compile
    if isinstance(given, Mapping):
        found = _structured(given)
        assert isinstance(found, Compilation)
        return found
    return Compilation() if given else None


def kept_operators(setting: Any) -> tuple[str, ...]:
    """Return the operators whose results checkpointed blocks keep, by a value of ``activation_checkpointing``."""
    if setting == "selective":
        return SELECTIVE
    return tuple(setting.get("ops", ())) if isinstance(setting, Mapping) else ()


def shown(setting: Any) -> str:
    """Return a value as a recipe writes it."""
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


# ------------------------------------------------------------------------------------------------------ validators


def check_checkpointing(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse a mapping that no kind of activation checkpointing is; a validator of attrs."""
    if not isinstance(value, Mapping):
        return
    if len(value) != 1 or not value.keys() <= {"every", "ops"}:
        raise ValueError(f"given {dict(value)!r}, expected true, full, selective, {{every: 2}} or {{ops: [mm, addmm]}}")
    every, ops = value.get("every"), value.get("ops")
    if "every" in value and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f"given every: {every!r}, expected a whole number from 1 on: each block, each second, ...")
    if "ops" in value and not (isinstance(ops, (list, tuple)) and ops and all(isinstance(one, str) for one in ops)):
        raise ValueError(f"given ops: {ops!r}, expected a list of torch's operators, such as [mm, addmm]")


def check_tile(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse tiles without tokens; a validator of attrs."""
    if not isinstance(value, bool) and value < 1:
        raise ValueError(f"given {value}, expected true, or a number of tokens from 1 on")


def check_compilation(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse a mapping that is no :class:`Compilation`; a validator of attrs."""
    if isinstance(value, Mapping) and isinstance(found := _structured(value), list):
        raise ValueError("; ".join(f"{one.where}: {one.message}" for one in found))


def _structured(given: Mapping[str, Any]) -> Compilation | list[Complaint]:
    complaints: list[Complaint] = []
    return structure(Compilation, given, "", complaints) or complaints


# -------------------------------------------------------------------------------------------------------- complaints


def check(recipe: Recipe, config: Any) -> Iterator[Complaint]:
    """Yield why the settings of a recipe's blocks cannot be used together, or here."""
    setting = config.activation_checkpointing
    yield from unknown_operators(setting)
    if config.activation_offload and (not setting or kept_operators(setting)):
        yield Complaint(
            "model.activation_offload",
            f"given true with activation_checkpointing: {shown(setting)}, expected one that keeps the inputs of blocks"
            " alone, as these are moved; write model.activation_checkpointing: true",
        )
    if config.activation_offload and str(member(recipe.strategy, ConfigDefaults, "device")) == "cpu":
        yield Complaint("model.activation_offload", f"given true with strategy.device: cpu, {ON_HOST}")
    if config.tiled_mlp and member(recipe.strategy, ConfigDefaults, "gathers_by_module"):
        yield Complaint(
            "model.tiled_mlp",
            f"given {shown(config.tiled_mlp)} with a strategy that gathers the weights of each module when it is"
            " called, and so for each tile; write strategy: {type: torch, data_parallel: fsdp2}, or zero_stage: 2",
        )
    if compilation := compilation_of(config):
        for reason in _objections(recipe, config, compilation):
            yield Complaint("model.compile", f"given {shown(config.compile)} {reason}")


def unknown_operators(setting: Any) -> Iterator[Complaint]:
    """Yield the names in a value of ``activation_checkpointing`` that torch has no operators of."""
    for name in kept_operators(setting) if isinstance(setting, Mapping) else ():
        from hooktrain_hf.compat import operators_named

        if not operators_named(name):
            yield Complaint(
                "model.activation_checkpointing.ops",
                f"given '{name}', which torch has no operator of; expected names as in torch.ops.aten, such as mm,"
                " addmm or _scaled_dot_product_flash_attention; correct it, or write selective",
            )


ON_HOST = "but activations of a processor are in the memory of the host already; remove it"


def _objections(recipe: Recipe, config: Any, compilation: Compilation) -> Iterator[str]:
    if compilation.backend == "inductor" and (missing := _missing_compiler()):
        yield f"without {missing}, or remove the key"
    if member(recipe.strategy, ConfigDefaults, "gathers_by_module"):
        yield (
            "with a strategy that gathers the weights of each module when it is called, which breaks graphs apart;"
            " write strategy: {type: torch, data_parallel: fsdp2}, or zero_stage: 2"
        )
    if int(member(recipe.strategy, ConfigDefaults, "sequence_parallel")) > 1:
        yield (
            "with strategy.sequence_parallel, whose ranks exchange tokens inside of blocks, where no graph can wait for"
            " the others; remove one of them"
        )
    if config.activation_offload:
        yield "with model.activation_offload, whose copies no graph contains; remove one of them"
    if config.tiled_mlp:
        yield "with model.tiled_mlp, whose tiles, and so the graph, change with the tokens; remove one of them"


def _missing_compiler() -> str:
    """Return what is missing for compiled code, and how to install it; empty where nothing is."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return (
            f"a C++ compiler, as there is no '{compiler}' here; install one (`apt-get install g++`, or `dnf install"
            " gcc-c++`), name another one in the environment variable CXX"
        )
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return (
            "Python's header files, as there is no Python.h here; install them (`apt-get install python3-dev`, or `dnf"
            " install python3-devel`)"
        )
    return ""
