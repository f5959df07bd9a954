"""Console output of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from rich.console import Console as Terminal
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hooktrain.config import at_least, field
from hooktrain.markers import hookimpl
from hooktrain.plugin.info import PluginInfo
from hooktrain.protocols import CheckpointEngineDefaults, ConfigDefaults, Strategy, StrategyDefaults, member

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

    from hooktrain.training.trainer import Trainer

__all__ = ["Console", "ConsoleConfig", "clock"]


@attrs.frozen(kw_only=True)
class ConsoleConfig:
    """Settings of the console; the recipe's ``console``."""

    enabled: bool = field(default=True, affects_training=False)
    """Whether to show anything."""
    interval: int = field(default=0, validator=at_least(0), affects_training=False)
    """Steps between plain lines; 0 picks one that gives about fifty lines. A progress bar shows every log line."""


class _Terminal(Terminal):
    """One that says when its reader has gone, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # what waits in a buffer would fail again when Python ends
        os.close(nowhere)
        raise BrokenPipeError(errno.EPIPE, "nobody reads any more what is printed")


class Console:
    """Prints on rank 0; a run continues when it cannot print, as its metrics are written elsewhere too."""

    hooktrain_plugin = PluginInfo(on_error="disable", may_change=("sys.stdout",))  # a progress bar replaces it

    def __init__(self) -> None:
        self.terminal: Terminal = _Terminal(highlight=False)
        if self.terminal.is_jupyter:  # where rich would make each line an output of its own, and a bar needs widgets
            self.terminal = _Terminal(highlight=False, force_jupyter=False, force_terminal=False)
        self.progress: Progress | None = None
        self.task: Any = None
        self.shown = False
        self.began = time.perf_counter()
        self.first, self.saved = 0, list[Path]()

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"console": ConsoleConfig}}

    @hookimpl
    def on_message(self, trainer: Trainer, message: str) -> None:
        if trainer.recipe.settings["console"].enabled:
            self.terminal.print(escape(message), soft_wrap=not self.terminal.is_terminal)

    @hookimpl
    def on_resume_end(self, trainer: Trainer, path: Path) -> None:
        trainer.say(f"resumed from {path} at step {trainer.global_step}")

    @hookimpl(tryfirst=True)
    def on_train_start(self, trainer: Trainer) -> None:
        self.first = trainer.global_step
        self.shown = trainer.world.is_main and trainer.recipe.settings["console"].enabled
        if not self.shown:
            return
        self.began = time.perf_counter()
        parameters, trained = _sizes(trainer.model, trainer.strategy)
        share = "" if trained == parameters else f", {_count(trained)} of them trained"
        self._facts(
            {
                "model": f"{_count(parameters)} parameters{share} on {_place(trainer.device)}",
                "data": str(trainer.data.report.get("summary") or f"{len(trainer.data.train):,} rows"),
                "run": f"{trainer.training_horizon:,} steps of {trainer.recipe.micro_batch_size}"
                f" x {trainer.recipe.gradient_accumulation_steps} x {trainer.world.world_size} rows"
                " (micro-batch, accumulation, ranks)",
                "files": str(trainer.run_dir),
            }
        )
        for warning in trainer.data.report.get("warnings", ()):
            self.terminal.print(f"[yellow]warning[/] {escape(str(warning))}", soft_wrap=not self.terminal.is_terminal)
        if self.terminal.is_terminal:
            self.progress = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self.terminal,
                expand=True,
            )
            self.task = self.progress.add_task(
                "", total=trainer.training_horizon, completed=trainer.global_step, figures=""
            )
            self.progress.start()

    @hookimpl
    def on_log(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if not self.shown:
            return
        step = int(metrics["step"])
        if self.progress is not None:
            self.progress.update(self.task, completed=step, figures=" ".join(_figures(metrics)))
        elif "step_seconds" in metrics:
            every = trainer.recipe.settings["console"].interval or max(1, trainer.training_horizon // 50)
            if step % every == 0 or step >= trainer.training_horizon or trainer.should_stop:
                left = (trainer.training_horizon - step) * metrics["step_seconds"]
                line = f"step {step}/{trainer.training_horizon}  {'  '.join(_figures(metrics))}  {clock(left)} left"
                self.terminal.print(line, soft_wrap=True)
        measured = [
            f"{name.removeprefix('eval/')} {value:.4f}" for name, value in metrics.items() if name.startswith("eval/")
        ]
        if measured:
            trainer.say(f"evaluated at step {step}: {', '.join(measured)}")

    @hookimpl
    def on_checkpoint_end(self, trainer: Trainer, path: Path) -> None:
        self.saved.append(path)
        trainer.say(f"saved {path}")

    @hookimpl(trylast=True)
    def on_train_end(self, trainer: Trainer) -> None:
        self._stop()
        state, horizon = trainer.state, trainer.training_horizon
        why = f", stopped early: {reason}" if (reason := _why_early(trainer, self.first)) else ""
        of = f" of {horizon}" if state.global_step < horizon else ""
        counted = [f"{number:,.10g} {unit}" for unit, number in state.counted.items()]
        left_out = f", {state.skipped_steps} of them without an update" if state.skipped_steps else ""
        trainer.say(
            f"trained {state.global_step}{of} steps{left_out}, {state.tokens:,} tokens"
            f" ({', '.join(counted) or f'{state.supervised_tokens:,} of them trained'})"
            f" in {clock(time.perf_counter() - self.began)}{why}",
        )
        if trainer.exit_status and state.stop_reason:
            trainer.say(f"to resume: {_how_to_resume(trainer, self.saved)}")

    @hookimpl
    def on_teardown(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _facts(self, facts: Mapping[str, str]) -> None:
        for name, text in facts.items():
            self.terminal.print(f"[bold]{name:<6}[/]{escape(text)}", soft_wrap=not self.terminal.is_terminal)


def _why_early(trainer: Trainer, first: int) -> str:
    """Return why a run ends before its last step; empty where it does not."""
    recipe, step = trainer.recipe, trainer.global_step
    if trainer.state.stop_reason or step >= trainer.training_horizon:
        return trainer.state.stop_reason or ""
    this_run = recipe.exit_iteration_this_run
    limits = {
        f"exit_iteration is {recipe.exit_iteration}": 0 < recipe.exit_iteration <= step,
        f"max_tokens is {recipe.max_tokens:,}": 0 < recipe.max_tokens <= trainer.state.tokens,
        f"exit_iteration_this_run is {this_run}": 0 < this_run <= step - first,
    }
    return next((text for text, holds in limits.items() if holds), "")


def _how_to_resume(trainer: Trainer, saved: Sequence[Path]) -> str:
    """Return the command that resumes a run which somebody has ended."""
    for engine in trainer.checkpoint_engines:
        folder = member(engine, CheckpointEngineDefaults, "output_dir")
        paths = [] if folder is None else [path for path in saved if path.resolve().parent == folder.resolve()]
        if paths and not member(engine.config, ConfigDefaults, "exports"):
            return "the same command" + ("" if engine.config.auto_resume else f" with --resume {paths[-1]}")
    return "not possible, as no checkpoint was saved; add checkpoint: {type: full}"


def _figures(metrics: Mapping[str, float]) -> list[str]:
    formats = {"loss": "loss {:.4f}", "lr": "lr {:.1e}", "tokens_per_second": "{:,.0f} tok/s"}
    return [text.format(metrics[name]) for name, text in formats.items() if name in metrics]


def _sizes(model: Module, strategy: Strategy) -> tuple[int, int]:
    """Count the parameters of a model, and those that are trained."""
    elements = member(strategy, StrategyDefaults, "elements")
    sizes = [(elements(p), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _place(device: torch.device) -> str:
    """Return a device, with the threads of a CPU."""
    import torch  # which listings of plugins do without

    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads != 1 else ''})" if device.type == "cpu" else str(device)


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f}M" if number >= 100_000 else f"{number:,}"


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds: ``1:02:03``, ``0:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
