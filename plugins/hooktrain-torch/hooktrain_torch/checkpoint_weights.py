"""Weights of a ``full`` checkpoint alone, for an export or a conversation, whatever strategy has saved it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module

from hooktrain import CheckpointError, StoredTensors
from hooktrain_torch.checkpoint_values import read_json, refused
from hooktrain_torch.complete_state import load_model, shards_of
from hooktrain_torch.files import MANIFEST, problem_of, read_object
from hooktrain_torch.frozen_weights import FrozenWeights
from hooktrain_torch.save import FROZEN, PARTS, TENSORS
from hooktrain_torch.stored_tensors import CheckpointTensors

__all__ = ["load_weights"]

_OWN = "model."
"""Beginning of the names of the run's own model where it trained others as well."""


def load_weights(model: Module, path: Path) -> int:
    """Load a checkpoint's weights into a model as it was built; returns the checkpoint's step.

    Tensors are read from the disk a few at a time, so that this takes no memory besides the model's.

    Args:
        model: the bare model, complete.
        path: the checkpoint.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    if problem := problem_of(path):
        advice = "use that version" if problem.other_format else "give another checkpoint"
        raise CheckpointError(f"{path}: {problem.text}; {advice}")
    with refused(None, path, "write the model of its recipe.yaml in the recipe"):
        names: StoredTensors = CheckpointTensors(path, "model", read_json(path / TENSORS)["model"])
        extra: Mapping[str, Any] = read_object(path / PARTS)["trained"]["extra"]
        frozen: Mapping[str, Any] = read_json(path / FROZEN) if (path / FROZEN).is_file() else {}
        others = {name for name in (*names.names(), *extra, *frozen) if not name.startswith(_OWN)}
        if not any(name in others for name in model.state_dict()) and _is_among(model, {*names.names(), *frozen}):
            names = _OwnModel(names)
            extra, frozen = _without_prefix(extra), _without_prefix(frozen)
        known = FrozenWeights(model, shards_of(model), lambda value: [value])
        if different := known.different(frozen, shards_of(model), lambda value: [value]):
            named = ", ".join(different[:2]) + (", ..." if len(different) > 2 else "")
            raise CheckpointError(
                f"{path}: was saved without its {len(frozen)} frozen weights, and {len(different)} of them differ in"
                f" the model of the recipe ({named}), expected the base model that the run began with; restore it, or"
                " write its place with -o model.name_or_path=..."
            )
        load_model(model, names, extra, list(frozen))
    return int(read_json(path / MANIFEST)["step"])


def _is_among(model: Module, names: Collection[str]) -> bool:
    """Whether a model's parameters are in a checkpoint under the name of the run's own model."""
    return all(_OWN + name in names for name, _ in model.named_parameters())


def _without_prefix(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(_OWN): value for name, value in values.items() if name.startswith(_OWN)}


class _OwnModel:
    """The tensors of the run's own model among those of several."""

    def __init__(self, stored: StoredTensors) -> None:
        self._stored = stored

    def names(self) -> Collection[str]:
        return {name.removeprefix(_OWN) for name in self._stored.names() if name.startswith(_OWN)}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored.shape(_OWN + name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._stored.read(_OWN + name, start, stop)
