"""torchao only where it is used: transformers imports it, wherever it is installed, with every model.

That takes seconds and prints what torchao's builds for other devices lack. Here transformers' one module that does so
is loaded without it, and imports it when it reads or writes weights of torchao's.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["defer_torchao"]

_MODULE = "transformers.quantizers.quantizer_torchao"


def defer_torchao() -> None:
    """Have transformers import torchao at its first use, unless one of the two is imported already."""
    known = any(isinstance(finder, _Finder) for finder in sys.meta_path)
    if not known and not {_MODULE, "torchao"} & sys.modules.keys():
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds transformers' module once, as any other finder does, and has it loaded by ``_Loader``."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Executes the module as if torchao were not installed, and then gives it what it would have imported."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        utils: Any = importlib.import_module("transformers.utils")
        is_available = utils.is_torchao_available
        utils.is_torchao_available = lambda: False
        try:
            self._own.exec_module(module)
        finally:
            utils.is_torchao_available = is_available
        made: Any = module
        made.is_torchao_available = is_available
        made.flatten_tensor_state_dict = _flatten


def _flatten(*arguments: Any, **more: Any) -> Any:
    support: Any = importlib.import_module("torchao.prototype.safetensors.safetensors_support")
    return support.flatten_tensor_state_dict(*arguments, **more)
