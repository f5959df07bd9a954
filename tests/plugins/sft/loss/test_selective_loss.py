"""The loss equals the plain one for every kind of model, and never waits for the device."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hooktrain_sft.loss import lm_head
from hooktrain_sft.loss.config import DFTLossConfig, SFTLossConfig
from hooktrain_sft.loss.selective_loss import SelectiveLoss, per_token
from hooktrain_sft.loss.supervised_positions import supervised
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hooktrain import ModelError
from tests.facts import facts

SMALL: dict[str, Any] = {
    **{"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3},
}


def batch(sequences: int = 2, tokens: int = 24) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 61, (sequences, tokens), generator=made)
    trained = torch.rand((sequences, tokens), generator=made) < 0.4
    trained[:, 0] = True  # which does not count: nothing predicts it
    positions = torch.arange(tokens).repeat(sequences, 1)
    return {"input_ids": ids, "labels": torch.where(trained, ids, -100), "position_ids": positions}


def sft(**settings: Any) -> SelectiveLoss:
    return SelectiveLoss.of(SFTLossConfig(**settings))


def count(labels: Tensor) -> int:
    return int((labels[:, 1:] != -100).sum())


def plain(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=given["input_ids"], position_ids=given["position_ids"]).logits.float()
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten(), reduction="sum")


def assert_same(
    model: nn.Module, loss: SelectiveLoss, wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> None:
    """Loss and all gradients equal those of the model's own logits."""
    other, given = copy.deepcopy(model), batch()
    expected = plain(other, given)
    expected.backward()
    result = loss(wrap(model), given, count(given["labels"]))
    result.total.backward()
    assert result.denominator == count(given["labels"]) and result.total.shape == ()
    torch.testing.assert_close(result.total, expected, rtol=1e-5, atol=1e-4)
    gradients = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_size", [3, 1024])
def test_llama(make_llama: Callable[..., Any], tied: bool, chunk_size: int) -> None:
    assert_same(make_llama(tie_word_embeddings=tied), sft(chunk_size=chunk_size))


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (
            Gemma2ForCausalLM,
            Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=4.0, attn_implementation="eager"),
        ),
        (CohereForCausalLM, CohereConfig(**SMALL, logit_scale=0.25)),
        (GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=4.0)),
        (HyperCLOVAXForCausalLM, HyperCLOVAXConfig(**SMALL, logits_scaling=4.0)),
    ],
)
def test_models_that_transform_their_logits(model_class: Any, config: Any, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    assert_same(model_class(config), sft(chunk_size=7))
    assert not caplog.records, "the model's own logits were not needed"


def test_the_head_sees_trained_positions_only_and_in_chunks(make_llama: Callable[..., Any]) -> None:
    model, given, seen = make_llama(), batch(), []
    weight = count(given["labels"])
    loss = sft(chunk_size=5)
    loss(model, given, weight)  # compares with the model's own logits
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    loss(model, given, weight)
    assert sum(seen) == weight < given["labels"].numel() and max(seen) == 5


def test_a_head_that_has_hooks_is_called(make_llama: Callable[..., Any]) -> None:
    model = make_llama()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1.0)
    assert_same(model, sft(chunk_size=5))


