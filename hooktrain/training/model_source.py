"""A trained model to be used again: in a run directory, a checkpoint, or an export, adapter or name of a model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain.errors import CheckpointError, HooktrainError
from hooktrain.plugin.config import Switches, plugins_config
from hooktrain.plugin.manager import PluginHost
from hooktrain.protocols import CheckpointEngine, CheckpointEngineDefaults, ConfigDefaults, member
from hooktrain.recipe.model import Recipe
from hooktrain.recipe.yaml_reader import apply_overrides, read_recipe
from hooktrain.training.build import at_start, make_part
from hooktrain.training.default_loop import MODEL_TYPE
from hooktrain.training.load import load, make_host
from hooktrain.training.run_record import FILE
from hooktrain.types import World

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["ModelSource", "find_model"]

Words = tuple[Sequence[str], Sequence[str]]
"""Words for values of the recipe, and for plugins."""
_KEPT = frozenset({"model", "tokenizer", "checkpoint", "plugins", "seed", "run_dir"})
"""Keys of a recipe that a model without a training needs. The packages of the others need not be installed for it."""


@attrs.frozen(kw_only=True)
class ModelSource:
    """Where a trained model is, and what loads it.

    Attributes:
        given: what the user wrote.
        recipe: the recipe that builds the model.
        host: the plugins.
        raw: the recipe as it was read.
        checkpoint: whose weights the model gets once it is built; None where building it loads them.
        engine: that loads them.
        run_dir: the run that it is from; None where it is from none.
    """

    given: str
    recipe: Recipe
    host: PluginHost
    raw: Mapping[str, Any]
    checkpoint: Path | None = None
    engine: CheckpointEngine | None = None
    run_dir: Path | None = None

    @property
    def name(self) -> str:
        """What messages call the model."""
        return str(self.checkpoint or self.given)

    def make_tokenizer(self) -> Any:
        """Build the tokenizer; None where the recipe has none."""
        return make_part(self.host, "make_tokenizer", self.recipe.tokenizer, world=World(), recipe=self.recipe)

    def make_model(self, tokenizer: Any) -> Module:
        """Build the model as its run did, in this process alone.

        Raises:
            HooktrainError: it cannot be built.
        """
        import torch

        torch.manual_seed(self.recipe.seed)  # an adapter that begins with random numbers changes a frozen base by them
        made: Module = make_part(
            self.host, "make_model", self.recipe.model, tokenizer=tokenizer, world=World(), recipe=self.recipe
        )
        return made

    def load_weights(self, model: Module) -> int | None:
        """Give a model that has been built the weights of the checkpoint; returns its step, None without a checkpoint.

        Raises:
            CheckpointError: it is damaged or of another model, or its engine cannot load weights alone.
        """
        if self.checkpoint is None:
            return None
        loads = member(self.engine, CheckpointEngineDefaults, "load_weights")
        if loads is None:
            raise CheckpointError(
                f"{self.checkpoint}: was saved by {type(self.engine).__name__}, which cannot load weights alone,"
                " expected an engine with load_weights; resume the run with a checkpoint engine that exports"
            )
        return int(loads(model, self.checkpoint))


def find_model(
    source: Path | str,
    *,
    best: bool = False,
    dtype: str | None = None,
    overrides: Sequence[str] = (),
    switches: Sequence[str] = (),
    recipe: Path | None = None,
    training: bool = False,
) -> ModelSource:
    """Find a trained model, and load the plugins that it needs.

    Args:
        source: a run directory, a checkpoint, or what some plugin's ``describe_model`` knows.
        best: take the best checkpoint or export of a run, instead of the newest.
        dtype: precision of the weights of a model that is not in a checkpoint; by default its own.
        overrides: ``key=value`` words.
        switches: words for plugins.
        recipe: the recipe to take what is not of the model from; that of the run by default.
        training: whether the sections of the training are needed too.

    Raises:
        HooktrainError: there is no such model, or its recipe cannot be read.
    """
    given = str(source)
    folder = Path(given).expanduser()
    run_dir = folder if (folder / FILE).is_file() else None
    is_checkpoint = run_dir is None and (folder / "recipe.yaml").is_file()
    around = run_dir or folder if run_dir or is_checkpoint else _run_around(folder)
    raw = read_recipe(recipe) if recipe else read_recipe(around / "recipe.yaml") if around else {}
    if best and run_dir is None:
        raise CheckpointError(f"--best: given '{given}', expected the directory of a run; remove --best")
    named = recipe or (around / "recipe.yaml" if around else Path(given))

    def loaded(raw: Mapping[str, Any]) -> tuple[Recipe, PluginHost]:
        name = around.name if around else "model"
        return load(raw, switches=list(switches), source=str(named), name=name, check=training)

    raw = dict(raw) if training else _without_training(raw)
    if run_dir is not None:
        raw["run_dir"] = str(run_dir)
    words = overrides, switches
    raw = apply_overrides(raw, overrides)
    if training and "data" not in raw:
        raise CheckpointError(
            f"given '{given}', which lies in no run, expected a recipe with evaluation sets; give it with --recipe"
        )
    if around is None or not (run_dir or is_checkpoint):
        return _described(given, raw, dtype, loaded, around, words)
    made, host = loaded(raw)
    shared: dict[str, Any] = {"given": given, "recipe": made, "host": host, "raw": raw, "run_dir": run_dir}
    engines = [*_engines(made, host)]
    if is_checkpoint:
        engine = next((each for each in engines if each.can_load(folder)), None)
        if engine is None:
            raise CheckpointError(
                f"{folder}: holds a recipe.yaml, and none of its recipe's checkpoint engines can load it; give a run"
                " directory, a checkpoint or a model"
            )
        return ModelSource(checkpoint=folder, engine=engine, **shared)
    for engine in engines:
        found = member(engine, CheckpointEngineDefaults, "best")() if best else engine.latest()
        if found is not None:
            if member(engine.config, ConfigDefaults, "exports"):
                return _described(str(found), raw, dtype, loaded, run_dir, words)
            return ModelSource(checkpoint=found, engine=engine, **shared)
    exports = [each for each in engines if member(each.config, ConfigDefaults, "exports")]
    results = [path for each in exports for path in member(each, CheckpointEngineDefaults, "results")()]
    if results and not best:
        return _described(str(results[0]), raw, dtype, loaded, run_dir, words)
    raise CheckpointError(_nothing(given, engines, best))


def _described(
    given: str,
    raw: Mapping[str, Any],
    dtype: str | None,
    loaded: Any,
    run_dir: Path | None,
    words: Words,
) -> ModelSource:
    """Return a model that plugins know how to load."""
    overrides, switches = words
    host = make_host(plugins_config(raw, []), switches=Switches.given(switches))
    sections = host.hooks.describe_model(source=given, recipe=raw, dtype=dtype)
    if sections is None:
        folder = Path(given).expanduser()
        what = "which contains no run, checkpoint, model or adapter" if folder.exists() else "which does not exist"
        raise HooktrainError(
            f"given '{given}', {what}; expected the directory of a run, a checkpoint, or a model as a plugin loads it;"
            " correct the path, or install the plugin"
        )
    raw = apply_overrides({**raw, **sections}, overrides)
    made, host = loaded(raw)
    return ModelSource(given=given, recipe=made, host=host, raw=raw, run_dir=run_dir)


def _without_training(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a recipe's model, and the settings of plugins, which may have changed it."""
    own = {item.name for item in attrs.fields(Recipe)} - _KEPT
    kept = {key: value for key, value in raw.items() if key not in own}
    return {**kept, "type": MODEL_TYPE, "skip_validation": True}


