"""Tiny models, and functions that Triton's interpreter lacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hooktrain.testing import Recorder, save_llama, train


@pytest.fixture
def full_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton 3.9's interpreter knows no floats as arguments of kernels and no tanh and rsqrt; here it does.

    The kernels are Liger's own, so that all of them can be compared without a GPU.
    """
    import importlib

    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def with_floats(value: Any) -> Any:
        if type(value) is float:
            return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
        return convert(value)

    def tanh(x: Any) -> Any:
        return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0

    def rsqrt(x: Any) -> Any:
        return 1.0 / tl.sqrt(x)

    monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)
    for name in ("cross_entropy", "geglu", "rms_norm", "layer_norm"):
        module: ModuleType = importlib.import_module(f"liger_kernel.ops.{name}")
        for function in (tanh, rsqrt):
            if hasattr(module, function.__name__):
                monkeypatch.setattr(module, function.__name__, function)
    yield


@pytest.fixture
def tiny_run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``tiny_run(model, key=value, ...)``: a recipe that fine-tunes a tiny Llama on six short conversations.

    The interpreter takes milliseconds for a token.
    """
    folder, rows = tmp_path / "tiny-llama", tmp_path / "rows.jsonl"
    save_llama(folder)
    with rows.open("w") as stream:
        for number in range(6):
            answer = "it is " * (1 + number * 3 % 4)
            turns = [{"role": "user", "content": "What"}, {"role": "assistant", "content": answer}]
            stream.write(json.dumps({"messages": turns}) + "\n")

    def make(model: Mapping[str, Any], data: Mapping[str, Any] = {}, **changes: Any) -> dict[str, Any]:
        return {
            "type": "sft",
            "run_dir": str(tmp_path / "run"),
            "micro_batch_size": 4,
            "train_iters": 3,
            "epochs": 2,
            "model": {"name_or_path": str(folder), **model},
            "data": {"sources": [str(rows)], "eval_sources": [str(rows)], **data},
            "optimizer": {"type": "sgd", "lr": 1e-2},  # Adam makes much of the rounding of small gradients
            "strategy": {"dtype": "fp32"},
            "console": {"enabled": False},
            **changes,
        }

    return make


@pytest.fixture
def fine_tune(tiny_run: Callable[..., dict[str, Any]]) -> Callable[..., list[dict[str, float]]]:
    """``fine_tune(model, key=value, ...)``: run the recipe of ``tiny_run``; returns what was logged."""

    def run(model: Mapping[str, Any], *plugins: object, **changes: Any) -> list[dict[str, float]]:
        recorder = Recorder()
        train(tiny_run(model, **changes), recorder, *plugins)
        return recorder.metrics

    return run


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)
