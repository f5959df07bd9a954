"""``full`` checkpoints: everything that a run needs to resume as if it had never stopped."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooktrain import CheckpointError, HooktrainWarning, TrainedState, World, failure_of, require_same
from hooktrain_torch.checkpoint_config import FullConfig
from hooktrain_torch.checkpoint_values import read_json, refused, set_state
from hooktrain_torch.files import (
    MANIFEST,
    UNKNOWN,
    number_of,
    problem_of,
    read_object,
    require_writable,
    run_of,
    sync_folder,
)
from hooktrain_torch.frozen_weights import FrozenWeights
from hooktrain_torch.hyperparameters import as_built, require_like, take_changed
from hooktrain_torch.plain_state import NotPlainError, plain
from hooktrain_torch.plugin_states import StatesByRank, that_differ
from hooktrain_torch.retention import Retention
from hooktrain_torch.save import FROZEN, PARTS, PROVENANCE, TENSORS, Save
from hooktrain_torch.stored_tensors import CheckpointTensors

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["FullCheckpoint"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _warn(text: str) -> None:
    warnings.warn(text, HooktrainWarning, stacklevel=3)


def _of_rank(problem: CheckpointError, rank: int | None) -> CheckpointError:
    """Note in an error that all ranks raise which rank met the problem, and return it."""
    failure_of(problem).rank = rank
    return problem


class FullCheckpoint:
    """Writes ``step-N`` folders: in a hidden folder first, a manifest with sizes and digests last, then a rename.

    Args:
        config: when and where to save.
        run_dir: the run's folder; checkpoints go to ``checkpoints`` in it when the config has no ``output_dir``.
        world: this process and how many there are.
        built: the run's hyperparameters as built, filled in by the first of the run's engines.

    Attributes:
        last_stall: seconds for which training paused for the last asynchronous save.
        unsaved: the step of the last asynchronous save, where it failed, and what to raise when that was the run's
            last state; None when it did not fail.

    Raises:
        CheckpointError: when checkpoints cannot be written there.
    """

    def __init__(self, config: FullConfig, run_dir: Path, world: World, built: dict[str, Any] | None = None) -> None:
        self.config, self.world = config, world
        self.output_dir = config.output_dir or run_dir / "checkpoints"
        self._current: Path | None = None
        self._checked: Path | None = None
        self._frozen: FrozenWeights | None = None
        self._built = {} if built is None else built
        self._running: Save | None = None
        self._retention = Retention(config, self.output_dir)
        self.last_stall = 0.0
        self.unsaved: tuple[int, CheckpointError] | None = None
        self._closing = False
        self._complete = ""
        if config.enabled and world.is_main:
            require_writable(self.output_dir)

    def remember_built(self, trainer: Trainer) -> None:
        """Note the hyperparameters and the frozen weights as built.

        Args:
            trainer: with a model and an optimizer that have loaded nothing. Collective.
        """
        self._remember_hyperparameters(trainer)
        if self._frozen is None and self.config.enabled and not self.config.save_frozen:
            self._frozen = self._frozen_of(trainer)

    def _remember_hyperparameters(self, trainer: Trainer) -> None:
        if not self._built:
            self._built.update(as_built(trainer.optimizer, trainer.scheduler))

    def _frozen_of(self, trainer: Trainer) -> FrozenWeights:
        strategy = trainer.strategy
        shards = strategy.trained_state(trainer.trained, trainer.optimizer).model
        return FrozenWeights(strategy.unwrap(trainer.trained), shards, strategy.gather_objects)

    # ------------------------------------------------------------------------------------------------- saving

    def save(self, trainer: Trainer) -> Path | None:
        try:
            return self._save(trainer)
        except CheckpointError as problem:
            if not self.config.asynchronous or self.config.on_failure == "stop":
                raise
            self._continue_after(trainer, problem, trainer.global_step)
            return None

    def _save(self, trainer: Trainer) -> Path | None:
        began = time.perf_counter()
        target = self.output_dir / f"step-{trainer.global_step:08d}"
        is_saved = target == self._current and (target / MANIFEST).is_file()
        if trainer.strategy.gather_objects(is_saved)[0]:
            return None  # it is saved, and its event was emitted
        self._remember_hyperparameters(trainer)  # of a run that is saved before it begins
        states: dict[str, Any] = {
            "plugins": trainer.collect_states(plain),
            "scheduler": trainer.scheduler.state_dict(),
            "strategy": trainer.strategy.state_dict(),
            "built": dict(self._built),
        }
        several = self.world.world_size > 1
        states["by_rank"] = that_differ(states["plugins"], trainer.strategy.gather_objects) if several else []
        trained = trainer.strategy.trained_state(trainer.trained, trainer.optimizer)
        saving = Save(target, trainer.global_step, self.world, trainer.run_id)
        self._on_all_ranks(trainer, lambda: self._begin(saving.temporary), saving)
        unchanged = self._unchanged(trainer, trained)
        self._on_all_ranks(trainer, lambda: saving.take(trainer, trained, states, unchanged), saving)
        if self.config.asynchronous:
            saving.copy()
            saving.is_committing = self.world.world_size == 1  # other ranks' files are not needed
            part = (lambda: self._commit(saving, [saving.write()])) if saving.is_committing else saving.write
            saving.start(part, trainer.requests.save_ended)
            saving.stalled = time.perf_counter() - began
            self._running = saving
            return None
        written = self._on_all_ranks(trainer, saving.write, saving)
        self._on_all_ranks(trainer, lambda: self._commit(saving, written), saving)
        return self._end(trainer, saving)

    def finish(self, trainer: Trainer, wait: bool) -> Path | None:
        """Commit the save in the background when all ranks have written their files.

        Committing waits for the disk too, so it is also done in the background.

        Args:
            trainer: the trainer.
            wait: whether to wait until all ranks have written and the checkpoint is committed.

        Returns:
            The checkpoint, or None when no save is running, or it is still being written, or it failed.

        Raises:
            CheckpointError: when it failed and ``on_failure`` says ``stop``.
        """
        saving, strategy = self._running, trainer.strategy
        if saving is None:
            return None
        began = time.perf_counter()
        if not wait and strategy.sum_numbers([saving.has_ended])[0] < self.world.world_size:
            return None
        self._running = None
        try:
            made = self._on_all_ranks(trainer, saving.result, saving)
            if not saving.is_committing:
                saving.is_committing = True
                saving.start(lambda: self._commit(saving, made), trainer.requests.save_ended)
                if not wait:
                    self._running = saving
                    saving.stalled += time.perf_counter() - began
                    return None
                self._on_all_ranks(trainer, saving.result, saving)
            path = self._end(trainer, saving)
        except CheckpointError as problem:
            if self.config.on_failure == "stop":
                raise
            self._continue_after(trainer, problem, saving.step)
            return None
        saving.stalled += time.perf_counter() - began
        self.last_stall = saving.stalled
        seconds = time.perf_counter() - saving.began
        trainer.say(f"{path.name} took {seconds:.1f} s, for {saving.stalled:.1f} s of which training paused")
        return path

    def close(self, trainer: Trainer) -> None:
        """Finish the running save when the run ends with an error, where that needs no other rank."""
        if self._running is not None and self.world.world_size == 1:
            self._closing = True
            self.finish(trainer, wait=True)

    def wait(self) -> None:
        """Wait until older checkpoints are deleted."""
        self._retention.wait()

    def _continue_after(self, trainer: Trainer, problem: CheckpointError, step: int) -> None:
        again = self.unsaved is not None and self.unsaved[0] == step
        found = f"the last complete checkpoint is {self._complete}" if self._complete else "there is no complete one"
        error = CheckpointError(f"step {step}, the last of the run, is not saved, and {found}: {problem}")
        rank = failure_of(problem).rank
        self.unsaved = (step, _of_rank(error, self.world.rank if rank is None else rank))
        if self.world.is_main and not again:  # all ranks have it
            ends = trainer.should_stop or self._closing
            trainer.host.warn(f"{problem}{'' if ends else '; the run continues'}")

    def _last_complete(self) -> str:
        """Return the newest checkpoint that has all its files, by their sizes, or nothing; on the main rank."""
        found = self._found() if self.world.is_main else []
        return next((str(path) for _, path in found if not problem_of(path, digests=False)), "")

    def _unchanged(self, trainer: Trainer, trained: TrainedState) -> dict[str, list[str]]:
        if self._frozen is None:
            return {}
        strategy = trainer.strategy
        return self._frozen.unchanged(strategy.unwrap(trainer.trained), trained.model, strategy.gather_objects)

    def _begin(self, temporary: Path) -> None:
        if self.world.is_main:
            self._retention.clean()
            temporary.mkdir(parents=True)

    def _end(self, trainer: Trainer, saving: Save) -> Path:
        """Note a new checkpoint, and remove those that it makes superfluous, but none while steps are skipped."""
        self._current, self.unsaved = saving.target, None
        if self.world.is_main and not (saving.skips or trainer.state.consecutive_skipped_steps):
            self._retention.apply(trainer, self._found())
        return saving.target

    def _commit(self, saving: Save, written: list[dict[str, Any]]) -> None:
        """Make a checkpoint of the files of all ranks; may be called in a thread."""
        if self.world.is_main:
            number = max((number for number, _ in self._found() if number < UNKNOWN), default=0) + 1
            saving.commit(written, number)
            if saving.target.exists():  # an earlier run's, or a damaged one
                problem, foreign = problem_of(saving.target), run_of(saving.target) != saving.run
                if problem or foreign:
                    kept = self._retention.keep(saving.target, "damaged" if problem else "other")
                    what = problem.text if problem else "another run's"
                    _warn(f"{saving.target} is saved anew; what was there ({what}) is kept as {kept.name}")
                else:
                    self._retention.set_aside(saving.target)
            os.replace(saving.temporary, saving.target)
            sync_folder(self.output_dir)

    def _on_all_ranks(self, trainer: Trainer, work: Callable[[], Any], saving: Save) -> list[Any]:
        """Do this rank's part and return the results of all ranks; raise on all of them when any has failed."""
        problem, made = "", None
        cause: Exception | None = None
        try:
            made = work()
        except OSError as raised:
            advice = "make room, or give" if raised.errno in _FULL else "give"
            problem, cause = f"{raised.strerror or raised}; {advice} another output_dir", raised
        except (NotPlainError, CheckpointError) as raised:
            problem, cause = str(raised), raised
        except Exception as raised:  # other ranks wait for this one
            problem, cause = f"{type(raised).__name__}: {raised}", raised
        results = trainer.strategy.gather_objects([problem, made])
        for rank, (text, _) in enumerate(results):
            if text:
                if self.world.is_main:
                    shutil.rmtree(saving.temporary, ignore_errors=True)
                self._complete = trainer.strategy.gather_objects(self._last_complete())[0]
                rest = "earlier checkpoints are intact" if self._complete else "and there is no earlier one"
                failed = CheckpointError(f"{saving.target}: rank {rank} could not save it, {rest}: {text}")
                raise _of_rank(failed, rank) from cause
        return [result for _, result in results]

    # ------------------------------------------------------------------------------------------------ finding

    def _found(self) -> list[tuple[int, Path]]:
        """Return all checkpoints, the last saved first, each with its number in the order of saving.

        Steps are not in that order: a run that begins anew, or resumes from an older one, saves lower steps later.
        """
        if not self.output_dir.is_dir():
            return []
        folders = [path for path in self.output_dir.iterdir() if re.fullmatch(r"step-\d+", path.name)]
        return sorted(((number_of(path), path) for path in folders), reverse=True)

    def results(self) -> list[Path]:
        return [path for _, path in self._found()]

    def clean(self) -> None:
        self._retention.clean()

    def latest(self) -> Path | None:
        found = self._found()
        for _, path in found:
            problem = problem_of(path)
            if problem is None:
                self._checked = path
                return path
            if problem.other_format:  # it is complete: beginning anew would lose it
                raise CheckpointError(
                    f"{path}: {problem.text}; resume with that version, or move '{self.output_dir}' away to begin anew"
                )
            _warn(f"checkpoint {path} is skipped: {problem.text}")
        if found:
            _warn(
                f"{self.output_dir}: no checkpoint there is complete, so the run begins anew; damaged ones stay, and"
                " are renamed (damaged-step-N) where a save of the same step needs the name"
            )
        return None

    def can_load(self, path: Path) -> bool:
        return any((path / name).is_file() for name in (MANIFEST, "state.json", "random-0.pt"))

    # ------------------------------------------------------------------------------------------------ loading

    def provenance(self, path: Path) -> Mapping[str, Any] | None:
        return read_json(path / PROVENANCE) if (path / PROVENANCE).is_file() else None

    def check(self, trainer: Trainer, path: Path) -> None:
        """Refuse a checkpoint that is damaged, or of a run that trained differently. Collective.

        Raises:
            CheckpointError: on all ranks.
        """
        mine = problem_of(path) if self.world.is_main and path != self._checked else None
        problem = trainer.strategy.gather_objects(mine)[0]  # all of its bytes are read, which one rank does for all
        if problem:
            text, other_format = problem
            remedy = "with that version, or from another checkpoint" if other_format else "from another checkpoint"
            raise CheckpointError(f"{path}: {text}; resume {remedy}")
        self._checked = path
        with refused(
            trainer, path, f"it holds no {PROVENANCE} that hooktrain has written; resume from another checkpoint"
        ):
            require_same(trainer, read_json(path / PROVENANCE), path)

    def load(self, trainer: Trainer, path: Path) -> None:
        if path != self._checked:
            self.check(trainer, path)
        self.remember_built(trainer)
        strategy, remedy = trainer.strategy, "write the model and the optimizer of its recipe.yaml in the recipe"

        def stored(kind: str) -> CheckpointTensors:
            return CheckpointTensors(path, kind, tensors[kind])

        with refused(trainer, path, remedy):
            ranks = int(read_json(path / MANIFEST)["world_size"])
            parts = read_object(path / PARTS)
            tensors = read_json(path / TENSORS)
            left_out = self._not_written(trainer, path)
            strategy.load_trained_state(
                trainer.trained,
                trainer.optimizer,
                (stored("model"), stored("optimizer")),
                parts["trained"],
                left_out,
            )
        remedy = "resume from another checkpoint"
        with refused(trainer, path, remedy):
            trainer.scheduler.load_state_dict(parts["scheduler"])
            strategy.load_state_dict(parts["strategy"])
            if parts.get("built"):
                take_changed(trainer.optimizer, trainer.scheduler, parts["built"], self._built)
            set_state(trainer.state, read_json(path / "state.json"))
            require_like(trainer.optimizer, self._built)
            states = {name: dict(state) for name, state in parts["plugins"].items()}
            trainer.restore_states(states, {name: StatesByRank(path, name, ranks) for name in parts.get("by_rank", [])})
            if self.world.rank < ranks:
                trainer.random_state.resume(read_object(path / f"random-{self.world.rank}.pt"))
        self._current = path

    def _not_written(self, trainer: Trainer, path: Path) -> list[str]:
        """Return the frozen weights that the checkpoint does not hold, once they are known to be this run's."""
        frozen = read_json(path / FROZEN) if (path / FROZEN).is_file() else {}
        different: list[str] = []
        if frozen:
            shards = trainer.strategy.trained_state(trainer.trained, trainer.optimizer).model
            known = self._frozen or self._frozen_of(trainer)
            different = known.different(frozen, shards, trainer.strategy.gather_objects)
        if different:
            named = ", ".join(different[:2]) + (", ..." if len(different) > 2 else "")
            raise CheckpointError(
                f"{path}: was saved without its {len(frozen)} frozen weights, and {len(different)} of them differ in"
                f" this run ({named}), expected the base model that the run began with; write the model of the"
                " checkpoint's recipe.yaml in the recipe"
            )
        return list(frozen)
