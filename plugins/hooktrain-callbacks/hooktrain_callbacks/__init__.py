"""Callbacks of transformers and Lightning in hooktrain runs.

A recipe names them under ``callbacks``; in Python, ``Callbacks(callback, ...)`` is a plugin object.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooktrain_callbacks.callback_handler import UnmappedError
    from hooktrain_callbacks.config import CallbacksConfig
    from hooktrain_callbacks.plugin import Callbacks

__all__ = ["Callbacks", "CallbacksConfig", "UnmappedError"]

_MODULES = {"Callbacks": "plugin", "CallbacksConfig": "config", "UnmappedError": "callback_handler"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
