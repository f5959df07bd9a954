"""Callbacks of transformers and Lightning in hooktrain runs.

A recipe names them under ``callbacks``; in Python, ``Callbacks(callback, ...)`` is a plugin object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain import lazy_exports

if TYPE_CHECKING:
    from hooktrain_callbacks.callback_handler import UnmappedError as UnmappedError
    from hooktrain_callbacks.config import CallbacksConfig as CallbacksConfig
    from hooktrain_callbacks.plugin import Callbacks as Callbacks

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
