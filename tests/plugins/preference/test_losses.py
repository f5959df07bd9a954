"""Losses and gradients of pairs are those of a plain computation in float64, however a step is divided."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hooktrain_preference import (
    CPOLossConfig,
    DPOLossConfig,
    ORPOLossConfig,
    PairLoss,
    SimPOLossConfig,
    collate_pairs,
)
from hooktrain_preference.pair_losses import LOSSES
from hooktrain_sft import LogitTransform
from hooktrain_sft.loss.log_probs import linear_log_probs
from torch import Tensor, nn

from hooktrain import ModelError, Trainer, padding_batch
from hooktrain.testing import Recorder, make_llama, make_tokenizer

Answers = tuple[Tensor, Tensor, int, int]
"""Log of how much likelier chosen and rejected answers are than by the reference, and their numbers of tokens."""


def log_sigmoid(value: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-value))


def naive_orpo(c: Tensor, r: Tensor, m: int, n: int) -> Tensor:
    odds = [p.exp() / (1 - p.exp()) for p in (c / m, r / n)]
    return -c / m - 0.1 * log_sigmoid((odds[0] / odds[1]).log())


def naive_discopop(margin: Tensor) -> Tensor:
    mixed = torch.sigmoid(margin / 0.5)
    return -log_sigmoid(margin) * (1 - mixed) + torch.exp(-margin) * mixed


NAIVE: list[tuple[Any, Callable[[Tensor, Tensor, int, int], Tensor]]] = [
    (DPOLossConfig(beta=0.3), lambda c, r, m, n: -log_sigmoid(0.3 * (c - r))),
    (
        DPOLossConfig(label_smoothing=0.2),
        lambda c, r, m, n: -0.8 * log_sigmoid(0.1 * (c - r)) - 0.2 * log_sigmoid(0.1 * (r - c)),
    ),
    (DPOLossConfig(loss_type="sigmoid_norm", beta=2.0), lambda c, r, m, n: -log_sigmoid(2.0 * (c / m - r / n))),
    (DPOLossConfig(loss_type="ipo"), lambda c, r, m, n: (c / m - r / n - 5.0) ** 2),
    (DPOLossConfig(loss_type="hinge"), lambda c, r, m, n: torch.clamp(1 - 0.1 * (c - r), min=0)),
    (
        DPOLossConfig(loss_type="robust", label_smoothing=0.1),
        lambda c, r, m, n: (-0.9 * log_sigmoid(0.1 * (c - r)) + 0.1 * log_sigmoid(0.1 * (r - c))) / 0.8,
    ),
    (
        DPOLossConfig(loss_type="apo_zero"),
        lambda c, r, m, n: 1 - torch.sigmoid(0.1 * c) + torch.sigmoid(0.1 * r),
    ),
    (
        DPOLossConfig(loss_type="apo_down"),
        lambda c, r, m, n: torch.sigmoid(0.1 * c) + 1 - torch.sigmoid(0.1 * (c - r)),
    ),
    (
        DPOLossConfig(loss_type="exo_pair", label_smoothing=0.1),
        lambda c, r, m, n: sum(
            torch.sigmoid(sign * 0.1 * (c - r)) * (log_sigmoid(sign * 0.1 * (c - r)) - math.log(share))
            for sign, share in ((1, 0.9), (-1, 0.1))
        ),
    ),
    (
        DPOLossConfig(loss_type="nca_pair"),
        lambda c, r, m, n: -log_sigmoid(0.1 * c) - 0.5 * (log_sigmoid(-0.1 * c) + log_sigmoid(-0.1 * r)),
    ),
    (DPOLossConfig(loss_type="bco_pair"), lambda c, r, m, n: -log_sigmoid(0.1 * c) - log_sigmoid(-0.1 * r)),
    (DPOLossConfig(loss_type="sppo_hard"), lambda c, r, m, n: (c - 5.0) ** 2 + (r + 5.0) ** 2),
    (DPOLossConfig(loss_type="discopop", discopop_tau=0.5), lambda c, r, m, n: naive_discopop(0.1 * (c - r))),
    (
        DPOLossConfig(loss_type={"hinge": 0.5, "ipo": 2}),
        lambda c, r, m, n: 0.5 * torch.clamp(1 - 0.1 * (c - r), min=0) + 2 * (c / m - r / n - 5.0) ** 2,
    ),
    (SimPOLossConfig(), lambda c, r, m, n: -log_sigmoid(2.0 * (c / m - r / n - 0.25))),
    (ORPOLossConfig(), naive_orpo),
    (CPOLossConfig(cpo_alpha=0.5), lambda c, r, m, n: -log_sigmoid(0.1 * (c - r)) - 0.5 * c / m),
]
"""Each loss, and a plain formula of it, as in the papers."""


def pair(seed: int, weighted: bool = False) -> dict[str, Any]:
    """A pair of random tokens as a sequence of two documents, of which the answers have labels."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 9, (3,), generator=generator).tolist()
    prompt, *answers = (torch.randint(3, 290, (size,), generator=generator) for size in sizes)
    ids = torch.cat([part for answer in answers for part in (prompt, answer)])
    labels = torch.cat([part for answer in answers for part in (torch.full_like(prompt, -100), answer)])
    positions = torch.cat([torch.arange(len(prompt) + len(answer)) for answer in answers])
    made = {"input_ids": ids.numpy(), "labels": labels.numpy(), "position_ids": positions.numpy()}
    if weighted:
        weights = torch.rand(len(ids), generator=generator) * (labels != -100)
        made["token_weights"] = weights.numpy()
    return made


