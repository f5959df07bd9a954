"""Atomic replacement of a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hooktrain_hf import atomic_folder


def fill(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_kill_at_any_rename_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool) -> None:
    """After a kill at any rename, the next attempt finds one complete export."""
    if not in_one_step:
        monkeypatch.setattr(atomic_folder, "_swap_names", lambda left, right: False)
    rename, left = os.rename, 0

    def dying(*args: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        rename(*args)

    for survived in range(6):
        target = tmp_path / f"out{survived}"
        fill(target, "old")
        (target / "mine").write_text("kept")
        left = survived
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", dying)
            try:
                with atomic_folder.temporary_folder(target) as folder:
                    fill(folder, "new")
                    patched.setattr(atomic_folder.shutil, "rmtree", lambda *args, **more: None)
                    atomic_folder.replace_folder(folder, target)
            except KeyboardInterrupt:
                pass
        with atomic_folder.temporary_folder(target):
            assert (target / "config.json").read_text() in ("old", "new")
            assert (target / "mine").read_text() == "kept"
        assert not list(tmp_path.glob(f".out{survived}*"))
    assert (target / "config.json").read_text() == "new"


def test_names_are_exchanged_in_one_step_on_linux(tmp_path: Path) -> None:
    fill(tmp_path / "a", "a")
    fill(tmp_path / "b", "b")
    if not atomic_folder._swap_names(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system cannot exchange two names")
    assert (tmp_path / "a/config.json").read_text() == "b" and (tmp_path / "b/config.json").read_text() == "a"