def test_a_model_whose_logits_are_made_otherwise(
    make_llama: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_llama()
    own = type(model).forward

    class Doubled(type(model)):  # type: ignore[misc]
        def forward(self, **inputs: Any) -> Any:
            output = own(self, **inputs)
            output.logits = output.logits * 2 + 1
            return output

    model.__class__ = Doubled
    with caplog.at_level(logging.WARNING):
        assert_same(model, sft())
    assert re.search("Doubled: .*logits.*LM head.*last hidden state", caplog.text)


def test_the_comparison_draws_no_random_numbers(make_llama: Callable[..., Any]) -> None:
    given = batch()
    losses = []
    for calls in (1, 2):
        model, loss = make_llama(attention_dropout=0.5, attn_implementation="eager").train(), sft()
        for _ in range(calls):
            torch.manual_seed(7)
            total = loss(model, given, count(given["labels"])).total
        losses.append(total.item())
    assert losses[0] == losses[1], "the first call, which compares, and the second draw the same dropout"


def test_the_models_forward_is_its_own_again(make_llama: Callable[..., Any]) -> None:
    model, given, loss = make_llama(), batch(), sft()
    loss(model, given, count(given["labels"]))
    assert "forward" not in model.__dict__
    copy.deepcopy(model)
    with pytest.raises(RuntimeError):
        loss(model, {**given, "input_ids": given["input_ids"][:, :3]}, 5)
    assert "forward" not in model.__dict__
    assert model(given["input_ids"]).logits.shape == (2, 24, 61)


class Wrapper(nn.Module):
    """Like DDP: its forward must run, and passes on to ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.module(*args, **kwargs)


def test_wrapped(make_llama: Callable[..., Any]) -> None:
    wrapper = Wrapper(model := make_llama())
    assert_same(model, sft(), lambda _: wrapper)
    assert wrapper.calls == 1


def test_compiled_by_eager_backend(make_llama: Callable[..., Any]) -> None:
    assert_same(make_llama(), sft(), lambda model: torch.compile(model, backend="eager"))


class PlainModel(nn.Module):
    """Returns logits and knows nothing of transformers."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(61, 8), nn.Linear(8, 61)
        self.answer = answer

    def forward(self, input_ids: Tensor) -> Any:
        return self.answer(self.head(self.embedding(input_ids).cumsum(1)))


@pytest.mark.parametrize(
    "answer", [lambda logits: logits, lambda logits: {"logits": logits}, lambda logits: (logits, None)]
)
def test_plain_models(answer: Callable[[Tensor], Any]) -> None:
    model, given = PlainModel(answer), batch()
    result = sft()(model, given, count(given["labels"]))
    logits = PlainModel()(given["input_ids"])
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(result.total, expected)


def test_a_model_without_logits() -> None:
    with pytest.raises(ModelError, match=facts("loss", "dict", ".logits")):
        sft()(PlainModel(lambda logits: {"scores": logits}), batch(), 3)


@pytest.mark.parametrize("kind", ["llama", "tied", "plain"])
def test_a_padding_batch_reaches_all_parameters(make_llama: Callable[..., Any], kind: str) -> None:
    model = PlainModel() if kind == "plain" else make_llama(tie_word_embeddings=kind == "tied")
    given = batch()
    given["labels"].fill_(-100)
    result = sft()(model, given, 0)
    result.total.backward()
    assert result.total.item() == 0 and result.denominator == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_no_gradients_in_evaluation(make_llama: Callable[..., Any]) -> None:
    model, given = make_llama().eval(), batch()
    with torch.no_grad():
        result = sft()(model, given, count(given["labels"]))
    torch.testing.assert_close(result.total, plain(model, given).detach(), rtol=1e-5, atol=1e-4)


def test_flash_attention_gets_one_sequence(make_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, shapes = make_llama(), batch(), []
    expected = plain(model, given).detach()
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    # flash attention itself runs on no CPU
    monkeypatch.setattr(lm_head, "attention_implementation", lambda model: "flash_attention_2")
    loss = sft()
    total = loss(model, given, count(given["labels"])).total
    assert shapes[-1] == (1, 48)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-4)
    loss(model, {**given, "cu_seq_lens_q": torch.tensor([0, 24, 48])}, count(given["labels"]))
    assert shapes[-1] == (2, 24), "with the documents' lengths it flattens the batch itself"


def test_bf16_autocast_is_close(make_llama: Callable[..., Any]) -> None:
    model, given = make_llama(), batch()
    expected = plain(model, given).detach()
    with torch.autocast("cpu", torch.bfloat16):
        result = sft()(model, given, count(given["labels"]))
    result.total.backward()
    assert result.total.dtype == torch.float32
    torch.testing.assert_close(result.total, expected, rtol=0.05, atol=0.5)


def test_weights_keep_their_place_where_an_adapter_puts_tokens_before_the_text() -> None:
    labels = torch.tensor([[-100, -100, 5, 6, 7]])
    positions, targets, weights = supervised(labels, 3, weights=torch.tensor([[2.0, 3.0, 0.0]]))
    assert weights is not None
    assert (positions.tolist(), targets.tolist(), weights.tolist()) == ([1, 2, 3], [5, 6, 7], [0, 2, 3])


def test_positions_beyond_the_count_have_no_target() -> None:
    labels = torch.tensor([[5, 6, -100, 7], [8, -100, -100, 9]])
    positions, targets, _ = supervised(labels, 5)
    assert positions.tolist() == [0, 2, 6, 7, 7] and targets.tolist() == [6, 7, 9, -100, -100]
    positions, targets, _ = supervised(torch.full((1, 3), -100), 0)
    assert positions.tolist() == [2] and targets.tolist() == [-100]


# ---------------------------------------------------------------------------------------------------- logged metrics


@pytest.mark.parametrize("kind", ["plain linear head", "called head", "own logits"])
def test_sums_over_the_trained_tokens(make_llama: Callable[..., Any], kind: str) -> None:
    model, given = make_llama(), batch()
    with torch.no_grad():
        logits = model(given["input_ids"]).logits[:, :-1].flatten(0, 1).double()
    goal = given["labels"][:, 1:].flatten()
    logits, goal = logits[goal != -100], goal[goal != -100]
    if kind == "called head":
        model.lm_head.register_forward_hook(lambda module, args, output: output * 1.0)
    if kind == "own logits":
        model.__class__ = type("Opaque", (type(model),), {"get_decoder": lambda self: self})
    result = SelectiveLoss.of(DFTLossConfig(chunk_size=3))(model, given, len(goal))
    assert result.sums.keys() == {"token_accuracy", "entropy", "cross_entropy"}
    assert all(value.shape == () and not value.requires_grad for value in result.sums.values())
    expected = {
        "token_accuracy": (logits.argmax(-1) == goal).sum(),
        "entropy": torch.special.entr(logits.softmax(-1)).sum(),
        "cross_entropy": functional.cross_entropy(logits, goal, reduction="sum"),
    }
    for name, value in expected.items():
        torch.testing.assert_close(result.sums[name].double(), value.double(), rtol=1e-5, atol=1e-4)
    weights = logits.softmax(-1).gather(1, goal[:, None])[:, 0]
    dft = (weights * functional.cross_entropy(logits, goal, reduction="none")).sum()
    torch.testing.assert_close(result.total.double(), dft, rtol=1e-5, atol=1e-4)


def test_the_names_are_the_same_in_a_padding_batch_and_in_evaluation(make_llama: Callable[..., Any]) -> None:
    model, given, loss = make_llama(), batch(), sft()
    padding = {**given, "labels": torch.full_like(given["labels"], -100)}
    names = loss(model, given, count(given["labels"])).sums.keys()
    nothing = loss(model, padding, 0)
    assert nothing.sums.keys() == names and not any(nothing.sums.values())
    with torch.no_grad():
        assert loss(model, given, count(given["labels"])).sums.keys() == names


# ------------------------------------------------------------------------------------------------- losses of others


def test_a_loss_per_token(make_llama: Callable[..., Any]) -> None:
    def squared(logits: Tensor, targets: Tensor) -> Tensor:
        assert logits.dtype == torch.float32 and len(logits) <= 4 and (targets >= 0).all()
        return functional.cross_entropy(logits, targets, reduction="none") ** 2

    model, given = make_llama(), batch()
    other = copy.deepcopy(model)
    result = per_token(squared, chunk_size=4)(model, given, count(given["labels"]))
    result.total.backward()
    goal = given["labels"][:, 1:].flatten()
    each = functional.cross_entropy(other(given["input_ids"]).logits[:, :-1].flatten(0, 1), goal, reduction="none")
    (each**2).sum().backward()
    torch.testing.assert_close(result.total, (each**2).sum())
    gradients = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-4, msg=name)


