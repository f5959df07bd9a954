"""``full`` checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from hooktrain import CheckpointConfig, CheckpointError, World, at_least, field
from hooktrain_torch.frozen import FrozenWeights

if TYPE_CHECKING:
    from hooktrain import Trainer

_numpy: Any
try:
    import numpy as _numpy
except ImportError:
    _numpy = None

__all__ = ["FullCheckpoint", "FullConfig"]

_MANIFEST = "manifest.json"
_FROZEN = "frozen.json"
_FORMAT = 1
_UNKNOWN = 1 << 62
"""Number of a checkpoint whose manifest cannot be read; looked at first, so that the user hears of it."""
_PLAIN = {type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device}


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
            _require_writable(self.output_dir)

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
        stands = target == self._current and (target / _MANIFEST).is_file()
        if trainer.strategy.gather_objects(stands)[0]:
            return target
        temporary = self.output_dir / f".saving-{target.name}"
        states = {
            "plugins": trainer.collect_states(),
            "scheduler": trainer.scheduler.state_dict(),
            "strategy": trainer.strategy.state_dict(),
        }
        for work in (
            lambda: self._begin(temporary),
            lambda: self._write(trainer, states, temporary),
            lambda: self._finish(trainer.global_step, temporary, target),
        ):
            self._on_all_ranks(trainer, work, target, temporary)
        self._current = target
        if self.world.is_main:
            self._retain(trainer)
        return target

    def _begin(self, temporary: Path) -> None:
        if self.world.is_main:
            self._clean()
            temporary.mkdir(parents=True)

    def _write(self, trainer: Trainer, states: dict[str, Any], temporary: Path) -> None:
        _save(_random_state(), temporary / f"random-{self.world.rank}.pt")
        if self.world.is_main:
            _require_plain(states, "")
            optimizer = trainer.optimizer.state_dict()
            _require_plain(optimizer, "optimizer")
            model = trainer.strategy.unwrap(trainer.model)
            frozen = self._frozen.unchanged(model) if self._frozen else {}
            weights = {name: value for name, value in model.state_dict().items() if name not in frozen}
            _save(weights, temporary / "model.pt")
            if frozen:
                _write(temporary / _FROZEN, json.dumps(frozen, indent=2))
            _save(optimizer, temporary / "optimizer.pt")
            _save(states, temporary / "parts.pt")
            _write(temporary / "state.json", json.dumps(attrs.asdict(trainer.state), indent=2))
            _write(temporary / "recipe.yaml", trainer.recipe.as_yaml())
            _write(temporary / "plugins.json", json.dumps(trainer.host.manifest(), indent=2))

    def _finish(self, step: int, temporary: Path, target: Path) -> None:
        if self.world.is_main:
            number = max((number for number, _ in self._found() if number < _UNKNOWN), default=0) + 1
            _seal(temporary, step=step, number=number, world_size=self.world.world_size)
            if target.exists():  # an earlier run's, or a damaged one
                os.replace(target, self.output_dir / f".removed-{target.name}")
            os.replace(temporary, target)
            _sync(self.output_dir)

    def _on_all_ranks(self, trainer: Trainer, work: Callable[[], None], target: Path, temporary: Path) -> None:
        """Do this rank's part; raise on every rank when it failed on any, so that none waits for another."""
        problem, cause = "", None
        try:
            work()
        except OSError as raised:
            problem, cause = f"{raised.strerror or raised}; make room, or give another output_dir", raised
        except _NotPlainError as raised:
            problem = str(raised)
        for rank, text in enumerate(trainer.strategy.gather_objects(problem)):
            if text:
                if self.world.is_main:
                    shutil.rmtree(temporary, ignore_errors=True)
                raise CheckpointError(
                    f"{target}: rank {rank} could not save it, earlier checkpoints are intact: {text}"
                ) from cause

    def _retain(self, trainer: Trainer) -> None:
        kept = 0
        try:
            for number, path in self._found() if self.config.keep_last else []:
                if kept < self.config.keep_last:
                    kept += not _problem(path, digests=False)
                elif number < _UNKNOWN:
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
        return sorted(((_number(path), path) for path in folders), reverse=True)

    def latest(self) -> Path | None:
        for _, path in self._found():
            problem = _problem(path)
            if not problem:
                self._checked = path
                return path
            if self.world.is_main:
                warnings.warn(f"checkpoint {path} is passed over: {problem}", stacklevel=2)
        return None

    def claims(self, path: Path) -> bool:
        return any((path / name).is_file() for name in (_MANIFEST, "state.json", "random-0.pt"))

    # ------------------------------------------------------------------------------------------------ loading

    def load(self, trainer: Trainer, path: Path) -> None:
        problem = "" if path == self._checked else _problem(path)
        if problem:
            raise CheckpointError(f"{path}: {problem}; resume from another checkpoint")
        ranks = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))["world_size"]
        if ranks != self.world.world_size and self.world.is_main:
            trainer.host.warn(
                f"{path}: was saved by {ranks} ranks and goes on with {self.world.world_size}: dropout will differ, and"
                " so will the rows of a step unless micro_batch_size * gradient_accumulation_steps * ranks is as before"
            )
        strategy = trainer.strategy
        try:
            self._load_weights(strategy.unwrap(trainer.model), path)
            trainer.optimizer.load_state_dict(_load(path / "optimizer.pt"))
        except (RuntimeError, ValueError, KeyError) as problem_:
            reason = " ".join(str(problem_).split())
            raise CheckpointError(
                f"{path}: does not fit this run ({reason[:300]}); give the recipe the model and the optimizer that its"
                " recipe.yaml has"
            ) from problem_
        parts = _load(path / "parts.pt")
        trainer.scheduler.load_state_dict(parts["scheduler"])
        strategy.load_state_dict(parts["strategy"])
        for name, value in json.loads((path / "state.json").read_text(encoding="utf-8")).items():
            setattr(trainer.state, name, value)
        trainer.restore_states(parts["plugins"])
        if self.world.rank < ranks:
            _restore_random_state(_load(path / f"random-{self.world.rank}.pt"))
        self._current = path

    def _load_weights(self, model: torch.nn.Module, path: Path) -> None:
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
        weights = _load(path / "model.pt")
        result = model.load_state_dict(weights, strict=not frozen)
        odd = [*result.unexpected_keys, *(name for name in result.missing_keys if name not in frozen)]
        if odd:
            raise RuntimeError(f"Missing or unexpected weights: {', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}")


