"""The folder for everything that is kept from run to run."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_cache_dir"]


def default_cache_dir() -> Path | None:
    """Return ``HOOKTRAIN_CACHE``, or ``hooktrain`` in the user's cache folder; it need not exist.

    Returns:
        The folder, or None where neither is set and the user has no home.
    """
    own = os.environ.get("HOOKTRAIN_CACHE")
    try:
        if own:
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hooktrain"
    except RuntimeError:  # the user has no home
        return None
