"""``full`` checkpoints that a stranger made: one sentence, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_torch.files import commit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hooktrain import CheckpointError

EVERY = {"type": "full", "save_every_n_steps": 2}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def commit_again(folder: Path) -> None:
    """Write a manifest that is right for the files as they are now."""
    before = json.loads((folder / "manifest.json").read_text())
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256((folder / name).read_bytes()).hexdigest()}
        for name in before["files"]
    }
    commit(folder, files, **{key: before[key] for key in ("step", "number", "world_size")})


@pytest.fixture
def forged(run_tiny: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``forged(name, change)``: resume from a checkpoint with one file changed and a manifest that says it is right."""
    run_tiny(checkpoint=EVERY, train_iters=4, exit_iteration=2)
    whole = tmp_path / "run" / "checkpoints" / "step-00000002"

    def resume(name: str, change: Callable[[Path], None], right: bool = True) -> Any:
        folder = tmp_path / "forged" / "step-00000002"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        change(folder / name)
        if right:
            commit_again(folder)
        return run_tiny(
            checkpoint=EVERY, train_iters=4, run_dir=str(tmp_path / "again"), trainer={"resume_from": folder}
        )

    return resume


def objects(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda path: torch.save(change(torch.load(path, weights_only=True)), path)


def texts(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(change(json.loads(path.read_text())))) and None


FORGED = {
    "code": ("parts.pt", None),
    "parts: a list": ("parts.pt", objects(lambda parts: [1])),
    "parts: no plugins": ("parts.pt", objects(lambda parts: {k: v for k, v in parts.items() if k != "plugins"})),
    "parts: plugins": ("parts.pt", objects(lambda parts: {**parts, "plugins": {"sft": 3, "tiny": [1]}})),
    "parts: scheduler": ("parts.pt", objects(lambda parts: {**parts, "scheduler": {"last_epoch": "x"}})),
    "parts: built": ("parts.pt", objects(lambda parts: {**parts, "built": {"groups": 3}})),
    "parts: trained": ("parts.pt", objects(lambda parts: {**parts, "trained": None})),
    "random": ("random-0.pt", objects(lambda state: {"torch": torch.zeros(3)})),
    "no archive": ("model-0.pt", lambda path: path.write_bytes(b"\x80\x04.")),
    "state: an unknown name": ("state.json", texts(lambda state: {**state, "steps": 3})),
    "state: text": ("state.json", texts(lambda state: {**state, "global_step": "3"})),
    "state: beyond 64 bits": ("state.json", texts(lambda state: {**state, "tokens": 1 << 70})),
    "state: deep": ("state.json", lambda path: path.write_text("[" * 100_000)),
    "provenance: empty": ("provenance.json", texts(lambda facts: {})),
    "provenance: a list": ("provenance.json", texts(lambda facts: [])),
    "provenance: plugins": ("provenance.json", texts(lambda facts: {**facts, "plugins": [3]})),
    "provenance: recipe": ("provenance.json", texts(lambda facts: {**facts, "recipe": 3})),
    "provenance: batch": ("provenance.json", texts(lambda facts: {**facts, "batch": [0, 0]})),
    "index: shapes": ("tensors.json", texts(lambda index: {**index, "model": {"a": {"shape": ["x"], "parts": 3}}})),
    "index: other folder": (
        "tensors.json",
        texts(
            lambda index: {
                kind: {name: {**entry, "parts": [["../0", 0, 9]]} for name, entry in entries.items()}
                for kind, entries in index.items()
            }
        ),
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_part_is_refused_in_one_sentence(forged, tmp_path, case):
    name, change = FORGED[case]
    made = change or (lambda path: path.write_bytes(pickle.dumps(Code(tmp_path / "was run"))) and None)
    with pytest.raises(CheckpointError) as refused:
        forged(name, made)
    assert len(str(refused.value)) < 1500
    assert str(tmp_path / "forged") in str(refused.value) and "\n  File" not in str(refused.value)
    assert "weights_only" not in str(refused.value), "nobody is advised to load it without protection"
    assert not (tmp_path / "was run").exists()


def test_a_schedule_of_a_quadrillion_steps_is_not_run_through(forged):
    change = texts(lambda facts: {**facts, "steps": [10**15, 10**15 + 1]})
    assert forged("provenance.json", change).global_step == 4, "it is another schedule, and this run has none"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 1e999}', "cannot be read"),
        ('{"format": 5, "files": {}}', "a later version of hooktrain"),
        ('{"format": "' + "9" * 5000 + '"}', "cannot be read"),
    ],
    ids=["deep", "infinite", "newer", "digits"],
)
def test_a_forged_manifest(forged, text, said):
    with pytest.raises(CheckpointError, match=said):
        forged("manifest.json", lambda path: path.write_text(text) and None, right=False)


def test_a_manifest_names_files_of_its_folder_only(forged):
    def elsewhere(path: Path) -> None:
        commit(path.parent, {"../step-00000002/state.json": {"bytes": 3, "sha256": ""}}, step=2, number=1, world_size=1)

    with pytest.raises(CheckpointError, match="is not in the folder"):
        forged("manifest.json", elsewhere, right=False)


def _put(value: Any, path: tuple[int, ...], new: Any) -> Any:
    """A value with what stands at a path replaced; numbers choose keys."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else range(len(value))
    at = keys[path[0] % len(keys)]
    made = dict(value) if isinstance(value, dict) else list(value)
    made[at] = _put(value[at], path[1:], new)
    return made


def _fuzz(forged: Callable[..., Any], tmp_path: Path, count: int) -> None:
    where = st.lists(st.integers(0, 40), max_size=5).map(tuple)
    names = st.sampled_from(["state.json", "provenance.json", "tensors.json", "parts.pt", "random-0.pt"])

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(names, where, JSON)
    def check(name: str, path: tuple[int, ...], new: Any) -> None:
        change = (texts if name.endswith(".json") else objects)(lambda held: _put(held, path, new))
        try:
            forged(name, change)
        except CheckpointError as problem:
            assert len(str(problem)) < 5000

    check()


def test_fuzzing(forged, tmp_path):
    _fuzz(forged, tmp_path, 25)


@pytest.mark.thorough
def test_much_fuzzing(forged, tmp_path):
    _fuzz(forged, tmp_path, 1000)
