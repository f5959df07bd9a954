"""The trackers that a recipe names: how each starts or resumes a run, takes a log line, and ends the run."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs

__all__ = ["TRACKERS", "TrackedRun", "Tracker"]

_LONGEST = 500
"""Characters of a parameter, at most; MLflow's databases refuse longer ones."""
_AT_ONCE = 100
"""Parameters that MLflow takes in one request."""


@attrs.frozen(kw_only=True)
class TrackedRun:
    """The run that a tracker follows.

    Attributes:
        name: for people.
        id: the same after a resume.
        folder: the run directory.
        recipe: every value of the recipe, secrets masked.
        step: optimizer steps finished.
    """

    name: str
    id: str
    folder: Path
    recipe: Mapping[str, Any]
    step: int


class Tracker(ABC):
    """A tracker of one run.

    Args:
        settings: what the recipe says besides its type.
    """

    package: ClassVar[str]
    """The package to import."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)
        self.run: Any = None

    @classmethod
    def problems(cls, settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what is wrong with the settings."""
        yield from ()

    @abstractmethod
    def start(self, run: TrackedRun, before: str | None) -> str:
        """Start a tracked run, or go on with the one whose id is ``before``; returns its id."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send a log line."""

    @abstractmethod
    def end(self, status: str, why: str) -> None:
        """End the tracked run as ``finished``, ``stopped`` or ``failed``."""


class TensorBoard(Tracker):
    """Event files in ``tensorboard`` in the run directory."""

    package = "tensorboard"

    def start(self, run: TrackedRun, before: str | None) -> str:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(self.settings.pop("log_dir", run.folder / "tensorboard"))
        # what was logged after the checkpoint is hidden: it comes again
        purge = {"purge_step": run.step + 1} if before else {}
        self.run = SummaryWriter(folder, **{**purge, **self.settings})
        if not before:
            self.run.add_text("recipe", f"```json\n{json.dumps(run.recipe, indent=2, default=str)}\n```", run.step)
        return folder

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            if name != "step":
                self.run.add_scalar(name, value, step)
        self.run.flush()

    def end(self, status: str, why: str) -> None:
        self.run.add_text("end", f"{status}: {why}" if why else status)
        self.run.close()


class WandB(Tracker):
    """Weights & Biases."""

    package = "wandb"

    def start(self, run: TrackedRun, before: str | None) -> str:
        import wandb

        given = {
            "id": before or run.id,
            "resume": "allow",
            "name": run.name,
            "project": os.environ.get("WANDB_PROJECT", "hooktrain"),
            "dir": str(run.folder),
            "config": dict(run.recipe),
            "reinit": "create_new",  # another run of the process stays as it is
            "settings": wandb.Settings(console="off"),
        }
        self.run = wandb.init(**{**given, **self.settings})
        self.run.define_metric("*", step_metric="step")  # a step that is logged again replaces the first
        return str(self.run.id)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({**metrics, "step": step})

    def end(self, status: str, why: str) -> None:
        if why:
            self.run.summary["end"] = why
        self.run.finish(exit_code=0 if status == "finished" else 1)


class MLflow(Tracker):
    """MLflow, through a client of its own, so that no run of the process becomes the active one."""

    package = "mlflow"
    _KEYS = ("tracking_uri", "experiment_name", "run_name", "tags")

    @classmethod
    def problems(cls, settings: Mapping[str, Any]) -> Iterator[str]:
        for key in settings.keys() - set(cls._KEYS):
            yield f"unknown key '{key}'; mlflow takes {', '.join(cls._KEYS)}"

    def start(self, run: TrackedRun, before: str | None) -> str:
        from mlflow.tracking import MlflowClient

        self.client = client = MlflowClient(tracking_uri=self.settings.get("tracking_uri"))
        known: Mapping[str, str] = {}
        if before:
            client.update_run(before, status="RUNNING")
            self.run, known = before, client.get_run(before).data.params
        else:
            name = self.settings.get("experiment_name", os.environ.get("MLFLOW_EXPERIMENT_NAME", "hooktrain"))
            found = client.get_experiment_by_name(name)
            experiment = client.create_experiment(name) if found is None else found.experiment_id
            tags = {"hooktrain.run": run.id, "hooktrain.folder": str(run.folder), **self.settings.get("tags", {})}
            made = client.create_run(experiment, run_name=self.settings.get("run_name", run.name), tags=tags)
            self.run = made.info.run_id
        self._log_parameters({key: text for key, text in _flat(run.recipe) if key not in known})
        return str(self.run)

    def _log_parameters(self, found: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        made = [Param(key, text[:_LONGEST]) for key, text in found.items() if len(key) <= _LONGEST // 2]
        for start in range(0, len(made), _AT_ONCE):
            self.client.log_batch(self.run, params=made[start : start + _AT_ONCE])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        sent = [Metric(name, float(value), now, step) for name, value in metrics.items() if name != "step"]
        self.client.log_batch(self.run, metrics=sent)

    def end(self, status: str, why: str) -> None:
        if why:
            self.client.set_tag(self.run, "hooktrain.end", why)
        states = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self.client.set_terminated(self.run, status=states[status])


class Trackio(Tracker):
    """Trackio, which finds the run of a resume by its name."""

    package = "trackio"

    def start(self, run: TrackedRun, before: str | None) -> str:
        import trackio

        given = {
            "project": os.environ.get("TRACKIO_PROJECT", "hooktrain"),
            "name": before or run.name,
            "resume": "allow",
            "config": json.loads(json.dumps(run.recipe, default=str)),
        }
        self.run = trackio.init(**{**given, **self.settings})
        return str(self.run.name)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def end(self, status: str, why: str) -> None:
        self.run.finish()


class SwanLab(Tracker):
    """SwanLab."""

    package = "swanlab"

    def start(self, run: TrackedRun, before: str | None) -> str:
        import swanlab

        given = {
            "project": os.environ.get("SWANLAB_PROJ_NAME", "hooktrain"),
            "name": run.name,
            "id": before or run.id,
            "resume": "allow",
            "config": json.loads(json.dumps(run.recipe, default=str)),
            "log_dir": str(run.folder / "swanlab"),
        }
        self.run = swanlab.init(**{**given, **self.settings})
        return before or run.id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def end(self, status: str, why: str) -> None:
        states = {"finished": "success", "stopped": "aborted", "failed": "crashed"}
        self.run.finish(state=states[status], error=(why or status) if status == "failed" else None)


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of a recipe by their paths, as text."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{where}.{key}" if where else str(key))
    elif where:
        yield where, value if isinstance(value, str) else json.dumps(value, default=str)


TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
    "swanlab": SwanLab,
}
"""The trackers by their names in a recipe."""
