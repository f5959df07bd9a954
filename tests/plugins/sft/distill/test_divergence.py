"""Divergences and their gradients are those of a plain computation in float64, and no logits of all tokens are kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hooktrain_sft.distill.ahead import likeliest
from hooktrain_sft.distill.config import DistillLossConfig
from hooktrain_sft.distill.divergence import BesideTeacher, DistillTokenLoss, StoredTeacher, UniformTeacher
from hooktrain_sft.distill.loss import STORED, TEACHER, DistillLoss
from hooktrain_sft.distill.teacher import TeacherForward
from hooktrain_sft.loss.chunked_linear import linear_loss
from hooktrain_sft.loss.logit_transform import LogitTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.plugins.sft.distill.naive import naive_divergence, naive_loss

DIVERGENCES = [
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl"},
    {"divergence": "jsd"},
    {"divergence": "jsd", "beta": 0.1},
]
CONFIGS = st.builds(
    lambda kind, temperature, share: DistillLossConfig(**kind, temperature=temperature, label_weight=share),
    st.sampled_from(DIVERGENCES),
    st.sampled_from([1.0, 0.5, 3.0]),
    st.sampled_from([0.0, 0.3, 0.99]),
)


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def beside(hidden: Tensor, weight: Tensor, transform: LogitTransform = LogitTransform()) -> BesideTeacher:
    return BesideTeacher(hidden, lambda part: transform.forward_(part @ weight.t()))


@settings(deadline=None, max_examples=60)
@given(
    config=CONFIGS,
    size=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    weighted=st.booleans(),
    softcap=st.sampled_from([None, 4.0]),
    bias=st.booleans(),
)
def test_loss_and_gradients_in_float64(
    config: DistillLossConfig, size: int, seed: int, weighted: bool, softcap: float | None, bias: bool
) -> None:
    hidden, weight, shift, of_teacher, head = tensors(seed, (13, 5), (17, 5), (17,), (13, 7), (17, 7))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 17, (13,), generator=generator)
    targets[::4] = -100
    weights = torch.rand(13, generator=generator, dtype=torch.float64) if weighted else None
    leaves = [each.requires_grad_() for each in ((hidden, weight, shift) if bias else (hidden, weight))]
    transform = LogitTransform(0.5, softcap)
    loss = DistillTokenLoss(config, beside(of_teacher, head, LogitTransform(softcap=3.0)))
    total, sums = linear_loss(hidden, weight, shift if bias else None, targets, loss, transform, size, weights)
    kept = targets != -100
    logits = transform(hidden @ weight.t() + (shift if bias else 0.0))
    teacher = LogitTransform(softcap=3.0)(of_teacher @ head.t())
    factors = 1.0 if weights is None else weights[kept]
    expected, each, labels = naive_loss(config, logits[kept], teacher[kept], targets[kept], factors)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(sums[config.divergence], each.detach(), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(sums["cross_entropy"], labels.detach(), rtol=1e-10, atol=1e-11)
    ours, theirs = (torch.autograd.grad(one, leaves) for one in (total, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", DIVERGENCES, ids=str)
@pytest.mark.parametrize("top_k", [1, 3, 17])
def test_stored_tokens_and_all_others_as_one(kind: dict[str, Any], top_k: int) -> None:
    """As the divergence of distributions over the stored tokens and the event that it is another one."""
    config = DistillLossConfig(**kind, top_k=top_k)
    logits, of_teacher, head = tensors(1, (9, 17), (9, 4), (17, 4))
    logits.requires_grad_()
    records = likeliest(beside(of_teacher, head), 9, top_k, 17)
    stored = StoredTeacher(*(torch.from_numpy(records[name].copy()) for name in ("ids", "log_probs", "rest")))
    each, gradient = stored.compare(config, logits.detach().log_softmax(1), slice(0, 9))
    assert records["ids"].shape == (9, top_k)

    def events(values: Tensor) -> Tensor:
        probabilities = values.softmax(1)
        chosen = probabilities.gather(1, stored.ids.long())
        rest = [] if top_k == 17 else [1 - chosen.sum(1, keepdim=True)]
        return torch.cat([chosen, *rest], 1).log()

    expected = naive_divergence(config, events(logits), events(of_teacher @ head.t()))
    # what is stored is in single precision
    torch.testing.assert_close(each[:, 0], expected.detach(), rtol=1e-5, atol=1e-6)
    (exact,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-6)
    if top_k == 17:
        complete = naive_divergence(config, logits.detach(), of_teacher @ head.t())
        torch.testing.assert_close(each[:, 0], complete, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [15, 20])
@pytest.mark.parametrize("kind", DIVERGENCES, ids=str)
def test_rows_of_padded_embeddings(kind: dict[str, Any], rows: int) -> None:
    """Rows that the teacher has not are as unlikely as its least likely one; those that the model has not are cut."""
    config = DistillLossConfig(**kind)
    logits, of_teacher, head = tensors(2, (9, 17), (9, 4), (rows, 4))
    teacher = of_teacher @ head.t()
    wide = torch.cat([teacher, teacher.min(1, keepdim=True).values.expand(-1, 2)], 1)[:, :17]
    each, _ = beside(of_teacher, head).compare(config, logits.log_softmax(1), slice(0, 9))
    torch.testing.assert_close(each[:, 0], naive_divergence(config, logits, wide))


def test_a_model_that_is_its_teacher_has_no_divergence_and_no_gradient() -> None:
    for kind in DIVERGENCES:
        (logits,) = tensors(3, (9, 17))
        teacher = BesideTeacher(logits, torch.clone)
        each, gradient = teacher.compare(DistillLossConfig(**kind), logits.log_softmax(1), slice(0, 9))
        assert each.abs().max() < 1e-14 and gradient.abs().max() < 1e-14


def test_far_apart_in_single_precision() -> None:
    """Probabilities that underflow give no NaN."""
    for kind in DIVERGENCES:
        logits, teacher = torch.zeros(2, 5), torch.zeros(2, 5)
        logits[:, 0], teacher[:, 1] = 300.0, 300.0
        each, gradient = BesideTeacher(teacher, torch.clone).compare(
            DistillLossConfig(**kind), logits.log_softmax(1), slice(0, 2)
        )
        expected = math.log(2) if kind == {"divergence": "jsd"} else None if kind["divergence"] == "jsd" else 300.0
        assert gradient.isfinite().all() and (expected is None or float(each[0]) == pytest.approx(expected))


# ----------------------------------------------------------------------------------------------------- with models


def batch(tokens: int = 24, weighted: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 61, (2, tokens), generator=generator)
    trained = torch.rand((2, tokens), generator=generator) < 0.4
    trained[:, 0] = False
    made: dict[str, Any] = {"input_ids": ids, "labels": torch.where(trained, ids, -100)}
    made["position_ids"] = torch.arange(tokens).repeat(2, 1)
    if weighted:
        made["token_weights"] = torch.rand((2, tokens), generator=generator) * trained
        made["num_target_tokens"] = int(trained.sum())
    return made


def denominator_of(made: dict[str, Any]) -> float:
    return float(made["token_weights"].sum()) if "token_weights" in made else float((made["labels"] != -100).sum())


def hooked(model: Any) -> Any:
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1.0)
    return model


def opaque(model: Any) -> Any:
    model.__class__ = type("Opaque", (type(model),), {"get_decoder": lambda self: self})
    return model


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("student", [lambda model: model, hooked, opaque], ids=["plain", "hooked", "opaque"])
@pytest.mark.parametrize("teacher", [lambda model: model, hooked, opaque], ids=["plain", "hooked", "opaque"])
def test_models(make_llama: Callable[..., Any], student: Any, teacher: Any, weighted: bool) -> None:
    """Every kind of head of both, in chunks, gives loss and gradients of their own logits in float64."""
    config = DistillLossConfig(divergence="jsd", beta=0.3, temperature=2.0, label_weight=0.2, chunk_size=3)
    model, guide = make_llama().double(), make_llama(seed=1, hidden_size=16).double().eval()
    other, given, count = copy.deepcopy(model), batch(weighted=weighted), 0.0
    labels = given["labels"][:, 1:]
    kept = labels != -100
    logits, of_guide = (each(given["input_ids"]).logits[:, :-1][kept] for each in (other, guide))
    factors = given["token_weights"][:, 1:][kept].double() if weighted else 1.0
    expected, each, cross = naive_loss(config, logits, of_guide.detach(), labels[kept], factors)
    expected.backward()
    count = denominator_of(given)
    model, guide = student(model), teacher(guide)
    given[TEACHER] = TeacherForward()(guide, given, count)
    found = DistillLoss(config)(model, given, count)
    found.total.backward()
    assert (found.denominator, found.counts) == (count, "weighted tokens" if weighted else "tokens")
    torch.testing.assert_close(found.total, expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.sums["jsd"], each.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.sums["cross_entropy"], cross.detach(), rtol=1e-6, atol=1e-6)
    assert not any(value.requires_grad for value in found.sums.values())
    gradients = {name: parameter.grad for name, parameter in other.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-6, atol=1e-7, msg=name)
    assert all(parameter.grad is None for parameter in guide.parameters())


@pytest.mark.parametrize("stored", [False, True])
def test_a_padding_batch_trains_nothing(make_llama: Callable[..., Any], stored: bool) -> None:
    model, given = make_llama(), batch()
    given["labels"].fill_(-100)
    if stored:
        values = torch.zeros(1, 5, 2, dtype=torch.int32), torch.full((1, 5, 2), -1.0), torch.full((1, 5, 1), -1.3)
        given |= dict(zip(STORED, values, strict=True))
    else:
        given[TEACHER] = TeacherForward()(make_llama(seed=1).eval(), given, 0.0)
    found = DistillLoss(DistillLossConfig(top_k=2 if stored else None))(model, given, 0.0)
    found.total.backward()
    assert found.total == 0 and not any(found.sums.values())
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_documents_of_a_teacher_that_sees_all_of_a_sequence_are_padded(make_llama: Callable[..., Any]) -> None:
    """Without a mask and lengths transformers' own attention looks at position ids; a model that does not is found."""

    class Blind(nn.Module):
        """Adds up the tokens before, wherever their document begins."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(61, 8), nn.Linear(8, 61)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(self.embedding(input_ids).cumsum(1))  # type: ignore[no-any-return]

    said: list[str] = []
    forward = TeacherForward(said.append)
    from hooktrain_sft.distill.teacher import _two_documents

    found = [forward(Blind(), _two_documents([1] * n, range(3, 19), torch.device("cpu")), 15.0) for n in (4, 9)]
    torch.testing.assert_close(found[0].values, found[1].values)
    assert len(said) == 2 and "Blind does not keep the documents" in said[0]
    assert not said[2:], "said once for each model"
    said.clear()
    forward(make_llama().eval(), _two_documents([1] * 4, range(3, 19), torch.device("cpu")), 15.0)


class Largest(TorchDispatchMode):
    """The most elements that a new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_no_tensor_has_all_tokens_and_the_vocabulary(make_llama: Callable[..., Any], divergence: str) -> None:
    """Of both models, in the forward and in the backward pass: chunks alone, however many tokens there are."""
    model, guide = make_llama(hidden_size=16, vocab_size=2048), make_llama(seed=1, hidden_size=16, vocab_size=2048)
    guide.eval()
    loss = DistillLoss(DistillLossConfig(divergence=divergence, label_weight=0.5, chunk_size=16))
    forward, found = TeacherForward(), []
    for tokens in (64, 128):
        given = batch(tokens)
        count = denominator_of(given)
        for _ in range(2):  # the first call compares with the model's own logits
            with Largest() as largest:
                loss(model, {**given, TEACHER: forward(guide, given, count)}, count).total.backward()
        found.append(largest.elements)
        assert count > 2 * 16
    assert found == [16 * 2048] * 2, "the logits of a chunk, and the weight of a head"


