"""The check before the first step: models are trained on what they compute themselves, or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hooktrain_sft import model_check
from hooktrain_sft.check_cache import read_result, write_result

from hooktrain import ModelError, Trainer, hookimpl
from tests.facts import facts
from tests.plugins.sft.architectures import BIASED, HYBRIDS, ROWS, SMALL, TOKENIZER, Observer, losses, make

BERT = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"} | {"max_position_embeddings": 64}


def assert_padded(family: str, config: dict[str, Any], run_dir: Path, packed: bool) -> None:
    loss, own, observer = losses(make(family, config), run_dir, packed=packed)
    assert loss == pytest.approx(own, rel=1e-5)
    (message,) = [said for said in observer.messages if "padded" in said]
    assert family in message and ("data.pack_samples: false" in message) == packed


@pytest.mark.parametrize("family", ["Mamba", "Bloom"])
@pytest.mark.parametrize("packed", [False, True])
def test_documents_that_cannot_share_a_sequence_are_padded(family: str, packed: bool, tmp_path: Path) -> None:
    assert_padded(family, {**HYBRIDS, **BIASED}[family], tmp_path, packed)


@pytest.mark.thorough
@pytest.mark.parametrize("family", [*HYBRIDS, *BIASED])
def test_one_model_of_each_family_gives_its_own_loss(family: str, tmp_path: Path) -> None:
    loss, own, _ = losses(make(family, {**HYBRIDS, **BIASED}[family]), tmp_path)
    assert loss == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("family", ["Roberta", "Data2VecText"])
def test_positions_are_those_that_the_model_counts(family: str, tmp_path: Path) -> None:
    """Past the padding token, which is a token of the text here and is not counted."""
    model = make(family, {**BERT, "is_decoder": True, "pad_token_id": 201, "max_position_embeddings": 300})
    for packed in (False, True):
        loss, own, observer = losses(model, tmp_path / str(packed), packed=packed)
        assert loss == pytest.approx(own, rel=1e-5)
        assert (observer.batch["input_ids"] == 201).any(), "or this test shows less"


@pytest.mark.parametrize("family", ["Electra", "RemBert"])
def test_a_head_of_another_width(family: str, tmp_path: Path) -> None:
    sizes = {"embedding_size": 16, "input_embedding_size": 16, "output_embedding_size": 24, "is_decoder": True}
    loss, own, _ = losses(make(family, {**BERT, **sizes}), tmp_path)
    assert loss == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "config", "remedy"),
    [
        ("Bert", BERT, "model.hf_config_kwargs.is_decoder: true"),
        (
            "Gemma3Text",
            {**SMALL, "head_dim": 8, "use_bidirectional_attention": True},
            "model.hf_config_kwargs.use_bidirectional_attention: false",
        ),
    ],
)
def test_a_model_that_sees_later_tokens_is_refused(
    family: str, config: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    observer = Observer()
    with pytest.raises(ModelError, match=facts("sees later tokens", remedy)):
        losses(make(family, config), tmp_path, observer)
    assert not observer.steps


class OtherPositions:
    """A model that computes something else where it is given positions."""

    @hookimpl
    def on_train_start(self, trainer: Any) -> None: ...

    @hookimpl(wrapper=True)
    def make_model(self) -> Any:
        model = yield

        def shift(module: Any, args: Any, kwargs: Any) -> Any:
            if kwargs.get("position_ids") is None:
                return None
            return args, {**kwargs, "position_ids": kwargs["position_ids"] * 2}

        model.get_decoder().register_forward_pre_hook(shift, with_kwargs=True, prepend=True)
        return model


@pytest.mark.parametrize(("size", "said"), [(1, "loss.all_logits: true"), (3, "data.pack_samples: false")])
def test_a_model_that_differs_is_refused(size: int, said: str, tmp_path: Path) -> None:
    observer = Observer()
    with pytest.raises(ModelError, match=facts("LlamaForCausalLM", "own forward pass", said)):
        losses(make("Llama", SMALL), tmp_path, OtherPositions(), observer, size=size)
    assert not observer.steps


def test_a_difference_too_small_for_the_loss_is_found_in_gradients(tmp_path: Path) -> None:
    """New models predict all tokens alike, whatever their positions are."""
    with pytest.raises(ModelError, match=facts("gradients differ", "own forward pass")):
        losses(make("Llama", SMALL, std=0.03), tmp_path, OtherPositions())


def test_rounding_errors_of_bf16_are_no_difference(tmp_path: Path) -> None:
    """The gradients of this model change by more than they are with the last bit of its embeddings."""
    deep = make("Llama", {**SMALL, "num_hidden_layers": 6}, std=1.0)
    _, _, observer = losses(deep, tmp_path / "packed", packed=True, dtype="bf16")
    assert not [said for said in observer.messages if "padded" in said]
    with pytest.raises(ModelError, match=facts("LlamaForCausalLM", "own forward pass")):
        losses(make("Llama", SMALL), tmp_path / "wrong", OtherPositions(), dtype="bf16")


def test_a_router_that_draws_experts_is_refused_with_the_setting(tmp_path: Path) -> None:
    config = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.5}
    with pytest.raises(ModelError, match=facts("PhimoeForCausalLM", "model.hf_config_kwargs.router_jitter_noise: 0")):
        losses(make("Phimoe", config), tmp_path / "noise")
    loss, own, _ = losses(make("Phimoe", {**config, "router_jitter_noise": 0.0}), tmp_path / "none")
    assert loss == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("family", ["Llama", "Mamba"])
def test_a_result_is_kept_for_the_same_model_and_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    base, cache = tmp_path / "base", tmp_path / "cache"
    make(family, {**SMALL, "state_size": 4} if family == "Mamba" else SMALL).save_pretrained(base)
    TOKENIZER.save_pretrained(base)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    calls: list[str] = []
    own = model_check._Probe.own
    monkeypatch.setattr(model_check._Probe, "own", lambda self: (calls.append(self.name), own(self))[1])
    data = {"sources": [str(tmp_path / "rows.jsonl")], "max_length": 64, "cache_dir": str(cache)}

    def run(*plugins: object, **more: Any) -> float:
        recipe = {
            **{
                "model": str(base),
                "data": data,
                "micro_batch_size": 3,
                "train_iters": 1,
                "strategy": {"dtype": "fp32"},
            },
            **{"console": {"enabled": False}, "run_dir": str(tmp_path / "run"), **more},
        }
        trainer = Trainer(recipe, plugins=list(plugins))
        trainer.run()
        return trainer.history[0]["loss"]

    monkeypatch.setitem(sys.modules, "hooktrain_without_file", ModuleType("hooktrain_without_file"))
    assert run() == run() and len(calls) == 1
    (kept,) = (cache / "checks").iterdir()
    kept.write_text("broken")
    run()
    assert len(calls) == 2
    run(loss={"type": "dft"})
    run(data={**data, "use_data_cache": False})
    run(Observer())  # a plugin from Python has no version
    assert len(calls) == 5


@pytest.mark.parametrize("content", [None, "broken", "{}", '{"padded": 3}', "[]", "[" * 100_000])
def test_a_kept_result_that_is_none_is_not_used(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    if content is not None:
        path.write_text(content)
    assert read_result(path) is None
    write_result(path, {"padded": ""})
    assert read_result(path) == {"padded": ""}
