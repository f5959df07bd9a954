"""Helpers for tests of plugins: runs that take milliseconds, processes, recorders of hooks, tiny models and data.

pytest finds the fixtures where hooktrain is installed; ``pytest --fixtures`` lists them under ``hooktrain.testing``.
Names are loaded when they are first used, as every pytest of an environment with hooktrain imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hooktrain.renamed import old_import

if TYPE_CHECKING:
    from hooktrain.testing.fixtures import run_tiny, tiny_recipe
    from hooktrain.testing.in_process import host_of, train
    from hooktrain.testing.plugin_checks import conformance
    from hooktrain.testing.recorders import LoopHookRecorder, Recorder
    from hooktrain.testing.subprocess_runs import Run
    from hooktrain.testing.tiny_llama import make_llama, make_tokenizer, sample_rows, save_llama, write_rows
    from hooktrain.testing.tiny_plugin import (
        TinyDataConfig,
        TinyLossConfig,
        TinyModel,
        TinyModelConfig,
        TinyPlugin,
        TinyRows,
    )

_HOMES = {
    "plugin_checks": "conformance",
    "fixtures": "run_tiny tiny_recipe",
    "tiny_llama": "make_llama make_tokenizer sample_rows save_llama write_rows",
    "subprocess_runs": "Run",
    "recorders": "Recorder LoopHookRecorder",
    "in_process": "host_of train",
    "tiny_plugin": "TinyDataConfig TinyLossConfig TinyModel TinyModelConfig TinyPlugin TinyRows",
}
_HOME = {name: f"hooktrain.testing.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Recorder",
    "Run",
    "LoopHookRecorder",
    "TinyDataConfig",
    "TinyLossConfig",
    "TinyModel",
    "TinyModelConfig",
    "TinyPlugin",
    "TinyRows",
    "conformance",
    "host_of",
    "make_llama",
    "make_tokenizer",
    "run_tiny",
    "sample_rows",
    "save_llama",
    "tiny_recipe",
    "train",
    "write_rows",
]

pytest_plugins = ("hooktrain.testing.fixtures",)
"""For a pytest without entry points, where ``pytest_plugins = ["hooktrain.testing"]`` brings the fixtures."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise old_import("hooktrain.testing", name)
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
