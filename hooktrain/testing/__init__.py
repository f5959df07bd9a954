"""Helpers for tests of plugins: runs that take milliseconds, processes, recorders of hooks, tiny models and data.

pytest finds the fixtures where hooktrain is installed; ``pytest --fixtures`` lists them under ``hooktrain.testing``.
Names are loaded when they are first used, as every pytest of an environment with hooktrain imports this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooktrain.exports import lazy_exports

if TYPE_CHECKING:
    from hooktrain.testing.fixtures import run_tiny as run_tiny
    from hooktrain.testing.fixtures import tiny_recipe as tiny_recipe
    from hooktrain.testing.in_process import host_of as host_of
    from hooktrain.testing.in_process import train as train
    from hooktrain.testing.plugin_checks import conformance as conformance
    from hooktrain.testing.recorders import LoopHookRecorder as LoopHookRecorder
    from hooktrain.testing.recorders import Recorder as Recorder
    from hooktrain.testing.subprocess_runs import Run as Run
    from hooktrain.testing.tiny_llama import make_llama as make_llama
    from hooktrain.testing.tiny_llama import make_tokenizer as make_tokenizer
    from hooktrain.testing.tiny_llama import sample_rows as sample_rows
    from hooktrain.testing.tiny_llama import save_llama as save_llama
    from hooktrain.testing.tiny_llama import write_rows as write_rows
    from hooktrain.testing.tiny_plugin import TinyDataConfig as TinyDataConfig
    from hooktrain.testing.tiny_plugin import TinyLossConfig as TinyLossConfig
    from hooktrain.testing.tiny_plugin import TinyModel as TinyModel
    from hooktrain.testing.tiny_plugin import TinyModelConfig as TinyModelConfig
    from hooktrain.testing.tiny_plugin import TinyPlugin as TinyPlugin
    from hooktrain.testing.tiny_plugin import TinyRows as TinyRows

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)

pytest_plugins = ("hooktrain.testing.fixtures",)
"""For a pytest without entry points, where ``pytest_plugins = ["hooktrain.testing"]`` brings the fixtures."""
