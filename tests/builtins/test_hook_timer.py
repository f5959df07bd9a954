"""What a run of ``profile_hooks`` says of plugins: who took time, who waited, whose wrapper it was, who failed."""

from __future__ import annotations

import json
import re
import traceback
import warnings

import pytest
import torch

from hooktrain import PluginError, PluginInfo, failure_of, hookimpl
from hooktrain.builtins.device_sync import DeviceSyncs
from hooktrain.builtins.hook_timer import Cost, HookTimer
from hooktrain.builtins.profiler import facts, table
from hooktrain.plugin.lockfile import write_lock
from hooktrain.testing import Recorder, TinyPlugin, train
from hooktrain.training.load import load
from tests.preload import DEEPSPEED

MS = 1_000_000
"""Nanoseconds of one."""


class Clock:
    """The clock of a timer, which continues when it is told, and by ``ticks`` nanoseconds at each look."""

    def __init__(self, ticks: int = 0) -> None:
        self.now, self.ticks = 1, ticks

    def __call__(self) -> int:
        self.now += self.ticks
        return self.now

    def go_on(self, ms: int) -> None:
        self.now += ms * MS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every timer of the test."""
    made = Clock()
    monkeypatch.setattr("hooktrain.builtins.hook_timer._clock", made)
    return made


class Slow:
    """Takes 4 ms in every step, and wraps the loss with 1 ms before it and 2 ms after it."""

    hooktrain_plugin = PluginInfo(name="slow")

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    @hookimpl
    def on_step_end(self):
        self.clock.go_on(4)

    @hookimpl(wrapper=True)
    def compute_loss(self):
        self.clock.go_on(1)
        loss = yield
        self.clock.go_on(2)
        return loss


class Outer:
    """Asks for a hook within a hook."""

    hooktrain_plugin = PluginInfo(name="outer")

    @hookimpl
    def on_optimizer_step_start(self, trainer):
        trainer.say("stepping")


class Inner:
    hooktrain_plugin = PluginInfo(name="inner")

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    @hookimpl
    def on_message(self, message):
        if message == "stepping":
            self.clock.go_on(5)


def costs(tmp_path, name="profile.json"):
    found = json.loads((tmp_path / "run" / name).read_text())
    return found, {(row["plugin"], row["hook"]): row for row in found["hooks"]}


def test_each_plugin_is_charged_with_what_it_does_itself(run_tiny, tmp_path, clock):
    recorder = Recorder()
    run_tiny(
        Slow(clock),
        Outer(),
        Inner(clock),
        recorder,
        profile_hooks=True,
        train_iters=5,
        data={"eval_rows": 0},
        log_interval=2,
    )
    found, rows = costs(tmp_path)
    assert rows["slow", "on_step_end"]["calls"] == rows["slow", "compute_loss"]["calls"] == 5
    assert rows["slow", "on_step_end"]["ms"] == 5 * 4
    assert rows["slow", "compute_loss"]["ms"] == 5 * (1 + 2), "before the yield and after it"
    assert rows["inner", "on_message"]["ms"] == 5 * 5
    assert rows["outer", "on_optimizer_step_start"]["ms"] == 0, "what it calls is not charged to it"
    for hook in ("run_step", "run_epoch", "run_train"):
        assert rows["loop", hook]["ms"] == 0, f"{hook}: what it calls is not charged to it"
    assert all(row["device_syncs"] is None for row in rows.values()), "which is counted on a GPU"
    assert rows["TinyPlugin", "make_model"]["calls"] == 1, "factories count"
    assert found["seconds"] == pytest.approx(5 * 12e-3)
    assert sum(row["share"] for row in found["hooks"]) == pytest.approx(1)
    assert [line["hooks/slow/ms"] for line in recorder.metrics[:2]] == [7, 7], "per step, since the last line"


def test_what_measuring_takes_is_told(monkeypatch):
    monkeypatch.setattr("hooktrain.builtins.hook_timer._clock", Clock(ticks=1000))
    timer = HookTimer()
    charged = timer.charged(timer.costs.setdefault(("p", "h"), Cost("p", "h")), lambda: None)
    for _ in range(10):
        charged()
    assert timer.overhead() == pytest.approx(4e-6, rel=1e-3), "it looks at the clock four times a call"
    assert facts(timer)["profiling_seconds"] == pytest.approx(10 * 4e-6, rel=0.03), "told to the microsecond"


# ------------------------------------------------------------------------------------------------ what fails, or not


class Fails:
    """Raises in the third step, inside of a wrapper of its own."""

    hooktrain_plugin = PluginInfo(name="fails")

    @hookimpl(wrapper=True)
    def run_backward(self):
        return (yield)

    @hookimpl
    def on_microbatch_end(self, trainer):
        if trainer.global_step == 2:
            raise KeyError("out of luck")


class Gives:
    """A wrapper that answers in the place of what fails."""

    hooktrain_plugin = PluginInfo(name="gives")

    @hookimpl(wrapper=True)
    def make_loader(self):
        try:
            return (yield)
        except LookupError:
            raise ValueError("no loader") from None


class Without:
    hooktrain_plugin = PluginInfo(name="without")

    @hookimpl(tryfirst=True)
    def make_loader(self):
        raise LookupError


def test_a_plugin_that_fails_is_named_as_ever_and_the_costs_are_kept(run_tiny, tmp_path):
    with pytest.raises(KeyError) as caught:
        run_tiny(Fails(), Slow(Clock()), profile_hooks=True)
    assert failure_of(caught.value).where == "plugin 'fails', hook on_microbatch_end, step 2, rank 0"
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert files[-1] == __file__
    assert not [name for name in files if name.endswith("/timer.py")], "nothing of ours in between"
    _, rows = costs(tmp_path)
    assert rows["fails", "on_microbatch_end"]["calls"] == rows["slow", "compute_loss"]["calls"] == 3


def test_a_failure_on_the_command_line_shows_the_table_and_no_line_of_ours(run_cli, tiny_recipe):
    source = """
    @hookimpl
    def on_step_end(trainer, output):
        sum(range(500_000))  # or it would be too quick for the table
        if trainer.global_step == 3:
            raise KeyError("out of luck")
    """
    few = ["-p", "no:*", "-p", "torch"]  # the table has 24 rows at most, and on a busy machine more hooks are slow
    recipe = {**tiny_recipe, "console": {"enabled": True}}
    run = run_cli("train", recipe, "--profile-hooks", *few, source=source)
    assert run.status == 1
    assert "plugin 'extra', hook on_step_end, step 3, rank 0: KeyError: 'out of luck'" in run.stderr
    assert "extra.py" in run.stderr
    assert "hook_timer.py" not in run.output
    lines = run.stdout.splitlines()
    columns = next(number for number, line in enumerate(lines) if line.split()[:3] == ["plugin", "hook", "calls"])
    *lines, last = lines[columns - 1 :]
    (line,) = [line for line in lines if line.startswith("extra ")]
    assert line.split()[1:3] == ["on_step_end", "3"]
    assert max(map(len, lines)) <= 80
    assert last.endswith(str(run.folder / "profile.json"))


def test_what_wrappers_do_with_failures_stays_as_it_is(run_tiny):
    with pytest.raises(ValueError, match="no loader"):
        run_tiny(Gives(), Without(), profile_hooks=True)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_wrapper_that_does_not_yield_once_is_told_so_as_ever(run_tiny, steps):
    class Yields:
        @hookimpl(wrapper=True)
        def compute_loss(self):
            for _ in range(steps):
                yield

    said = []
    for on in (False, True):
        with pytest.raises(PluginError, match="'Yields', hook compute_loss: .*yield") as caught:
            run_tiny(Yields(), profile_hooks=on)
        said.append(str(caught.value))
    assert said[0] == said[1]


# ------------------------------------------------------------------------------------------------- nothing is changed

TIMES = ("tokens_per_second", "step_seconds")
STRATEGIES = {
    "DDP": {"data_parallel": "ddp"},
    "FSDP2": {"data_parallel": "fsdp2"},
    "ZeRO-2": {"type": "deepspeed", "zero_stage": 2},
    "ZeRO-3": {"type": "deepspeed", "zero_stage": 3},
}


def numbers(metrics):
    return [{k: v for k, v in line.items() if k not in TIMES and not k.startswith("hooks/")} for line in metrics]


def test_the_training_is_the_same_bit_by_bit(run_tiny, tmp_path):
    kept = []
    for on in (False, True):
        recorder = Recorder()
        trainer = run_tiny(
            recorder, profile_hooks=on, model={"dropout": 0.2}, epochs=2, gradient_accumulation_steps=2, eval_interval=3
        )
        kept.append((numbers(recorder.metrics), trainer.model.state_dict()))
        assert any(name.startswith("hooks/") for line in recorder.metrics for name in line) is on
    assert kept[0][0] == kept[1][0]
    for name, value in kept[0][1].items():
        assert torch.equal(value, kept[1][1][name])


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(given, id=name, marks=[pytest.mark.thorough] * (name != "DDP"))
        for name, given in STRATEGIES.items()
    ],
)
@pytest.mark.preload(*DEEPSPEED)
def test_two_ranks_train_the_same_and_each_keeps_its_costs(run_ranks, tmp_path, strategy):
    script = """
    import sys
    import hooktrain

    for on in ("false", "true"):
        hooktrain.Trainer(sys.argv[2], overrides=[f"run_dir=run-{on}", f"profile_hooks={on}"]).run()
    """
    strategy = {"dtype": "fp32", "device": "cpu", **strategy}
    run = run_ranks(2, script=script, strategy=strategy, optimizer={"lr": 1e-2}, console={"enabled": True})
    assert run.status == 0, run.output
    metrics = [(tmp_path / f"run-{on}" / "metrics.jsonl").read_text().splitlines() for on in ("false", "true")]
    without, with_it = (numbers(map(json.loads, lines)) for lines in metrics)
    assert without == with_it
    assert not list((tmp_path / "run-false").glob("profile*"))
    assert run.stdout.count("profile.json") == 1
    assert " rank 0 of 2" in run.stdout
    found = [json.loads((tmp_path / "run-true" / name).read_text()) for name in ("profile.json", "profile.rank1.json")]
    assert [each["rank"] for each in found] == [0, 1]
    assert all(row["calls"] for each in found for row in each["hooks"] if row["hook"] == "run_step")


def test_without_it_nothing_is_measured(tiny_recipe):
    slow = Slow(Clock())
    for on in (False, True):
        _, host = load({**tiny_recipe, "profile_hooks": on}, plugins=[TinyPlugin(), slow])
        (found,) = [one for one in host.implementations("on_step_end") if one.plugin is slow]
        assert (found.function == slow.on_step_end) is not on
        assert ("profile" in host.records) is on


# ----------------------------------------------------------------------------------------------------------- memory


def test_memory_is_charged_to_who_takes_it(run_cli, tiny_recipe, tmp_path):
    source = """
    @hookimpl
    def on_step_end(trainer):
        if trainer.global_step == 2:
            trainer.kept = torch.ones(2**24)
    """
    assert run_cli("train", {**tiny_recipe, "profile_hooks": True}, source=source).status == 0
    _, rows = costs(tmp_path)
    assert 56 <= rows["extra", "on_step_end"]["mib"] < 80
    assert rows["loop", "run_step"]["mib"] < 8


def test_memory_of_a_process_whose_parent_was_larger(run_ranks, tmp_path):
    """A rank begins with the peak that its launcher had, in what the system tells at once."""
    source = """
    @hookimpl
    def on_train_start(trainer):
        trainer.kept = torch.ones(2**24)
    """
    assert run_ranks(2, source, profile_hooks=True, run_dir=str(tmp_path / "run")).status == 0
    for name in ("profile.json", "profile.rank1.json"):
        assert 56 <= costs(tmp_path, name)[1]["extra", "on_train_start"]["mib"] < 80


def test_memory_of_a_device_is_the_growth_of_its_peak(monkeypatch):
    peaks = [0, 0, 5, 5, 5, 2, 4]  # made; enter; leave; then again, and somebody resets it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "memory_stats_as_nested_dict", lambda: {"allocated_bytes": {"all": {"peak": peaks.pop(0)}}}
    )
    timer, cost = HookTimer(), Cost("plugin", "hook")
    for _ in range(3):
        timer.charged(cost, lambda: None)()
    assert (cost.calls, cost.memory, peaks) == (3, 7, [])


# ------------------------------------------------------------------------------------------------------------ waits


def test_on_a_processor_nothing_is_counted_and_nothing_of_torch_replaced():
    names = dict(vars(torch.Tensor)), dict(vars(torch))
    syncs = DeviceSyncs(lambda: None, torch.device("cpu"))
    syncs.begin()
    assert (dict(vars(torch.Tensor)), dict(vars(torch))) == names
    syncs.end()
    assert not syncs.counted


def test_on_a_gpu_torch_reports_device_syncs(monkeypatch, recwarn):
    modes, seen = [], []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with warnings.catch_warnings():
        shown = warnings.showwarning
        syncs = DeviceSyncs(lambda: seen.append("device"), torch.device("cuda"))
        syncs.begin()
        for _ in range(2):  # from one place, which Python would tell once
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
        torch.ones(()).item()  # on the host
        warnings.warn("something else", stacklevel=1)
        syncs.end()
        assert warnings.showwarning is shown
    assert len(seen) == 2
    assert modes == ["warn", "default"]
    assert [str(each.message) for each in recwarn] == ["something else"]


# ------------------------------------------------------------------------------------------------------------ shown


def test_the_table_fits_and_says_the_costliest_first(clock):
    timer = HookTimer()
    for number in range(40):
        plugin = f"a.rather.long.module:Plugin{number}"
        timer.costs[plugin, "on_optimizer_step_start"] = Cost(
            plugin, "on_optimizer_step_start", 10**number % 10**9 + 1, 3 * 10**11 * number, 10 ** (number % 8), 2**36
        )
    timer._began, clock.now = 1, 10**13
    lines = table(facts(timer, 0, 8), None).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("…dule:Plugin39 ")
    assert [line for line in lines if re.search(r"\b16\b", line) and "Plugin" not in line]
    assert sum("Plugin" in line for line in lines) == 40 - 16


def test_recipes_plans_and_schemas_have_the_key(run_cli, tiny_recipe):
    plan = run_cli("plan", {**tiny_recipe, "profile_hooks": True}, "--json")
    assert '"profile_hooks"' in plan.stdout, plan.output
    key = json.loads(run_cli("schema").stdout)["properties"]["profile_hooks"]
    assert key["type"] == "boolean" and "hook" in key["description"]


def test_profiling_is_no_plugin_that_a_lock_or_a_resume_knows_of(tiny_recipe, tmp_path):
    saving = {"checkpoint": {"type": "full", "save_every_n_steps": 1, "auto_resume": True}}
    train({**tiny_recipe, **saving, "profile_hooks": True, "exit_iteration": 2})
    lines = []

    class Watches:
        @hookimpl
        def on_message(self, message):
            lines.append(message)

    train({**tiny_recipe, **saving, "exit_iteration": 4}, Watches())
    (line,) = [line for line in lines if "profile" in line]
    assert re.search(r"\bprofile_hooks: .*\btrue\b.*\bfalse\b", line)

    recipe = {**tiny_recipe, "profile_hooks": True}
    _, host = load(recipe, plugins=[TinyPlugin()])
    write_lock(host, tmp_path / "plugins.lock")
    for on in (True, False):
        changes = {"profile_hooks": on, "plugins": {"lock": str(tmp_path / "plugins.lock")}}
        load({**recipe, **changes}, plugins=[TinyPlugin()])
