"""Runs where a container lacks what a user's shell has: a home folder, a name, streams, and characters beyond ASCII."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.facts import facts

pytestmark = [pytest.mark.usefixtures("real_starts"), pytest.mark.timeout(900)]  # imports take long on a busy machine
NOBODY = "54321"
"""Number of a user that has no entry in the list of users."""
AS_NOBODY = (
    *("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"),
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),  # to read the files of this environment
)
BOUND = ("setpriv", "--inh-caps", "-dac_override", "--bounding-set", "-dac_override")
"""For whom permissions count, although it is root."""
as_root = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can become a user who does not exist"
)


@pytest.fixture
def recipe(tmp_path: Path, tiny_recipe: dict[str, Any]) -> Path:
    """A tiny recipe in a folder that everybody may write to, with a name that is not ASCII."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        if parent.stat().st_uid == os.getuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o755)
    path = tmp_path / "übung.yaml"
    raw = {
        **tiny_recipe,
        "train_iters": 2,
        "console": {"interval": 1},
        "plugins": {"load": ["hooktrain.testing:TinyPlugin"]},
    }
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def train(
    recipe: Path,
    *words: str,
    env: Mapping[str, str] = {},
    without: Sequence[str] = (),
    shell: str = "",
    prefix: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in without}
    line: list[str] = [*prefix, sys.executable, "-m", "hooktrain", "train", str(recipe), *words]
    if shell:
        line = ["sh", "-c", f'exec "$@" {shell}', "sh", *line]
    own = {**kept, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(line, cwd=recipe.parent, env=own, capture_output=True, text=True, check=False)


@as_root
def test_a_user_without_home_and_name(recipe: Path):
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "HOOKTRAIN_CACHE", "XDG_CACHE_HOME")
    done = train(recipe, without=names, prefix=AS_NOBODY)
    assert done.returncode == 0, done.stderr
    assert re.search(facts("no home folder", "HOME="), done.stderr)
    assert (recipe.parent / "run" / "metrics.jsonl").exists()
    assert not (recipe.parent / "~").exists(), "libraries that expand ~ by themselves"


@pytest.mark.parametrize(
    ("shell", "ranks"),
    [
        (">&-", 1),
        pytest.param(">&-", 2, marks=pytest.mark.thorough),
        pytest.param("<&- >&- 2>&-", 2, marks=pytest.mark.thorough),
    ],
)
def test_streams_that_are_closed(recipe: Path, shell: str, ranks: int):
    """A file or socket that is given the number of a closed stream would receive what is printed."""
    words = ["--nproc", str(ranks)] if ranks > 1 else []
    done = train(recipe, *words, "-o", "checkpoint=[{type: full, save_end_of_training: true}]", shell=shell)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len((recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (recipe.parent / "run" / "checkpoints" / "step-00000002" / "manifest.json").exists()


def test_a_terminal_that_knows_ascii_only(recipe: Path):
    done = train(recipe, "-o", "run_dir=läufe", env={"PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0, done.stderr
    assert "l\\xe4ufe" in done.stdout and "trained 2 steps" in done.stdout
    assert "warning" not in done.stderr


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """A home folder that nobody but its owner may write to."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o555)
    return folder


@as_root
@pytest.mark.parametrize("name", ["", "nobody/has-this-model"])
def test_a_home_that_cannot_be_written(recipe: Path, chat_recipe: dict[str, Any], read_only: Path, name: str):
    """A local model is trained; for one that would have to be downloaded, the cache is named."""
    model = {"name_or_path": name} if name else chat_recipe["model"]
    recipe.write_text(yaml.safe_dump({**chat_recipe, "train_iters": 1, "model": model}), encoding="utf-8")
    names = ("HOOKTRAIN_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
    env = {"HOME": str(read_only), "HF_HUB_OFFLINE": "1"}
    done = train(recipe, without=names, env=env, prefix=BOUND)
    if name:
        assert done.returncode == 1
        assert re.search(
            facts(f"'{name}'", "Hugging Face cache", f"'{read_only}/.cache/huggingface'", "HF_HOME"), done.stderr
        )
    else:
        assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
