"""Plugin ``spike_guard``: leaves out steps whose loss jumps, or puts the weights back to what they were before."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hooktrain import (
    Batch,
    Complaint,
    DatasetDefaults,
    HooktrainError,
    LoaderDefaults,
    LossSum,
    PluginInfo,
    Recipe,
    at_least,
    field,
    hookimpl,
    member,
    one_of,
)
from hooktrain_torch.strategy_config import TorchConfig

if TYPE_CHECKING:
    from torch import Tensor

    from hooktrain import StepOutput, Trainer

__all__ = ["SpikeGuardConfig", "SpikeGuardPlugin"]

FILE = "spikes.jsonl"
"""Name of the file in the run directory with the steps and their examples."""


@attrs.frozen(kw_only=True)
class SpikeGuardConfig:
    """Steps whose loss is far above that of the steps before, and what becomes of them."""

    threshold: float = field(default=0.0, validator=at_least(0))
    """How many times the mean loss of the last ``window`` steps the loss of a step may be; 0 does not look. The loss of
    each step is read, which waits for the device."""
    max_loss: float = field(default=0.0, validator=at_least(0))
    """Loss above which a step is a spike as well, from the first step on; 0 sets no limit."""
    window: int = field(default=50, validator=at_least(1))
    """Steps of which the mean is taken; nothing is a spike before there are as many."""
    action: str = field(default="skip", validator=one_of("skip", "roll_back", "keep"))
    """What becomes of a spike: ``skip`` does not update the weights, and ``roll_back`` also puts weights and optimizer
    back to a copy that is ``window`` to twice ``window`` steps old, or to where the run was resumed if that is later:
    checkpoints hold no older weights. Training continues with the next examples. ``keep``
    updates the weights nevertheless, and only ``patience`` has an effect."""
    patience: int = field(default=5, validator=at_least(1))
    """Spikes in a row that end the run with an error."""


class SpikeGuardPlugin:
    """Reads the loss of each step on all ranks, and writes the examples of spikes to ``spikes.jsonl``."""

    hooktrain_plugin = PluginInfo(
        active_when=lambda recipe: _settings(recipe) != SpikeGuardConfig(), changes_gradients=True
    )

    def __init__(self) -> None:
        self._losses: deque[float] = deque()
        self._total: Tensor | None = None
        self._spike: float | None = None
        self._mean = 0.0
        self._in_a_row = self._count = self._start = 0
        self._copies: deque[_Copy] = deque(maxlen=2)

    @hookimpl
    def register_configs(self) -> Mapping[str, Mapping[str, type]]:
        return {"settings": {"spike_guard": SpikeGuardConfig}}

    @hookimpl
    def check_recipe(self, recipe: Recipe) -> Iterator[Complaint]:
        config = _settings(recipe)
        if not config.threshold and not config.max_loss:
            yield Complaint(
                "spike_guard.threshold", "missing or 0, which never looks; write a factor such as 3, or max_loss"
            )
        elif config.threshold and config.threshold <= 1:
            yield Complaint(
                "spike_guard.threshold", f"given {config.threshold:g}, expected more than 1, the mean of steps"
            )
        if config.action == "roll_back" and not isinstance(recipe.strategy, TorchConfig):
            yield Complaint(
                "spike_guard.action", "given roll_back, which needs strategy: torch; write that, or action: skip"
            )

    @hookimpl
    def on_train_start(self, trainer: Trainer) -> None:
        self._keep_copy(trainer)
        step, window = trainer.global_step, _settings(trainer.recipe).window
        if self._copies and step:
            until = -(-step // window) * window + window  # both copies are those of an unbroken run from then on
            trainer.say(
                f"spike_guard: until step {until}, a spike puts the weights back to those of step {step}, where the run"
                " was resumed, as the checkpoint holds no older ones"
            )

    @hookimpl
    def on_step_start(self, trainer: Trainer, batches: Sequence[Batch]) -> None:
        self._total = self._spike = None
        self._start = trainer.state.sequences

    @hookimpl
    def on_microbatch_end(self, trainer: Trainer, loss: LossSum) -> None:
        self._total = loss.total if self._total is None else self._total + loss.total

    @hookimpl
    def on_optimizer_step_start(self, trainer: Trainer) -> None:
        config = _settings(trainer.recipe)
        if self._total is None or not trainer.denominator:
            return
        loss = float(trainer.strategy.sum_tensor(self._total.float())) / trainer.denominator  # equal on all ranks
        mean = sum(self._losses) / max(1, len(self._losses))
        above = loss > mean + (config.threshold - 1) * abs(mean)
        jumps = config.threshold and len(self._losses) >= config.window and above
        if not (jumps or (config.max_loss and loss > config.max_loss)):
            self._in_a_row = 0
            if math.isfinite(loss):  # otherwise `on_nan` decides, and no mean after it would be a number
                self._losses.append(loss)
            if len(self._losses) > config.window:
                self._losses.popleft()
            return
        self._spike = loss
        self._in_a_row, self._count = self._in_a_row + 1, self._count + 1
        self._mean = mean
        if config.action != "keep":
            trainer.skip_reason = self._why(loss)

    def _why(self, loss: float) -> str:
        return f"whose loss was {loss:.4g} after a mean of {self._mean:.4g}"

    @hookimpl(tryfirst=True)
    def on_step_end(self, trainer: Trainer, output: StepOutput) -> None:
        config = _settings(trainer.recipe)
        if self._spike is None:
            if trainer.global_step % config.window == 0:
                self._keep_copy(trainer)
            return
        if config.action == "roll_back":
            self._copies[0].restore(trainer)
        self._report(trainer, config, self._spike)
        if self._in_a_row >= config.patience:
            raise HooktrainError(
                f"step {trainer.global_step}: the loss of {self._in_a_row} steps in a row is more than"
                f" {_limits(config)}, expected fewer than spike_guard.patience; look at the examples in"
                f" {trainer.run_dir / FILE}, lower optimizer.lr, or raise spike_guard's limits"
            )

    def _report(self, trainer: Trainer, config: SpikeGuardConfig, loss: float) -> None:
        """Say what became of a spike, and write down its examples."""
        examples = _examples(trainer, self._start)
        step, mean = trainer.global_step, self._mean
        back = f", and the weights are those of step {self._copies[0].step} again" if self._copies else ""
        kept = "not skipped" if config.action == "keep" else "skipped"
        trainer.say(f"spike_guard: step {step} is {kept}, {self._why(loss)}{back}; {FILE} names its examples")
        if trainer.world.is_main and trainer.owns_run_dir:
            written = loss if math.isfinite(loss) else str(loss)  # JSON has no other numbers
            line = {"step": step, "loss": written, "mean": mean, "action": config.action, "examples": examples}
            text = json.dumps(line, ensure_ascii=False)
            try:
                with (trainer.run_dir / FILE).open("a", encoding="utf-8") as stream:
                    stream.write(text + "\n")
            except OSError as problem:  # the training does not depend on it
                trainer.host.warn(f"{trainer.run_dir / FILE}: cannot be written ({problem.strerror}), and lacks {text}")

    @hookimpl
    def collect_metrics(self) -> Mapping[str, float]:
        return {"spikes": float(self._count)}

    @hookimpl
    def collect_state(self) -> Mapping[str, Any]:
        return {"losses": list(self._losses), "in_a_row": self._in_a_row, "count": self._count}

    @hookimpl
    def restore_state(self, state: Mapping[str, Any]) -> None:
        self._losses = deque(state["losses"])
        self._in_a_row, self._count = state["in_a_row"], state["count"]

    @hookimpl
    def on_teardown(self) -> None:
        self._copies.clear()

    def _keep_copy(self, trainer: Trainer) -> None:
        if _settings(trainer.recipe).action == "roll_back":
            self._copies.append(_Copy(trainer))


class _Copy:
    """Copies of this rank's weights, buffers and optimizer state, on their devices."""

    def __init__(self, trainer: Trainer) -> None:
        import torch

        self.step = trainer.global_step
        model = trainer.strategy.unwrap(trainer.model)
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        with torch.no_grad():
            self._tensors = {tensor: tensor.detach().clone() for tensor in (*trained, *model.buffers())}
            self._states = {
                parameter: {key: _cloned(value) for key, value in state.items()}
                for parameter, state in trainer.optimizer.state.items()
            }

    def restore(self, trainer: Trainer) -> None:
        """Put everything back; the copy stays as it is."""
        import torch

        with torch.no_grad():
            for tensor, kept in self._tensors.items():
                tensor.copy_(kept)
            state = trainer.optimizer.state
            for parameter in [parameter for parameter in state if parameter not in self._states]:
                del state[parameter]  # it had not been updated yet
            for parameter, values in self._states.items():
                state[parameter] = {key: _cloned(value) for key, value in values.items()}


def _limits(config: SpikeGuardConfig) -> str:
    mean = f"{config.threshold:g} times the mean before them" if config.threshold else ""
    limit = f"max_loss, which is {config.max_loss:g}" if config.max_loss else ""
    return " or ".join(filter(None, (mean, limit)))


def _cloned(value: Any) -> Any:
    from torch import Tensor

    return value.clone() if isinstance(value, Tensor) else value


def _examples(trainer: Trainer, start: int) -> list[str]:
    """Return the names of the examples of the step that has just ended, over all ranks."""
    state = trainer.state
    rows = member(trainer.loader, LoaderDefaults, "rows_of")(state.epoch, start, state.sequences - start)
    name = member(trainer.data.train, DatasetDefaults, "row_name")
    return [name(row) for row in rows] or [f"sequences {start} to {state.sequences - 1} of epoch {state.epoch}"]


def _settings(recipe: Recipe) -> SpikeGuardConfig:
    found = recipe.settings.get("spike_guard")
    return found if isinstance(found, SpikeGuardConfig) else SpikeGuardConfig()
