"""``Data.order`` and ``Data.lengths``: a plugin decides in which order an epoch's rows are trained on."""

from __future__ import annotations

import attrs
import torch

from hooktrain import hookimpl


class Curriculum:
    """From short to long in the first epoch, drawn by the generator in later ones."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.steps: list[tuple[int, int]] = []
        self.numbers: list[list[int]] = []

    @hookimpl(wrapper=True)
    def make_data(self):
        data = yield
        total = len(data.train)

        def order(generator: torch.Generator, rows: int, epoch: int) -> torch.Tensor:
            self.epochs.append(epoch)
            made = data.lengths.argsort(stable=True) if epoch == 0 else torch.randperm(total, generator=generator)
            self.numbers.append(made.tolist())
            return made

        return attrs.evolve(data, order=order)

    @hookimpl
    def on_step_end(self, trainer):
        self.steps.append((trainer.state.epoch, trainer.state.epoch_step))


def test_a_curriculum_knows_lengths_epoch_and_step(run_tiny, tmp_path):
    plugin = Curriculum()
    checkpoint = {"type": "full", "save_every_n_steps": 5, "output_dir": str(tmp_path / "saved")}
    whole = run_tiny(plugin, epochs=2, checkpoint=checkpoint)
    steps = len(whole.loader)
    assert plugin.steps == [(epoch, step) for epoch in (0, 1) for step in range(1, steps + 1)]
    lengths = whole.data.lengths[plugin.numbers[0]].tolist()
    assert lengths == sorted(lengths) and len(set(lengths)) > 1 and set(plugin.epochs) == {0, 1}
    assert lengths == [len(whole.data.train[row][0]) for row in plugin.numbers[0]]

    rest = Curriculum()
    again = {"resume_from": tmp_path / "saved" / "step-00000005"}
    resumed = run_tiny(rest, epochs=2, run_dir=str(tmp_path / "rest"), checkpoint="full", trainer=again)
    assert rest.steps == plugin.steps[5:]
    assert [line["loss"] for line in resumed.history] == [line["loss"] for line in whole.history][5:]


def test_limited_data_keep_the_lengths_of_their_rows(run_tiny):
    trainer = run_tiny(epochs=1, limit_train_batches=3)
    assert trainer.data.lengths.tolist() == [len(row[0]) for row in trainer.data.train]
    assert len(trainer.data.lengths) < len(run_tiny(train_iters=1).data.lengths)
