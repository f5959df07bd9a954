"""Building the parts of a run, in the order in which they need each other."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain.compare import differences
from hooktrain.errors import CheckpointError, DataError, HooktrainError, PluginError, RanksDisagreeError, RecipeError
from hooktrain.hookspecs import FACTORIES
from hooktrain.masking import forbid_others, mask_text, masked
from hooktrain.plugin.manager import PluginHost
from hooktrain.protocols import (
    CheckpointEngine,
    CheckpointEngineDefaults,
    ConfigDefaults,
    Loader,
    Scheduler,
    Strategy,
    StrategyDefaults,
    member,
    missing_members,
    renamed_member,
)
from hooktrain.recipe.model import Recipe
from hooktrain.training.data_limits import limited
from hooktrain.training.environment import environment_of
from hooktrain.training.intervals import require_countable
from hooktrain.training.output_folders import claim_output_folders
from hooktrain.training.resume_check import versions
from hooktrain.training.run_files import clear_way, write_whole
from hooktrain.training.run_lock import RunLock
from hooktrain.training.run_record import KEPT
from hooktrain.training.update_events import bind_update_events
from hooktrain.types import Batch, Data, LossSum, World

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from hooktrain.training.trainer import Trainer

__all__ = [
    "DataParts",
    "ModelParts",
    "at_start",
    "build_data_parts",
    "build_model_parts",
    "make_checkpoint_engines",
    "make_data",
    "make_part",
    "newest_checkpoint",
    "open_strategy",
    "settle_run",
]


@attrs.frozen(kw_only=True)
class DataParts:
    """The parts of a run that do not need its model, as :func:`build_data_parts` returns them."""

    tokenizer: Any
    data: Data
    data_world: World
    divide: Callable[[Batch], Batch]
    loader: Loader
    loss: Callable[[Module, Batch, float], LossSum]
    checkpoint_engines: Sequence[CheckpointEngine]


@attrs.frozen(kw_only=True)
class ModelParts:
    """The model and what moves its weights, as :func:`build_model_parts` returns them."""

    model: Module
    models: Mapping[str, Module]
    trained: Module
    optimizer: Optimizer
    scheduler: Scheduler
    last_lr: float


def open_strategy(host: PluginHost, recipe: Recipe, world: World) -> Strategy:
    """Build the strategy, with which the ranks of a run are connected."""
    forbid_others()
    _seed(recipe.seed)
    strategy: Strategy = make_part(host, "make_strategy", recipe.strategy, world=world, recipe=recipe)
    return strategy


def build_data_parts(trainer: Trainer) -> DataParts:
    """Build everything that does not need the model, and write what is known of the run into its folder.

    Raises:
        PluginError: when no plugin builds a part that the recipe selects.
        RanksDisagreeError: when another rank has a different recipe, other plugins or other data.
        HooktrainError: whatever a factory finds wrong.
    """
    recipe, world, host, strategy = trainer.recipe, trainer.world, trainer.host, trainer.strategy
    plugins = {record["name"]: record for record in host.manifest()}
    # plugins first: a plugin that is not there says more than the section of the recipe that names it
    _agree(
        strategy, {"plugins": plugins, "recipe": masked({**recipe.as_dict(), "run_dir": ""}), "versions": versions()}
    )
    _agree(strategy, {"order of plugins": list(reversed(plugins))})
    if world.is_main:
        _open_run_dir(trainer)
        for record in host.failed():
            text = record.reason if record.reason.startswith("plugin ") else f"{record}: {record.reason}"
            host.warn(f"{text}; the run continues without it")
        for text in host.passed_over.values():
            trainer.say(text)
    tokenizer, data = make_data(host, recipe, world)
    _agree(strategy, {"data": {"rows": len(data.train), "fingerprint": data.fingerprint}})
    data_world = member(strategy, StrategyDefaults, "data_world") or world
    return DataParts(
        tokenizer=tokenizer,
        data=data,
        data_world=data_world,
        divide=member(strategy, StrategyDefaults, "divide"),
        loader=host.hooks.make_loader(dataset=data.train, data=data, recipe=recipe, world=data_world),
        loss=make_part(host, "make_loss", recipe.loss, world=world, recipe=recipe),
        checkpoint_engines=vars(trainer).get("checkpoint_engines") or make_checkpoint_engines(trainer),
    )


def make_checkpoint_engines(trainer: Trainer) -> list[CheckpointEngine]:
    """Build the checkpoint engines that the recipe names."""
    given = {"run_dir": trainer.run_dir, "world": trainer.world, "recipe": trainer.recipe}
    configs = (at_start(config, trainer.host) for config in trainer.recipe.checkpoint)
    return [make_part(trainer.host, "make_checkpoint_engine", config, **given) for config in configs]


def build_model_parts(trainer: Trainer) -> ModelParts:
    """Build the model and further ones, the optimizer and the scheduler.

    Raises:
        PluginError: when no plugin builds a part that the recipe selects.
        HooktrainError: whatever a factory finds wrong.
    """
    import torch  # which those who only read a recipe do without

    from hooktrain.training.extra_models import build_extra_models

    recipe, world, host, strategy = trainer.recipe, trainer.world, trainer.host, trainer.strategy
    torch.manual_seed(recipe.seed)  # weights do not depend on how much randomness the data took
    with strategy.model_context():
        model = make_part(host, "make_model", recipe.model, tokenizer=trainer.tokenizer, world=world, recipe=recipe)
    shared = {"model": model, "recipe": recipe, "tokenizer": trainer.tokenizer, "world": world}
    extra = build_extra_models(host, recipe.seed, strategy.model_context, **shared)
    trained = strategy.prepare_model(extra.trained_with(model))
    optimizer = make_part(host, "make_optimizer", recipe.optimizer, model=trained, world=world, recipe=recipe)
    horizon = trainer.training_horizon
    given = {"optimizer": optimizer, "total_steps": horizon, "world": world, "recipe": recipe}
    scheduler = make_part(host, "make_scheduler", recipe.scheduler, **given)
    trained, optimizer, scheduler = strategy.prepare(trained, optimizer, scheduler, recipe.gradient_accumulation_steps)
    model, models = extra.prepared(trained, strategy)
    bind_update_events(trainer, host, strategy)
    require_countable(trainer)
    _warn_of_unused_settings(trainer)
    _seed(recipe.seed + world.rank)  # dropout differs between ranks
    return ModelParts(
        model=model,
        models=models,
        trained=trained,
        optimizer=optimizer,
        scheduler=scheduler,
        last_lr=optimizer.param_groups[0]["lr"],
    )


def _seed(seed: int) -> None:
    """Seed every generator whose state a checkpoint holds."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:  # torch imports it where it is installed
        sys.modules["numpy"].random.seed(seed % 2**32)


