"""The chunked loss has the value and the gradients of the plain one, and never holds more than a chunk of logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hooktrain_sft.loss.chunked_linear import automatic_chunk_size, linear_loss, logits_loss
from hooktrain_sft.loss.logit_transform import LogitTransform
from hooktrain_sft.loss.token_loss import CrossEntropy, Differentiated
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hooktrain import ModelError
from tests.facts import facts

TRANSFORMS = [LogitTransform(), LogitTransform(0.25), LogitTransform(softcap=5.0), LogitTransform(1.5, 3.0)]
LOSSES = [
    CrossEntropy(),
    CrossEntropy(label_smoothing=0.1),
    CrossEntropy(z_loss=0.01),
    CrossEntropy(weighted_by_probability=True),
    CrossEntropy(0.2, 0.03, True),
    CrossEntropy(0.2, 0.03, False),
]


def naive_logits(logits: Tensor, targets: Tensor, loss: CrossEntropy) -> tuple[Tensor, dict[str, Tensor]]:
    """As the papers write it, from torch's own functions."""
    keep = targets != -100
    logits, targets = logits[keep], targets[keep]
    each = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=loss.label_smoothing)
    probabilities = logits.softmax(-1)
    if loss.weighted_by_probability:
        each = each * probabilities.gather(1, targets[:, None])[:, 0].detach()
    total = (each + loss.z_loss * logits.logsumexp(-1) ** 2).sum()
    sums = {
        "token_accuracy": (logits.argmax(-1) == targets).sum(),
        "entropy": torch.special.entr(probabilities).sum(),
        "cross_entropy": functional.cross_entropy(logits, targets, reduction="sum"),
        "z_loss": (logits.logsumexp(-1) ** 2).sum(),
    }
    return total, {name: sums[name].detach() for name in loss.metrics}


def naive(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, loss: CrossEntropy, transform: LogitTransform
) -> tuple[Tensor, dict[str, Tensor]]:
    return naive_logits(transform(functional.linear(hidden, weight, bias)), targets, loss)


