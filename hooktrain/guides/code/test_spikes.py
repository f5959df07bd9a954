from __future__ import annotations

from collections.abc import Callable, Generator

from hooktrain import LossSum, Trainer, hookimpl
from hooktrain.testing import Recorder

from spikes import Spikes

Run = Callable[..., Trainer]


class Jump:
    """Makes the loss of the fifth step ten times what it is."""

    @hookimpl(wrapper=True)
    def compute_loss(
        self, trainer: Trainer
    ) -> Generator[None, LossSum, LossSum]:
        loss = yield
        jumps = trainer.global_step == 4 and trainer.model.training
        return loss._replace(total=loss.total * (10 if jumps else 1))


class SaveBeforeItIsTooLate:
    """Another plugin, which implements the hook that ``spikes`` brings."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    @hookimpl
    def on_spike(self, trainer: Trainer) -> None:
        self.steps.append(trainer.global_step)
        trainer.request_save()


def test_every_plugin_is_called_at_a_spike(run_tiny: Run) -> None:
    recorder, other = Recorder(), SaveBeforeItIsTooLate()
    checkpoint = [{"type": "full", "save_end_of_training": True}]
    run_tiny(Spikes(), Jump(), other, recorder, checkpoint=checkpoint)
    assert other.steps == [5]
    calls = [call for name, call in recorder.calls if name == "on_message"]
    assert any("step 5: loss" in call["message"] for call in calls)


def test_no_spike_no_word(run_tiny: Run) -> None:
    other = SaveBeforeItIsTooLate()
    run_tiny(Spikes(), other)
    assert other.steps == []