def at_start(config: Any, host: PluginHost) -> Any:
    """Return a checkpoint config whose ``output_dir`` is absolute: a plugin may change the working directory."""
    folder = member(config, ConfigDefaults, "output_dir")
    return config if folder is None else attrs.evolve(config, output_dir=host.start_folder / folder)


def settle_run(trainer: Trainer) -> Path | None:
    """Find the checkpoint to resume from, take the output folders, and write what is known of the run. Collective.

    Returns:
        The checkpoint, or None where the run begins anew.

    Raises:
        CheckpointError: the run cannot resume from it, or another run's results are in the way.
        HooktrainError: the run directory cannot be written.
    """
    path = _find_checkpoint(trainer)
    claim_output_folders(trainer, path)
    if trainer.world.is_main:
        _write_facts(trainer)
    return path


def _find_checkpoint(trainer: Trainer) -> Path | None:
    """Return the checkpoint to resume from, checked by the engine that wrote it; the same on all ranks.

    Raises:
        CheckpointError: when the run cannot resume from it.
    """
    path = trainer.resume_from
    if path is None and trainer.world.is_main:
        path = newest_checkpoint(trainer)
    text = trainer.strategy.gather_objects(None if path is None else str(path))[0]
    if text is None:
        return None
    path = Path(text)
    engine = next((engine for engine in trainer.checkpoint_engines if engine.can_load(path)), None)
    found = trainer.strategy.gather_objects(engine is not None)
    if any(found) and not all(found):
        raise CheckpointError(
            f"{path}: rank {found.index(False)} does not find this checkpoint, which rank {found.index(True)} does;"
            " give an output_dir that all hosts share"
        )
    loads = trainer.host.implementations("load_checkpoint")
    if engine is None and all(one.wrapper or trainer.host.is_own(one) for one in loads):
        from hooktrain.training.checkpointing import no_checkpoint  # with torch, which listings do without

        raise no_checkpoint(path)
    member(engine, CheckpointEngineDefaults, "check")(trainer, path)
    return path


def newest_checkpoint(trainer: Trainer) -> Path | None:
    """Return the newest checkpoint of the first engine with ``auto_resume`` that has one."""
    for engine in trainer.checkpoint_engines:
        if engine.config.auto_resume and engine.config.enabled:
            path = engine.latest()
            if path is not None:
                return path
    return None


def make_part(host: PluginHost, hook: str, config: Any, **needs: Any) -> Any:
    """Ask the factories for a part; a kind that the trainer type does not have is None."""
    if config is None:
        return None
    try:
        made = getattr(host.hooks, hook)(config=config, **needs)
    except RecipeError as problem:  # a factory does not know where the recipe came from
        problem.rename(host.recipe_source)
        raise
    if made is None:
        kind = FACTORIES[hook]
        offer = next((o for o in host.parts.get(kind, {}).values() if o.config is type(config)), None)
        who = f"'{offer.name}' is registered by {offer.plugin}, but" if offer else "the recipe selects it, but"
        wrappers = [f"'{found.plugin_name}'" for found in host.implementations(hook) if found.wrapper]
        also = (
            f", and these wrap it and must return the result of their yield: {', '.join(wrappers)}" if wrappers else ""
        )
        raise PluginError(f"{kind}: {who} no implementation of {hook} answered; one must return the part{also}")
    protocol = _PROTOCOLS.get(hook, object)
    for name in missing_members(protocol, made):
        old = renamed_member(protocol, name, made)
        kind = type(made).__name__
        raise PluginError(
            f"{FACTORIES[hook]}: the {kind} that {hook} returned has no '{name}', expected a {protocol.__name__}"
            + (f"; its '{old}' is '{name}' in hooktrain 0.2" if old else "; add it")
        )
    return made


