"""Terms on the losses of this plugin: what they return of the model, the router's loss, and the z-loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from hooktrain import HooktrainWarning, LossTerm, PluginInfo, RecipeError, Trainer, hookimpl
from hooktrain.testing import Recorder, make_llama, make_tokenizer
from tests.facts import facts

Run = Callable[..., Trainer]


class Looks:
    """Keeps what it is given of the model, and adds a term of the last hidden state."""

    hooktrain_plugin = PluginInfo(needs_outputs=["last_hidden_state", "hidden_states"], loss_terms="size")

    def __init__(self) -> None:
        self.seen: list[tuple[Any, Any]] = []
        self.last: list[torch.Tensor] = []

    @hookimpl
    def collect_loss_terms(self, outputs: Any, batch: Any) -> dict[str, LossTerm]:
        assert "needed_outputs" not in batch
        last, layers = outputs["last_hidden_state"], outputs["hidden_states"]
        self.seen.append((tuple(last.shape), [tuple(each.shape) for each in layers]))
        self.last.append(last.detach().clone())
        return {"size": LossTerm(last.square().mean() * outputs["denominator"], 0.1)}


@pytest.mark.parametrize("pack", [True, False])
def test_outputs_of_the_chunked_head_are_those_of_all_logits(run_chat: Run, chat_recipe: Any, pack: bool) -> None:
    lines, looks = [], []
    for all_logits in (False, True):
        recorder, look = Recorder(), Looks()
        run_chat(
            recorder,
            look,
            data={**chat_recipe["data"], "pack_samples": pack},
            loss={"type": "sft", "all_logits": all_logits},
            optimizer={"type": "sgd", "lr": 0.1},
        )
        lines.append([(line["loss"], line["size"], line["grad_norm"]) for line in recorder.metrics])
        looks.append(look)
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert looks[0].seen == looks[1].seen
    for (last, layers), mine, theirs in zip(looks[0].seen, looks[0].last, looks[1].last, strict=True):
        assert set(layers) == {last} and len(layers) > 1
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def mixtral(**changes: Any) -> MixtralForCausalLM:
    torch.manual_seed(0)
    size = make_llama(make_tokenizer()).config.to_dict()
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    config = {name: size[name] for name in names.split()}
    return MixtralForCausalLM(MixtralConfig(**config, num_local_experts=4, router_aux_loss_coef=0.3, **changes))


def test_a_run_adds_the_routers_loss_and_logs_it(chat_recipe: Any) -> None:
    recipe = {**chat_recipe, "train_iters": 2, "optimizer": {"type": "sgd", "lr": 0.0}}
    lines = {}
    for asks in (False, True):
        recorder = Recorder()
        del recipe["model"]
        tokenizer, model = make_tokenizer(), mixtral(output_router_logits=asks)
        given = {**recipe, "run_dir": f"{recipe['run_dir']}-{asks}"}
        with Trainer(given, model=model, tokenizer=tokenizer, plugins=[recorder]) as trainer:
            trainer.run()
        recipe["model"] = None
        lines[asks] = recorder.metrics[-1]
    assert "router_loss" not in lines[False]
    router = lines[True]["router_loss"]
    assert router > 0
    assert lines[True]["loss"] == pytest.approx(lines[False]["loss"] + 0.3 * router, rel=1e-4)
    (name,) = [name for name in lines[True] if name.startswith("eval/") and name.endswith("/loss")]
    assert lines[True][name] == pytest.approx(lines[False][name], rel=1e-4), "evaluation logs it apart"
    assert lines[True][name.replace("/loss", "/router_loss")] > 0


def test_the_z_loss_is_logged_and_part_of_the_loss(run_chat: Run) -> None:
    plain, with_z = Recorder(), Recorder()
    still = {"optimizer": {"type": "sgd", "lr": 0.0}}
    run_chat(plain, **still)
    run_chat(with_z, loss={"type": "sft", "z_loss": 0.01}, **still)
    for one, other in zip(plain.metrics, with_z.metrics, strict=True):
        assert other["loss"] == pytest.approx(one["loss"] + 0.01 * other["z_loss"], rel=1e-5)


def test_an_output_that_the_loss_does_not_provide(run_chat: Run) -> None:
    class Other(Looks):
        hooktrain_plugin = PluginInfo(needs_outputs="attentions")

    with pytest.raises(RecipeError, match=facts("loss: ", "attentions", "Other", "last_hidden_state")):
        run_chat(Other())


class Documents:
    """A term of documents with a denominator of its own, and the gradients of each step."""

    hooktrain_plugin = PluginInfo(needs_outputs="last_hidden_state", loss_terms="documents")

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    @hookimpl
    def count_loss_terms(self, batch: Any) -> dict[str, float]:
        return {"documents": float(len(batch["document_lengths"]))}

    @hookimpl
    def collect_loss_terms(self, outputs: Any, batch: Any) -> dict[str, LossTerm]:
        hidden = outputs["last_hidden_state"].flatten(0, 1)
        parts = torch.split(hidden, list(batch["document_lengths"]))
        return {"documents": LossTerm(torch.stack([each.mean(0).square().sum() for each in parts]).sum(), 0.3)}

    @hookimpl
    def on_step_start(self, trainer: Any, batches: Any) -> None:
        self.steps.append({"model": copy.deepcopy(trainer.model).double(), "batches": [dict(each) for each in batches]})

    @hookimpl
    def on_optimizer_step_start(self, trainer: Any) -> None:
        self.steps[-1]["gradients"] = {name: value.grad.clone() for name, value in trainer.model.named_parameters()}


def test_packed_gradients_are_those_of_a_plain_loop(run_chat: Run) -> None:
    """Each document alone through a float64 model, and every sum divided by hand."""
    seen, recorder = Documents(), Recorder()
    run_chat(seen, recorder, gradient_accumulation_steps=2, train_iters=2, gradient_clipping=0)
    assert len(seen.steps) == 2
    for step, line in zip(seen.steps, recorder.metrics, strict=True):
        model, batches = step["model"], step["batches"]
        tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        documents = sum(len(batch["document_lengths"]) for batch in batches)
        assert len(batches) == 2 and documents > 2, "accumulated and packed"
        loss, term = 0.0, 0.0
        for batch in batches:
            lengths = list(batch["document_lengths"])
            for ids, labels in zip(
                batch["input_ids"].flatten().split(lengths), batch["labels"].flatten().split(lengths), strict=True
            ):
                output = model(input_ids=ids[None], output_hidden_states=True)
                logits = output.logits[0, :-1]
                loss = loss + torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum") / tokens
                term = term + output.hidden_states[-1][0].mean(0).square().sum() / documents
        objective = loss + 0.3 * term
        objective.backward()
        for name, value in model.named_parameters():
            torch.testing.assert_close(step["gradients"][name].double(), value.grad, rtol=1e-4, atol=1e-6, msg=name)
        assert line["loss"] == pytest.approx(float(objective.detach()), rel=1e-5)
        assert line["documents"] == pytest.approx(float(term.detach()), rel=1e-5)


def test_a_resume_takes_up_what_was_not_logged(run_chat: Run, tmp_path: Any) -> None:
    saves = [{"type": "full", "save_every_n_steps": 2, "output_dir": str(tmp_path / "saves")}]
    complete, resumed = Recorder(), Recorder()
    run_chat(Documents(), complete, train_iters=4, log_interval=4, checkpoint=saves)
    again = [{**saves[0], "output_dir": str(tmp_path / "others")}]
    recipe = {"run_dir": str(tmp_path / "second"), "train_iters": 4, "log_interval": 4, "checkpoint": again}
    run_chat(Documents(), resumed, **recipe, trainer={"resume_from": tmp_path / "saves" / "step-00000002"})
    for name in ("loss", "documents"):
        assert resumed.metrics[-1][name] == complete.metrics[-1][name]


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_conflicts_leave_the_training_as_it_is(run_chat: Run, chunk_size: int | None) -> None:
    plain, compared = Recorder(), Recorder()
    loss = {"type": "sft", "chunk_size": chunk_size, "z_loss": 0.01}
    one = run_chat(Documents(), plain, loss=loss, train_iters=2)
    with pytest.warns(HooktrainWarning, match=facts("objectives.conflicts", "z_loss", "no gradient of its own")):
        other = run_chat(Documents(), compared, loss=loss, train_iters=2, objectives={"conflicts": 2})
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
    found = {name: value for name, value in compared.metrics[1].items() if name.startswith("cosine/")}
    assert all(-1 <= value <= 1 for value in found.values()) and "cosine/loss/documents" in found
    assert any(name.startswith("cosine/loss/documents/model.layers.1") for name in found)
    assert not any(name.startswith("cosine/") for name in compared.metrics[0])
