"""States of plugins that differ by rank: each rank gets its own back, and a rule says what another number of ranks gets."""

from __future__ import annotations

import pytest
import torch

from hooktrain import HooktrainWarning, PluginInfo, hookimpl
from tests.facts import facts
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

SAVE = [{"type": "full", "save_every_n_steps": 2, "save_end_of_training": True}]
SOURCE = """
import torch

drawn = {}

@hookimpl
def on_train_start(trainer):
    drawn.setdefault("sum", torch.zeros(2))

@hookimpl
def on_step_end(trainer):
    drawn["sum"] += 1 + trainer.world.rank

@hookimpl
def collect_state(trainer):
    return {"sum": drawn["sum"], "world": [trainer.world.world_size]}

@hookimpl
def restore_state(state):
    drawn["sum"] = state["sum"]
    note(restored=state["sum"].tolist())

@hookimpl
def on_train_end():
    note(ended=drawn["sum"].tolist())
"""


class Extra:
    """The same plugin in one process."""

    hooktrain_plugin = PluginInfo(name="extra")

    @hookimpl
    def restore_state(self, state):
        self.state = state["sum"].tolist()


class Divides(Extra):
    """It takes what all ranks had."""

    @hookimpl
    def restore_state(self, state, states):
        self.state = [each["sum"].tolist() for each in states]


def notes(rank_notes, rank, name):
    return [line[name] for line in rank_notes(rank) if name in line]


@pytest.fixture
def two(run_ranks):
    """A run of two ranks, with the folder of its checkpoint of step 2."""
    run = run_ranks(2, SOURCE, train_iters=4, checkpoint=SAVE)
    assert run.status == 0, run.output
    return run, run.folder / "checkpoints" / "step-00000002"


def test_each_rank_gets_its_own_back(run_ranks, rank_notes, two, tmp_path):
    words = ["--resume", str(two[1])]
    rest = run_ranks(2, SOURCE, words=words, train_iters=4, checkpoint=SAVE, run_dir=str(tmp_path / "rest"))
    assert rest.status == 0, rest.output
    for rank in (0, 1):
        assert notes(rank_notes, rank, "restored") == [[2.0 * (1 + rank)] * 2]
        assert notes(rank_notes, rank, "ended") == [[4.0 * (1 + rank)] * 2] * 2, "as without the interruption"


def test_another_number_of_ranks(run_tiny, two, tmp_path):
    settings = {"train_iters": 4, "micro_batch_size": 4, "optimizer": {"type": "sgd", "lr": 0.1}, "checkpoint": SAVE}
    settings["trainer"] = {"resume_from": two[1]}
    plain, divides = Extra(), Divides()
    expected = facts("'extra' differs by rank", "saved on 2 ranks", "there are 1 now", "rank 0", "parameter states")
    with pytest.warns(HooktrainWarning, match=expected):
        run_tiny(plain, **settings, run_dir=str(tmp_path / "one"))
    assert plain.state == [2.0, 2.0]
    run_tiny(divides, **settings, run_dir=str(tmp_path / "other"))
    assert divides.state == [[2.0, 2.0], [4.0, 4.0]]


def test_what_is_equal_is_kept_once(run_tiny, tmp_path):
    class Same:
        @hookimpl
        def collect_state(self):
            return {"same": torch.ones(2)}

        @hookimpl
        def restore_state(self, state, states):
            self.found = state["same"].tolist(), len(states)

    same = Same()
    run_tiny(Same(), train_iters=2, checkpoint=SAVE)
    folder = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert not list(folder.glob("plugins-*"))
    run_tiny(same, train_iters=3, checkpoint=SAVE, trainer={"resume_from": folder}, run_dir=str(tmp_path / "rest"))
    assert same.found == ([1.0, 1.0], 1)
