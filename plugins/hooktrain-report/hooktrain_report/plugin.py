"""Plugin ``report``: the page at a run's end, or a line that names the command which makes it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from hooktrain import PluginInfo, field, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from hooktrain import Recipe, Trainer

__all__ = ["ReportConfig", "ReportPlugin"]

_LIMIT = 3.0
"""Seconds that the end of a run waits for its report."""


@attrs.frozen(kw_only=True)
class ReportConfig:
    """The report of a run; ``report: true`` is enough."""

    shorthand: ClassVar[str] = "enabled"
    enabled: bool = field(default=False, affects_training=False)
    """Whether to write ``report.html`` into the run directory when the run ends, for which it waits three seconds at
    most."""


def _is_used(recipe: Recipe) -> bool:
    console = recipe.settings.get("console")
    return recipe.settings["report"].enabled or bool(console is not None and console.enabled)


class ReportPlugin:
    """Writes the report on rank 0, when how the run ends is decided and everything else has been written."""

    hooktrain_plugin = PluginInfo(active_when=_is_used, on_error="warn", in_manifest=False)

    def __init__(self) -> None:
        self._failure: BaseException | None = None

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"report": ReportConfig}}

    @hookimpl
    def on_exception(self, exception: BaseException) -> None:
        self._failure = exception

    @hookimpl(trylast=True)
    def on_teardown(self, trainer: Trainer) -> None:
        failure, self._failure = self._failure, None
        if not (trainer.world.is_main and trainer.owns_run_dir):
            return
        command = f"hooktrain report {trainer.run_dir}"
        if not trainer.recipe.settings["report"].enabled:
            if failure is None and trainer.run_record.keeps_folder:
                trainer.say(f"to see this run: {command}")
            return
        outcome = trainer.run_record.outcome(trainer.state.stop_reason or "", trainer.exit_status, failure)
        found: list[Path | Exception] = []
        thread = threading.Thread(
            target=_write, args=(trainer.run_dir, attrs.asdict(outcome), found), name="hooktrain-report", daemon=True
        )
        thread.start()
        thread.join(_LIMIT)
        if not found:
            trainer.say(f"the report takes longer than {_LIMIT:g} s; make it with: {command}")
        elif isinstance(found[0], Exception):
            kind = type(found[0]).__name__
            trainer.host.warn(f"report: cannot be made ({kind}: {found[0]}); the run has ended as it would without it")
        else:
            trainer.say(f"report: {found[0]}")


def _write(folder: Path, outcome: Mapping[str, Any], found: list[Path | Exception]) -> None:
    try:
        from hooktrain_report.page import write_report

        found.append(write_report([folder], outcome=outcome))
    except Exception as problem:  # a report never ends a run
        found.append(problem)