def inputs(bias: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0, tokens: int = 23) -> list[Any]:
    made = torch.Generator().manual_seed(seed)
    shapes = [(tokens, 8), (17, 8), (17,)]
    tensors = [torch.randn(shape, generator=made, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return [*tensors[:2], tensors[2] if bias else None]


def doubles(tensors: list[Any]) -> list[Any]:
    return [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in tensors]


def some_targets(tokens: int = 23, seed: int = 1) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 17, (tokens,), generator=made)
    targets[torch.rand(tokens, generator=made) < 0.1] = -100
    return targets


TARGETS = some_targets()


def assert_equal(
    ours: list[Any], targets: Tensor, loss: CrossEntropy, transform: LogitTransform, chunk: int, **tolerance: float
) -> None:
    theirs = doubles(ours)
    total, sums = linear_loss(*ours, targets, loss, transform, chunk)
    expected, expected_sums = naive(*theirs, targets, loss, transform)
    torch.testing.assert_close(total.double(), expected, **tolerance)
    assert sums.keys() == expected_sums.keys() and not any(value.requires_grad for value in sums.values())
    for name, value in sums.items():
        torch.testing.assert_close(value.double(), expected_sums[name].double(), **tolerance, msg=name)
    (total * 0.37).backward()
    (expected * 0.37).backward()
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None:
            assert mine.grad.dtype == mine.dtype
            torch.testing.assert_close(mine.grad.double(), other.grad, **tolerance)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_in_double_precision(loss: CrossEntropy, transform: LogitTransform, bias: bool) -> None:
    for chunk in (1, 5, 23, 100):
        assert_equal(inputs(bias), TARGETS, loss, transform, chunk, rtol=1e-10, atol=1e-10)


@given(
    tokens=st.integers(1, 40),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    smoothing=st.sampled_from([0.0, 0.3]),
    z_loss=st.sampled_from([0.0, 0.05]),
    dft=st.booleans(),
    bias=st.booleans(),
    transform=st.sampled_from(TRANSFORMS),
)
@settings(max_examples=60, deadline=None)
def test_single_precision_equals_the_naive_loss_in_double(
    tokens: int,
    chunk: int,
    seed: int,
    smoothing: float,
    z_loss: float,
    dft: bool,
    bias: bool,
    transform: LogitTransform,
) -> None:
    ours, targets = inputs(bias, torch.float32, seed, tokens), some_targets(tokens, seed)
    assert_equal(ours, targets, CrossEntropy(smoothing, z_loss, dft), transform, chunk, rtol=2e-5, atol=2e-4)


@given(tokens=st.integers(1, 40), chunk=st.integers(1, 50), seed=st.integers(0, 2**31), loss=st.sampled_from(LOSSES))
@settings(max_examples=40, deadline=None)
def test_bf16_is_off_by_its_own_rounding(tokens: int, chunk: int, seed: int, loss: CrossEntropy) -> None:
    """No further from the exact gradients than the plain loss, which makes the same roundings, can be."""
    ours, targets = inputs(True, torch.bfloat16, seed, tokens), some_targets(tokens, seed)
    exact = doubles(ours)
    total, sums = linear_loss(*ours, targets, loss, chunk_size=chunk)
    expected, expected_sums = naive(*exact, targets, loss, LogitTransform())
    assert total.dtype == torch.float32
    count = max(1, int((targets != -100).sum()))
    scale = 1 + 10 * loss.z_loss
    assert abs(total.item() - expected.item()) / count < 0.03 * scale
    assert abs(float(sums["entropy"]) - float(expected_sums["entropy"])) / count < 0.03
    total.backward()
    expected.backward()
    for mine, other in zip(ours, exact, strict=True):
        if float(other.grad.norm()) > 0:
            assert float((mine.grad.double() - other.grad).norm() / other.grad.norm()) < 0.03


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_gradients_that_are_needed(needed: tuple[bool, bool, bool]) -> None:
    tensors = inputs()
    for tensor, wanted in zip(tensors, needed, strict=True):
        tensor.requires_grad_(wanted)
    linear_loss(*tensors, TARGETS, CrossEntropy())[0].backward()
    assert [tensor.grad is not None for tensor in tensors] == list(needed)


def test_tied_weight() -> None:
    _, weight, _ = inputs()
    other, ids = weight.detach().clone().requires_grad_(), TARGETS.clamp(min=0)
    linear_loss(functional.embedding(ids, weight), weight, None, TARGETS, CrossEntropy(), chunk_size=4)[0].backward()
    naive(functional.embedding(ids, other), other, None, TARGETS, CrossEntropy(), LogitTransform())[0].backward()
    torch.testing.assert_close(weight.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_without_gradients() -> None:
    tensors = inputs()
    with torch.no_grad():
        total, _ = linear_loss(*tensors, TARGETS, CrossEntropy())
    assert not total.requires_grad
    torch.testing.assert_close(total, naive(*tensors, TARGETS, CrossEntropy(), LogitTransform())[0].detach())


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_autocast_like_the_plain_loss(chunk: int) -> None:
    ours, theirs = inputs(dtype=torch.float32), inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_loss(*ours, TARGETS, CrossEntropy(), chunk_size=chunk)
        logits = functional.linear(*theirs)
        assert logits.dtype == torch.bfloat16
        expected = functional.cross_entropy(logits.float(), TARGETS, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    total.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad, other.grad, rtol=0.02, atol=0.03)


def test_bf16_chunks_add_up_in_single_precision() -> None:
    """In bf16 the 513th of equal gradients would no longer change the sum of the others."""
    hidden = torch.ones(1024, 8, dtype=torch.bfloat16)
    weight = torch.zeros(4, 8, dtype=torch.bfloat16, requires_grad=True)
    linear_loss(hidden, weight, None, torch.zeros(1024, dtype=torch.long), CrossEntropy(), chunk_size=1)[0].backward()
    assert weight.grad is not None
    assert weight.grad[0, 0].item() == pytest.approx(-0.75 * 1024, rel=4e-3)


def test_a_padding_batch_reaches_everything() -> None:
    tensors = inputs(tokens=1)
    total, sums = linear_loss(*tensors, torch.tensor([-100]), CrossEntropy(0.1, 0.1, True))
    total.backward()
    assert total.item() == 0 and all(value == 0 for value in sums.values())
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in tensors)


def test_backward_twice() -> None:
    """Gradients are scaled in place, except where somebody keeps the graph."""
    tensors = inputs()
    total, _ = linear_loss(*tensors, TARGETS, CrossEntropy(), chunk_size=5)
    first = torch.autograd.grad(total, tensors, retain_graph=True)
    second = torch.autograd.grad(2 * total, tensors)
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, two)


