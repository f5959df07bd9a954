"""The variants of each case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.sft.rows import write_long, write_many
from benchmarks.sft.variants import Training
from hooktrain.bench import Variant

__all__ = ["GROUPS", "ONCE"]

_PACKING = {
    "packing": True,
    "max_length": 512,
    "per_device_train_batch_size": 1,
    "gradient_checkpointing": False,  # on by default, and would make TRL slower
}


def _fp32(training: Training, folder: Path) -> list[Variant]:
    return [
        training.ours("ours", precision="fp32"),
        training.ours("ours-all", precision="fp32", train_on="all"),
        training.trl("trl", settings={**_PACKING, "bf16": False}, weights="float32"),
        training.hand_written("loop", "fp32", folder / "packs.pt"),
    ]


def _bf16(training: Training, folder: Path) -> list[Variant]:
    return [
        training.ours("ours", precision="bf16"),
        training.ours("ours-weights", precision="bf16-weights"),
        training.trl("trl", settings=_PACKING, weights="bfloat16"),
        training.hand_written("loop", "bf16", folder / "packs.pt"),
        training.hand_written("loop-weights", "bf16-weights", folder / "packs.pt"),
    ]


def _defaults(training: Training, folder: Path) -> list[Variant]:
    return [
        training.ours("ours", precision="default", packed=False),
        training.ours("ours-fp32", precision="fp32", packed=False),
        training.trl("trl", settings={}),
        training.arctic("arctic", settings={}, batch=8),  # its default is 1, with which nearly all is padding
    ]


def _prepare(training: Training, folder: Path) -> list[Variant]:
    tenth, rows = (write_many(folder, count) for count in training.plan.many)
    length = training.plan.prepared_length
    settings = {**_PACKING, "max_length": length, "bf16": False}
    return [
        training.preparing("ours", rows, length=length),
        training.preparing("ours-again", rows, length=length, after="ours"),
        training.preparing("ours-tenth", tenth, length=length),
        training.preparing("ours-one-core", rows, length=length, cores=1),
        training.preparing("ours-two-cores", rows, length=length, cores=2),
        training.tokenizing("tokenizing", rows),
        training.tokenizing("tokenizing-one-core", rows, cores=1),
        training.trl("trl", settings=settings, rows=str(rows), only_prepare=True),
    ]


def _packing(training: Training, folder: Path) -> list[Variant]:
    return [training.packing("ours")]


def _length(training: Training, folder: Path) -> list[Variant]:
    longest = max(training.plan.lengths)
    document, rows = write_long(folder, longest), write_many(folder, longest)
    return [
        training.long(f"{shape}-{length}", source, length, packed=source is rows)
        for shape, source in (("document", document), ("packs", rows))
        for length in training.plan.lengths
    ]


def _compiled(training: Training, folder: Path) -> list[Variant]:
    return [
        training.ours("ours", precision="fp32"),
        training.ours("ours-compiled", precision="fp32", compile=True),
    ]


def _tiled(training: Training, folder: Path) -> list[Variant]:
    longest = max(training.plan.lengths)
    document = write_long(folder, longest)
    return [
        training.long("checkpointing", document, longest, packed=False, wide=4),
        training.long("tiled", document, longest, packed=False, wide=4, tiled_mlp=True),
    ]


GROUPS: Mapping[str, Callable[[Training, Path], list[Variant]]] = {
    "fp32": _fp32,
    "bf16": _bf16,
    "defaults": _defaults,
    "prepare": _prepare,
    "packing": _packing,
    "length": _length,
    "compiled": _compiled,
    "tiled": _tiled,
}
"""Functions of the plan and a folder for files, which has ``packs.pt``; the names are those of the cases."""

ONCE = ("length", "tiled")
"""Cases whose variants run once, because memory hardly differs from run to run and long sequences take minutes."""
