"""The chunked loss has the value and the gradients of the plain one."""

from __future__ import annotations

import pytest
import torch
from hooktrain_sft.linear_loss import LogitTransform, linear_cross_entropy
from torch import Tensor
from torch.nn import functional

TRANSFORMS = [LogitTransform(), LogitTransform(0.25), LogitTransform(softcap=5.0), LogitTransform(1.5, 3.0)]


def naive(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform) -> Tensor:
    logits = transform(functional.linear(hidden, weight, bias))
    return functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)


def inputs(bias: bool = True, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    made = torch.Generator().manual_seed(0)
    shapes = [(23, 8), (17, 8), (17,)]
    tensors = [torch.randn(shape, generator=made, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return [*tensors[:2], tensors[2] if bias else None]


TARGETS = torch.randint(0, 17, (23,), generator=torch.Generator().manual_seed(1))
TARGETS[[3, 22]] = -100


@pytest.mark.parametrize("chunk_size", [1, 5, 23, 100])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_in_double_precision(chunk_size: int, transform: LogitTransform, bias: bool) -> None:
    ours, theirs = inputs(bias), inputs(bias)
    total = linear_cross_entropy(*ours, TARGETS, transform, chunk_size)  # type: ignore[arg-type]
    expected = naive(*theirs, TARGETS, transform)  # type: ignore[arg-type]
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    (total * 0.37).backward()
    (expected * 0.37).backward()
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None and other is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_gradients_that_are_needed(needed: tuple[bool, bool, bool]) -> None:
    tensors = inputs()
    for tensor, wanted in zip(tensors, needed, strict=True):
        assert tensor is not None
        tensor.requires_grad_(wanted)
    linear_cross_entropy(*tensors, TARGETS).backward()  # type: ignore[arg-type]
    assert [tensor is not None and tensor.grad is not None for tensor in tensors] == list(needed)


def test_tied_weight() -> None:
    hidden, weight, _ = inputs()
    assert hidden is not None and weight is not None
    other = weight.detach().clone().requires_grad_()
    ids = TARGETS.clamp(min=0)
    linear_cross_entropy(functional.embedding(ids, weight), weight, None, TARGETS, chunk_size=4).backward()
    naive(functional.embedding(ids, other), other, None, TARGETS, LogitTransform()).backward()
    torch.testing.assert_close(weight.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_without_gradients() -> None:
    tensors = inputs()
    with torch.no_grad():
        total = linear_cross_entropy(*tensors, TARGETS)  # type: ignore[arg-type]
    assert not total.requires_grad
    torch.testing.assert_close(total, naive(*tensors, TARGETS, LogitTransform()).detach())  # type: ignore[arg-type]


def test_half_precision_sums_in_single() -> None:
    ours, exact = inputs(dtype=torch.bfloat16), inputs(dtype=torch.bfloat16)
    doubles = [tensor.detach().double().requires_grad_() for tensor in exact if tensor is not None]
    total = linear_cross_entropy(*ours, TARGETS, chunk_size=5)  # type: ignore[arg-type]
    expected = naive(*doubles, TARGETS, LogitTransform())  # type: ignore[call-arg, arg-type]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected, rtol=5e-3, atol=0)
    total.backward()
    expected.backward()
    for mine, other in zip(ours, doubles, strict=True):
        assert mine is not None and mine.grad is not None and mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=0.03, atol=0.03)


def test_autocast_like_the_plain_loss() -> None:
    ours, theirs = inputs(dtype=torch.float32), inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total = linear_cross_entropy(*ours, TARGETS, chunk_size=5)  # type: ignore[arg-type]
        logits = functional.linear(*theirs)  # type: ignore[arg-type]
        assert logits.dtype == torch.bfloat16
        expected = functional.cross_entropy(logits.float(), TARGETS, reduction="sum", ignore_index=-100)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    total.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine is not None and other is not None and mine.grad is not None and mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad, other.grad, rtol=0.02, atol=0.03)


def test_no_tokens() -> None:
    hidden, weight, bias = inputs()
    assert hidden is not None and weight is not None
    total = linear_cross_entropy(hidden[:0], weight, bias, TARGETS[:0])
    total.backward()
    assert total.item() == 0 and weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, LogitTransform()),
        ({"final_logit_softcapping": 30.0}, LogitTransform(softcap=30.0)),
        ({"final_logit_softcapping": None, "logit_scale": 0.0625}, LogitTransform(0.0625)),
        ({"logits_scaling": 8.0}, LogitTransform(0.125)),
        ({"lm_head_multiplier": 0.5}, LogitTransform(0.5)),
    ],
)
def test_transform_is_read_from_the_config(settings: dict[str, float], expected: LogitTransform) -> None:
    assert LogitTransform.of(type("Config", (), settings)()) == expected
