"""The plugin ``trackers``: experiment trackers by name, which never end a run and follow it through its resumes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from hooktrain import Complaint, PluginInfo, did_you_mean, field, hookimpl, mask_text, masked
from hooktrain_callbacks.tracker_types import TRACKERS, TrackedRun, Tracker

if TYPE_CHECKING:
    from hooktrain import Recipe, Trainer

__all__ = ["TrackersConfig", "TrackersPlugin"]


def _entry(given: Any) -> tuple[str, dict[str, Any]]:
    """Return the type of a tracker and its settings.

    Raises:
        ValueError: it is no entry.
    """
    if isinstance(given, str):
        return given, {}
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise ValueError(f"given {given!r}, expected a tracker such as wandb, or a mapping with its type")
    return given["type"], {str(key): value for key, value in given.items() if key != "type"}


def _readable(instance: Any, attribute: Any, value: Any) -> None:
    for each in value:
        _entry(each)


@attrs.frozen(kw_only=True)
class TrackersConfig:
    """Experiment trackers by name; a list in the recipe is ``use``."""

    shorthand: ClassVar[str] = "use"

    use: tuple[str | Mapping[str, Any], ...] = field(default=(), validator=_readable, affects_training=False)
    """``tensorboard``, ``wandb``, ``mlflow``, ``trackio`` or ``swanlab``, or mappings of ``type`` and what the
    package's own ``init`` takes, such as ``{type: wandb, project: mine}``. One that fails is removed, and the run
    continues."""


class TrackersPlugin:
    """Starts the trackers on rank 0, sends them every log line, and tells them how the run has ended."""

    hooktrain_plugin = PluginInfo(
        only_observes=True,
        may_change=("*",),  # they are other people's code
        active_when=lambda recipe: bool(recipe.settings["trackers"].use),
        on_error="warn",
    )

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}
        self._kept: Mapping[str, Any] = {}
        self._failure: BaseException | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"trackers": TrackersConfig}}

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        seen: set[str] = set()
        for number, each in enumerate(recipe.settings["trackers"].use):
            name, settings = _entry(each)
            where = f"trackers[{number}]"
            if name not in TRACKERS:
                known = ", ".join(TRACKERS)
                text = f"given '{name}', expected one of {known}{did_you_mean(name, TRACKERS)}; others are callbacks"
                yield Complaint(where, text)
            elif name in seen:
                yield Complaint(where, f"{name} is named twice; keep one")
            elif importlib.util.find_spec(TRACKERS[name].package) is None:
                package = TRACKERS[name].package
                text = f"the package {package} is not installed; pip install {package}, or remove it"
                yield Complaint(where, text, of_machine=True)
            else:
                for text in TRACKERS[name].problems(settings):
                    yield Complaint(where, text)
            seen.add(name)

    @hookimpl(trylast=True)
    def on_train_start(self, trainer: Trainer) -> None:
        ids: dict[str, str] = {}
        if trainer.world.is_main:
            before = self._kept.get("ids", {}) if self._kept.get("run") == trainer.run_id else {}
            run = TrackedRun(
                name=f"{trainer.recipe.name}-{trainer.run_id}",
                id=trainer.run_id,
                folder=trainer.run_dir,
                recipe=masked(trainer.recipe.as_dict()),
                step=trainer.global_step,
            )
            for each in trainer.recipe.settings["trackers"].use:
                name, settings = _entry(each)
                tracker = TRACKERS[name](settings)
                self._trackers[name] = tracker
                self._call(trainer, name, lambda: ids.update({name: tracker.start(run, before.get(name))}))  # noqa: B023
        # so that the state is the same on all ranks
        self._kept = {"run": trainer.run_id, "ids": trainer.strategy.gather_objects(ids)[0]}

    @hookimpl
    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._call(trainer, name, lambda: tracker.log(metrics, trainer.global_step))  # noqa: B023

    @hookimpl
    def on_exception(self, exception: BaseException) -> None:
        self._failure = exception

    @hookimpl
    def on_teardown(self, trainer: Trainer) -> None:
        failure = self._failure
        status = "failed" if failure is not None else "stopped" if trainer.exit_status else "finished"
        if isinstance(failure, KeyboardInterrupt):
            status = "stopped"
        why = "" if failure is None else mask_text(f"{type(failure).__name__}: {failure}")
        for name, tracker in list(self._trackers.items()):
            self._call(trainer, name, lambda: tracker.end(status, why or trainer.state.stop_reason or ""))  # noqa: B023
        self._trackers.clear()

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in self._kept.items()}

    @hookimpl
    def restore_state(self, state: Mapping[str, Any]) -> None:
        self._kept = state

    def _call(self, trainer: Trainer, name: str, function: Callable[[], object]) -> None:
        """Call a tracker; one that fails is left out from then on."""
        try:
            function()
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as problem:  # some end the process where they find no account
            self._trackers.pop(name, None)
            text = mask_text(f"{type(problem).__name__}: {problem}")
            trainer.host.warn(f"trackers: {name} failed and is removed, and the run continues: {text}")
