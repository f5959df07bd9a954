"""``full`` checkpoints: nothing is lost, whatever happens and whenever."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import torch
from hooktrain_torch.checkpoint import FullCheckpoint
from hooktrain_torch.checkpoint_config import FullConfig
from hooktrain_torch.files import commit, problem_of, write_text

from hooktrain import CheckpointError, HooktrainError, PluginInfo, World, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts
from tests.killing import killed

FILES = [
    "model-0.pt",
    "optimizer-0.pt",
    "parts.pt",
    "provenance.json",
    "random-0.pt",
    "recipe.yaml",
    "state.json",
    "tensors.json",
]


def every(steps: int, **more: object) -> dict[str, object]:
    return {"type": "full", "save_every_n_steps": steps, **more}


def saved(tmp_path: Path) -> list[str]:
    """Everything in the folder of checkpoints, hidden leftovers included."""
    return sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())


def step(tmp_path: Path, number: int) -> Path:
    return tmp_path / "run" / "checkpoints" / f"step-{number:08d}"


def assert_same(one, other) -> None:
    """Weights, optimizer, schedule and counters of two trainers, bit by bit."""
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    pairs = zip(one.optimizer.state.values(), other.optimizer.state.values(), strict=True)
    for a, b in pairs:
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert one.scheduler.state_dict() == other.scheduler.state_dict()
    clock = ("tokens_per_second", "step_seconds")
    for trainer in (one, other):
        trainer.state.metrics = {k: v for k, v in trainer.state.metrics.items() if k not in clock}
    assert one.state == other.state


class Rows:
    """Notes in a file which examples are read, in worker processes too; and uses every generator of random numbers."""

    hooktrain_plugin = PluginInfo(may_change=["random states"])

    def __init__(self, path: Path):
        self.path = path
        self.drawn: list[tuple[float, float, float]] = []

    @hookimpl(wrapper=True)
    def make_data(self):
        data = yield
        data.train = _Noting(data.train, self.path)
        return data

    @hookimpl
    def on_step_end(self):
        self.drawn.append((random.random(), float(numpy.random.rand()), float(torch.rand(()))))

    @property
    def read(self) -> list[int]:
        return [int(line) for line in self.path.read_text().split()] if self.path.exists() else []


class _Noting:
    def __init__(self, rows, path: Path):
        self.rows, self.path = rows, path

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        with self.path.open("a") as stream:
            stream.write(f"{index}\n")
        return self.rows[index]


# -------------------------------------------------------------------------------------------------- resuming


CASES = {
    "middle": (1, 3, 0),
    "middle, workers": (1, 3, 2),
    "end of epoch": (1, 7, 0),
    "second epoch": (1, 10, 0),
    "second epoch, workers": (1, 10, 2),
    "end": (1, 14, 0),
    "window": (2, 2, 0),
    "window, end of epoch": (2, 4, 0),
    "window, second epoch, workers": (2, 5, 2),
    "window, end": (2, 8, 0),
}


@pytest.mark.parametrize(("accumulation", "at", "workers"), list(CASES.values()), ids=list(CASES))
def test_a_resumed_run_repeats_the_undisturbed_one(run_tiny, tmp_path, accumulation, at, workers):
    """13 rows in micro-batches of 2, two epochs, with dropout and a falling rate."""
    settings = {
        "epochs": 2,
        "gradient_accumulation_steps": accumulation,
        "model": {"dropout": 0.3},
        "data": {"workers": workers, "eval_rows": 5},
        "eval_interval": 2,
        "scheduler": {"type": "cosine", "warmup_steps": 2},
        "checkpoint": every(at),
    }
    undisturbed, resumed = Recorder(), Recorder()
    rows, left = Rows(tmp_path / "whole"), Rows(tmp_path / "left")
    one = run_tiny(undisturbed, rows, **settings)
    other = run_tiny(resumed, left, **settings, trainer={"resume_from": step(tmp_path, at)})
    assert_same(one, other)
    assert [line["loss"] for line in resumed.metrics] == [line["loss"] for line in undisturbed.metrics][at:]
    assert left.drawn == rows.drawn[at:]
    consumed = (at // len(one.loader)) * 13 + (at % len(one.loader)) * 2 * accumulation
    if workers == 0:
        assert left.read == rows.read[consumed:], "no example of a finished step is read again"
    else:  # workers read in an order of their own
        assert (
            sorted(left.read) == sorted(Rows(tmp_path / "whole").read) if at == 0 else len(left.read) == 26 - consumed
        )


def test_the_run_is_the_same_for_any_number_of_workers(run_tiny):
    one = run_tiny(epochs=2, model={"dropout": 0.3}, data={"workers": 0})
    other = run_tiny(epochs=2, model={"dropout": 0.3}, data={"workers": 2})
    assert_same(one, other)


def test_auto_resume_continues_from_the_newest(run_tiny, tmp_path):
    settings = {"checkpoint": every(2, auto_resume=True), "model": {"dropout": 0.3}}
    undisturbed = run_tiny(**settings, run_dir=str(tmp_path / "other"))
    first = run_tiny(**settings, exit_iteration=5)
    assert first.global_step == 5
    recorder = Recorder()
    second = run_tiny(recorder, **settings)
    assert [given["path"].name for name, given in recorder.calls if name == "on_resume_end"] == ["step-00000004"]
    assert_same(undisturbed, second)


def test_auto_resume_begins_where_there_is_nothing(run_tiny):
    recorder = Recorder()
    assert run_tiny(recorder, checkpoint=every(0, auto_resume=True)).global_step == 7
    assert "on_resume_start" not in recorder.hooks


def test_plugins_get_their_own_state_back(run_tiny, tmp_path):
    class Count:
        hooktrain_plugin = PluginInfo(name="count")

        def __init__(self):
            self.seen, self.mean = 0, torch.zeros(2)

        @hookimpl
        def on_step_end(self, trainer):
            self.seen, self.mean = self.seen + 1, self.mean + 0.5

        @hookimpl
        def collect_state(self):
            return {"seen": self.seen, "mean": self.mean, "names": ["a", ("b", None)]}

        @hookimpl
        def restore_state(self, state):
            self.seen, self.mean, self.names = state["seen"], state["mean"], state["names"]

    run_tiny(Count(), checkpoint=every(3))
    count = Count()
    run_tiny(count, trainer={"resume_from": step(tmp_path, 3)}, checkpoint=every(0))
    assert count.seen == 7
    assert torch.equal(count.mean, torch.full((2,), 3.5))
    assert count.names == ["a", ("b", None)]
    with pytest.warns(UserWarning, match=facts("plugin", "'count'")):
        run_tiny(trainer={"resume_from": step(tmp_path, 3)}, checkpoint=every(4), run_dir=str(tmp_path / "without"))
    kept = torch.load(tmp_path / "without" / "checkpoints" / "step-00000004" / "parts.pt", weights_only=True)
    assert kept["plugins"]["count"]["seen"] == 3


def test_a_state_that_could_not_be_read_again_is_refused_when_it_is_saved(run_tiny, tmp_path):
    class Bad:
        hooktrain_plugin = PluginInfo(name="bad")

        @hookimpl
        def collect_state(self):
            return {"where": [Path("x")]}

    with pytest.raises(CheckpointError, match=facts("plugins.bad.where[0]", "pathlib", "Path", "collect_state")):
        run_tiny(Bad(), checkpoint=every(2))
    assert saved(tmp_path) == []


# --------------------------------------------------------------------------------------------- what is written


def test_contents(run_tiny, tmp_path):
    trainer = run_tiny(checkpoint=every(0, save_end_of_training=True))
    path = step(tmp_path, 7)
    assert sorted(file.name for file in path.iterdir()) == sorted([*FILES, "manifest.json"])
    for name in FILES:
        if name.endswith(".pt"):
            torch.load(path / name, weights_only=True)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["step"], manifest["world_size"], sorted(manifest["files"])) == (7, 1, FILES)
    assert json.loads((path / "state.json").read_text())["tokens"] == trainer.state.tokens
    assert "torch" in [plugin["name"] for plugin in json.loads((path / "provenance.json").read_text())["plugins"]]
    weights = torch.load(path / "model-0.pt", weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in trainer.model.state_dict().items())


def test_everything_is_on_the_disk_before_a_checkpoint_has_its_name(run_tiny, tmp_path, monkeypatch):
    """After a power loss there is a complete checkpoint or none: the manifest is written last, and then the rename."""
    calls: list[tuple[str, Path, int]] = []  # function, path, size
    sync, replace = os.fsync, os.replace

    def noted_sync(handle):
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle).st_size))
        sync(handle)

    def noted_replace(source, target):
        calls.append(("replace", Path(target), 0))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", noted_sync)
        patched.setattr(os, "replace", noted_replace)
        run_tiny(checkpoint=every(7))
    folder = step(tmp_path, 7)
    saving = folder.with_name(f".saving-{folder.name}")
    found = [call for call in calls if {saving, folder.parent} & {call[1], call[1].parent}]
    names = [
        (function, path.name) for function, path, _ in found if not path.name.endswith((".json.new", "owner.json"))
    ]
    assert sorted(name for _, name in names[:-4]) == FILES
    last = [("fsync", "manifest.json"), ("fsync", saving.name), ("replace", folder.name), ("fsync", "checkpoints")]
    assert names[-4:] == last
    synced = [(size, folder / path.name) for function, path, size in found if path.parent == saving]
    assert synced and all(size == path.stat().st_size for size, path in synced), "and complete"


def test_a_step_is_written_once(run_tiny, tmp_path):
    class Look:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 7:
                trainer.request_save()

        @hookimpl
        def on_epoch_end(self):
            self.before = step(tmp_path, 7).stat()

        @hookimpl
        def on_train_end(self):
            self.after = step(tmp_path, 7).stat()

    look = Look()
    run_tiny(look, checkpoint=every(1, save_every_n_epochs=1, save_end_of_training=True))
    assert (look.before.st_ino, look.before.st_ctime_ns) == (look.after.st_ino, look.after.st_ctime_ns)
    assert len(saved(tmp_path)) == 7


def test_epochs(run_tiny, tmp_path):
    run_tiny(epochs=4, checkpoint={"type": "full", "save_every_n_epochs": 2})
    assert saved(tmp_path) == ["step-00000014", "step-00000028"]


def test_keep_last(run_tiny, tmp_path):
    run_tiny(checkpoint=every(1, keep_last=2))
    assert saved(tmp_path) == ["step-00000006", "step-00000007"]


def test_keep_last_does_not_count_what_is_damaged(run_tiny, tmp_path):
    class Damage:
        @hookimpl
        def on_step_start(self, trainer):
            if trainer.global_step == 6:
                os.truncate(step(tmp_path, 6) / "model-0.pt", 5)

    run_tiny(Damage(), checkpoint=every(1, keep_last=2))
    assert saved(tmp_path) == ["step-00000005", "step-00000006", "step-00000007"]


def test_a_new_run_never_passes_off_an_older_runs_checkpoint_as_its_own(run_tiny, tmp_path):
    """Same folder, same steps, other seed: what is there afterwards, and what is resumed from, is the new run's."""
    run_tiny(checkpoint=every(3), epochs=2)
    with pytest.warns(UserWarning, match=facts("another run's", "other-step-00000003")):
        new = run_tiny(checkpoint=every(3, keep_last=1, overwrite=True), seed=7, train_iters=4)
    weights = torch.load(step(tmp_path, 3) / "model-0.pt", weights_only=True)
    older = ["other-step-00000003", "step-00000006", "step-00000009", "step-00000012"]
    assert saved(tmp_path) == sorted(["step-00000003", *older]), "nothing of the older run is removed"
    engine = FullCheckpoint(FullConfig(), tmp_path / "run", World())
    assert engine.latest() == step(tmp_path, 3)
    resumed = run_tiny(checkpoint=every(0, auto_resume=True), seed=7, train_iters=4)
    assert_same(new, resumed)
    assert not torch.equal(
        weights["head.weight"], torch.load(step(tmp_path, 12) / "model-0.pt", weights_only=True)["head.weight"]
    )


