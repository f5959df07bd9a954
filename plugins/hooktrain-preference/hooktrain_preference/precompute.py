"""The reference's log-probabilities of all answers, computed once before the training and kept for later runs."""

from __future__ import annotations

import contextlib
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hooktrain import default_cache_dir, digest
from hooktrain_preference.rows import AnswerRows

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["precompute"]

_LAYOUT = 1
"""Version of the files; increased when earlier ones can no longer be used."""

_OF_MODEL = ("dtype", "weights_dtype", "attn_implementation", "hf_config_kwargs", "quantization")
_OF_STRATEGY = ("type", "dtype", "device")
"""Keys of the recipe with which a model of the same weights may compute something else."""

_Values = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Log-probabilities of all answers of a set, and the answers of each of its sequences."""


def precompute(
    trainer: Trainer, sets: Sequence[AnswerRows], identity: str, compute: Callable[[Any], torch.Tensor]
) -> None:
    """Give each data set the reference's log-probabilities, from the cache where they are there. Collective.

    Args:
        trainer: with its data.
        sets: the data sets.
        identity: of the reference, equal for equal weights.
        compute: returns the log-probabilities of the answers of a micro-batch on the device, shape (answers,).
    """
    folder = _folder(trainer)
    for rows in sets:
        path = folder / f"{_fingerprint(trainer, rows, identity)}.npz" if folder else None
        found = trainer.strategy.gather_objects(path is not None and trainer.world.is_main and path.is_file())[0]
        values = _read(path) if path is not None and found else None
        # ranks that read differently would wait for each other
        if not all(trainer.strategy.gather_objects(values is not None)):
            where = f"evaluation set '{rows.name}'" if rows.name else "the training set"
            trainer.say(f"reference: computing its log-probabilities of {where}, {len(rows):,} sequences")
            values = _compute(trainer, rows, compute)
            if path is not None and trainer.world.is_main:
                _write(trainer, path, values)
        assert values is not None
        rows.keep(*values)


def _folder(trainer: Trainer) -> Path | None:
    data = trainer.recipe.data
    if not data.use_data_cache:
        return None
    folder: Path | None = data.cache_dir or default_cache_dir()
    return None if folder is None else folder / "references"


def _fingerprint(trainer: Trainer, rows: AnswerRows, identity: str) -> str:
    """Return a text that differs where the log-probabilities may differ: by data, reference or computation."""
    recipe = trainer.recipe.as_dict()
    model = {name: recipe.get("model", {}).get(name) for name in _OF_MODEL}
    strategy = {name: recipe.get("strategy", {}).get(name) for name in _OF_STRATEGY}
    parts = {
        "layout": _LAYOUT,
        "data": trainer.data.fingerprint,
        "set": rows.name,
        "rows": len(rows),
        "reference": identity,
        "computation": [model, strategy],
        "torch": torch.__version__,
    }
    return digest(parts)


def _read(path: Path) -> _Values | None:
    """Read a file of the cache; None where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values, counts = file["values"], file["counts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if values.dtype != np.float32 or counts.dtype != np.int64 or len(values) != counts.sum():
        return None
    return values, counts


def _write(trainer: Trainer, path: Path, values: _Values) -> None:
    """Write a file of the cache, which appears when it is complete."""
    partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.partial.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, values=values[0], counts=values[1])
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as problem:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        trainer.host.warn(
            f"data.cache_dir: '{path.parent}' cannot be written ({problem.strerror}); the reference's log-probabilities"
            " are computed again by the next run"
        )


def _compute(trainer: Trainer, rows: AnswerRows, compute: Callable[[Any], torch.Tensor]) -> _Values:
    """Compute the log-probabilities of all sequences, each rank's share of the micro-batches on it. Collective."""
    size = trainer.recipe.eval_micro_batch_size or trainer.recipe.micro_batch_size
    world = trainer.data_world
    batches = [range(first, min(first + size, len(rows))) for first in range(0, len(rows), size)]
    mine: dict[int, list[float]] = {}
    counts: dict[int, list[int]] = {}
    for number in _share(len(batches), world.rank, world.world_size):
        sequences = [rows[index] for index in batches[number]]
        batch = trainer.data.collate(sequences)
        found = trainer.strategy.compute(lambda batch=batch: compute(trainer.on_device(batch)), False)  # type: ignore[misc]
        mine[number] = found.float().cpu().tolist()
        counts[number] = [_answers(sequence) for sequence in sequences]
    values: dict[int, list[float]] = {}
    numbers: dict[int, list[int]] = {}
    for of_rank, counts_of_rank in trainer.strategy.gather_objects([sorted(mine.items()), sorted(counts.items())]):
        values |= dict(of_rank)
        numbers |= dict(counts_of_rank)
    order = range(len(batches))
    return (
        np.concatenate([np.array(values[number], np.float32) for number in order]),
        np.concatenate([np.array(numbers[number], np.int64) for number in order]),
    )


def _share(batches: int, rank: int, ranks: int) -> Iterator[int]:
    """Yield the micro-batches of a rank: as many on each, so that none waits; some are computed twice."""
    for first in range(0, batches, ranks):
        yield min(first + rank, batches - 1)


def _answers(sequence: Any) -> int:
    """Return the number of documents of a sequence."""
    return int((sequence["position_ids"] == 0).sum())
