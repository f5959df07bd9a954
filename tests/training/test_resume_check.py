"""A run that resumes from a checkpoint is the run that saved it: what has changed is shown, or refused."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from hooktrain import CheckpointError, PluginInfo, Trainer, hookimpl
from hooktrain.testing import Recorder, TinyPlugin

SAVE = {"type": "full", "save_every_n_steps": 3}


def change(path: str, *values: object) -> str:
    """A pattern for a line that names a path, and then these values in this order: what was, then what is."""
    words = [rf"(?<![\w.]){re.escape(str(value))}(?!\w|\.\w)" for value in (f"{path}:", *values)]
    return ".*".join(words)


class Going:
    """Runs the tiny recipe, and resumes from step 3 with something changed."""

    def __init__(self, run_tiny: Any, folder: Path) -> None:
        self.run_tiny, self.path = run_tiny, folder / "run" / "checkpoints" / "step-00000003"

    def begin(self, *plugins: object, again: bool = False, **settings: Any) -> None:
        self.run_tiny(Recorder(), *plugins, checkpoint={**SAVE, "overwrite": True} if again else SAVE, **settings)

    def on(self, *plugins: object, **settings: Any) -> tuple[Recorder, list[str]]:
        recorder = Recorder()
        self.run_tiny(recorder, *plugins, trainer={"resume_from": self.path}, **{"checkpoint": SAVE, **settings})
        before = recorder.calls[: recorder.hooks.index("on_resume_start")]
        said = [given["message"] for name, given in before if name == "on_message"]
        return recorder, [message for message in said if "save_end_of_training" not in message]  # SAVE does not

    def refused(self, *plugins: object, **settings: Any) -> str:
        recorder = Recorder()
        with pytest.raises(CheckpointError) as caught:
            self.run_tiny(recorder, *plugins, trainer={"resume_from": self.path}, **{"checkpoint": SAVE, **settings})
        assert "on_resume_start" not in recorder.hooks
        assert str(self.path) in str(caught.value)
        return str(caught.value)


@pytest.fixture
def going(run_tiny, tmp_path):
    return Going(run_tiny, tmp_path)


class Optimizers:
    """Has a hand in the optimizer, and may refuse that there is one."""

    hooktrain_plugin = PluginInfo(name="optimizers")

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    @hookimpl(wrapper=True)
    def make_optimizer(self):
        assert self.allowed, "the model has been built"
        return (yield)


REFUSED = {
    "a setting": ({"gradient_clipping": 0.5}, ["gradient_clipping", 1.0, 0.5]),
    "of a part": ({"optimizer": {"lr": 0.5}}, ["optimizer.lr", 0.01, 0.5]),
    "another part": ({"optimizer": {"type": "sgd", "lr": 0.01}}, ["optimizer.type", "adamw", "sgd"]),
    "seed": ({"seed": 7}, ["seed", 42, 7]),
    "the model": ({"model": {"width": 4}}, ["model.width", 8, 4]),
    "precision": ({"strategy": {"dtype": "bf16", "device": "cpu"}}, ["strategy.dtype", "fp32", "bf16"]),
    "rows": ({"data": {"seed": 3}}, ["data.seed", 0, 3]),
    "a plugin's": ({"neftune": {"noise_alpha": 5.0}}, ["neftune.noise_alpha", 0.0, 5.0]),
    "batch": ({"micro_batch_size": 3}, ["global_batch_size", "2 * 1 * 1", "3 * 1 * 1", "micro_batch_size", 2]),
    "smaller batch": ({"micro_batch_size": 1}, ["global_batch_size", 2, 1, "gradient_accumulation_steps: 2"]),
}


@pytest.mark.parametrize(("changes", "facts"), list(REFUSED.values()), ids=list(REFUSED))
def test_what_changes_the_training_is_refused_before_there_is_a_model(going, changes, facts):
    going.begin(Optimizers(allowed=True))
    text = going.refused(Optimizers(allowed=False), **changes)
    assert re.search(change(*facts), text), text
    assert f"allow_changes: [{facts[0]}]" in text


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"log_interval": 3}, [["log_interval", 1, 3]]),
        ({"data": {"workers": 1, "eval_rows": 2}}, [["data.eval_rows", 5, 2], ["data.workers", 0, 1]]),
        (
            {"checkpoint": [SAVE, {"type": "full", "save_end_of_training": True, "output_dir": "more"}]},
            [["checkpoint"]],
        ),
        ({"micro_batch_size": 1, "gradient_accumulation_steps": 2}, []),
        ({"global_batch_size": 2}, []),
        ({"exit_iteration": 5}, [["exit_iteration", 0, 5]]),
        (
            {"strategy": {"type": "torch", "dtype": "fp32", "device": "cpu", "timeout": 60}},
            [["strategy.timeout", 1800.0, 60.0]],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_is_shown(going, tmp_path, changes, shown):
    going.begin()
    if len(changes.get("checkpoint", [])) == 2:
        changes["checkpoint"][1]["output_dir"] = str(tmp_path / "more")
    _, said = going.on(**changes)
    assert len(said) == len(shown)
    for text, facts in zip(said, shown, strict=True):
        assert re.search(change(*facts), text)


def test_nothing_is_said_where_nothing_changed(going):
    going.begin()
    assert going.on()[1] == []


@pytest.mark.parametrize("allowed", ["optimizer.lr", "optimizer", "*"])
def test_what_is_allowed_goes_on_and_is_shown(going, allowed):
    going.begin()
    recorder, said = going.on(optimizer={"lr": 0.5}, allow_changes=[allowed])
    assert any(re.search(change("optimizer.lr", 0.01, 0.5), text) for text in said)
    assert recorder.metrics[-1]["step"] == 7
    going.refused(optimizer={"lr": 0.5}, allow_changes=["optimizer.l", "model"])


class Tunes:
    """Changes a hyperparameter on the way, and notes what each step is made with."""

    hooktrain_plugin = PluginInfo(may_change=["optimizer state"])

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    @hookimpl
    def on_optimizer_step_start(self, trainer) -> None:
        (group, *_) = trainer.optimizer.param_groups
        if trainer.global_step == 1:
            group["eps"] = 1e-6
        self.seen.append({key: group[key] for key in ("lr", "weight_decay", "betas", "eps")})


@pytest.mark.parametrize("scheduler", ["linear", "constant"])
def test_what_the_recipe_changes_in_the_optimizer_is_what_the_run_goes_on_with(going, scheduler):
    before, after = Tunes(), Tunes()
    scheduler = {"type": scheduler, "warmup_steps": 2}
    going.begin(before, scheduler=scheduler)
    given = {"lr": 0.001, "weight_decay": 0.5, "betas": [0.5, 0.6]}
    going.on(after, optimizer=given, scheduler=scheduler, allow_changes=["optimizer"])
    rates = [seen["lr"] / 10 for seen in before.seen[3:]]
    assert [seen["lr"] for seen in after.seen] == pytest.approx(rates, rel=1e-12)
    assert {tuple(seen["betas"]) for seen in after.seen} == {(0.5, 0.6)}
    assert {(seen["weight_decay"], seen["eps"]) for seen in after.seen} == {(0.5, 1e-6)}, "and what it does not, stays"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_checkpoint_that_is_asked_for_in_python_knows_what_the_recipe_gave(going, tiny_recipe, tmp_path, when):
    run_dir = str(tmp_path / "other")
    with Trainer({**tiny_recipe, "run_dir": run_dir, "exit_iteration": 3}, plugins=[TinyPlugin(), Tunes()]) as trainer:
        if when == "after":
            trainer.run()
        going.path = trainer.save(tmp_path / "asked", type="full")
    after = Tunes()
    going.on(after, optimizer={"lr": 0.001, "weight_decay": 0.5}, allow_changes=["optimizer"])
    assert {(seen["lr"] <= 0.001, seen["weight_decay"]) for seen in after.seen} == {(True, 0.5)}
    assert len(after.seen) == (4 if when == "after" else 7)
    assert after.seen[-1]["eps"] == 1e-6, "and what was changed on the way, stays"


def test_everything_that_differs_is_named_at_once(going):
    going.begin()
    text = going.refused(seed=7, optimizer={"lr": 0.5}, log_interval=2)
    assert "allow_changes: [seed, optimizer.lr]" in text
    assert re.search(change("seed", 42, 7), text) and re.search(change("optimizer.lr", 0.01, 0.5), text)
    assert "log_interval" not in text, "which changes no training"


LONGER = [
    ({"type": "constant"}, True),
    ({"type": "constant", "warmup_ratio": 0.5}, False),
    ({"type": "cosine"}, False),
    ({"type": "wsd", "warmup_steps": 2, "decay_steps": 2}, True),
    ({"type": "wsd", "warmup_steps": 0, "decay_steps": 6}, False),
]


@pytest.mark.parametrize(("scheduler", "same"), LONGER, ids=lambda value: str(value))
def test_a_run_can_be_made_longer_where_that_leaves_the_rates_so_far(going, run_tiny, tmp_path, scheduler, same):
    """Then it is the run that was to be as long from the first."""
    going.begin(scheduler=scheduler)
    if not same:
        assert re.search(change("epochs", "null", 2, 14), going.refused(scheduler=scheduler, epochs=2))
        return
    whole = Recorder()
    recorder, said = going.on(scheduler=scheduler, epochs=2)
    assert len(said) == 1 and re.search(change("epochs", "null", 2), said[0])
    run_tiny(whole, scheduler=scheduler, epochs=2, run_dir=str(tmp_path / "whole"))
    assert [line["loss"] for line in recorder.metrics] == [line["loss"] for line in whole.metrics][3:]
    assert [line["lr"] for line in recorder.metrics] == [line["lr"] for line in whole.metrics][3:]


def test_other_rows_are_refused_though_the_recipe_is_the_same(going):
    class Fewer:
        hooktrain_plugin = PluginInfo(name="rows")

        def __init__(self, rows: int, fingerprint: str) -> None:
            self.rows, self.fingerprint = rows, fingerprint

        @hookimpl(wrapper=True)
        def make_data(self):
            data = yield
            data.train, data.train_fingerprint = [data.train[row] for row in range(self.rows)], self.fingerprint
            return data

    going.begin(Fewer(13, "a"))
    assert re.search(change("data", 13, 12), going.refused(Fewer(12, "a")))
    assert re.search(change("data", "other rows"), going.refused(Fewer(13, "b")))
    assert going.on(Fewer(13, "a"))[1] == []
    going.on(Fewer(13, "b"), allow_changes=["data"])


def test_plugins_that_come_and_go(going):
    class Watches:
        hooktrain_plugin = PluginInfo(name="watches", only_observes=True)

        @hookimpl
        def on_step_end(self):
            pass

        @hookimpl(wrapper=True)
        def run_backward(self):
            return (yield)

    class Replaces:
        hooktrain_plugin = PluginInfo(name="replaces")

        @hookimpl(wrapper=True)
        def compute_loss(self):
            return (yield)

    going.begin(Watches(), Replaces())
    text = going.refused()
    gone = re.search(change("plugins.replaces", "compute_loss"), text)
    assert gone
    assert "watches" not in text
    _, said = going.on(allow_changes=["plugins.replaces"])
    assert [re.findall(r"plugins\.\w+", line) for line in said] == [["plugins.watches"], ["plugins.replaces"]]
    going.begin(again=True)
    came = re.search(change("plugins.replaces", "compute_loss"), going.refused(Replaces()))
    assert came and came[0] != gone[0], "which of the two runs it was in"


def test_another_version_of_a_plugin_is_shown(going, monkeypatch):
    going.begin()
    from hooktrain.plugin.manager import PluginHost

    manifest = PluginHost.manifest
    newer = lambda self: [{**r, "version": "9"} if r["name"] == "torch" else r for r in manifest(self)]  # noqa: E731
    monkeypatch.setattr(PluginHost, "manifest", newer)
    (line,) = going.on()[1]
    before = f"hooktrain-torch {version('hooktrain-torch')}"
    assert re.search(change("plugins.torch", before, "hooktrain-torch 9"), line)


def test_all_ranks_refuse_and_the_first_cause_is_on_top(run_ranks, run_tiny, tmp_path):
    run_tiny(checkpoint=SAVE, optimizer={"type": "sgd", "lr": 0.1})
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    run = run_ranks(2, words=["--resume", str(path)], checkpoint=SAVE)
    assert run.status == 1
    assert run.output.startswith(f"hooktrain: {path}: "), "all ranks say the same"
    assert re.search(change("global_batch_size", "2 * 1 * 1", "4", "2 * 1 * 2"), run.output), run.output
    fits = run_ranks(2, words=["--resume", str(path)], checkpoint=SAVE, micro_batch_size=1)
    assert fits.status == 0, fits.output