def test_without_a_teacher_every_token_is_equally_likely() -> None:
    (logits,) = tensors(4, (5, 17))
    for kind in DIVERGENCES:
        each, _ = UniformTeacher().compare(DistillLossConfig(**kind), logits.log_softmax(1), slice(0, 5))
        expected = naive_divergence(DistillLossConfig(**kind), logits, torch.zeros_like(logits))
        torch.testing.assert_close(each[:, 0], expected)


@pytest.mark.thorough
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("kind", "beta"), [*zip(DIVERGENCES, (0.0, 1.0, 0.5, 0.1), strict=True)], ids=str)
def test_loss_and_gradients_are_those_of_trl(kind: dict[str, Any], beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    logits, teacher = tensors(5, (1, 40, 53), (1, 40, 53))
    logits.requires_grad_()
    labels = torch.arange(40)[None].clone()
    labels[:, ::3] = -100
    expected = GKDTrainer.generalized_jsd_loss(logits, teacher, labels, beta, temperature)
    kept = (labels != -100)[0]
    config = DistillLossConfig(**kind, temperature=temperature)
    ours = logits.detach()[0][kept]
    each, gradient = BesideTeacher(teacher[0][kept], torch.clone).compare(
        config, (ours / temperature).log_softmax(1), slice(0, len(ours))
    )
    torch.testing.assert_close(each.mean(), expected.detach(), rtol=1e-10, atol=1e-12)
    (exact,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient / temperature / len(ours), exact[0][kept], rtol=1e-9, atol=1e-12)
