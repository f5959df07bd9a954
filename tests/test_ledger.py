"""What a run of ``profile_hooks`` says of plugins: who took time, who waited, whose wrapper it was, who failed."""

from __future__ import annotations

import json
import time
import traceback

import pytest
import torch

from hooktrain import hookimpl
from hooktrain.build import load
from hooktrain.ledger import Ledger
from hooktrain.profiling import facts, table
from hooktrain.testing import Recorder, TinyPlugin
from hooktrain.waits import WAITS, Waits

SLEEP = 0.004


class Slow:
    """Sleeps in every step, and surrounds the loss with a sleep before it and after it."""

    plugin_name = "slow"

    @hookimpl
    def on_step_end(self):
        time.sleep(SLEEP)

    @hookimpl(wrapper=True)
    def compute_loss(self):
        time.sleep(SLEEP)
        loss = yield
        time.sleep(SLEEP)
        return loss


class Reads:
    """Waits for the device in every step; what is on the host it may read."""

    plugin_name = "reads"

    @hookimpl
    def on_step_end(self, output):
        float(output.total)
        output.total.cpu().tolist()

    @hookimpl(wrapper=True)
    def count_batch(self, batch):
        batch["labels"].sum().item()
        return (yield)


class Outer:
    """Asks for a hook within a hook."""

    plugin_name = "outer"

    @hookimpl
    def on_optimizer_step_start(self, trainer):
        trainer.say("stepping")


class Inner:
    plugin_name = "inner"

    @hookimpl
    def on_message(self, message):
        if message == "stepping":
            time.sleep(SLEEP)


def costs(tmp_path, name="profile.json"):
    found = json.loads((tmp_path / "run" / name).read_text())
    return found, {(row["plugin"], row["hook"]): row for row in found["hooks"]}


def test_each_plugin_is_charged_with_what_it_does_itself(run_tiny, tmp_path):
    recorder = Recorder()
    run_tiny(
        Slow(),
        Reads(),
        Outer(),
        Inner(),
        recorder,
        profile_hooks=True,
        train_iters=5,
        data={"eval_rows": 0},
        log_interval=2,
    )
    found, rows = costs(tmp_path)
    ms = SLEEP * 1e3
    assert rows["slow", "on_step_end"]["calls"] == rows["slow", "compute_loss"]["calls"] == 5
    assert rows["slow", "on_step_end"]["ms"] >= 5 * ms
    assert rows["slow", "compute_loss"]["ms"] >= 10 * ms, "before the yield and after it"
    assert rows["inner", "on_message"]["ms"] >= 5 * ms
    assert rows["outer", "on_optimizer_step_start"]["ms"] < 5 * ms, "what it calls is not charged to it"
    for hook in ("run_step", "run_epoch", "run_train"):
        assert rows["loop", hook]["ms"] < 20 * ms, f"{hook}: what it calls is not charged to it"
    # float() and cpu() of a tensor on the device, and tolist() of the copy, which on a processor looks the same
    assert rows["reads", "on_step_end"]["waits"] == 15
    assert rows["reads", "count_batch"]["waits"] == 0
    assert rows["loop", "run_optimizer_step"]["waits"] == 0, "what torch counts on the host"
    assert rows["TinyPlugin", "make_model"]["calls"] == 1, "factories count"
    assert sum(row["ms"] for row in found["hooks"]) / 1e3 <= found["seconds"]
    assert sum(row["share"] for row in found["hooks"]) <= 1
    assert found["profiling_seconds"] < 0.05 * found["seconds"]
    assert recorder.metrics[0]["hooks/slow/ms"] >= 3 * ms, "per step"
    assert recorder.metrics[1]["hooks/slow/ms"] < 6 * ms, "since the last line"
