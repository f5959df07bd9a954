"""Virtual environments for the programs that are compared with, made from pinned requirement files.

Nothing of a peer is kept in the repository or installed beside hooktrain. An environment is made once for each content
of its requirement files, and found again by it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["PEERS", "EnvironmentFailed", "ensure"]

_FILES = Path(__file__).parent / "peers"

PEERS = {"trl": ("trl.txt",), "arctic": ("arctic-build.txt", "arctic.txt")}
"""Requirement files of each peer, installed one after the other; the later ones build with what the earlier brought."""

_BUILD = {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
"""DeepSpeed compiles its kernels when they are first used, and for a processor."""


class EnvironmentFailed(Exception):
    """An environment could not be made; says why in one line."""


def ensure(peer: str, root: Path) -> Path:
    """The Python of a peer's environment, which is made if it is not there yet.

    Args:
        peer: a key of ``PEERS``.
        root: folder that holds the environments.

    Raises:
        EnvironmentFailed: when it cannot be made.
    """
    files = [_FILES / name for name in PEERS[peer]]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()[:10]
    folder = root / f"{peer}-{digest}"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)  # half of one, from an attempt that was interrupted
    root.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)], folder)
    for file in files:
        isolation = ["--no-build-isolation"] if file is not files[0] else []
        _run([str(python), "-m", "pip", "install", *isolation, "-r", str(file)], folder)
    done.touch()
    return python


def _run(command: list[str], folder: Path) -> None:
    print("  " + " ".join(command[-4:]), file=sys.stderr, flush=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    made = subprocess.run(
        command, env=environment | _BUILD, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if made.returncode:
        said = [line for line in (made.stderr or made.stdout).splitlines() if line.startswith("ERROR")]
        said = said or (made.stderr or made.stdout or "no output").strip().splitlines()[-1:]
        raise EnvironmentFailed(f"{folder.name} could not be installed: {said[0][:200]}")
