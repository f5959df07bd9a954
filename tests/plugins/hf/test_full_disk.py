"""Exports on a disk that is full: a real file system of 8 MiB, on one rank and on two."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("file systems can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


FILLED = """
@hookimpl
def on_step_end(trainer):
    if trainer.global_step == 3 and trainer.world.is_main:  # there is an export, and room for a part of another
        free = os.statvfs("{disk}").f_bavail - {left}
        (Path("{disk}") / "fill").write_bytes(bytes(max(0, free) * 4096))
    trainer.strategy.barrier()

@hookimpl
def on_checkpoint_end(trainer, path):
    note(path=str(path))

@hookimpl
def on_teardown():
    note(torn_down=True)
"""


def recipe(base: dict[str, Any], disk: Path, policy: str) -> dict[str, Any]:
    export = {"type": "huggingface", "output_dir": str(disk / "export"), "save_every_n_steps": 2, "on_failure": policy}
    base = {key: value for key, value in base.items() if key not in ("run_dir", "console")}
    return {**base, "checkpoint": [{**export, "save_end_of_training": True}]}


@pytest.mark.parametrize("left", [0, 1, 2, 4], ids="{} blocks left".format)
@pytest.mark.parametrize(("ranks", "policy"), [(1, "stop"), (1, "warn"), (2, "stop"), (2, "warn")])
@pytest.mark.thorough
def test_everywhere(
    run_ranks: Any, rank_notes: Any, chat_recipe: dict[str, Any], disk: Path, ranks: int, policy: str, left: int
) -> None:
    _fails(run_ranks, rank_notes, chat_recipe, disk, ranks, policy, left)


@pytest.mark.parametrize(("ranks", "policy"), [(1, "warn"), (2, "stop")])
def test_an_export_on_a_full_disk(
    run_ranks: Any, rank_notes: Any, chat_recipe: dict[str, Any], disk: Path, ranks: int, policy: str
) -> None:
    _fails(run_ranks, rank_notes, chat_recipe, disk, ranks, policy, 1)


def _fails(
    run_ranks: Callable[..., Any], rank_notes: Any, base: Any, disk: Path, ranks: int, policy: str, left: int
) -> None:
    run = run_ranks(ranks, FILLED.format(disk=disk, left=left), **recipe(base, disk, policy))
    assert run.status == 1, run.output
    assert "Traceback" not in run.output
    assert re.search(r"'\S*/step-4' cannot be written \(.*No space left.*\); make room", run.output), run.output
    assert [path.name for path in (disk / "export").iterdir()] == ["step-2"], "nothing half-written fills the disk"
    AutoModelForCausalLM.from_pretrained(disk / "export" / "step-2")
    for rank in range(ranks):
        assert rank_notes(rank) == [{"path": str(disk / "export" / "step-2")}, {"torn_down": True}], "all were told"
    if policy == "warn":
        assert "the run continues" in run.output


def test_a_mistake_of_a_plugin_is_told_to_all_ranks_and_keeps_its_traceback(
    run_ranks: Any, chat_recipe: dict[str, Any], tmp_path: Path
) -> None:
    plugin = """
@hookimpl(tryfirst=True)
def export_model(folder):
    raise KeyError("mine")
"""
    run = run_ranks(2, plugin, **recipe(chat_recipe, tmp_path, "warn"))
    assert run.status == 1
    assert "KeyError: 'mine'" in run.output and "in export_model" in run.output
