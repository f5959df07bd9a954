"""Facts about the machine for the record of a measurement, and how busy it is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from hooktrain.bench.driver import versions

__all__ = ["busy_seconds", "commit", "describe", "installed", "usable_cores"]


def describe() -> dict[str, Any]:
    """Return the processor, usable cores, memory and system, and the GPUs where torch has been imported."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(usable_cores()),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "bf16_instructions": "avx512_bf16" in (_field("/proc/cpuinfo", "flags") or "").split(),
        "system": f"{platform.system()} {platform.release()}",
        "gpus": _gpus(),
    }


def usable_cores() -> list[int]:
    """Return the cores that this process may use."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def commit(folder: Path) -> dict[str, Any]:
    """Return the commit that is measured, and whether files differ from it; empty outside a repository."""

    def git(*words: str) -> str:
        try:
            made = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
        except OSError:
            return ""
        return made.stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": bool(git("status", "--porcelain", "--", "hooktrain", "plugins")),
    }


def installed() -> dict[str, str]:
    """Return the versions of Python, torch, hooktrain and each distribution with a plugin."""
    plugins = importlib.metadata.entry_points(group="hooktrain")
    return versions(*sorted({"hooktrain", "torch", "pluggy", *(point.dist.name for point in plugins if point.dist)}))


def busy_seconds() -> float | None:
    """Return the processor seconds that all programs, and the host of a virtual machine, have used since the boot.

    None where the system does not count them.
    """
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, first[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), None)