# ----------------------------------------------------------------------------------------------- what is damaged


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "missing", "one bit"])
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_passed_over(run_tiny, tmp_path, name, how):
    run_tiny(checkpoint=every(3), epochs=1)
    damage(step(tmp_path, 6) / name, how)
    engine = FullCheckpoint(FullConfig(), tmp_path / "run", World())
    with pytest.warns(UserWarning, match=facts("step-00000006", name)):
        assert engine.latest() == step(tmp_path, 3)
    with pytest.raises(CheckpointError, match=facts("step-00000006", name, "another checkpoint")):
        run_tiny(checkpoint=every(3), trainer={"resume_from": step(tmp_path, 6)})


def test_all_damaged_is_nothing(run_tiny, tmp_path):
    run_tiny(checkpoint=every(7))
    damage(step(tmp_path, 7) / "model-0.pt", "missing")
    with pytest.warns(UserWarning) as told:
        assert run_tiny(checkpoint=every(7, auto_resume=True)).global_step == 7
    assert FullCheckpoint(FullConfig(), tmp_path / "run", World()).latest() == step(tmp_path, 7), "and it is replaced"
    texts = [str(one.message) for one in told]
    assert any(re.search(facts("step-00000007", "model-0.pt", "missing"), text) for text in texts)
    assert any(re.search(facts(f"{tmp_path / 'run' / 'checkpoints'}: ", "damaged-step-N"), text) for text in texts)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", ["manifest.json", "damaged", "'format'"]),
        ('{"format": 4, "step": 6}', ["manifest.json", "damaged", "'sha256'"]),
        ("[]", ["manifest.json", "mapping"]),
    ],
)
def test_the_error_names_what_a_damaged_manifest_lacks(tmp_path, content, problem):
    (tmp_path / "manifest.json").write_text(content)
    assert re.search(facts(*problem), problem_of(tmp_path).text)


