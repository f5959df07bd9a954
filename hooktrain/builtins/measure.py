"""``measure``: memory, time by phase, and norms by layer, in the log lines."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs

from hooktrain.compat import local_tensor
from hooktrain.config import field
from hooktrain.markers import hookimpl
from hooktrain.plugin.info import PluginInfo
from hooktrain.protocols import StrategyDefaults, member
from hooktrain.training.memory import peak_of_process, process_memory

if TYPE_CHECKING:
    from torch import Tensor

    from hooktrain.recipe.model import Recipe
    from hooktrain.training.trainer import Trainer

__all__ = ["Measure", "MeasureConfig"]

_GIB = 2**30
_LAYER = re.compile(r"(?:.*?\.)?\d+(?=\.)")
"""The beginning of a parameter's name up to the first number, which is that of a layer."""
_HOOKS = {
    "phases": (
        *("on_train_start", "on_step_start", "on_step_end", "on_log", "on_checkpoint_end", "on_evaluate_end"),
        *("compute_loss", "run_backward", "run_optimizer_step", "run_evaluate", "save_checkpoint"),
    ),
    "norms": ("on_optimizer_step_start",),
}
"""Hooks that each measurement needs, besides that of the metrics."""


@attrs.frozen(kw_only=True)
class MeasureConfig:
    """Measurements in the log lines; a list in the recipe is ``use``."""

    shorthand: ClassVar[str] = "use"

    use: tuple[Literal["memory", "phases", "norms"], ...] = field(default=(), affects_training=False)
    """``memory``: GiB of the process and of its device. ``phases``: seconds since the last line for data, forward,
    backward, optimizer, save and evaluation; on a GPU those of the device. ``norms``: of the weights of each layer, and
    of its gradients before clipping."""


class Measure:
    """Adds what the recipe asks for to the log lines. Without it no hook is called."""

    hooktrain_plugin = PluginInfo(
        only_observes=True, active_when=lambda recipe: bool(recipe.settings["measure"].use), in_manifest=False
    )

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._pending: list[tuple[str, Any, Any]] = []
        self._ready = 0.0
        self._evaluating = False
        self._gradients: dict[str, Tensor] = {}

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"measure": MeasureConfig}}

    @hookimpl
    def unused_hooks(self, recipe: Recipe) -> Iterable[str]:
        needed = {hook for name in recipe.settings["measure"].use for hook in _HOOKS.get(name, ())}
        return {hook for hooks in _HOOKS.values() for hook in hooks} - needed

    @hookimpl
    def collect_metrics(self, trainer: Trainer) -> Mapping[str, Any]:
        use = trainer.recipe.settings["measure"].use
        found: dict[str, Any] = {}
        if "memory" in use:
            found |= _memory(trainer)
        if "phases" in use:
            found |= self._phases()
        if "norms" in use:
            found |= _norms(trainer, "weights", ((name, weight) for name, weight in _trained(trainer)))
            found |= self._gradients
            self._gradients = {}
        return found

    # -------------------------------------------------------------------------------------------------------- phases

    def _phases(self) -> Mapping[str, float]:
        waiting = []
        for phase, began, ended in self._pending:
            if ended.query():  # the last ones are for the next line: nobody waits for the device here
                self._add(phase, began.elapsed_time(ended) / 1e3)
            else:
                waiting.append((phase, began, ended))
        self._pending = waiting
        found, self._seconds = self._seconds, {}
        return {f"seconds/{phase}": seconds for phase, seconds in found.items()}

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def _timed(self, phase: str, trainer: Trainer) -> Generator[None, Any, Any]:
        """Time what a wrapped hook does, on the device where it has a clock."""
        if trainer.device.type == "cuda":
            import torch

            event: Any = torch.cuda.Event
            began, ended = event(enable_timing=True), event(enable_timing=True)
            began.record()
            made = yield
            ended.record()
            self._pending.append((phase, began, ended))
        else:
            start = time.perf_counter()
            made = yield
            self._add(phase, time.perf_counter() - start)
        return made

    @hookimpl(trylast=True)
    def on_train_start(self) -> None:
        self._ready = time.perf_counter()

    @hookimpl(tryfirst=True)
    def on_step_start(self) -> None:
        self._add("data", time.perf_counter() - self._ready)

    @hookimpl(trylast=True)
    def on_step_end(self) -> None:
        self._ready = time.perf_counter()

    @hookimpl(trylast=True)
    def on_log(self) -> None:
        self._ready = time.perf_counter()

    @hookimpl(trylast=True)
    def on_checkpoint_end(self) -> None:
        self._ready = time.perf_counter()

    @hookimpl(trylast=True)
    def on_evaluate_end(self) -> None:
        self._ready = time.perf_counter()

    @hookimpl(wrapper=True)
    def compute_loss(self, trainer: Trainer) -> Generator[None, Any, Any]:
        if self._evaluating:
            return (yield)
        return (yield from self._timed("forward", trainer))

    @hookimpl(wrapper=True)
    def run_backward(self, trainer: Trainer) -> Generator[None, Any, Any]:
        return (yield from self._timed("backward", trainer))

    @hookimpl(wrapper=True)
    def run_optimizer_step(self, trainer: Trainer) -> Generator[None, Any, Any]:
        return (yield from self._timed("optimizer", trainer))

    @hookimpl(wrapper=True)
    def run_evaluate(self, trainer: Trainer) -> Generator[None, Any, Any]:
        self._evaluating = True
        try:
            return (yield from self._timed("evaluation", trainer))
        finally:
            self._evaluating = False

    @hookimpl(wrapper=True)
    def save_checkpoint(self, trainer: Trainer) -> Generator[None, Any, Any]:
        return (yield from self._timed("save", trainer))

    # --------------------------------------------------------------------------------------------------------- norms

    @hookimpl
    def on_optimizer_step_start(self, trainer: Trainer) -> None:
        if trainer.wants_grad_norm:
            found = ((name, weight.grad) for name, weight in _trained(trainer) if weight.grad is not None)
            self._gradients = _norms(trainer, "gradients", found)


def _memory(trainer: Trainer) -> dict[str, float]:
    found = {"memory/process_gib": process_memory() / _GIB, "memory/process_peak_gib": peak_of_process() / _GIB}
    if trainer.device.type == "cuda":
        cuda = sys.modules["torch"].cuda
        found["memory/device_gib"] = cuda.memory_allocated(trainer.device) / _GIB
        found["memory/device_peak_gib"] = cuda.max_memory_allocated(trainer.device) / _GIB
    return found


def _trained(trainer: Trainer) -> Iterable[tuple[str, Any]]:
    model = trainer.strategy.unwrap(trainer.trained)
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _norms(trainer: Trainer, what: str, tensors: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """Return the norm of the tensors of each layer, on the device; of shards, that of all ranks. Collective."""
    import torch

    squares: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        layer = _LAYER.match(name)
        local = local_tensor(tensor.detach())
        squares.setdefault(layer[0] if layer else name.rpartition(".")[0] or name, []).append(
            local.float().square().sum()
        )
    found = {layer: torch.stack(each).sum() for layer, each in squares.items()}
    if found and member(trainer.strategy, StrategyDefaults, "shards_weights"):
        found = dict(zip(found, trainer.strategy.sum_tensor(torch.stack([*found.values()])), strict=True))
    return {f"norm/{what}/{layer}": square.sqrt() for layer, square in found.items()}
