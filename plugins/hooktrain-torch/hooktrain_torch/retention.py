"""Retention of ``full`` checkpoints: older ones are renamed at once and deleted while training continues."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hooktrain_torch.checkpoint_values import read_json
from hooktrain_torch.files import UNKNOWN, problem_of, run_of

if TYPE_CHECKING:
    from hooktrain import Trainer
    from hooktrain_torch.checkpoint_config import FullConfig

__all__ = ["Retention"]


class Retention:
    """Removes checkpoints that no setting keeps; on the main rank only.

    Deleting gigabytes takes long, so it has a thread of its own. A run that dies meanwhile leaves folders with hidden
    names, which are never taken for checkpoints, and which the next save removes.

    Args:
        config: which checkpoints to keep.
        folder: where the checkpoints are.
    """

    def __init__(self, config: FullConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self._warned = False
        self._thread: threading.Thread | None = None

    def set_aside(self, path: Path) -> None:
        """Rename a checkpoint to a hidden name, to be deleted later."""
        aside = self.folder / f".removed-{path.name}"
        if aside.exists():  # being deleted, or left by a run that died
            self.wait()
            shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)

    def keep(self, path: Path, prefix: str) -> Path:
        """Rename a checkpoint whose name is needed, but which is damaged or another run's.

        Returns:
            Its new path, which is never taken for a checkpoint, nor removed.
        """
        kept = self.folder / f"{prefix}-{path.name}"
        numbers = itertools.count(2)
        while kept.exists():
            kept = self.folder / f"{prefix}-{path.name}-{next(numbers)}"
        os.replace(path, kept)
        return kept

    def apply(self, trainer: Trainer, found: Sequence[tuple[int, Path]]) -> None:
        """Remove checkpoints that no setting keeps, but none that is damaged or another run's.

        Args:
            trainer: warns, and names the metrics of evaluations.
            found: checkpoints with their numbers, the last saved first.
        """
        config, kept = self.config, 0
        try:
            found = [each for each in found if run_of(each[1]) == trainer.run_id] if config.keep_last else []
            best = self._best(trainer, [path for number, path in found if number < UNKNOWN]) if found else None
            for _, path in found:
                if problem_of(path, digests=False):
                    continue  # what is left of it cannot be restored
                marked = path == best or (config.keep_every and int(path.name[5:]) % config.keep_every == 0)
                if kept < config.keep_last:
                    kept += 1
                elif not marked:
                    self.set_aside(path)
        except OSError as problem:
            trainer.host.warn(f"{self.folder}: older checkpoints cannot be removed ({problem.strerror})")
        self._delete_aside()

    def clean(self) -> None:
        """Delete what an interrupted save or removal has left."""
        self.wait()
        for path in [*self.folder.glob(".saving-step-*"), *self.folder.glob(".removed-step-*")]:
            shutil.rmtree(path, ignore_errors=True)

    def wait(self) -> None:
        """Wait until everything set aside is deleted."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _delete_aside(self) -> None:
        self.wait()
        aside = list(self.folder.glob(".removed-step-*"))
        if not aside:
            return

        def work() -> None:
            for path in aside:
                shutil.rmtree(path, ignore_errors=True)

        self._thread = threading.Thread(target=work, name="removal of older checkpoints", daemon=True)
        self._thread.start()

    def best(self, paths: Sequence[Path]) -> Path | None:
        """Return the checkpoint with the best value of ``keep_best`` or ``save_best``, or None where none was measured.

        Where neither names a metric, it is the only loss of an evaluation.
        """
        config = self.config
        name, mode = config.keep_best, config.keep_best_mode
        if not name:
            name, mode = config.save_best, config.save_best_mode
        if not name:
            states = [read_json(path / "state.json") for path in paths if not problem_of(path, digests=False)]
            losses = {m for state in states for m in state["metrics"] if re.fullmatch(r"eval/[^/]+/loss", m)}
            if len(losses) != 1:
                return None
            (name,) = losses
        values = _measured(paths, name, -1 if mode == "max" else 1)
        return min(values, key=lambda found: found[0])[1] if values else None

    def _best(self, trainer: Trainer, paths: Iterable[Path]) -> Path | None:
        """Return the checkpoint with the best value of ``keep_best``, of those at whose step it was measured.

        What ``save_best`` has saved is kept like it, unless another metric is.
        """
        config = self.config
        name, mode = config.keep_best, config.keep_best_mode
        if not name:
            name, mode = config.save_best, config.save_best_mode
        if not name:
            return None
        sign = -1 if mode == "max" else 1
        values = _measured(paths, name, sign)
        if not values and not self._warned:
            self._warned = True
            known = ", ".join(sorted(m for m in trainer.state.metrics if m.startswith("eval/"))) or "none so far"
            trainer.host.warn(
                f"keep_best: '{name}' was measured at the step of no checkpoint, so none is kept for it; evaluate at"
                f" the steps that are saved (eval_interval); evaluation has given: {known}"
            )
        return min(values, key=lambda found: found[0])[1] if values else None


def _measured(paths: Iterable[Path], name: str, sign: int) -> list[tuple[float, Path]]:
    """Return the complete checkpoints at whose step a metric was measured, each with its value times ``sign``."""
    values: list[tuple[float, Path]] = []
    for path in paths:
        if problem_of(path, digests=False):
            continue
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if name in state["metrics"] and state.get("evaluated_at") == state["global_step"]:
            value = sign * state["metrics"][name]
            values += [(value, path)] if math.isfinite(value) else []
    return values