def test_a_fused_loss_is_used_for_a_plain_head(
    make_llama: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def offer(config: Any, transform: Any, model: Any) -> Any:
        seen.append((config, transform.multiplier, model))

        def fused(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Any:
            assert hidden.shape == (len(targets), 32) and weight is model.lm_head.weight and bias is None
            total = functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum", ignore_index=-100)
            return total, {"mine": torch.ones(())}

        return fused

    config = SFTLossConfig()
    model, given = make_llama(), batch()
    loss = SelectiveLoss.of(config, offer)
    assert_same(model, loss)
    assert seen == [(config, 1.0, model)]
    assert loss(model, given, count(given["labels"])).sums == {"mine": torch.ones(())}

    model = make_llama()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 1.0)
    assert_same(model, SelectiveLoss.of(config, offer))
    assert re.search("LlamaForCausalLM: .*LM head.*fused loss.*chunks", caplog.text)


# ------------------------------------------------------------------------------------------------- kinds of models


def test_other_entries_of_a_batch_reach_the_decoder(make_llama: Callable[..., Any]) -> None:
    model, given, seen = make_llama(), batch(), []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("document_lengths")), with_kwargs=True
    )
    sft()(model, {**given, "document_lengths": (24, 24)}, count(given["labels"]))
    assert seen == [None, (24, 24)], "the comparison with its own logits is of a few tokens"