@pytest.mark.parametrize("name", ["step", "number", "world_size"])
def test_a_changed_number_in_a_manifest_is_damage(tmp_path, name):
    """A flipped bit may leave valid JSON, and a checkpoint that is taken for a newer one or another step's."""
    commit(tmp_path, {"file.txt": write_text(tmp_path / "file.txt", "text")}, step=6, number=2, world_size=1)
    assert problem_of(tmp_path) is None
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, name: manifest[name] ^ 1}))
    assert re.search(facts("manifest.json", "damaged"), problem_of(tmp_path).text)


def test_damaged_checkpoints_are_never_lost(run_ranks):
    """Of each checkpoint the counters are gone; its weights are kept alongside those of the run that begins anew."""
    saves = {"checkpoint": every(2, auto_resume=True, keep_last=2)}
    folder = run_ranks(1, **saves).folder / "checkpoints"
    for again in ("", "-2"):
        before = {path.name: (path / "model-0.pt").read_bytes() for path in folder.glob("step-*")}
        assert sorted(before) == ["step-00000004", "step-00000006"]
        for name in before:
            damage(folder / name / "state.json", "truncated")
        run = run_ranks(1, **saves, seed=7)
        assert run.status == 0, run.output
        for name, weights in before.items():
            assert (folder / f"damaged-{name}{again}" / "model-0.pt").read_bytes() == weights
            assert re.search(rf"{folder / name} .* damaged-{name}{again}$", run.output, re.MULTILINE)
    assert re.search(rf"^.*{folder}: .*damaged-step-N.*$", run.output, re.MULTILINE)
    engine = FullCheckpoint(FullConfig(), folder.parent, World())
    assert engine.latest() == folder / "step-00000006"
    assert len(list(folder.iterdir())) == 6


