"""Imports of a package: names that are loaded when they are first used, and modules that print while they are."""

from __future__ import annotations

import ast
import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hooktrain.renamed import old_import

__all__ = ["import_quietly", "lazy_exports"]


def import_quietly(name: str) -> Any:
    """Import a module without its warnings, as of a package that says what its builds for other devices lack."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    finally:
        logging.disable(before)


def lazy_exports(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are imported for type checkers only.

    ::

        if TYPE_CHECKING:
            from my_package.config import Config as Config

        __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)

    Each name stands once, where type checkers and editors see it, as in the stub files of scientific Python's SPEC 1.
    ``as`` says that it is exported.

    Args:
        package: ``__name__``.
        file: ``__file__``, whose imports under ``if TYPE_CHECKING:`` are read.
    """
    blocks = [node for node in ast.parse(Path(file).read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.asname: node.module or "" for node in imports for alias in node.names if alias.asname}

    def load(name: str) -> Any:
        if name not in homes:
            raise old_import(package, name)
        value = vars(sys.modules[package])[name] = getattr(importlib.import_module(homes[name]), name)
        return value

    return load, lambda: sorted({*vars(sys.modules[package]), *homes}), sorted(homes)
