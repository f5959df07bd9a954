"""Callbacks of transformers and Lightning in hooktrain runs, unchanged.

A recipe names them under ``callbacks``; in Python, ``Callbacks(callback, ...)`` is a plugin object.
"""

from __future__ import annotations

from hooktrain_callbacks.plugin import Callbacks

__all__ = ["Callbacks"]
