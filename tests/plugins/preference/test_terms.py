"""Terms of other plugins on losses of pairs, and the router's loss of a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from hooktrain import LossTerm, PluginInfo, Trainer, hookimpl
from hooktrain.testing import Recorder, make_llama, make_tokenizer

STILL = {"optimizer": {"type": "sgd", "lr": 0.0}}


class Size:
    """A term of the last hidden state, one for each answer."""

    hooktrain_plugin = PluginInfo(needs_outputs="last_hidden_state", loss_terms="size")

    @hookimpl
    def count_loss_terms(self, batch: Any) -> dict[str, float]:
        return {"size": float(len(batch["document_lengths"]))}

    @hookimpl
    def collect_loss_terms(self, outputs: Any, batch: Any) -> dict[str, LossTerm]:
        parts = outputs["last_hidden_state"].flatten(0, 1).split(list(batch["document_lengths"]))
        return {"size": LossTerm(torch.stack([each.square().mean() for each in parts]).sum(), 0.3)}


@pytest.mark.parametrize("kind", ["dpo", "orpo"])
def test_a_term_is_divided_by_its_own_number_and_the_loss_by_pairs(run: Callable[..., Trainer], kind: str) -> None:
    plain, with_term = Recorder(), Recorder()
    run(plain, loss={"type": kind}, **STILL)
    run(with_term, Size(), loss={"type": kind}, **STILL)
    for one, other in zip(plain.metrics, with_term.metrics, strict=True):
        assert other["size"] > 0 and other["pairs"] == one["pairs"]
        assert other["loss"] == pytest.approx(one["loss"] + 0.3 * other["size"], rel=1e-5)
        assert other["rewards/margins"] == pytest.approx(one["rewards/margins"], abs=1e-6)


def test_the_routers_loss_is_a_mean_over_pairs(recipe: dict[str, Any]) -> None:
    size = make_llama(make_tokenizer()).config.to_dict()
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    config = {name: size[name] for name in names.split()}
    lines = {}
    for asks in (False, True):
        torch.manual_seed(0)
        options = {"num_local_experts": 4, "router_aux_loss_coef": 0.3, "output_router_logits": asks}
        model, recorder = MixtralForCausalLM(MixtralConfig(**config, **options)), Recorder()
        given = {name: value for name, value in recipe.items() if name != "model"} | STILL
        given |= {"run_dir": f"{recipe['run_dir']}-{asks}", "train_iters": 1, "loss": {"type": "orpo"}}
        with Trainer(given, model=model, tokenizer=make_tokenizer(), plugins=[recorder]) as trainer:
            trainer.run()
        lines[asks] = recorder.metrics[-1]
    router = lines[True]["router_loss"]
    assert router > 0 and "router_loss" not in lines[False]
    assert lines[True]["loss"] == pytest.approx(lines[False]["loss"] + 0.3 * router, rel=1e-4)
