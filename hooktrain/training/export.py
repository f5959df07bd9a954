"""Export of a trained model after its run, for ``hooktrain export``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from hooktrain.errors import CheckpointError
from hooktrain.protocols import CheckpointEngineDefaults, ConfigDefaults, member
from hooktrain.training.build import make_part
from hooktrain.training.finite_weights import is_finite
from hooktrain.training.lifecycle import checkpoint_path, export_config
from hooktrain.training.model_source import ModelSource, find_model
from hooktrain.types import ModelExport, World

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = ["Exported", "export_model_of"]


@attrs.frozen(kw_only=True)
class Exported:
    """What was exported.

    Attributes:
        source: the checkpoint or the model.
        step: optimizer steps of the checkpoint; None where there is no checkpoint.
        folder: what was written.
        weights: numbers in it, tied ones once.
    """

    source: str
    step: int | None
    folder: Path
    weights: int


def export_model_of(
    source: Path | str,
    output: Path | str | None = None,
    *,
    best: bool = False,
    merge: bool = False,
    dtype: str | None = None,
    overrides: Sequence[str] = (),
    switches: Sequence[str] = (),
) -> Exported:
    """Write a trained model for other programs, as its run would have exported it.

    The model is built in this process, without data and without an optimizer, and the weights of the checkpoint are
    loaded into it: this takes the memory of the model once.

    Args:
        source: a run directory, a checkpoint, or with ``merge`` also an adapter.
        output: a folder that does not exist or is empty; by default a new one in the run directory.
        best: take the best checkpoint of the run, instead of the newest.
        merge: merge what a plugin has added to the model into its weights.
        dtype: precision of the written weights; that of the run's own export by default.
        overrides: ``key=value`` words.
        switches: words for plugins.

    Raises:
        HooktrainError: there is nothing to export, or it cannot be written.
    """
    if output is not None:
        output = _new_folder(checkpoint_path(output, "--output").absolute())
    found = find_model(source, best=best, dtype=dtype, overrides=overrides, switches=switches)
    if found.checkpoint is None and not merge:
        raise CheckpointError(
            f"export: given '{found.given}', which {_has_exported(found, source)}, expected a run with checkpoints, or"
            " a checkpoint; use the folder as it is, or write --merge to merge an adapter"
        )
    engine_of = _exporting(found, dtype)
    tokenizer = found.make_tokenizer()
    model = found.make_model(tokenizer)
    not_finite = [name for name, value in _tensors(model).items() if not is_finite(value)]
    step = found.load_weights(model)
    if merge:
        model = _merged(found, model, dtype)
    folder = output or _new_folder(_default_folder(found, step, best=best, merge=merge))
    weights = _tensors(model)
    engine_of(folder)(
        ModelExport(
            module=model,
            weights=weights,
            tokenizer=tokenizer,
            recipe=found.recipe,
            hooks=found.host.hooks,
            not_finite=frozenset(not_finite),
        ),
        folder,
    )
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return Exported(source=found.name, step=step, folder=folder, weights=numbers)


def _has_exported(found: ModelSource, source: Path | str) -> str:
    return "is an export already" if str(source) == found.given else f"is the only result of {source}, an export"


def _new_folder(folder: Path) -> Path:
    """Return the path of a folder that is written only where nothing is lost.

    Raises:
        CheckpointError: something is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"export: given --output '{folder}', which exists, expected a new folder; give another one, or remove it"
        )
    return folder


def _default_folder(found: ModelSource, step: int | None, *, best: bool, merge: bool) -> Path:
    """Return a folder named after what is exported, in the run directory."""
    name = "best" if best else "model" if step is None else f"step-{step}"
    name += "-merged" if merge else ""
    run_dir = found.run_dir
    if run_dir is None and found.checkpoint is not None:  # of a run, where it lies as usual
        run_dir = next((each for each in found.checkpoint.absolute().parents if (each / "run.json").is_file()), None)
    if run_dir is None:
        raise CheckpointError(f"export: '{found.name}' lies in no run directory; give a folder with --output")
    return run_dir.absolute() / f"export-{name}"


def _exporting(found: ModelSource, dtype: str | None) -> Any:
    """Return a function from a folder to the ``export`` of the run's own export engine, or else of the first there is.

    Raises:
        CheckpointError: no plugin can export.
    """
    own = [each for each in found.recipe.checkpoint if member(each, ConfigDefaults, "exports")]
    changes: dict[str, Any] = {} if dtype is None else {"save_dtype": dtype}

    def export_in(folder: Path) -> Any:
        place = {"output_dir": folder, "enabled": True, "auto_resume": False}
        base = own[0] if own else export_config(found.host, None)(output_dir=folder)
        shared = {"run_dir": folder.parent, "world": World(), "recipe": found.recipe}
        engine = make_part(found.host, "make_checkpoint_engine", attrs.evolve(base, **place, **changes), **shared)
        export = member(engine, CheckpointEngineDefaults, "export")
        if export is None:
            raise CheckpointError(
                f"export: {type(engine).__name__} writes models during their run only, expected an engine with a method"
                " export; resume the run with it, or remove it from the recipe"
            )
        return export

    return export_in


def _merged(found: ModelSource, model: Module, dtype: str | None) -> Module:
    merged: Module | None = found.host.hooks.merge_model(module=model, dtype=dtype, recipe=found.recipe)
    if merged is None:
        raise CheckpointError(
            f"export --merge: given '{found.given}', whose {type(model).__name__} has nothing to merge, expected an"
            " adapter; remove --merge"
        )
    return merged


def _tensors(model: Module) -> Mapping[str, Tensor]:
    """Return a model's weights and buffers by name; they share its memory."""
    values = model.state_dict().items()
    return {name: value.detach() for name, value in values if isinstance(value, torch.Tensor)}