def log_prob(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """The log-probabilities of the labels of one document, by a call of the model alone."""
    logits = model(input_ids=ids[None]).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0][labels[1:] != -100]


def naive(model: nn.Module, reference: nn.Module | None, batch: Mapping[str, Any], formula: Any) -> tuple[Tensor, list]:
    """The sum of a loss over pairs, and the logs of the ratios, a document at a time."""
    lengths = batch["document_lengths"]
    documents = zip(batch["input_ids"][0].split(lengths), batch["labels"][0].split(lengths), strict=True)
    ratios: list[tuple[Tensor, int]] = []
    for ids, labels in documents:
        found = log_prob(model, ids, labels)
        total = found.sum()
        if reference is not None:
            total = total - log_prob(reference, ids, labels).sum().detach()
        ratios.append((total, len(found)))
    pairs = list(zip(ratios[::2], ratios[1::2], strict=True))
    return sum(formula(c, r, m, n) for (c, m), (r, n) in pairs), pairs  # type: ignore[return-value]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad.double() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    """A model and a reference that differs from it, in float64."""
    model = make_llama(make_tokenizer()).double()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for number, weight in enumerate(reference.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)), alpha=0.05)
    return model, reference


@pytest.mark.parametrize(
    ("config", "formula"), NAIVE, ids=[f"{type(c).__name__}-{getattr(c, 'loss_type', '')}" for c, _ in NAIVE]
)
def test_each_loss_is_that_of_its_paper(config: Any, formula: Any, models: tuple[nn.Module, nn.Module]) -> None:
    model, reference = (copy.deepcopy(each) for each in models)
    loss = PairLoss(partial(LOSSES[type(config)], config), chunk_size=5)
    batch = collate_pairs([pair(1), pair(2), pair(3)])
    given = {name: value for name, value in batch.items() if name not in ("tokens", "denominator", "counts")}
    if config.needs_reference:
        with torch.no_grad():
            given["reference_log_probs"] = loss.answers(reference, given, 3.0)
    found = loss(model, given, 3.0)
    found.total.backward()
    ours = gradients(model)
    model.zero_grad()
    expected, pairs = naive(model, reference if config.needs_reference else None, batch, formula)
    expected.backward()
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-12)
    for name, gradient in gradients(model).items():
        assert float((ours[name] - gradient).norm()) <= 1e-9 * float(gradient.norm()), name
    assert found.counts == "pairs" and found.denominator == 3.0
    better = sum(float(chosen[0] > rejected[0]) for chosen, rejected in pairs)
    if isinstance(config, DPOLossConfig | CPOLossConfig):
        assert found.sums["rewards/accuracies"] == better
        assert found.sums["rewards/margins"].item() == pytest.approx(
            config.beta * sum(float((c[0] - r[0]).detach()) for c, r in pairs)
        )


