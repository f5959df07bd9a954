"""What a result must say about the machine, and how busy others kept it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["busy_seconds", "commit", "describe", "installed"]


def describe() -> dict[str, Any]:
    """Processor, cores that this process may use, memory and system; and the GPUs, where torch has been imported."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "bf16_instructions": "avx512_bf16" in (_field("/proc/cpuinfo", "flags") or "").split(),
        "system": f"{platform.system()} {platform.release()}",
        "gpus": _gpus(),
    }


def commit(folder: Path) -> dict[str, Any]:
    """The commit that is measured, and whether files differ from it; empty outside a repository."""

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
    """Versions of Python, of torch and of every distribution that brings a plugin, and hooktrain's own."""
    found = {"python": platform.python_version()}
    names = {"hooktrain", "torch", "pluggy"}
    for point in importlib.metadata.entry_points(group="hooktrain"):
        if point.dist is not None:
            names.add(point.dist.name)
    for name in sorted(names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def busy_seconds() -> float | None:
    """Processor seconds that all programs together, and the host beneath, have used since the machine started.

    None where the system does not tell.
    """
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, first[1:9])
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
