"""Evaluation of a trained model after its run, for ``hooktrain evaluate``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain.errors import HooktrainError
from hooktrain.training.load import load
from hooktrain.training.model_source import ModelSource, find_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hooktrain.training.trainer import Trainer

__all__ = ["Evaluated", "evaluate_model"]

_OFF: Mapping[str, Any] = {"checkpoint": [], "console": {"enabled": False}, "jsonl": {"enabled": False}}
"""Sections with which nothing is saved or printed."""


@attrs.frozen(kw_only=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        source: the checkpoint or the model.
        step: optimizer steps of the checkpoint; None where there is no checkpoint.
        metrics: the values by name, such as ``eval/held_out/loss``.
        is_main: whether this process is rank 0, which prints them.
    """

    source: str
    step: int | None
    metrics: Mapping[str, float]
    is_main: bool


def evaluate_model(
    source: Path | str,
    *,
    best: bool = False,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    switches: Sequence[str] = (),
) -> Evaluated:
    """Evaluate a trained model on the evaluation sets of a recipe, without training it. Collective.

    A checkpoint is loaded completely, plugins' states included, so that every figure is the one that its run logged at
    that step.

    Args:
        source: a run directory, a checkpoint, or a model or adapter.
        best: take the best checkpoint of the run, instead of the newest.
        recipe: whose evaluation sets; those of the run by default.
        overrides: ``key=value`` words, such as ``data.eval_sources=[other.jsonl]``.
        switches: words for plugins.

    Raises:
        HooktrainError: there is no such model, no recipe, or no evaluation set.
    """
    shared: dict[str, Any] = {"best": best, "recipe": recipe, "overrides": overrides, "switches": switches}
    found = find_model(source, training=True, **shared)
    with _trainer(found, switches) as trainer:
        trainer.prepare()
        if not trainer.data.evaluation:
            raise HooktrainError(
                f"evaluate: the recipe of '{found.name}' has no evaluation set; add one with"
                " -o data.eval_sources=[rows.jsonl]"
            )
        if found.checkpoint is not None:
            trainer.resume(found.checkpoint.absolute())
        metrics = trainer.evaluate()
        step = None if found.checkpoint is None else trainer.global_step
        return Evaluated(source=found.name, step=step, metrics=metrics, is_main=trainer.world.is_main)


@contextmanager
def _trainer(found: ModelSource, switches: Sequence[str]) -> Iterator[Trainer]:
    """Make a trainer of a model's recipe that writes nothing outside of a temporary folder."""
    from hooktrain.training.trainer import Trainer

    with tempfile.TemporaryDirectory(prefix="hooktrain-evaluate-") as folder:
        raw = {**found.raw, **_OFF, "run_dir": folder, "allow_changes": ["*"]}
        if found.checkpoint is not None:
            kind = found.recipe.types[type(found.engine.config)] if found.engine is not None else "full"
            raw["checkpoint"] = [{"type": kind, "enabled": False}]
        source = found.host.recipe_source or "recipe"
        made, host = load(raw, switches=list(switches), source=source, name=found.recipe.name)
        with Trainer(made, host) as trainer:
            yield trainer
