"""A loss of linear heads against its definition in float64, on any device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor


def make(
    tokens: int = 13,
    width: int = 8,
    vocabulary: int = 37,
    bias: bool = True,
    dtype: Any = torch.float32,
    device: str = "cpu",
) -> Inputs:
    """Inputs of which every fourth target is ignored."""

    def values(*shape: int) -> Tensor:
        return torch.randn(shape).to(device, dtype).requires_grad_()

    targets = torch.randint(vocabulary, (tokens,))
    targets[3::4] = -100
    head_bias = values(vocabulary) if bias else None
    return Inputs(values(tokens, width), values(vocabulary, width), head_bias, targets.to(device))


def exact(
    inputs: Inputs,
    multiplier: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    token_scaling: bool = False,
    factors: Tensor | None = None,
) -> Tensor:
    """The loss as it is defined, token by token, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=inputs.hidden.device)
    weights = [1.0] * len(inputs.targets) if factors is None else factors.tolist()
    for hidden, target, factor in zip(inputs.hidden.double(), inputs.targets.tolist(), weights, strict=True):
        if target == -100:
            continue
        logits = inputs.weight.double() @ hidden + (0 if inputs.bias is None else inputs.bias.double())
        logits = logits * multiplier
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logs = torch.log_softmax(logits, 0)
        loss = -(1 - label_smoothing) * logs[target] - label_smoothing * logs.mean()
        if token_scaling:
            loss = loss * logs[target].detach().exp()
        total = total + factor * (loss + z_loss * torch.logsumexp(logits, 0).square())
    return total


def gradients(total: Tensor, inputs: Inputs) -> list[Tensor]:
    wanted = [value for value in inputs[:3] if value is not None and value.requires_grad]
    return list(torch.autograd.grad(total * 0.37, wanted))


def assert_close_in_half(loss: Any, inputs: Inputs, dtype: torch.dtype, autocast: bool, tolerance: float) -> None:
    """Under autocast with float32 weights, or with half weights: gradients come in the type of the weights."""
    with torch.autocast(inputs.hidden.device.type, dtype, enabled=autocast):
        ours, _ = loss(*inputs)
    reference = exact(inputs)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), reference, rtol=tolerance, atol=0)
    for value, found, expected in zip(inputs[:3], gradients(ours, inputs), gradients(reference, inputs), strict=True):
        assert value is not None and found.dtype == value.dtype
        error = (found.double() - expected.double()).norm() / expected.double().norm()
        assert error < tolerance


def assert_equal(loss: Any, inputs: Inputs, tolerance: float = 2e-6, **options: Any) -> None:
    factors = () if options.get("factors") is None else (options["factors"],)
    ours, _ = loss(*inputs, *factors)
    reference = exact(inputs, **options)
    assert ours.dtype == torch.float32 and ours.shape == ()
    torch.testing.assert_close(ours.double(), reference, rtol=tolerance, atol=tolerance)
    for found, expected in zip(gradients(ours, inputs), gradients(reference, inputs), strict=True):
        scale = float(expected.abs().max()) or 1.0
        torch.testing.assert_close(found.double() / scale, expected.double() / scale, rtol=0, atol=tolerance)