def test_an_encoder_decoder_is_refused() -> None:
    small = {"vocab_size": 61, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**small, decoder_start_token_id=0))
    with pytest.raises(
        ModelError, match=facts("loss", "T5ForConditionalGeneration", "encoder-decoder", "model.name_or_path")
    ):
        sft()(model, batch(), 5)


MIXTRAL = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.3}


@pytest.mark.parametrize("headed", [True, False])
def test_the_auxiliary_loss_of_experts(headed: bool) -> None:
    torch.manual_seed(0)
    model, given = MixtralForCausalLM(MixtralConfig(**MIXTRAL, output_router_logits=True)), batch()
    if not headed:
        model.__class__ = type("Opaque", (type(model),), {"get_decoder": lambda self: self})
    other, weight, loss = copy.deepcopy(model), count(given["labels"]), sft(chunk_size=5)
    output = other(input_ids=given["input_ids"], position_ids=given["position_ids"])
    assert output.aux_loss is not None
    term = weight * output.aux_loss
    expected = plain(other, given) + 0.3 * term
    expected.backward()
    seen: list[Any] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:-1]))
    result = loss(model, given, weight)
    total = result.total + 0.3 * result.terms["router_loss"].total  # as the engine adds it
    total.backward()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(result.terms["router_loss"].total, term, rtol=1e-5, atol=1e-4)
    assert result.terms.keys() == {"router_loss"} and result.terms["router_loss"].coefficient == 0.3
    gradients = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-4, msg=name)
    with torch.no_grad():
        evaluated = loss(model, given, weight)
    assert (evaluated.sums.keys(), evaluated.terms.keys()) == (result.sums.keys(), result.terms.keys())
    torch.testing.assert_close(evaluated.total, plain(other, given).detach(), rtol=1e-5, atol=1e-4)


def test_the_head_gets_no_token_for_the_auxiliary_loss() -> None:
    model, given = MixtralForCausalLM(MixtralConfig(**MIXTRAL, output_router_logits=True)), batch()
    loss = sft()
    loss(model, given, count(given["labels"]))
    seen: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:-1].numel()))
    loss(model, given, count(given["labels"]))
    assert seen == [0, count(given["labels"])], "the model's own call, and ours"


def test_experts_without_the_auxiliary_loss_that_the_config_asks_for() -> None:
    model = MixtralForCausalLM(MixtralConfig(**MIXTRAL, output_router_logits=True))
    own = type(model).forward

    class Without(type(model)):  # type: ignore[misc]
        def forward(self, **inputs: Any) -> Any:
            output = own(self, **inputs)
            output.aux_loss = None
            return output

    model.__class__ = Without
    with pytest.raises(ModelError, match=facts("loss", "output_router_logits", "aux_loss", "model.hf_config_kwargs")):
        sft()(model, batch(), 5)


def test_bf16_weights(make_llama: Callable[..., Any]) -> None:
    model, given = make_llama().bfloat16(), batch()
    other = copy.deepcopy(model).float()
    plain(other, given).backward()
    result = sft(chunk_size=4)(model, given, count(given["labels"]))
    result.total.backward()
    gradients = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.bfloat16
        exact = gradients[name].grad
        assert exact is not None and (parameter.grad.float() - exact).norm() < 0.1 * exact.norm(), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_device_sync(make_llama: Callable[..., Any]) -> None:
    model, loss = make_llama().cuda(), sft(chunk_size=5)
    given = {name: value.cuda() for name, value in batch().items()}
    weight = count(given["labels"])
    loss(model, given, weight)  # compares with the model's own logits
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = loss(model, given, weight)
        (result.total / weight).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.total, plain(model, given), rtol=1e-4, atol=1e-3)
