"""Trackers by name: what they are sent, resumes in the same tracked run, failed runs, and trackers that fail."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hooktrain_callbacks import tracker_types
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hooktrain import HooktrainWarning, RecipeError, hookimpl
from tests.facts import facts

SAVES = {"checkpoint": {"type": "full", "save_every_n_steps": 3, "auto_resume": True}}


class Fails:
    """Fails after a step."""

    def __init__(self, step: int = 5) -> None:
        self.step = step

    @hookimpl
    def on_step_end(self, trainer: Any) -> None:
        if trainer.global_step == self.step:
            raise ValueError("out of luck")


class Fake(tracker_types.Tracker):
    """Keeps what it is told, for tests of the plugin."""

    package = "json"
    told: list[tuple[Any, ...]] = []
    breaks = ""

    def start(self, run: tracker_types.TrackedRun, before: str | None) -> str:
        self._tell("start", before, run.step)
        return f"tracked-{run.id}"

    def log(self, metrics: Any, step: int) -> None:
        self._tell("log", step, metrics["loss"])

    def end(self, status: str, why: str) -> None:
        self._tell("end", status, why)

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        if what[0] == self.breaks:
            raise SystemExit("no account")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(Fake, "told", [])
    monkeypatch.setattr(Fake, "breaks", "")
    monkeypatch.setattr("hooktrain_callbacks.trackers.TRACKERS", {"fake": Fake, **tracker_types.TRACKERS})
    return Fake


def test_a_failed_run_that_is_resumed_is_one_tracked_run(run_tiny, fake, tmp_path):
    with pytest.raises(ValueError, match="out of luck"):
        run_tiny(Fails(), trackers=["fake"], **SAVES)
    first, fake.told[:] = list(fake.told), []
    trainer = run_tiny(trackers=["fake"], **SAVES)
    assert first[0] == ("start", None, 0)
    assert first[-1] == ("end", "failed", "ValueError: out of luck")
    assert fake.told[0] == ("start", f"tracked-{trainer.run_id}", 3)
    assert [step for kind, step, *_ in fake.told if kind == "log"] == [4, 5, 6, 7]
    assert fake.told[-1] == ("end", "finished", "")
    path, fake.told[:] = tmp_path / "run" / "checkpoints" / "step-00000003", []
    run_tiny(trackers=["fake"], run_dir=str(tmp_path / "other"), trainer={"resume_from": path}, **SAVES)
    assert fake.told[0] == ("start", None, 3), "another run, which begins where that one was"


@pytest.mark.parametrize("breaks", ["start", "log", "end"])
def test_a_tracker_that_fails_never_ends_a_run(run_tiny, fake, breaks):
    fake.breaks = breaks
    with pytest.warns(HooktrainWarning, match=facts("trackers", "fake failed", "no account")):
        trainer = run_tiny(trackers=["fake"])
    assert trainer.global_step == 7
    assert sum(kind == breaks for kind, *_ in fake.told) == 1, "it is not called again"


def test_secrets_do_not_leave_the_run(run_tiny, fake, monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(fake, "start", lambda self, run, before: seen.append(run.recipe) or "id")
    run_tiny(trackers=[{"type": "fake", "api_key": "hf_abcdefghijklmnopqrstuvwxyz"}])
    assert seen and "hf_abc" not in json.dumps(seen[0], default=str)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["tensorbord"], ["trackers[0]", "'tensorbord'", "'tensorboard'"]),
        (["tensorboard", "tensorboard"], ["trackers[1]", "named twice"]),
        ([{"project": "mine"}], ["trackers", "type"]),
    ],
)
def test_what_is_wrong_is_said(run_tiny, given, message):
    with pytest.raises(RecipeError, match=facts(*message)):
        run_tiny(trackers=given)


def test_a_package_that_is_missing_is_named(run_tiny, monkeypatch):
    monkeypatch.setattr(tracker_types.WandB, "package", "wandb_that_is_not_there")
    with pytest.raises(RecipeError, match=facts("trackers[0]", "pip install wandb")):
        run_tiny(trackers=["wandb"])


# --------------------------------------------------------------------------------------------------- the real ones


def scalars(folder: Path) -> dict[int, float]:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {event.step: event.value for event in found.Scalars("loss")}


def test_tensorboard(run_tiny, tmp_path):
    with pytest.raises(ValueError, match="out of luck"):
        run_tiny(Fails(), trackers=["tensorboard"], **SAVES)
    trainer = run_tiny(trackers=["tensorboard"], **SAVES)
    found = scalars(tmp_path / "run" / "tensorboard")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert found == pytest.approx({line["step"]: line["loss"] for line in lines}) and len(found) == 7
    assert trainer.global_step == 7


def resumed(run: Callable[..., Any], *trackers: Any) -> Any:
    """A run that fails after step 5 and is resumed from step 3 to its end."""
    with pytest.raises(ValueError, match="out of luck"):
        run(Fails(), trackers=[*trackers], **SAVES)
    trainer = run(trackers=[*trackers], **SAVES)
    assert not [text for text in trainer.host.warnings if "trackers:" in text]
    return trainer


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.mark.thorough
@needs("mlflow")
def test_mlflow(run_tiny, tmp_path):
    from mlflow.tracking import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    entry = {"type": "mlflow", "tracking_uri": store, "experiment_name": "mine"}
    client = MlflowClient(tracking_uri=store)
    with pytest.raises(ValueError, match="out of luck"):
        run_tiny(Fails(), trackers=[entry], **SAVES)
    experiment = client.get_experiment_by_name("mine").experiment_id
    (failed,) = client.search_runs([experiment])
    assert failed.info.status == "FAILED" and "out of luck" in failed.data.tags["hooktrain.end"]
    trainer = run_tiny(trackers=[entry], **SAVES)
    (found,) = client.search_runs([experiment])
    assert (found.info.run_id, found.info.status) == (failed.info.run_id, "FINISHED")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert {each.step for each in history} == set(range(1, 8))
    assert found.data.params["optimizer.lr"] == "0.01" and found.data.metrics["loss"] == trainer.state.metrics["loss"]


@pytest.mark.thorough
@needs("wandb")
def test_wandb_without_a_network(run_tiny, tmp_path):
    trainer = resumed(run_tiny, {"type": "wandb", "mode": "offline", "project": "mine"})
    found = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert {path.name.rpartition("-")[2] for path in found} == {trainer.run_id}, "parts of one run"
    assert len(found) == 2 and all(list(path.glob("*.wandb")) for path in found)


@pytest.mark.thorough
@needs("trackio")
def test_trackio(run_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    resumed(run_tiny, {"type": "trackio", "project": "mine"})
    (path,) = (tmp_path / "trackio").rglob("mine*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select run_name, step from metrics").fetchall()
    assert len({name for name, _ in rows}) == 1 and {step for _, step in rows} == set(range(1, 8))


@pytest.mark.thorough
@needs("swanlab")
def test_swanlab_without_a_network(run_tiny, tmp_path):
    trainer = resumed(run_tiny, {"type": "swanlab", "mode": "offline", "project": "mine"})
    found = list((tmp_path / "run" / "swanlab").glob("run-*"))
    assert found and trainer.global_step == 7
    assert os.path.isdir(found[0])