def test_logits_that_are_there_already() -> None:
    tensors = inputs()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        logits = functional.linear(*tensors).detach().to(dtype).requires_grad_()
        other = logits.detach().double().requires_grad_()
        before = logits.detach().clone()
        loss = CrossEntropy(0.1, 0.01, True)
        total, sums = logits_loss(logits, TARGETS, loss)
        expected, expected_sums = naive_logits(other, TARGETS, loss)
        (3 * total).backward()
        (3 * expected).backward()
        assert torch.equal(logits, before), "the model's logits are left as they were"
        assert logits.grad is not None and logits.grad.dtype == dtype
        torch.testing.assert_close(total.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(logits.grad.double(), other.grad, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(sums["entropy"].double(), expected_sums["entropy"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_a_function_of_logits_is_differentiated(transform: LogitTransform, chunk: int) -> None:
    def focal(logits: Tensor, targets: Tensor) -> Tensor:
        surprise = functional.cross_entropy(logits, targets, reduction="none")
        return (1 - torch.exp(-surprise)) ** 2 * surprise

    ours, theirs = inputs(), inputs()
    total, sums = linear_loss(*ours, TARGETS, Differentiated(focal), transform, chunk)
    keep = TARGETS != -100
    logits = transform(functional.linear(*theirs))[keep]
    expected = focal(logits, TARGETS[keep]).sum()
    torch.testing.assert_close(total, expected)
    assert float(sums["token_accuracy"]) == float((logits.argmax(-1) == TARGETS[keep]).sum())
    total.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_function_that_sums_is_an_error() -> None:
    with pytest.raises(
        ModelError, match=facts("loss", "torch.nn.functional.cross_entropy", "shape ()", f"({len(TARGETS)},)")
    ):
        linear_loss(*inputs(), TARGETS, Differentiated(functional.cross_entropy))


# ------------------------------------------------------------------------------------------------------ memory


class Largest(TorchDispatchMode):
    """The most elements that a new tensor has, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize(
    "loss", [*LOSSES, Differentiated(lambda x, y: functional.cross_entropy(x, y, reduction="none"))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_grows_with_vocabulary_times_sequence(loss: Any, dtype: torch.dtype) -> None:
    vocabulary, width, chunk = 512, 4, 32
    found = []
    for tokens in (64, 128, 512):
        hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
        weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
        with Largest() as largest:
            linear_loss(hidden, weight, None, torch.zeros(tokens, dtype=torch.long), loss, chunk_size=chunk)[
                0
            ].backward()
        found.append(largest.elements)
    assert found == [chunk * vocabulary] * 3, "64 to 512 tokens alike"


def test_peak_memory_is_that_of_a_chunk() -> None:
    from torch.profiler import ProfilerActivity, profile

    def peak(tokens: int, chunk: int) -> int:
        hidden = torch.randn(tokens, 8, requires_grad=True)
        weight = torch.randn(2048, 8, requires_grad=True)
        targets = torch.zeros(tokens, dtype=torch.long)
        linear_loss(hidden, weight, None, targets, CrossEntropy(), chunk_size=chunk)[0].backward()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            linear_loss(hidden, weight, None, targets, CrossEntropy(), chunk_size=chunk)[0].backward()
        now = most = 0
        for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
        return most

    logits = 64 * 2048 * 4
    small, large = peak(128, 64), peak(2048, 64)
    assert 2 * logits <= small <= 3.5 * logits
    assert large <= small + 2048 * 8 * 4 * 8, "what grows is as wide as the hidden states"
    assert peak(2048, 2048) > 10 * large


@pytest.mark.parametrize("vocabulary", [100, 49152, 128256, 262144])
def test_automatic_chunks(vocabulary: int) -> None:
    assert automatic_chunk_size(vocabulary, "cpu") * vocabulary * 4 <= 48 * 2**20
    assert automatic_chunk_size(vocabulary, "cuda") > automatic_chunk_size(vocabulary, "cpu")
    assert automatic_chunk_size(10**8, "cpu") == 16


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [LogitTransform()]),
        ({"final_logit_softcapping": 30.0}, [LogitTransform(softcap=30.0), LogitTransform()]),
        (
            {"final_logit_softcapping": None, "logit_scale": 0.0625},
            [LogitTransform(0.0625), LogitTransform()],
        ),
        ({"logits_scaling": 8.0}, [LogitTransform(0.125), LogitTransform(8.0), LogitTransform()]),
        ({"lm_head_multiplier": 0.5}, [LogitTransform(0.5), LogitTransform()]),
    ],
)
def test_transforms_that_a_config_may_mean(settings: dict[str, float], expected: list[LogitTransform]) -> None:
    assert list(LogitTransform.candidates(SimpleNamespace(config=SimpleNamespace(**settings)))) == expected
