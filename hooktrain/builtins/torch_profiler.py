"""``profiler``: a window of steps as ``torch.profiler`` sees it, in a file that Perfetto opens."""

from __future__ import annotations

import gzip
import json
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from hooktrain.config import field
from hooktrain.markers import hookimpl
from hooktrain.plugin.info import PluginInfo

if TYPE_CHECKING:
    import torch

    from hooktrain.recipe.model import Recipe
    from hooktrain.training.trainer import Trainer

__all__ = ["TorchProfiler", "TorchProfilerConfig"]

_FOLDER = "profile"


def _are_steps(instance: Any, attribute: Any, value: Any) -> None:
    if value is not None and not 1 <= value[0] <= value[1]:
        raise ValueError(f"given [{value[0]}, {value[1]}], expected the first and the last step, counted from 1")


@attrs.frozen(kw_only=True)
class TorchProfilerConfig:
    """A window of steps that ``torch.profiler`` records."""

    type: Literal["torch"] = field(default="torch", affects_training=False)
    """Which profiler."""
    steps: tuple[int, int] | None = field(default=None, validator=_are_steps, affects_training=False)
    """The first and the last step that are recorded, such as ``[10, 12]``; none when omitted."""
    memory: bool = field(default=True, affects_training=False)
    """Whether allocations are recorded; the file then has a track of the allocated memory of each device."""
    shapes: bool = field(default=False, affects_training=False)
    """Whether the shapes of tensors are recorded."""
    stacks: bool = field(default=False, affects_training=False)
    """Whether Python's stacks are recorded, which takes long."""
    all_ranks: bool = field(default=False, affects_training=False)
    """Whether all ranks are recorded, each in a file of its own, and not only rank 0."""


class TorchProfiler:
    """Records a window of steps, and writes ``profile/steps-10-12.rank0.json.gz`` into the run directory."""

    hooktrain_plugin = PluginInfo(
        only_observes=True, active_when=lambda recipe: recipe.settings["profiler"].steps is not None, in_manifest=False
    )

    def __init__(self) -> None:
        self._profile: torch.profiler.profile | None = None
        self._first = 0

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"profiler": TorchProfilerConfig}}

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        first, last = _settings(trainer.recipe).steps or (1, 1)
        if first > trainer.training_horizon or last <= trainer.global_step:
            where = f"this run goes from step {trainer.global_step + 1} to {trainer.training_horizon}"
            trainer.host.warn(f"profiler.steps: given [{first}, {last}], and {where}, so that nothing is recorded")

    @hookimpl(tryfirst=True)
    def on_step_start(self, trainer: Trainer) -> None:
        config = _settings(trainer.recipe)
        first, last = config.steps or (1, 1)
        step = trainer.global_step + 1
        if self._profile is not None or not first <= step <= last or not (trainer.world.is_main or config.all_ranks):
            return
        import torch

        kinds = [torch.profiler.ProfilerActivity.CPU]
        if trainer.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(
            activities=kinds,
            profile_memory=config.memory,
            record_shapes=config.shapes,
            with_stack=config.stacks,
        )
        self._first = step
        self._profile.start()

    @hookimpl(trylast=True)
    def on_step_end(self, trainer: Trainer) -> None:
        _, last = _settings(trainer.recipe).steps or (1, 1)
        if self._profile is not None and trainer.global_step >= last:
            self._write(trainer)

    @hookimpl
    def on_train_end(self, trainer: Trainer) -> None:
        if self._profile is not None:  # the run ends before the window
            self._write(trainer)

    @hookimpl
    def on_teardown(self) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Generator[None, Any, Any]:
        with self._named("forward"):
            return (yield)

    @hookimpl(wrapper=True)
    def run_backward(self) -> Generator[None, Any, Any]:
        with self._named("backward"):
            return (yield)

    @hookimpl(wrapper=True)
    def run_optimizer_step(self) -> Generator[None, Any, Any]:
        with self._named("optimizer"):
            return (yield)

    def _named(self, phase: str) -> Any:
        if self._profile is None:
            return nullcontext()
        import torch

        return torch.profiler.record_function(phase)

    def _write(self, trainer: Trainer) -> None:
        profile, self._profile = self._profile, None
        assert profile is not None, "it was recording"
        profile.stop()
        name = f"steps-{self._first}-{trainer.global_step}.rank{trainer.world.rank}.json.gz"
        path = trainer.run_dir / _FOLDER / name
        if not (trainer.owns_run_dir or not trainer.world.is_main):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(path))
        if _settings(trainer.recipe).memory:
            _add_memory_track(path)
        trainer.say(f"profiler: {path}, which https://ui.perfetto.dev opens without uploading it")


def _add_memory_track(path: Path) -> None:
    """Add a counter of the allocated memory, which Perfetto shows as a curve, to the allocations of a trace."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        trace = json.load(stream)
    events = trace["traceEvents"]
    for event in [event for event in events if event.get("name") == "[memory]"]:
        given = event["args"]
        device = "processor" if given.get("Device Type") == 0 else f"device {given.get('Device Id')}"
        allocated = given.get("Total Allocated", 0) / 2**20
        counter = {"ph": "C", "name": f"memory of {device}", "pid": event["pid"], "ts": event["ts"]}
        events.append({**counter, "args": {"MiB": allocated}})
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        json.dump(trace, stream)


def _settings(recipe: Recipe) -> TorchProfilerConfig:
    found = recipe.settings["profiler"]
    assert isinstance(found, TorchProfilerConfig), "this plugin registers it"
    return found