def test_retention_removes_no_damaged_checkpoint(run_tiny, tmp_path):
    class Damage:
        @hookimpl
        def on_step_start(self, trainer):
            if trainer.global_step == 3:
                os.truncate(step(tmp_path, 2) / "state.json", 5)

    run_tiny(Damage(), checkpoint=every(1, keep_last=2, keep_every=2))
    assert saved(tmp_path) == [f"step-0000000{number}" for number in (2, 4, 6, 7)]


def test_a_path_that_is_no_checkpoint(run_tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "nowhere"):
        path = tmp_path / name
        with pytest.raises(CheckpointError, match=facts(f"{path}")):
            run_tiny(checkpoint=every(3), trainer={"resume_from": path})


def test_a_checkpoint_of_another_model_or_optimizer(run_tiny, tmp_path):
    run_tiny(checkpoint=every(3))
    changes = [{"model": {"width": 4}}, {"optimizer": {"type": "adamw", "decay_vectors": True}}]
    for change in changes:
        with pytest.raises(CheckpointError, match=facts("step-00000003", "recipe.yaml")):
            run_tiny(checkpoint=every(3), trainer={"resume_from": step(tmp_path, 3)}, allow_changes=["*"], **change)


@pytest.mark.parametrize(("other", "reader"), [(3, "hooktrain 0.1"), (5, "later version")])
def test_a_checkpoint_of_another_format_is_refused_and_never_begun_anew_over(run_tiny, tmp_path, other, reader):
    run_tiny(checkpoint=every(7, auto_resume=True))
    path = step(tmp_path, 7) / "manifest.json"
    path.write_text(path.read_text().replace('"format": 4', f'"format": {other}'))
    before = path.read_text()
    with pytest.raises(CheckpointError, match=facts("step-00000007", f"format is {other}", reader)):
        run_tiny(checkpoint=every(7), trainer={"resume_from": step(tmp_path, 7)})
    told = facts("step-00000007", f"format is {other}", reader, f"'{path.parents[1]}'")
    with pytest.raises(CheckpointError, match=told) as caught:
        run_tiny(checkpoint=every(7, auto_resume=True))
    assert "\n" not in str(caught.value)
    assert path.read_text() == before


