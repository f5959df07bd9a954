"""``full`` checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from hooktrain import CheckpointConfig, CheckpointError, World, at_least, field

if TYPE_CHECKING:
    from hooktrain import Trainer

__all__ = ["FullCheckpoint", "FullConfig"]

_MANIFEST = "manifest.json"
_FORMAT = 1


@attrs.frozen(kw_only=True)
class FullConfig(CheckpointConfig):
    """Model, optimizer, scheduler, random states, data cursor, counters, plugin states, recipe and plugins."""

    keep_last: int = field(default=0, validator=at_least(0))
    """How many checkpoints to keep; 0 keeps all."""


class FullCheckpoint:
    """Writes ``step-N`` folders: in a temporary folder first, a manifest with sizes and digests last, then a rename.

    Args:
        config: when and where.
        run_dir: the run's folder; checkpoints go to ``checkpoints`` in it when the config has no ``output_dir``.
        world: this process and how many there are.
    """

    def __init__(self, config: FullConfig, run_dir: Path, world: World) -> None:
        self.config, self.world = config, world
        self.output_dir = config.output_dir or run_dir / "checkpoints"

    # ------------------------------------------------------------------------------------------------- saving

    def save(self, trainer: Trainer) -> Path:
        target = self.output_dir / f"step-{trainer.global_step:08d}"
        if target.exists() and not _problem(target):
            return target
        temporary = self.output_dir / f".saving-{target.name}"
        try:
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            trainer.strategy.barrier()
            plugins = trainer.collect_states()
            _save(_random_state(), temporary / f"random-{self.world.rank}.pt")
            if self.world.is_main:
                _save(trainer.strategy.unwrap(trainer.model).state_dict(), temporary / "model.pt")
                _save(trainer.optimizer.state_dict(), temporary / "optimizer.pt")
                loop = {
                    "scheduler": trainer.scheduler.state_dict(),
                    "strategy": trainer.strategy.state_dict(),
                    "plugins": plugins,
                }
                _save(loop, temporary / "parts.pt")
                _write(temporary / "state.json", json.dumps(attrs.asdict(trainer.state), indent=2))
                _write(temporary / "recipe.yaml", trainer.recipe.as_yaml())
                _write(temporary / "plugins.json", json.dumps(trainer.host.manifest(), indent=2))
            trainer.strategy.barrier()
            if self.world.is_main:
                _seal(temporary, trainer.global_step, self.world.world_size)
                if target.exists():  # a damaged one of the same step
                    shutil.rmtree(target)
                os.replace(temporary, target)
                _sync(self.output_dir)
                self._retain()
            trainer.strategy.barrier()
        except OSError as problem:
            raise CheckpointError(
                f"{target}: cannot be saved ({problem.strerror or problem}); earlier checkpoints are intact; make room, or"
                " give another output_dir"
            ) from problem
        return target

    def _retain(self) -> None:
        if self.config.keep_last:
            for path in self._found()[self.config.keep_last :]:
                shutil.rmtree(path)

    # ------------------------------------------------------------------------------------------------ finding

    def _found(self) -> list[Path]:
        """Checkpoints by name, the newest first."""
        if not self.output_dir.is_dir():
            return []
        names = [path for path in self.output_dir.iterdir() if re.fullmatch(r"step-\d+", path.name)]
        return sorted(names, key=lambda path: int(path.name[5:]), reverse=True)

    def latest(self) -> Path | None:
        for path in self._found():
            problem = _problem(path)
            if not problem:
                return path
            print(f"checkpoint {path} is passed over: {problem}")
        return None

    def claims(self, path: Path) -> bool:
        return (path / _MANIFEST).is_file()

    # ------------------------------------------------------------------------------------------------ loading

    def load(self, trainer: Trainer, path: Path) -> None:
        problem = _problem(path)
        if problem:
            raise CheckpointError(f"{path}: {problem}; resume from another checkpoint")
        saved_for = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))["world_size"]
        if saved_for != self.world.world_size:
            raise CheckpointError(
                f"{path}: was saved by {saved_for} ranks and is being loaded by {self.world.world_size}; start as many ranks"
                " as then"
            )
        strategy = trainer.strategy
        strategy.unwrap(trainer.model).load_state_dict(_load(path / "model.pt"))
        trainer.optimizer.load_state_dict(_load(path / "optimizer.pt"))
        loop = _load(path / "parts.pt")
        trainer.scheduler.load_state_dict(loop["scheduler"])
        strategy.load_state_dict(loop["strategy"])
        for name, value in json.loads((path / "state.json").read_text(encoding="utf-8")).items():
            setattr(trainer.state, name, value)
        trainer.restore_states(loop["plugins"])
        _restore_random_state(_load(path / f"random-{self.world.rank}.pt"))


def _random_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _save(value: Any, path: Path) -> None:
    with path.open("wb") as stream:
        torch.save(value, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _seal(folder: Path, step: int, world_size: int) -> None:
    """Write the manifest: what makes a folder a checkpoint."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.iterdir())}
    facts = {"format": _FORMAT, "step": step, "world_size": world_size, "files": files}
    _write(folder / _MANIFEST, json.dumps(facts, indent=2))
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


def _problem(folder: Path) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        facts = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name, expected in facts["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or _digest(path) != expected["sha256"]:
                return f"{name} is damaged"
    except FileNotFoundError:
        return f"it has no {_MANIFEST}, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return f"its {_MANIFEST} cannot be read ({problem})"
    return ""
