"""Where a run takes place: the machine, the versions, the command, and the commit of the folder that it starts in."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from hooktrain.masking import mask_words

__all__ = ["environment_of"]


def environment_of(folder: Path, world_size: int) -> dict[str, Any]:
    """Return what is kept in ``plugins.json`` about the environment of a run, as plain values.

    Args:
        folder: where the run was started, which may be in a repository.
        world_size: ranks of the run.
    """
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if sys.platform != "win32" else 0
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory": memory,
        "devices": devices,
        "commit": _commit(folder),
        "world_size": world_size,
        "command": mask_words(sys.argv),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # of all cores, of which the first is enough
            found = next((line for line in lines if line.startswith("model name")), "")
    except OSError:  # not Linux
        found = ""
    return found.partition(":")[2].strip() or platform.processor() or platform.machine()


def _commit(folder: Path) -> str:
    """Return the commit that is checked out, read from git's files, as starting git takes longer; empty without any."""
    try:
        place = next((each / ".git" for each in (folder, *folder.parents) if (each / ".git").exists()), None)
        if place is None:
            return ""
        if place.is_file():  # a worktree or a submodule
            place = place.parent / place.read_text(encoding="utf-8").partition("gitdir:")[2].strip()
        common = place / "commondir"
        shared = place / common.read_text(encoding="utf-8").strip() if common.is_file() else place
        head = (place / "HEAD").read_text(encoding="utf-8").strip()
        name = head.partition("ref: ")[2]
        if not name:
            return head
        for path in (place / name, shared / name):
            if path.is_file():
                return path.read_text(encoding="utf-8").strip()
        packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, ValueError, IndexError):
        return ""
