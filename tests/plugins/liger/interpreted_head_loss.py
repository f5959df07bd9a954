"""Liger's cross-entropies against the loss written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hooktrain_liger.head_loss import CrossEntropy, FusedLinearCrossEntropy
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.liger.parity_loss import Inputs, assert_close_in_half, assert_equal, exact, gradients, make

LOSSES = [FusedLinearCrossEntropy, CrossEntropy]


@pytest.mark.parametrize("make_loss", LOSSES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("smoothing", "z_loss", "multiplier"), [(0, 0, 1), (0.1, 0, 1), (0, 1e-2, 1), (0.1, 1e-2, 0.3)]
)
def test_value_and_gradients(make_loss: Any, bias: bool, smoothing: float, z_loss: float, multiplier: float) -> None:
    options = {"label_smoothing": smoothing, "z_loss": z_loss, "multiplier": multiplier}
    assert_equal(make_loss(**options), make(bias=bias), **options)


@pytest.mark.usefixtures("full_interpreter")
@pytest.mark.parametrize("make_loss", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_capped_logits(make_loss: Any, smoothing: float) -> None:
    options = {"softcap": 2.0, "multiplier": 1.7, "label_smoothing": smoothing, "z_loss": 1e-2}
    assert_equal(make_loss(**options), make(), **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_by_probability(smoothing: float) -> None:
    options = {"token_scaling": True, "label_smoothing": smoothing}
    assert_equal(FusedLinearCrossEntropy(**options), make(), **options)


@pytest.mark.parametrize(
    ("make_loss", "options"),
    [
        (FusedLinearCrossEntropy, {"label_smoothing": 0.1, "z_loss": 1e-2, "multiplier": 0.3}),
        (FusedLinearCrossEntropy, {"token_scaling": True}),
        (lambda **options: CrossEntropy(chunk_size=3, **options), {"label_smoothing": 0.1, "z_loss": 1e-2}),
    ],
)
def test_weighted_tokens(make_loss: Any, options: dict[str, Any]) -> None:
    inputs = make()
    factors = torch.rand(len(inputs.targets)) * 3
    assert_equal(make_loss(**options), inputs, factors=factors, **options)
    _, sums = make_loss(**options)(*inputs, factors)
    guesses = (inputs.hidden @ inputs.weight.t() + inputs.bias).argmax(1)
    expected = ((guesses == inputs.targets) * factors).sum()
    torch.testing.assert_close(sums["token_accuracy"].float(), expected)


@pytest.mark.parametrize("make_loss", [FusedLinearCrossEntropy, lambda: CrossEntropy(chunk_size=3)])
def test_sum_does_not_depend_on_how_tokens_are_divided(make_loss: Any) -> None:
    """Liger's own forward returns a mean, so that micro-batches would weigh alike whatever their tokens."""

    @settings(max_examples=4, deadline=None)
    @given(st.integers(1, 12), st.data())
    def check(tokens: int, data: st.DataObject) -> None:
        inputs = make(tokens, width=4, vocabulary=11)
        cut = data.draw(st.integers(1, tokens))
        parts = [slice(0, cut), slice(cut, tokens)] if cut < tokens else [slice(0, tokens)]
        total = make_loss()(*inputs)[0]
        apart = sum(make_loss()(inputs.hidden[p], inputs.weight, inputs.bias, inputs.targets[p])[0] for p in parts)
        torch.testing.assert_close(total, apart, rtol=1e-5, atol=1e-5)
        for one, other in zip(gradients(total, inputs), gradients(apart, inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    check()


@pytest.mark.parametrize("make_loss", LOSSES)
@pytest.mark.parametrize("trained", [["hidden"], ["weight"], ["bias"], ["weight", "bias"]])
def test_gradients_of_what_trains_alone(make_loss: Any, trained: list[str]) -> None:
    """A frozen head under LoRA, and a head on a frozen model, for which Liger computes no gradient."""
    inputs = make()
    for name in ("hidden", "weight", "bias"):
        getattr(inputs, name).requires_grad_(name in trained)
    assert_equal(make_loss(), inputs)


@pytest.mark.parametrize("make_loss", LOSSES)
def test_gradients_reach_tied_weights_from_both_sides(make_loss: Any) -> None:
    plain = make(bias=False)
    embedded = plain.hidden + plain.weight[:13]
    tied = Inputs(embedded, plain.weight, None, plain.targets)
    (found,) = torch.autograd.grad(make_loss()(*tied)[0], plain.weight, retain_graph=True)
    (expected,) = torch.autograd.grad(exact(tied), plain.weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make_loss", LOSSES)
def test_evaluation_makes_no_graph_and_the_same_value(make_loss: Any) -> None:
    inputs = make()
    with torch.no_grad():
        quiet, _ = make_loss()(*inputs)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, make_loss()(*inputs)[0], rtol=0, atol=0)


@pytest.mark.parametrize("make_loss", LOSSES)
def test_inputs_stay_unchanged(make_loss: Any) -> None:
    """Liger writes gradients over logits, and scales gradients where they lie."""
    inputs = make()
    before = [value.detach().clone() for value in inputs if value is not None]
    make_loss(multiplier=2.0)(*inputs)[0].backward()
    for value, copy in zip((v for v in inputs if v is not None), before, strict=True):
        assert torch.equal(value, copy)


@pytest.mark.parametrize("make_loss", LOSSES)
def test_only_ignored_targets_give_zero(make_loss: Any) -> None:
    inputs = make(3)
    inputs.targets.fill_(-100)
    total, sums = make_loss()(*inputs)
    assert not total.any() and int(sums["token_accuracy"]) == 0
    assert all(not gradient.any() for gradient in gradients(total, inputs))


@pytest.mark.parametrize("make_loss", LOSSES)
def test_accuracy_counts_right_guesses_among_supervised_tokens(make_loss: Any) -> None:
    inputs = make(tokens=41, vocabulary=3)
    logits = inputs.hidden @ inputs.weight.t() + inputs.bias
    right = int((logits.argmax(1) == inputs.targets).sum())
    sums = make_loss()(*inputs)[1]
    assert 0 < right < 30
    assert {name: int(value) for name, value in sums.items()} == {"token_accuracy": right}
    assert not sums["token_accuracy"].requires_grad


@pytest.mark.parametrize("make_loss", LOSSES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "autocast"),
    [
        (torch.bfloat16, 2e-2, True),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in ((torch.bfloat16, 2e-2, False), (torch.float16, 3e-3, True), (torch.float16, 3e-3, False))
        ),
    ],
)
def test_half_precision(make_loss: Any, dtype: torch.dtype, tolerance: float, autocast: bool) -> None:
    inputs = make(tokens=64, width=32, dtype=torch.float32 if autocast else dtype)
    assert_close_in_half(make_loss(), inputs, dtype, autocast, tolerance)


def test_many_chunks_add_up_in_single_precision() -> None:
    """In bf16 a running sum of ones stops at 256."""
    tokens = vocabulary = 264
    hidden = torch.ones(tokens, 1, dtype=torch.bfloat16, requires_grad=True)  # so narrow that a chunk is one token
    weight = torch.zeros(vocabulary, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long)
    (gradient,) = torch.autograd.grad(FusedLinearCrossEntropy()(hidden, weight, None, targets)[0], weight)
    torch.testing.assert_close(float(gradient[0]), tokens / vocabulary - tokens, rtol=1e-2, atol=0)
