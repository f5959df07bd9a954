"""``full`` checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from hooktrain import CheckpointConfig, CheckpointError, TrainedState, World, at_least, field
from hooktrain_torch.files import (
    MANIFEST,
    UNKNOWN,
    NotPlainError,
    load,
    number_of,
    problem_of,
    require_plain,
    require_writable,
    save,
    seal,
    sync,
    write,
)
from hooktrain_torch.frozen import FrozenWeights
from hooktrain_torch.random_state import random_state, restore_random_state
from hooktrain_torch.stored import FromFiles, contents, index

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["FullCheckpoint", "FullConfig"]

_FROZEN = "frozen.json"
_TENSORS = "tensors.json"


@attrs.frozen(kw_only=True)
class FullConfig(CheckpointConfig):
    """Model, optimizer, scheduler, random states, data cursor, counters, plugin states, recipe and plugins."""

    keep_last: int = field(default=0, validator=at_least(0))
    """How many checkpoints to keep; 0 keeps all."""
    save_frozen: bool = field(default=False)
    """Whether to write frozen weights too. Otherwise those that are as the model was built are left out, as building it
    gives them back; a resume makes sure that it does."""


class FullCheckpoint:
    """Writes ``step-N`` folders: in a hidden folder first, a manifest with sizes and digests last, then a rename.

    Args:
        config: when and where.
        run_dir: the run's folder; checkpoints go to ``checkpoints`` in it when the config has no ``output_dir``.
        world: this process and how many there are.

    Raises:
        CheckpointError: when checkpoints cannot be written there; better now than after hours of training.
    """

    def __init__(self, config: FullConfig, run_dir: Path, world: World) -> None:
        self.config, self.world = config, world
        self.output_dir = config.output_dir or run_dir / "checkpoints"
        self._current: Path | None = None
        self._checked: Path | None = None
        self._frozen: FrozenWeights | None = None
        if config.enabled and world.is_main:
            require_writable(self.output_dir)

    def remember_frozen(self, model: torch.nn.Module) -> None:
        """Note what frozen weights a model has that was just built; without this, every save holds all weights.

        Args:
            model: before anything was loaded into it.
        """
        if self._frozen is None and self.config.enabled and not self.config.save_frozen:
            self._frozen = FrozenWeights(model)

    # ------------------------------------------------------------------------------------------------- saving

    def save(self, trainer: Trainer) -> Path:
        target = self.output_dir / f"step-{trainer.global_step:08d}"
        stands = target == self._current and (target / MANIFEST).is_file()
        if trainer.strategy.gather_objects(stands)[0]:
            return target
        temporary = self.output_dir / f".saving-{target.name}"
        states = {
            "plugins": trainer.collect_states(),
            "scheduler": trainer.scheduler.state_dict(),
            "strategy": trainer.strategy.state_dict(),
        }
        trained = trainer.strategy.trained_state(trainer.model, trainer.optimizer)
        self._on_all_ranks(trainer, lambda: self._begin(temporary), target, temporary)
        written = self._on_all_ranks(
            trainer, lambda: self._write(trainer, trained, states, temporary), target, temporary
        )
        self._on_all_ranks(
            trainer, lambda: self._finish(trainer.global_step, written, temporary, target), target, temporary
        )
        self._current = target
        if self.world.is_main:
            self._retain(trainer)
        return target

    def _begin(self, temporary: Path) -> None:
        if self.world.is_main:
            self._clean()
            temporary.mkdir(parents=True)

    def _write(
        self, trainer: Trainer, trained: TrainedState, states: dict[str, Any], temporary: Path
    ) -> dict[str, Any]:
        """Write this rank's files; returns their sizes and digests, and where its stretches of tensors belong."""
        rank = self.world.rank
        files = {f"random-{rank}.pt": save(random_state(), temporary / f"random-{rank}.pt")}
        places: dict[str, Any] = {}
        frozen: dict[str, str] = {}
        if self._frozen and self.world.is_main:
            frozen = self._frozen.unchanged(trainer.strategy.unwrap(trainer.model))
        if frozen:
            files[_FROZEN] = write(temporary / _FROZEN, json.dumps(frozen, indent=2))
        for kind, fragments in (("model", trained.model), ("optimizer", trained.optimizer)):
            tensors, places[kind] = contents(f for f in fragments if kind != "model" or f.name not in frozen)
            if tensors or self.world.is_main:
                files[f"{kind}-{rank}.pt"] = save(tensors, temporary / f"{kind}-{rank}.pt")
        if self.world.is_main:
            states["trained"] = dict(trained.rest)
            require_plain(states, "")
            files["parts.pt"] = save(states, temporary / "parts.pt")
            for name, text in (
                ("state.json", json.dumps(attrs.asdict(trainer.state), indent=2)),
                ("recipe.yaml", trainer.recipe.as_yaml()),
                ("plugins.json", json.dumps(trainer.host.manifest(), indent=2)),
            ):
                files[name] = write(temporary / name, text)
        return {"files": files, "places": places}

    def _finish(self, step: int, written: list[dict[str, Any]], temporary: Path, target: Path) -> None:
        if self.world.is_main:
            files = {name: facts for found in written for name, facts in found["files"].items()}
            tensors = {kind: index([found["places"][kind] for found in written]) for kind in ("model", "optimizer")}
            files[_TENSORS] = write(temporary / _TENSORS, json.dumps(tensors))
            number = max((number for number, _ in self._found() if number < UNKNOWN), default=0) + 1
            seal(temporary, dict(sorted(files.items())), step=step, number=number, world_size=self.world.world_size)
            if target.exists():  # an earlier run's, or a damaged one
                os.replace(target, self.output_dir / f".removed-{target.name}")
            os.replace(temporary, target)
            sync(self.output_dir)

    def _on_all_ranks(self, trainer: Trainer, work: Callable[[], Any], target: Path, temporary: Path) -> list[Any]:
        """Do this rank's part and return those of all; raise on every rank when it failed on any: none waits."""
        problem, cause, made = "", None, None
        try:
            made = work()
        except OSError as raised:
            problem, cause = f"{raised.strerror or raised}; make room, or give another output_dir", raised
        except (NotPlainError, CheckpointError) as raised:
            problem = str(raised)
        answers = trainer.strategy.gather_objects([problem, made])
        for rank, (text, _) in enumerate(answers):
            if text:
                if self.world.is_main:
                    shutil.rmtree(temporary, ignore_errors=True)
                raise CheckpointError(
                    f"{target}: rank {rank} could not save it, earlier checkpoints are intact: {text}"
                ) from cause
        return [answer for _, answer in answers]

    def _retain(self, trainer: Trainer) -> None:
        kept = 0
        try:
            for number, path in self._found() if self.config.keep_last else []:
                if kept < self.config.keep_last:
                    kept += not problem_of(path, digests=False)
                elif number < UNKNOWN:
                    os.replace(path, self.output_dir / f".removed-{path.name}")
        except OSError as problem:
            trainer.host.warn(f"{self.output_dir}: older checkpoints cannot be removed ({problem.strerror})")
        self._clean()

    def _clean(self) -> None:
        """Remove what an interrupted save or removal has left, so that nobody takes it for a checkpoint."""
        for path in [*self.output_dir.glob(".saving-step-*"), *self.output_dir.glob(".removed-step-*")]:
            shutil.rmtree(path, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------ finding

    def _found(self) -> list[tuple[int, Path]]:
        """Checkpoints, the last saved first, each with its number in the order of saving.

        Steps would not do: a run that begins anew, or resumes from an older checkpoint, saves lower ones later.
        """
        if not self.output_dir.is_dir():
            return []
        folders = [path for path in self.output_dir.iterdir() if re.fullmatch(r"step-\d+", path.name)]
        return sorted(((number_of(path), path) for path in folders), reverse=True)

    def latest(self) -> Path | None:
        for _, path in self._found():
            problem = problem_of(path)
            if not problem:
                self._checked = path
                return path
            if self.world.is_main:
                warnings.warn(f"checkpoint {path} is passed over: {problem}", stacklevel=2)
        return None

    def claims(self, path: Path) -> bool:
        return any((path / name).is_file() for name in (MANIFEST, "state.json", "random-0.pt"))

    # ------------------------------------------------------------------------------------------------ loading

    def load(self, trainer: Trainer, path: Path) -> None:
        problem = "" if path == self._checked else problem_of(path)
        if problem:
            raise CheckpointError(f"{path}: {problem}; resume from another checkpoint")
        ranks = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["world_size"]
        if ranks != self.world.world_size and self.world.is_main:
            trainer.host.warn(
                f"{path}: was saved by {ranks} ranks and goes on with {self.world.world_size}: dropout will differ, and"
                " so will the rows of a step unless micro_batch_size * gradient_accumulation_steps * ranks is as before"
            )
        strategy = trainer.strategy
        try:
            parts = load(path / "parts.pt")
            tensors = json.loads((path / _TENSORS).read_text(encoding="utf-8"))
            left_out = self._left_out(strategy.unwrap(trainer.model), path)
            strategy.load_trained_state(
                trainer.model,
                trainer.optimizer,
                (FromFiles(path, "model", tensors["model"]), FromFiles(path, "optimizer", tensors["optimizer"])),
                parts["trained"],
                left_out,
            )
        except (RuntimeError, ValueError, KeyError) as problem_:
            reason = " ".join(str(problem_).split())
            raise CheckpointError(
                f"{path}: does not fit this run ({reason[:300]}); give the recipe the model and the optimizer that its"
                " recipe.yaml has"
            ) from problem_
        trainer.scheduler.load_state_dict(parts["scheduler"])
        strategy.load_state_dict(parts["strategy"])
        for name, value in json.loads((path / "state.json").read_text(encoding="utf-8")).items():
            setattr(trainer.state, name, value)
        trainer.restore_states(parts["plugins"])
        if self.world.rank < ranks:
            restore_random_state(load(path / f"random-{self.world.rank}.pt"))
        self._current = path

    def _left_out(self, model: torch.nn.Module, path: Path) -> list[str]:
        """The frozen weights that the checkpoint does not hold, made sure to be those of this run."""
        frozen = json.loads((path / _FROZEN).read_text(encoding="utf-8")) if (path / _FROZEN).is_file() else {}
        self.remember_frozen(model)
        different = (self._frozen or FrozenWeights(model)).different(model, frozen) if frozen else []
        if different:
            named = ", ".join(different[:2]) + (", ..." if len(different) > 2 else "")
            raise CheckpointError(
                f"{path}: was saved without its {len(frozen)} frozen weights, and {len(different)} of them are others"
                f" in this run ({named}); expected the base model that the run began with; give the recipe the model"
                " that recipe.yaml in the checkpoint names, unchanged"
            )
        return list(frozen)
