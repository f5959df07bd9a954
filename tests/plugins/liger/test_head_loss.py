"""What the losses ask of Liger, with torch in the place of its kernels; the kernels' own numbers: test_interpreted.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hooktrain_liger.head_loss import CrossEntropy, FusedLinearCrossEntropy
from torch import Tensor
from torch.nn import functional


def _cross_entropy(logits: Tensor, targets: Tensor, *, reduction: str = "mean", **options: Any) -> SimpleNamespace:
    assert options.pop("return_predicted_tokens")
    assert options.pop("accum_dtype", torch.float32) is torch.float32
    assert not any(options.values()), options
    loss = functional.cross_entropy(logits, targets, reduction=reduction)
    return SimpleNamespace(loss=loss, predicted_tokens=logits.argmax(-1).where(targets != -100, -1))


def _fused(inputs: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, **options: Any) -> SimpleNamespace:
    return _cross_entropy(functional.linear(inputs, weight, bias), targets, **options)


@pytest.fixture
def _torch_for_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ModuleType("liger_kernel.transformers.functional")
    vars(found).update(liger_cross_entropy=_cross_entropy, liger_fused_linear_cross_entropy=_fused)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, found.__name__, found)


@pytest.mark.usefixtures("_torch_for_liger")
@pytest.mark.parametrize("loss", [FusedLinearCrossEntropy(), CrossEntropy(chunk_size=2)], ids=["fused", "apart"])
def test_a_loss_is_a_sum_over_the_tokens(loss: Callable[..., Any]) -> None:
    hidden, weight, bias = torch.randn(5, 4), torch.randn(7, 4), torch.randn(7)
    targets = torch.tensor([3, -100, 0, 6, 1])
    logits = functional.linear(hidden, weight, bias)
    total, sums = loss(hidden, weight, bias, targets)
    torch.testing.assert_close(total, functional.cross_entropy(logits, targets, reduction="sum"))
    assert sums["token_accuracy"] == (logits.argmax(-1) == targets).sum()