def _run_around(folder: Path) -> Path | None:
    """Return the run whose directory an export lies in."""
    here = Path(os.path.abspath(folder))
    return next((each for each in here.parents if (each / FILE).is_file() and (each / "recipe.yaml").is_file()), None)


def _engines(recipe: Recipe, host: PluginHost) -> Iterator[CheckpointEngine]:
    """Yield the checkpoint engines of a recipe, for reading only."""
    run_dir = host.start_folder / (recipe.run_dir or Path("runs") / recipe.name)
    for config in recipe.checkpoint:
        read_only = attrs.evolve(at_start(config, host), enabled=False)
        shared = {"run_dir": run_dir, "world": World(), "recipe": recipe}
        yield make_part(host, "make_checkpoint_engine", read_only, **shared)


def _nothing(given: str, engines: Sequence[CheckpointEngine], best: bool) -> str:
    folders = [str(folder) for each in engines if (folder := member(each, CheckpointEngineDefaults, "output_dir"))]
    looked = f"looked in {', '.join(folders)}" if folders else "its recipe has no checkpoint"
    if best:
        return (
            f"--best: given '{given}', a run without a checkpoint at whose step its metric was measured ({looked});"
            " write save_best or keep_best in the recipe, or remove --best"
        )
    return (
        f"given '{given}', a run that has saved no checkpoint and no export ({looked}); resume or repeat it with"
        " save_end_of_training: true under checkpoint"
    )
