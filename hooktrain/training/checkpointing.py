"""Choice of the checkpoint engines that are due, the end of background saves, and saves that a resume makes up for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hooktrain.errors import CheckpointError
from hooktrain.protocols import CheckpointEngine, CheckpointEngineDefaults, ConfigDefaults, member
from hooktrain.training.diagnostics import require_trainable
from hooktrain.training.intervals import ends_share
from hooktrain.training.random_state import unchanged_random_state
from hooktrain.training.skipped_steps import untrained
from hooktrain.types import TrainerState
from hooktrain.watched_metric import is_better, watched_value

if TYPE_CHECKING:
    from hooktrain.training.trainer import Trainer

__all__ = ["Saving", "no_checkpoint"]


class Saving:
    """Remembers at which step each engine saved, so that no step is saved twice, and none is forgotten.

    Attributes:
        last: what was saved last in this run, and is whole; None before that.
        epoch_ended: whether the run was resumed from a checkpoint that ends an epoch.
    """

    def __init__(self) -> None:
        self.saved_at: dict[int, int] = {}
        self.last: Path | None = None
        self.epoch_ended = False
        self._compared_at = -1
        self._in_background: dict[str, tuple[int, str]] = {}

    def due(self, trainer: Trainer, reason: str) -> list[CheckpointEngine]:
        """The engines that save now.

        Args:
            trainer: whose engines.
            reason: ``step``, ``epoch``, ``end`` or ``request``.
        """
        enabled = (engine for engine in trainer.checkpoint_engines if engine.config.enabled)
        return [engine for engine in enabled if self._is_due(trainer, engine, reason)]

    def save_due(self, trainer: Trainer, reason: str) -> bool:
        """Save with the engines that are due for a reason; returns whether any is. Collective."""
        self._save_best(trainer)
        due = self.due(trainer, reason)
        if reason == "end" and untrained(trainer) is not None:
            due = [engine for engine in due if not _exports(engine)]
        if due:
            trainer.save_with(due, reason)
            self.done(due, trainer.state)
        return bool(due)

    def _save_best(self, trainer: Trainer) -> None:
        """Save with the engines whose metric the newest evaluation has improved. Collective."""
        state, measured = trainer.state, {}
        if state.evaluated_at != state.global_step or self._compared_at == state.global_step:
            return
        self._compared_at = state.global_step
        due = []
        for number, engine in enumerate(trainer.checkpoint_engines):
            name, mode = (member(engine.config, ConfigDefaults, each) for each in ("save_best", "save_best_mode"))
            if not (name and engine.config.enabled):
                continue
            key = f"{mode} {name}"
            measured[key] = value = watched_value(state.metrics, name, f"checkpoint[{number}].save_best")
            worst = math.inf if mode == "min" else -math.inf
            if is_better(value, state.best.get(key, worst), 0.0, mode):
                due.append((key, engine))
        state.best.update({key: measured[key] for key, _ in due})
        if due:
            trainer.save_with([engine for _, engine in due], "best")
            self.done([engine for _, engine in due if not _exports(engine)], state)

    def save(self, trainer: Trainer, engines: Sequence[CheckpointEngine], reason: str) -> Sequence[Path]:
        """Save with these engines and emit the events of it; returns what each wrote. Collective."""
        if trainer.effects is not None:
            trainer.effects.begin_save()
        with trainer.meter.pause(), trainer.watchdog.during("save"):
            if trainer.recipe.on_nan == "stop":
                require_trainable(trainer)
            self.collect(trainer, wait=True)
            trainer.run_record.require_folder()
            self.begin(trainer, engines, reason)
            trainer.hooks.on_checkpoint_start(trainer=trainer)
            trainer.finite_weights.before_save(trainer)
            with trainer.random_state.saving(trainer.global_step):
                saved: Sequence[Path] = trainer.hooks.save_checkpoint(trainer=trainer)
                for path in saved:
                    self.last = path
                    trainer.hooks.on_checkpoint_end(trainer=trainer, path=path)
            self.end(trainer, engines, reason, saved)
        return saved

    def done(self, engines: Sequence[CheckpointEngine], state: TrainerState) -> None:
        """The engines have saved."""
        self.saved_at.update({id(engine): state.global_step for engine in engines})

    def collect(self, trainer: Trainer, *, wait: bool = False) -> None:
        """End the background saves that all ranks have written, and emit ``on_checkpoint_end`` for each. Collective.

        Args:
            trainer: whose engines.
            wait: for those that are still being written.
        """
        for engine in trainer.checkpoint_engines:
            with unchanged_random_state():  # a resumed run does not call them, or not at this step
                path = member(engine, CheckpointEngineDefaults, "finish")(trainer, wait)
                if path is None:
                    continue
                self.last = path
                trainer.hooks.on_checkpoint_end(trainer=trainer, path=path)
            step, reason = self._in_background.pop(_key(trainer, engine), (trainer.global_step, "step"))
            trainer.run_record.saved(step, [f"{reason} {_key(trainer, engine)}"], path)

    def begin(self, trainer: Trainer, engines: Sequence[CheckpointEngine], reason: str) -> None:
        """Note in the state what is about to be saved, and what has not been logged. Collective."""
        state = trainer.state
        state.unlogged = trainer.meter.unlogged(trainer.strategy)
        for engine in engines:
            if key := _key(trainer, engine):
                state.saves_due[key] = reason
                self._in_background[key] = state.global_step, reason

    def end(self, trainer: Trainer, engines: Sequence[CheckpointEngine], reason: str, paths: Sequence[Path]) -> None:
        """Note that engines have saved, and that ``on_checkpoint_end`` has been emitted for these paths."""
        saved = [key for engine in engines if (key := _key(trainer, engine)) and _wrote(engine, paths)]
        for engine in engines:
            trainer.state.saves_due.pop(_key(trainer, engine), None)
        trainer.state.unlogged = {}
        for key in saved:
            self._in_background.pop(key, None)
        if paths:
            trainer.run_record.saved(trainer.global_step, [f"{reason} {key}" for key in saved], paths[-1])

    def resumed(self, trainer: Trainer) -> None:
        """Go on from the state of a checkpoint: without the request that ended its run, after an epoch in the next one.

        Args:
            trainer: that has loaded the checkpoint.

        Raises:
            CheckpointError: its state is none.
        """
        state = trainer.state
        state.stop_reason = None
        try:
            trainer.meter.take_up(state.unlogged, trainer.strategy)
            state.unlogged = {}  # the meter has it
            state.saves_due = {str(key): str(reason) for key, reason in state.saves_due.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise CheckpointError(
                f"{trainer.resume_from}: its state is none of a run ({problem}); resume from another checkpoint"
            ) from problem
        if state.sequences >= len(trainer.data.train):
            state.begin_epoch(state.epoch + 1)
            self.epoch_ended = True

    def make_up(self, trainer: Trainer) -> None:
        """Do what is due before the first step, and what was due at the step that the run resumes from. Collective."""
        state = trainer.state
        at_start = trainer.recipe.eval_at_start and state.global_step == 0
        if (at_start or state.evaluation_due) and trainer.data.evaluation:
            state.log_due = True
            with trainer.random_state.counted():
                trainer.log(trainer.evaluate())
        elif state.log_due:
            trainer.log({})
        trainer.meter.restart_clock()
        if trainer.resume_from is not None:
            self._make_up_saves(trainer, trainer.resume_from)

    def _make_up_saves(self, trainer: Trainer, path: Path) -> None:
        """Save with the engines that the run was killed before, and emit the event of its checkpoint."""
        keys = {_key(trainer, engine): engine for engine in trainer.checkpoint_engines if engine.config.enabled}
        mine = next((key for key, engine in keys.items() if _wrote(engine, [path])), "")
        due = {key: reason for key, reason in trainer.state.saves_due.items() if key in keys and key != mine}
        reasons = ["epoch"] * self.epoch_ended + ["end"] * trainer.should_stop
        for reason in reasons:
            engines = self.due(trainer, reason)
            due.update({key: reason for engine in engines if (key := _key(trainer, engine)) != mine})
        known = trainer.run_record.record.saved
        step, last = trainer.global_step, trainer.run_record.last
        is_done = not trainer.run_record.continues or (last is not None and (last.state, last.step) == ("ended", step))
        emitted = any(entry.split(" ", 2)[::2] == [str(step), mine] for entry in known)
        missing = {key: reason for key, reason in due.items() if f"{step} {reason} {key}" not in known}
        trainer.state.saves_due.clear()
        emit, missing = trainer.strategy.gather_objects(
            [bool(mine) and not emitted and not is_done, {} if is_done else missing]
        )[0]
        if emit:
            trainer.hooks.on_checkpoint_end(trainer=trainer, path=path)
            trainer.run_record.saved(step, [f"step {mine}"], path)
        for reason in dict.fromkeys(missing.values()):
            engines = [keys[key] for key, why in missing.items() if why == reason]
            trainer.save_with(engines, reason)
            self.done(engines, trainer.state)

    def require_last(self, trainer: Trainer) -> None:
        """Refuse to call a run well whose last state was to be saved in the background and could not be.

        Raises:
            CheckpointError: on all ranks.
        """
        for engine in trainer.checkpoint_engines:
            step, problem = member(engine, CheckpointEngineDefaults, "unsaved") or (-1, None)
            if problem is not None and step == trainer.global_step:
                raise problem

    def _is_due(self, trainer: Trainer, engine: CheckpointEngine, reason: str) -> bool:
        config, state = engine.config, trainer.state
        epochs = config.save_every_n_epochs
        if reason == "end":
            # an export puts its last result elsewhere than the ones along the way; others skip what they have
            return bool(config.save_end_of_training)
        if self.saved_at.get(id(engine)) == state.global_step:
            return False
        if reason == "epoch":
            return bool(epochs and not epochs % 1 and state.epoch % epochs == 0)
        if reason == "request" and state.stop_reason is not None and config.save_end_of_training:
            return False  # the end is next, and whoever waits for it would wait twice as long
        if reason == "step" and epochs % 1 and ends_share(epochs, state.global_step, len(trainer.loader)):
            return True
        return reason == "request" or bool(
            config.save_every_n_steps and state.global_step % config.save_every_n_steps == 0
        )


def no_checkpoint(path: Path) -> CheckpointError:
    """Return the error for a path that no checkpoint engine can resume from."""
    problem = "none of the recipe's checkpoint engines can resume from it" if path.exists() else "is not there"
    near = path if path.is_dir() else path.parent
    folders = sorted(one.parent for one in (*near.glob("*/manifest.json"), *near.glob("*/*/manifest.json")))
    there = f" (there are {', '.join(map(str, folders[-3:]))})" if folders else ""
    return CheckpointError(
        f"{path}: {problem}; give the path of a checkpoint that one of them wrote{there}, and keep its engine (such"
        " as 'type: full') in the recipe"
    )


def _key(trainer: Trainer, engine: CheckpointEngine) -> str:
    """The number and type of an engine of the recipe; empty for another one, as ``Trainer.save`` makes it."""
    for number, each in enumerate(trainer.checkpoint_engines):
        if each is engine:
            return f"{number} {trainer.recipe.types.get(type(engine.config), type(engine.config).__name__)}"
    return ""


def _exports(engine: CheckpointEngine) -> bool:
    return bool(member(engine.config, ConfigDefaults, "exports"))


def _wrote(engine: CheckpointEngine, paths: Sequence[Path]) -> bool:
    """Whether one of the paths is the engine's."""
    folder = member(engine, CheckpointEngineDefaults, "output_dir")
    return folder is not None and any(folder.resolve() in (path.resolve(), path.resolve().parent) for path in paths)