_PROTOCOLS: Mapping[str, type] = {
    "make_checkpoint_engine": CheckpointEngine,
    "make_scheduler": Scheduler,
    "make_strategy": Strategy,
}
"""What the parts that these hooks return are held against."""


def _warn_of_unused_settings(trainer: Trainer) -> None:
    """Say what the recipe asks for and this run will never do; once, and not on each rank."""
    recipe = trainer.recipe
    if not trainer.world.is_main:
        return
    if (recipe.eval_interval or recipe.eval_at_start) and not trainer.data.evaluation:
        trainer.host.warn(
            "eval_interval: nothing will be evaluated, as there is no evaluation set; add data.eval_sources"
        )
    last = min(trainer.training_horizon, recipe.exit_iteration or trainer.training_horizon)
    end_is_saved = any(config.enabled and config.save_end_of_training for config in recipe.checkpoint)
    for number, config in enumerate(recipe.checkpoint):
        if not config.enabled or config.save_end_of_training:
            continue
        by_epoch = round(config.save_every_n_epochs * len(trainer.loader))
        steps = [n for n in (config.save_every_n_steps, by_epoch) if n]
        best = member(config, ConfigDefaults, "save_best")
        if not steps and not config.auto_resume and not best:
            trainer.host.warn(
                f"checkpoint[{number}]: will not save; write save_every_n_steps, save_every_n_epochs,"
                " save_best or save_end_of_training"
            )
        elif steps and not end_is_saved and not any(last % n == 0 for n in steps):
            saved = max(last - last % n for n in steps)
            trainer.say(
                f"checkpoint[{number}]: the run ends with step {last}, but"
                f" {f'the last save is that of step {saved}' if saved else 'no step is saved'}; write"
                " save_end_of_training: true to save the end too"
            )


def make_data(host: PluginHost, recipe: Recipe, world: World) -> tuple[Any, Data]:
    """Build the tokenizer and the data of a recipe.

    Raises:
        HooktrainError: when there is no data section, or a set is empty.
    """
    tokenizer = make_part(host, "make_tokenizer", recipe.tokenizer, world=world, recipe=recipe)
    given = {"tokenizer": tokenizer, "world": world, "hooks": host.hooks, "recipe": recipe}
    data: Data | None = make_part(host, "make_data", recipe.data, **given)
    if data is None:
        raise HooktrainError("data: the recipe has none, and the trainer type has no default; add a 'data' section")
    if len(data.train) == 0:
        raise DataError("data: no row is left to train on; check data.sources and what the overflow policy dropped")
    for name, rows in data.evaluation.items():
        if len(rows) == 0:
            raise DataError(f"data: the evaluation set '{name}' is empty; remove it or give it rows")
    return tokenizer, limited(data, recipe, world)


def _agree(strategy: Strategy, mine: Mapping[str, Any]) -> None:
    """Refuse to continue when ranks differ: a run of different programs hangs in its first collective, or worse."""
    if strategy.world.world_size == 1:
        return
    everyone = [json.loads(text) for text in strategy.gather_objects(json.dumps(mine, default=str))]
    for rank, theirs in enumerate(everyone):
        for found in differences(theirs, everyone[0], names=(f"rank {rank}", "rank 0")):
            raise RanksDisagreeError(
                f"rank {rank} and rank 0 differ in {found}; install the same packages and give the same recipe"
                " everywhere"
            )


def _open_run_dir(trainer: Trainer) -> None:
    """Make the run directory and hold it, and begin the record of the run."""
    folder = trainer.run_dir
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        weakref.finalize(trainer, RunLock(folder, say=trainer.host.warn).release)
        trainer.run_record.begin(trainer.hooks, trainer.host.warn)


def _write_facts(trainer: Trainer) -> None:
    """Keep recipe, what was given of it, plugins, environment and the report on the data alongside the metrics."""
    manifest = {
        "plugins": trainer.host.manifest(),
        "environment": environment_of(trainer.host.start_folder, trainer.world.world_size),
        "recipe": {"source": trainer.host.recipe_source, "given": masked(dict(trainer.host.given_recipe))},
    }
    report = dict(trainer.data.report)
    texts = (
        trainer.recipe.as_yaml(),
        json.dumps(manifest, indent=2, default=str),
        json.dumps(report, indent=2, default=str),
    )
    with _writing(trainer.run_dir):
        for name, text in zip(KEPT, texts, strict=True):
            clear_way(trainer.run_dir / name, trainer.host.warn)
            write_whole(trainer.run_dir / name, mask_text(text))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise HooktrainError(
            f"run_dir: given '{folder}', which cannot be written ({problem.strerror}); give another folder"
        ) from problem
