"""Results of one run are never deleted by another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hooktrain import CheckpointError, HooktrainError
from tests.facts import facts


def full(steps: int, **more: object) -> dict[str, object]:
    return {"type": "full", "save_every_n_steps": steps, **more}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_run_in_an_old_folder_is_refused_and_told_what_to_write(run_tiny, tmp_path):
    old = run_tiny(checkpoint=full(2, keep_last=2))
    before = contents(tmp_path / "run")
    say = facts(
        "checkpoint[0].output_dir", "step-00000006", old.run_id, "auto_resume: true", "run_dir: <another folder>"
    )
    with pytest.raises(CheckpointError, match=say):
        run_tiny(checkpoint=full(1, keep_last=1), seed=3)
    after = contents(tmp_path / "run")
    assert {name: after[name] for name in before if ".lock" not in name} == {
        name: value for name, value in before.items() if ".lock" not in name
    }
    assert run_tiny(checkpoint=full(2, auto_resume=True)).run_id == old.run_id


def test_to_begin_anew_on_purpose_removes_no_checkpoint_either(run_tiny, tmp_path):
    run_tiny(checkpoint=full(2))
    before = contents(tmp_path / "run" / "checkpoints")
    with pytest.warns(UserWarning, match=facts("another run's", "other-step-00000006")):
        run_tiny(checkpoint=full(6, keep_last=1, overwrite=True), seed=3)
    after = contents(tmp_path / "run" / "checkpoints")
    assert len(after) > len(before)
    for name, value in before.items():
        assert value in (after[name], after.get(f"other-{name}"))


def test_two_runs_with_one_output_folder(run_tiny, tmp_path):
    saved = str(tmp_path / "saved")
    run_tiny(checkpoint=full(3, output_dir=saved))
    before = contents(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=facts("checkpoint[0].output_dir: <another folder>", saved)):
        run_tiny(checkpoint=full(3, output_dir=saved), run_dir=str(tmp_path / "second"), seed=3)
    assert contents(tmp_path / "saved") == before


def test_a_run_continues_in_the_folder_that_it_resumes_from_and_nowhere_else(run_tiny, tmp_path):
    one = run_tiny(checkpoint=full(2, keep_last=1), exit_iteration=4)
    step = one.run_dir / "checkpoints" / "step-00000004"
    branch = run_tiny(checkpoint=full(6), run_dir=str(tmp_path / "branch"), trainer={"resume_from": step})
    assert branch.run_id != one.run_id and step.exists()
    again = run_tiny(checkpoint=full(2, keep_last=1), trainer={"resume_from": step})
    assert again.run_id == one.run_id
    assert [path.name for path in step.parent.iterdir()] == ["step-00000006"], "it rotates its own"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["", "in the background"])
def test_a_foreign_checkpoint_in_the_folder_is_never_removed(run_tiny, tmp_path, asynchronous):
    """Not by rotation, and not where its name is needed."""
    from hooktrain import hookimpl

    foreign = run_tiny(checkpoint=full(1), exit_iteration=4, run_dir=str(tmp_path / "foreign"))
    theirs = foreign.run_dir / "checkpoints"

    class Copies:
        @hookimpl
        def on_train_start(self, trainer):
            for name in ("step-00000001", "step-00000004"):
                shutil.copytree(theirs / name, trainer.run_dir / "checkpoints" / name)

    saves = full(2, keep_last=1, save_end_of_training=True, asynchronous=asynchronous)
    with pytest.warns(UserWarning, match=facts("step-00000004", "another run's", "other-step-00000004")):
        run = run_tiny(Copies(), checkpoint=saves, seed=3)
    left = run.run_dir / "checkpoints"
    assert sorted(path.name for path in left.glob("[!.]*")) == ["other-step-00000004", "step-00000001", "step-00000007"]
    assert contents(left / "other-step-00000004") == contents(theirs / "step-00000004")
    assert contents(left / "step-00000001") == contents(theirs / "step-00000001")


def test_an_export_of_another_run_is_not_replaced(run_chat, tmp_path):
    exports = {"type": "huggingface", "save_end_of_training": True, "output_dir": str(tmp_path / "model")}
    run_chat(checkpoint=exports, train_iters=1)
    before = contents(tmp_path / "model")
    with pytest.raises(CheckpointError, match=facts("checkpoint[0].output_dir: <another folder>", "model")) as raised:
        run_chat(checkpoint=exports, train_iters=2, run_dir=str(tmp_path / "second"))
    assert "auto_resume" not in str(raised.value), "a run cannot resume from an export"
    assert "overwrite: true" in str(raised.value)
    assert contents(tmp_path / "model") == before
    run_chat(checkpoint={**exports, "overwrite": True}, train_iters=2, run_dir=str(tmp_path / "second"))
    assert contents(tmp_path / "model") != before
    with pytest.raises(CheckpointError):
        run_chat(checkpoint=exports, train_iters=1)  # it is the second run's now


def test_a_model_that_no_run_has_written_is_not_replaced_by_a_recipe(run_chat, chat_recipe, tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "precious")
    exports = {"type": "huggingface", "save_end_of_training": True, "output_dir": str(tmp_path / "precious")}
    with pytest.raises(CheckpointError, match=facts("checkpoint[0].output_dir", "precious", "another run")):
        run_chat(checkpoint=exports, train_iters=1)
    assert contents(tmp_path / "precious") == contents(tiny_llama)


HOLDER = """
import sys
from pathlib import Path
from hooktrain.training.run_lock import RunLock
held = RunLock(Path(sys.argv[1]), patience=0)
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runs_do_not_use_one_output_folder_at_the_same_time(run_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("hooktrain.training.run_lock._PATIENCE", 0.2)
    words = [sys.executable, "-c", HOLDER, str(tmp_path / ".saved.lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        used = facts("checkpoint[0].output_dir", str(tmp_path / "saved"), f"process {process.pid}")
        with pytest.raises(HooktrainError, match=used), pytest.warns(UserWarning, match=used):
            run_tiny(checkpoint=full(3, output_dir=str(tmp_path / "saved")))
        process.kill()
    run_tiny(checkpoint=full(3, output_dir=str(tmp_path / "saved")))


@pytest.mark.parametrize("text", ["{", "[]", '{"run": 3}', "[" * 100_000], ids=["torn", "list", "number", "deep"])
def test_an_owner_that_cannot_be_read_is_nobody_known(run_tiny, tmp_path, text):
    run_tiny(checkpoint=full(3))
    (tmp_path / "run" / ".checkpoints.owner.json").write_text(text)
    with pytest.raises(CheckpointError, match=facts("another run", "auto_resume")):
        run_tiny(checkpoint=full(3))
    run_tiny(checkpoint=full(3, auto_resume=True))
    assert json.loads((tmp_path / "run" / ".checkpoints.owner.json").read_text())["run"]


def test_ranks_are_refused_together(run_ranks):
    saves = {"checkpoint": [full(3)], "train_iters": 3}
    assert run_ranks(2, **saves).status == 0
    refused = run_ranks(2, **saves, seed=3)
    assert refused.status == 1 and "auto_resume: true" in refused.stderr, refused.output
    assert "Traceback" not in refused.output
