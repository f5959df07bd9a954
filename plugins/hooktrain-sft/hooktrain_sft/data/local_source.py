"""Whether a source or a tokenizer is on this machine, so that reading it downloads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hooktrain_sft.config import SourceOptions

__all__ = ["is_local"]


def is_local(config: Any) -> bool:
    """Return whether a config names a file, a folder or a glob that is here, with or without a split."""
    name = SourceOptions.of(config).name_or_path
    return _is_here(name) or _is_here(name.rpartition(":")[0])


def _is_here(name: str) -> bool:
    path = Path(name).expanduser()
    return bool(name) and (path.exists() or any(mark in name for mark in "*?["))