def test_weights_of_tokens_multiply_their_log_probabilities(models: tuple[nn.Module, nn.Module]) -> None:
    model, _ = models
    loss = PairLoss(partial(LOSSES[SimPOLossConfig], SimPOLossConfig()))
    batch = collate_pairs([pair(1, weighted=True), pair(2)])
    with torch.no_grad():
        found = loss(model, batch, 2.0)
    lengths = batch["document_lengths"]
    columns = (batch[name][0].split(lengths) for name in ("input_ids", "labels", "token_weights"))
    means = []
    for ids, labels, weights in zip(*columns, strict=True):
        there = weights[1:][labels[1:] != -100].double()
        means.append(float((log_prob(model, ids, labels) * there).sum() / there.sum()))
    expected = sum(math.log1p(math.exp(-2.0 * (c - r) + 0.5)) for c, r in zip(means[::2], means[1::2], strict=True))
    assert found.total.item() == pytest.approx(expected, rel=1e-6)


def test_a_padding_batch_trains_nothing(models: tuple[nn.Module, nn.Module]) -> None:
    model = copy.deepcopy(models[0])
    loss = PairLoss(partial(LOSSES[DPOLossConfig], DPOLossConfig()))
    batch = padding_batch(collate_pairs([pair(1), pair(2, weighted=True)]))
    found = loss(model, batch, 0.0)
    found.total.backward()
    assert found.total == 0 and all(not gradient.any() for gradient in gradients(model).values())
    assert all(value.isfinite() for value in found.sums.values())


def test_tokens_shared_between_ranks_are_refused(models: tuple[nn.Module, nn.Module]) -> None:
    loss = PairLoss(partial(LOSSES[DPOLossConfig], DPOLossConfig()))
    with pytest.raises(ModelError, match="sequence_parallel: this loss compares sequences"):
        loss(models[0], {**collate_pairs([pair(1)]), "sequence_parallel": object()}, 1.0)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_log_probabilities_of_a_head_with_a_bias(softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((7, 4), (11, 4), (11,))
    parts = [torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in sizes]
    hidden, weight, bias = parts
    targets, scale = torch.tensor([3, -100, 0, 10, 5, 5, 1]), torch.arange(1.0, 8.0, dtype=torch.float64)
    found = linear_log_probs(hidden, weight, bias, targets, LogitTransform(0.5, softcap), chunk_size=3)
    ours = torch.autograd.grad((found * scale).sum(), parts)
    logits = 0.5 * (hidden @ weight.t() + bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = logits.log_softmax(1).gather(1, targets.clamp(min=0)[:, None])[:, 0] * (targets != -100)
    torch.testing.assert_close(found, expected)
    for one, other in zip(ours, torch.autograd.grad((expected * scale).sum(), parts), strict=True):
        torch.testing.assert_close(one, other)


# ------------------------------------------------------------------------------------------------ how a step is divided

SAME = ("loss", "grad_norm", "pairs", "rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected")


def lines_of(run: Callable[..., Trainer], **changes: Any) -> list[dict[str, float]]:
    recorder = Recorder()
    run(recorder, **changes)
    return [{name: line[name] for name in SAME} for line in recorder.metrics]


def assert_same(found: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, float]]) -> None:
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert dict(one) == pytest.approx(dict(other), rel=1e-6, abs=1e-5)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)


def test_accumulated_pairs_give_what_packed_ones_do(run: Callable[..., Trainer]) -> None:
    """In a micro-batch all pairs are in one sequence; one pair at a time sees no other pair in any case."""
    packed = lines_of(run)
    assert packed[0]["loss"] == pytest.approx(math.log(2)), "the model is its own reference at first"
    assert packed[-1]["loss"] < packed[0]["loss"] and packed[-1]["rewards/accuracies"] > 0.5
    assert_same(lines_of(run, micro_batch_size=1, gradient_accumulation_steps=4), packed)


@pytest.mark.thorough
def test_two_ranks_train_as_one_does(run: Callable[..., Trainer], recipe: dict[str, Any], tmp_path: Path) -> None:
    alone = lines_of(run)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "micro_batch_size": 2, "run_dir": str(tmp_path / "ranks")}))
    command = [sys.executable, "-m", "hooktrain", "train", str(path), "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "ranks/metrics.jsonl").read_text()
    assert_same([{name: line[name] for name in SAME} for line in map(json.loads, text.splitlines())], alone)
