"""Noise on the embeddings: of the right size, in training only, and the same after a resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hooktrain_sft.compat import forward_hooks
from hooktrain_sft.loss.neftune import document_lengths, noisy
from hypothesis import given, settings
from hypothesis import strategies as st

from hooktrain import ModelError, RecipeError, Trainer, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts

NOISE = {"noise_alpha": 5.0}


def test_lengths_of_documents() -> None:
    ids = torch.zeros(2, 6, dtype=torch.long)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]])
    expected = [[3, 3, 3, 2, 2, 1], [4, 4, 4, 4, 2, 2]]
    assert document_lengths({"input_ids": ids, "position_ids": positions}).tolist() == expected
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    assert document_lengths({"input_ids": ids, "attention_mask": mask})[:, 0].tolist() == [4, 6]
    assert document_lengths({"input_ids": ids}).tolist() == [[6] * 6] * 2


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), alpha=st.sampled_from([1.0, 5.0, 15.0]))
@settings(max_examples=30, deadline=None)
def test_the_size_of_the_noise(lengths: list[int], alpha: float) -> None:
    """Bounded by alpha / sqrt(L d) and uniform in between, for each document on its own."""
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    found = document_lengths({"input_ids": positions, "position_ids": positions})
    assert found[0].tolist() == [length for length in lengths for _ in range(length)]
    width = 256
    noise = noisy(torch.zeros(1, sum(lengths), width), found, alpha, seed=3)
    bound = alpha / (found.float() * width).sqrt()[..., None]
    assert (noise.abs() <= bound).all()
    assert ((noise / bound).std(-1) - 3**-0.5).abs().max() < 0.15, "the standard deviation of a uniform distribution"
    assert torch.equal(noise, noisy(torch.zeros(1, sum(lengths), width), found, alpha, seed=3))
    assert not torch.equal(noise, noisy(torch.zeros(1, sum(lengths), width), found, alpha, seed=4))


class Watches:
    """What comes out of the embedding, with and without gradients."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.evaluated: list[torch.Tensor] = []

    @hookimpl(wrapper=True)
    def compute_loss(self, trainer: Any, batch: Any) -> Any:
        embedding = trainer.model.get_input_embeddings()
        plain = embedding.weight[batch["input_ids"]].detach()
        found: list[torch.Tensor] = []
        hook = (
            trainer.model.get_decoder()
            .layers[0]
            .register_forward_pre_hook(lambda module, args: found.append(args[0].detach()))
        )
        try:
            result = yield
        finally:
            hook.remove()
        (self.trained if torch.is_grad_enabled() else self.evaluated).append(found[-1] - plain)
        return result


def test_noise_in_training_and_none_in_evaluation(run: Callable[..., Trainer]) -> None:
    watches = Watches()
    trainer = run(watches, neftune=NOISE, gradient_accumulation_steps=2, train_iters=2)
    assert len(watches.trained) == 4 and watches.evaluated
    for noise in watches.trained:
        assert 0 < noise.abs().max() <= 5.0 / (8 * 16) ** 0.5
    directions = [noise[0, :8].flatten() for noise in watches.trained]  # the lengths of documents scale them
    for other in directions[1:]:
        assert torch.cosine_similarity(directions[0], other, dim=0).abs() < 0.9, "each micro-batch draws its own"
    assert all(not noise.any() for noise in watches.evaluated)
    assert not forward_hooks(trainer.model.get_input_embeddings())


def test_without_it_the_embedding_is_left_alone(run: Callable[..., Trainer]) -> None:
    watches = Watches()
    run(watches, train_iters=1)
    assert not any(noise.any() for noise in watches.trained)


@pytest.mark.parametrize("loss", ["sft", "dft"])
def test_a_resumed_run_repeats_the_noise(run: Callable[..., Trainer], loss: str) -> None:
    more = {"neftune": NOISE, "loss": {"type": loss}, "train_iters": 6, "gradient_accumulation_steps": 2}
    whole, first, second = Recorder(), Recorder(), Recorder()
    trained = run(whole, **more)
    saving = {**more, "checkpoint": {"type": "full", "save_every_n_steps": 3, "auto_resume": True}}
    run(first, **saving, exit_iteration=3)
    resumed = run(second, **saving)
    losses = [line["loss"] for line in [*first.metrics, *second.metrics]]
    assert losses == [line["loss"] for line in whole.metrics]
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_dropout_draws_the_same_numbers(run: Callable[..., Trainer], recipe: dict[str, Any]) -> None:
    class States:
        def __init__(self) -> None:
            self.states: list[torch.Tensor] = []

        @hookimpl
        def on_step_end(self) -> None:
            self.states.append(torch.get_rng_state())

    model = {**recipe["model"], "attn_implementation": "eager", "hf_config_kwargs": {"attention_dropout": 0.2}}
    with_noise, without = States(), States()
    run(with_noise, model=model, neftune=NOISE)
    run(without, model=model)
    assert all(torch.equal(*pair) for pair in zip(with_noise.states, without.states, strict=True))


def test_a_model_without_embeddings_is_refused(run_tiny: Any) -> None:
    with pytest.raises(ModelError, match=facts("neftune", "TinyModel", "get_input_embeddings")):
        run_tiny(neftune=NOISE)


def test_the_key_of_other_trainers_is_refused(run: Callable[..., Trainer]) -> None:
    with pytest.raises(RecipeError, match=facts("neftune_noise_alpha:", "did you mean 'neftune'?")):
        run(neftune_noise_alpha=5)
