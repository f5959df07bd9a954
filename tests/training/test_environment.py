"""What a run notes about where it takes place."""

from __future__ import annotations

import json

import pytest

from hooktrain.training.environment import environment_of

COMMIT = "8b870d028a11f1c54948a7903352fadedf130b04"


def loose(git):
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")


def packed(git):
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(
        f"# pack-refs with: peeled\n{'0' * 40} refs/heads/other\n{COMMIT} refs/heads/main\n"
    )


def detached(git):
    (git / "HEAD").write_text(f"{COMMIT}\n")


@pytest.mark.parametrize("make", [loose, packed, detached])
def test_the_commit_is_read_from_the_files_of_git(tmp_path, make):
    git, inner = tmp_path / "work" / ".git", tmp_path / "work" / "inner"
    git.mkdir(parents=True)
    inner.mkdir()
    make(git)
    assert environment_of(inner, 1)["commit"] == COMMIT


def test_the_commit_of_a_worktree(tmp_path):
    git = tmp_path / "work" / ".git"
    (git / "worktrees" / "second").mkdir(parents=True)
    loose(git)
    (git / "worktrees" / "second" / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "worktrees" / "second" / "commondir").write_text("../..\n")
    second = tmp_path / "second"
    second.mkdir()
    (second / ".git").write_text(f"gitdir: {git / 'worktrees' / 'second'}\n")
    assert environment_of(second, 1)["commit"] == COMMIT


def test_no_commit_outside_a_repository_and_in_one_without_any(tmp_path):
    assert environment_of(tmp_path, 1)["commit"] == ""
    (tmp_path / ".git").mkdir()
    assert environment_of(tmp_path, 1)["commit"] == ""
    (tmp_path / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert environment_of(tmp_path, 1)["commit"] == ""


def test_a_run_keeps_it_with_what_was_given(run_tiny, tmp_path):
    run_tiny(seed=5)
    found = json.loads((tmp_path / "run" / "plugins.json").read_text())
    environment = found["environment"]
    assert environment["cores"] >= 1 and environment["memory"] > 2**20 and environment["processor"]
    assert found["recipe"]["given"]["seed"] == 5 and "log_interval" not in found["recipe"]["given"]
