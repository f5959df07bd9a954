"""How a run begins and ends: what it is made of, its parts while it lasts, and what is left of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, cast

from torch.nn import Module
from torch.optim import Optimizer

from hooktrain.errors import CheckpointError, HooktrainError, RecipeError, did_you_mean
from hooktrain.plugin.manager import PluginHost
from hooktrain.protocols import CheckpointEngine, Scheduler, Strategy
from hooktrain.recipe.model import Recipe
from hooktrain.recipe.yaml_reader import read_recipe
from hooktrain.training.build import build, make_part
from hooktrain.training.diagnostics import explain
from hooktrain.training.load import load
from hooktrain.training.python_arguments import needs_tokenizer, settle
from hooktrain.training.python_parts import PythonParts
from hooktrain.types import Batch, Data, LossSum, TrainerState, World

if TYPE_CHECKING:
    from typing_extensions import Self

    from hooktrain.training.trainer import Trainer

__all__ = ["Session"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Session:
    """What a trainer is outside of its loop.

    Attributes:
        recipe: what is run, structured.
        host: the plugins.
        hooks: every hook, to be called with keyword arguments.
        state: what a checkpoint holds of the loop.
        history: every log line of this process, the oldest first, as ``on_log`` was given them.
        tokenizer, data, loss, model, optimizer, scheduler, strategy, checkpoint_engines, loader: the parts, once they
            have been built. After the run ``model`` is the trained model in evaluation mode; a strategy that spreads
            the weights over ranks leaves each with its share.
        run_dir: folder of the run's files.
    """

    strategy: Strategy
    tokenizer: Any
    data: Data
    loss: Callable[[Module, Batch, float], LossSum]
    model: Module
    optimizer: Optimizer
    scheduler: Scheduler
    checkpoint_engines: Sequence[CheckpointEngine]
    loader: Any
    data_world: World
    divide: Callable[[Batch], Batch]
    run_dir: Path
    last_lr: float

    def __init__(
        self,
        recipe: Recipe | Mapping[str, Any] | Path | str = _NOTHING,
        host: PluginHost | None = None,
        *,
        model: Module | Path | str | None = None,
        tokenizer: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data: Data | None = None,
        loss: Callable[[Module, Batch, float], LossSum] | None = None,
        optimizer: Callable[[Module], Optimizer] | None = None,
        scheduler: Callable[[Optimizer, int], Scheduler] | None = None,
        plugins: Sequence[object] = (),
        switches: Sequence[str] = (),
        overrides: Sequence[str] = (),
        world: World | None = None,
        resume_from: Path | str | None = None,
    ) -> None:
        """Take a recipe, and what there is beside it; nothing is loaded before :meth:`run`.

        Args:
            recipe: a mapping as a YAML file would hold it, or the file; everything else has a default.
            host: the plugins, where the recipe has been structured already, as ``hooktrain.load`` does.
            model: a torch module, which is trained in place; or a folder or a name on the hub.
            tokenizer: an object, a folder or a name; the model's own when left out.
            train_dataset: rows in any format that a source may have (a list of mappings, a ``datasets.Dataset``, or its
                ``train`` of several; a torch Dataset), read once and prepared as a source's are; or an iterable or a
                function that returns an iterator, read while training; or what ``data.sources`` takes as text.
            eval_dataset: such rows, which are evaluated as ``eval``, or a mapping of names to them.
            data: a ``hooktrain.Data`` of rows that are ready for a model, in the place of data sets.
            loss: ``loss(model, batch, denominator) -> LossSum``, in the place of the recipe's.
            optimizer: a function of the model in its final form, adapters and shards included.
            scheduler: a function of optimizer and number of optimizer steps.
            plugins: instances or classes with hook implementations, or modules.
            switches: ``name``, ``no:name`` and ``no:*`` for installed plugins, as ``-p`` takes them.
            overrides: ``key=value``, as ``-o`` takes them.
            world: this process and how many there are; read from the environment, as torchrun sets it.
            resume_from: a checkpoint to go on from, instead of the newest one of an engine with ``auto_resume``.

        Raises:
            RecipeError: with everything that is wrong in the recipe, and what is given twice.
            PluginError: when a plugin cannot be loaded, or plugins clash.
        """
        objects = {
            "model": model,
            "tokenizer": tokenizer,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "data": data,
            "loss": loss,
            "optimizer": optimizer,
            "scheduler": scheduler,
        }
        if isinstance(recipe, Recipe):
            more = [name for name, value in objects.items() if value is not None]
            more += [name for name, value in (("plugins", plugins), ("switches", switches)) if value]
            if host is None or more or overrides:
                raise TypeError(
                    "Trainer: a structured Recipe comes with its host, as hooktrain.load returns both, and with nothing"
                    " else beside it; give a mapping or a file instead"
                )
            self.recipe, self.host = recipe, host
        elif host is not None:
            raise TypeError("Trainer: a host comes with a structured Recipe, as hooktrain.load returns both")
        else:
            self.recipe, self.host = _structured(recipe, objects, plugins, switches, overrides)
        self.hooks = self.host.hooks
        self.world = world or World.from_environment()
        self.resume_from = None if resume_from is None else Path(resume_from).expanduser()
        self.state = TrainerState()
        self.history: list[Mapping[str, float]] = []
        self._held = self._ran = self._closed = False
        self._failure: BaseException | None = None
        self._set_up()

    def _set_up(self) -> None:
        """What the loop keeps count of."""

    # ------------------------------------------------------------------------------------------ beginning and end

    def prepare(self) -> None:
        """Build the parts, unless they are there; :meth:`run` does it by itself.

        Raises:
            HooktrainError: whatever is wrong with a part; or that the run is over and its strategy has let go.
        """
        trainer = cast("Trainer", self)
        if not hasattr(self, "scheduler") and not self._closed:
            with self._explained():
                build(trainer)
        elif self._closed and not (hasattr(self, "scheduler") and getattr(self.strategy, "usable_when_closed", False)):
            raise HooktrainError(
                "trainer: the run is over, and what connected its ranks or held its weights is gone; do this inside"
                " `with hooktrain.Trainer(...) as trainer:`, after trainer.run()"
            )

    def run(self) -> TrainerState:
        """Build the parts, resume if there is something to resume from, train, and tear down whatever happens.

        Inside ``with trainer:`` everything stays up until the block ends.

        Returns:
            The state, with ``stop_reason`` where something ended the run early.

        Raises:
            HooktrainError: when this trainer has run before; and whatever stops the run.
        """
        if self._ran or self._closed:
            raise HooktrainError(
                f"trainer: it has run already, to step {self.state.global_step}, and runs once; make another one, with"
                " resume_from=<a checkpoint> to go on"
            )
        self._ran = True
        trainer = cast("Trainer", self)
        with self._explained():
            self.prepare()
            if self.resume_from is not None:
                trainer.resume(self.resume_from)
            state = trainer.run_loop()
        if not self._held:
            self.close()
        return state

    def train(self) -> TrainerState:
        """The same as :meth:`run`."""
        return self.run()

    def close(self) -> None:
        """End the run: every plugin is torn down, and ranks part. Does nothing when that has been done."""
        if self._closed:
            return
        self._closed = True
        cast("Trainer", self).requests.forget()
        for plugin, problem in self.host.call_each("on_teardown", trainer=self):
            self.host.warn(f"plugin '{plugin}', hook on_teardown: {problem!r}")
        for line in self.host.error_policy.summary():
            self.host.warn(line)
        if hasattr(self, "strategy"):
            self.strategy.close()
        if hasattr(self, "model"):
            self.model.eval()

    def __enter__(self) -> Self:
        self._held = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if exception is not None:
            self._fail(exception)
        self.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever is raised inside ends the run, is told to every plugin, and goes on with where it happened."""
        try:
            yield
        except BaseException as exception:
            self._fail(exception)
            self.close()
            raise

    def _fail(self, exception: BaseException) -> None:
        if self._closed or self._failure is exception:
            return
        self._failure = exception
        explain(self.host, exception, self.state.global_step, self.world.rank)
        exception.hooktrain_saved = cast("Trainer", self).saving.last  # type: ignore[attr-defined]
        for plugin, problem in self.host.call_each("on_exception", trainer=self, exception=exception):
            self.host.warn(f"plugin '{plugin}', hook on_exception: {problem!r}")

    # --------------------------------------------------------------------------------------------------- saving

    def save(self, path: Path | str, type: str | None = None) -> Path:
        """Save now, whatever the recipe says about checkpoints. Collective.

        Args:
            path: folder to save to.
            type: a checkpoint engine by name; the one that exports for others when left out, and ``full`` for a
                checkpoint to resume from, which is a folder of its own in ``path``.

        Returns:
            The folder that was written.

        Raises:
            CheckpointError: there is no such engine, or it cannot save.
        """
        trainer = cast("Trainer", self)
        offers = self.host.parts.get("checkpoint", {})
        exports = [name for name, offer in offers.items() if getattr(offer.config, "exports", False)]
        name = type or (exports[0] if exports else None)
        if name is None or name not in offers:
            meant = did_you_mean(str(name), offers)
            given = f"given '{name}', which no plugin offers{meant}" if name else "no installed plugin offers an export"
            raise CheckpointError(f"save: {given}; expected type= to be one of {', '.join(sorted(offers)) or 'none'}")
        self.prepare()
        config = offers[name].config(output_dir=Path(path).expanduser(), save_end_of_training=True)
        engine = make_part(self.host, "make_checkpoint_engine", config, run_dir=self.run_dir, world=self.world)
        (saved,) = trainer.save_with([engine], "end")
        return saved


def _structured(
    recipe: Mapping[str, Any] | Path | str,
    objects: Mapping[str, Any],
    plugins: Sequence[object],
    switches: Sequence[str],
    overrides: Sequence[str],
) -> tuple[Recipe, PluginHost]:
    """A recipe and the plugins, with the objects passed from Python put in their places."""
    if isinstance(plugins, (str, bytes)) or not isinstance(plugins, Sequence):
        raise TypeError(f"Trainer: plugins is {plugins!r}, expected a list of objects, as in plugins=[MyPlugin()]")
    path = Path(recipe).expanduser() if isinstance(recipe, (str, Path)) else None
    if path is None and not isinstance(recipe, Mapping):
        raise TypeError(f"Trainer: recipe is a {recipe.__class__.__name__}, expected a mapping, or a file's path")
    parts = PythonParts()
    raw = settle(read_recipe(path) if path else cast("Mapping[str, Any]", recipe), parts, objects)
    try:
        return load(
            raw,
            overrides=list(overrides),
            switches=list(switches),
            plugins=list(plugins),
            python_parts=parts,
            source=str(path) if path else "recipe",
            name=path.stem if path else "recipe",
        )
    except RecipeError as problem:
        raise needs_tokenizer(problem, objects) or problem from None