def _random_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss]}
    if _numpy is not None:
        name, keys, *rest = _numpy.random.get_state()
        state["numpy"] = [name, keys.tolist(), *rest]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in state and _numpy is not None:
        _numpy.random.set_state(tuple(state["numpy"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class _NotPlainError(Exception):
    """A state holds what a checkpoint cannot hold."""


def _require_plain(value: Any, where: str) -> None:
    """Refuse what ``torch.load`` with ``weights_only=True`` would refuse when it is too late."""
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}.{key}".removeprefix("."))
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    else:
        raise _NotPlainError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, expected numbers, text, lists, mappings"
            " and tensors; convert it in state_dict or collect_state"
        )


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as problem:
        raise CheckpointError(
            f"checkpoint.output_dir: '{folder}' cannot be written ({problem.strerror}); give another folder"
        ) from problem


def _save(value: Any, path: Path) -> None:
    with path.open("wb") as stream:
        try:
            torch.save(value, stream)
        except RuntimeError as problem:  # torch ends its archive after a failed write, and that failure hides the first
            raise problem.__context__ if isinstance(problem.__context__, OSError) else problem from None
        stream.flush()
        os.fsync(stream.fileno())


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _seal(folder: Path, **facts: int) -> None:
    """Write the manifest: what makes a folder a checkpoint."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.iterdir())}
    _write(folder / _MANIFEST, json.dumps({"format": _FORMAT, **facts, "files": files}, indent=2))
    _sync(folder)


def _sync(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        made = hashlib.sha256()
        while block := stream.read(1 << 20):
            made.update(block)
    return made.hexdigest()


def _number(folder: Path) -> int:
    """Place in the order of saving."""
    try:
        return int(json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["number"])
    except (OSError, ValueError, KeyError, TypeError):
        return _UNKNOWN


def _problem(folder: Path, *, digests: bool = True) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        facts = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            return f"it is of format {facts['format']}, and this version reads {_FORMAT}"
        for name, expected in facts["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or (digests and _digest(path) != expected["sha256"]):
                return f"{name} is damaged"
    except FileNotFoundError:
        return f"it has no {_MANIFEST}, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return f"its {_MANIFEST} cannot be read ({problem})"
    return ""