def test_retention_removes_no_checkpoint_of_another_format(run_tiny, tmp_path):
    run_tiny(checkpoint=every(3), train_iters=3)
    path = step(tmp_path, 3) / "manifest.json"
    path.write_text(path.read_text().replace('"format": 4', '"format": 3'))
    run_tiny(checkpoint=every(2, keep_last=1, overwrite=True))
    assert saved(tmp_path) == ["step-00000003", "step-00000006"]


# ------------------------------------------------------------------------------------------------ no room, no life


@contextmanager
def disk_full_at(size: int):
    """No file may grow beyond ``size`` bytes; Python ignores the signal, so that writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 1000, 2000, 4000, 5000])
def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint(run_tiny, tmp_path, size):
    class Fill:
        @hookimpl(wrapper=True)
        def save_checkpoint(self, trainer):
            with disk_full_at(size if trainer.global_step == 6 else 1 << 30):
                return (yield)

    with pytest.raises(CheckpointError) as caught:
        run_tiny(Fill(), checkpoint=every(3))
    assert re.search(facts(f"{step(tmp_path, 6)}", "rank 0", "earlier", "File too large"), str(caught.value))
    assert saved(tmp_path) == ["step-00000003"]
    undisturbed = run_tiny(run_dir=str(tmp_path / "other"))
    assert_same(undisturbed, run_tiny(checkpoint=every(0, auto_resume=True)))


def test_a_folder_that_cannot_be_written_is_said_before_the_training(run_tiny, tmp_path):
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    with pytest.raises(
        HooktrainError, match=facts("checkpoint.output_dir", f"'{tmp_path / 'file' / 'x'}'", "Not a directory")
    ):
        run_tiny(recorder, checkpoint=every(3, output_dir=str(tmp_path / "file" / "x")))
    assert "on_train_start" not in recorder.hooks


@pytest.mark.parametrize("asynchronous", [pytest.param(False, marks=pytest.mark.thorough), True])
@pytest.mark.parametrize("apart", [5, pytest.param(1, marks=pytest.mark.thorough)])
def test_killed_at_any_write_a_run_resumes_from_the_last_complete_checkpoint(
    run_tiny, tiny_recipe, tmp_path, asynchronous, apart
):
    saves = every(2, auto_resume=True, keep_last=1, asynchronous=asynchronous)
    settings = {"model": {"dropout": 0.3}, "checkpoint": saves}
    undisturbed = run_tiny(**settings, run_dir=str(tmp_path / "undisturbed"))
    at = 1
    while True:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        if not killed({**tiny_recipe, **settings}, at, tmp_path / "process"):
            break
        left = [path for path in (tmp_path / "run" / "checkpoints").glob("*") if not path.name.startswith(".")]
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # nothing that looks like a checkpoint is incomplete
            warnings.filterwarnings("ignore", "run_dir: the last run in .* ended without finishing")
            engine = FullCheckpoint(FullConfig(), tmp_path / "run", World())
            last = engine.latest()
            assert (last is None) == (not left)
            resumed = run_tiny(**settings)
        assert_same(undisturbed, resumed)
        if last != step(tmp_path, 6):  # after the last one nothing is saved any more
            assert saved(tmp_path) == ["step-00000006"], "leftovers are gone"
        at += apart
    assert at > 30, "three saves of ten writes and a rename each"
