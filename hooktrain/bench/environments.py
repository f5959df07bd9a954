"""Virtual environments of peers, the programs that hooktrain is compared with, from pinned requirement files.

Nothing of a peer is installed into hooktrain's environment. A peer's environment is made once for each content of its
requirement files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

__all__ = ["EnvironmentFailed", "Peer", "ensure"]


class EnvironmentFailed(Exception):
    """Raised when an environment cannot be made; the message is the reason, in one line."""


@attrs.frozen(kw_only=True)
class Peer:
    """A program to compare with, installed into an environment of its own.

    Attributes:
        name: name of the environment.
        requirements: pinned requirement files, installed one after the other; later ones are built with what earlier
            ones installed.
        building: environment variables of the installation.
    """

    name: str
    requirements: tuple[Path, ...] = attrs.field(converter=tuple)
    building: Mapping[str, str] = attrs.field(factory=dict, eq=False)


def ensure(peer: Peer, root: Path, *, only_find: bool = False) -> Path:
    """Return the Python of a peer's environment, and make the environment where it is missing.

    Args:
        peer: the peer to install.
        root: folder of the environments.
        only_find: raise where it is missing; making one takes minutes and perhaps gigabytes.

    Raises:
        EnvironmentFailed: when it cannot be made.
    """
    files = peer.requirements
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()[:10]
    folder = root / f"{peer.name}-{digest}"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists():
        return python
    if only_find:
        raise EnvironmentFailed(f"{peer.name} is not installed, and --quick installs nothing")
    shutil.rmtree(folder, ignore_errors=True)  # incomplete, of an interrupted attempt
    root.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)], folder, {})
    for file in files:
        isolation = ["--no-build-isolation"] if file is not files[0] else []
        _run([str(python), "-m", "pip", "install", *isolation, "-r", str(file)], folder, peer.building)
    done.touch()
    return python


def _run(command: list[str], folder: Path, building: Mapping[str, str]) -> None:
    print("  " + " ".join(command[-4:]), file=sys.stderr, flush=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    made = subprocess.run(
        command, env={**environment, **building}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if made.returncode:
        said = [line for line in (made.stderr or made.stdout).splitlines() if line.startswith("ERROR")]
        said = said or (made.stderr or made.stdout or "no output").strip().splitlines()[-1:]
        raise EnvironmentFailed(f"{folder.name} could not be installed: {said[0]}")
