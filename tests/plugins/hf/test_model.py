"""Models of type ``huggingface``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hooktrain_hf.attention_names import check_attention
from hooktrain_hf.meta_model import make_meta_model
from hooktrain_hf.model import HFModelConfig, build_model
from safetensors.torch import load_file, save_file

from hooktrain import ModelError, RecipeError, World
from tests.facts import facts

WORLD = World()


def logits(model: Any, count: int = 12) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(count)[None] + 5).logits  # type: ignore[no-any-return]


def test_weights_are_dense_float32_and_tied(folder: Path, make_llama: Callable[..., Any], no_network: None) -> None:
    model = build_model(HFModelConfig(name_or_path=str(folder)), None, WORLD)
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float32, True)}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model), logits(make_llama()))
    assert model.config.use_cache and model.config._attn_implementation == "documents"


def test_a_revision_of_a_repository(hub: str, folder: Path, no_network: None) -> None:
    for revision, size in ((None, 16), ("main", 16), ("wide", 32), ("2" * 40, 32)):
        config = HFModelConfig(name_or_path=hub, revision=revision)
        assert build_model(config, None, WORLD).config.hidden_size == size
        assert make_meta_model(config).config.hidden_size == size
    with pytest.raises(ModelError, match=facts("model.name_or_path", "revision 'gone'")):
        build_model(HFModelConfig(name_or_path=hub, revision="gone"), None, WORLD)
    with pytest.raises(ModelError, match=facts("model.revision", "'main'", "remove")):
        build_model(HFModelConfig(name_or_path=str(folder), revision="main"), None, WORLD)


def test_bfloat16_files_are_trained_in_float32_unless_asked_otherwise(
    tmp_path: Path, make_llama: Callable[..., Any]
) -> None:
    make_llama().to(torch.bfloat16).save_pretrained(tmp_path / "half")
    name = str(tmp_path / "half")
    assert build_model(HFModelConfig(name_or_path=name, dtype="bf16"), None, WORLD).dtype == torch.float32
    assert build_model(HFModelConfig(name_or_path=name, weights_dtype="bf16"), None, WORLD).dtype == torch.bfloat16


def test_random_weights_follow_the_global_seed(folder: Path) -> None:
    config = HFModelConfig(
        name_or_path=str(folder),
        from_config=True,
        attn_implementation="eager",
        hf_config_kwargs={"num_hidden_layers": 3},
    )
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(build_model(config, None, WORLD))
    first, again, other = (logits(model) for model in made)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(made[0].model.layers) == 3 and made[0].config._attn_implementation == "eager"


def test_an_unknown_config_value_is_refused_with_a_hint(folder: Path) -> None:
    config = HFModelConfig(name_or_path=str(folder), hf_config_kwargs={"atention_dropout": 0.1})
    with pytest.raises(
        ModelError, match=facts("model.hf_config_kwargs.atention_dropout", "given 0.1", "'attention_dropout'")
    ):
        build_model(config, None, WORLD)


@pytest.mark.parametrize(
    ("name", "said"),
    [("flash_attention_2", ["package flash-attn,", "write auto"]), ("spda", ["(did you mean 'sdpa'?)"])],
)
def test_attention_that_is_not_there_is_no_fault_of_the_weights(name: str, said: list[str], folder: Path) -> None:
    config = HFModelConfig(name_or_path=str(folder), attn_implementation=name)
    with pytest.raises(ModelError, match=facts("model.attn_implementation: ", f"'{name}'", *said)):
        build_model(config, None, WORLD)
    complaints = list(check_attention(config))
    assert [one.where for one in complaints] == ["model.attn_implementation"] * (name == "flash_attention_2")


def test_missing_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    weights.pop(lost)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=facts("model.name_or_path", f"'{folder}'", " 1 of", f"({lost})", "model.from_config")
    ):
        build_model(HFModelConfig(name_or_path=str(folder)), None, WORLD)


@pytest.mark.parametrize(("text", "part"), [("{", "config"), (None, "weights")])
def test_a_damaged_folder_is_one_error(folder: Path, text: str | None, part: str, no_network: None) -> None:
    if text is None:
        (folder / "model.safetensors").write_bytes(b"nonsense")
    else:
        (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=facts("model.name_or_path", f"'{folder}'", f" {part} ")) as raised:
        build_model(HFModelConfig(name_or_path=str(folder)), None, WORLD)
    assert "\n" not in str(raised.value) and raised.value.__cause__ is not None


def test_a_missing_gguf_file_lists_those_that_are_there(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=facts("model.gguf_file", "'b.gguf'", f"'{folder}'", " a.gguf")):
        build_model(HFModelConfig(name_or_path=str(folder), gguf_file="b.gguf"), None, WORLD)


def test_a_tokenizer_with_more_tokens_makes_the_model_grow(folder: Path, tokenizer: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    tokenizer.add_tokens(["<extra>"])
    model = build_model(HFModelConfig(name_or_path=str(folder)), tokenizer, WORLD)
    assert model.config.vocab_size == config["vocab_size"] + 1


def test_activation_checkpointing_gives_the_same_gradients(folder: Path) -> None:
    found = []
    for on in (False, True):
        model = build_model(HFModelConfig(name_or_path=str(folder), activation_checkpointing=on), None, WORLD).train()
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) == on
        ids = torch.arange(20)[None]
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append(model.model.embed_tokens.weight.grad)
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_nothing_is_printed_off_a_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build_model(HFModelConfig(name_or_path=str(folder)), None, WORLD)
    assert capfd.readouterr() == ("", "")


def test_weights_are_frozen_by_name(folder: Path) -> None:
    patterns = (r"layers\.0\.", "lm_head")  # the head is tied to the embedding
    model = build_model(HFModelConfig(name_or_path=str(folder), freeze=patterns), None, WORLD)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "model.embed_tokens.weight" in frozen and "model.layers.1.mlp.up_proj.weight" not in frozen
    assert frozen - {"model.embed_tokens.weight"} == {n for n, _ in model.named_parameters() if ".layers.0." in n}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("embed_token", "layer9"), ["model.freeze[1]", "'layer9'", "no weight's name", "embed_tokens"]),
        (("weight",), ["model.freeze", "freezes all", "weights"]),
    ],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(
    folder: Path, patterns: tuple[str, ...], message: list[str]
) -> None:
    with pytest.raises(RecipeError, match=facts(*message)):
        build_model(HFModelConfig(name_or_path=str(folder), freeze=patterns), None, WORLD)


def test_frozen_weights_stay_and_are_not_in_a_checkpoint(
    run_chat: Any, chat_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """A run resumes from a checkpoint without them, and groups refuse to name them."""
    checkpoint = {"type": "full", "save_every_n_steps": 2, "save_end_of_training": True}
    settings = {**chat_recipe, "model": {**chat_recipe["model"], "freeze": ["embed_tokens"]}, "checkpoint": checkpoint}
    one = run_chat(**settings)
    (path,) = (tmp_path / "run" / "checkpoints").glob("step-00000002")
    assert "model.embed_tokens.weight" in json.loads((path / "frozen.json").read_text())
    before = load_file(next(Path(chat_recipe["model"]["name_or_path"]).glob("*.safetensors")))
    assert torch.equal(one.model.model.embed_tokens.weight, before["model.embed_tokens.weight"])
    two = run_chat(trainer={"resume_from": path}, **{**settings, "run_dir": str(tmp_path / "rest")})
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    with pytest.raises(RecipeError, match=facts("optimizer.groups[0].match", "frozen", "embed_tokens")):
        run_chat(**{**settings, "run_dir": str(tmp_path / "third"), "optimizer": {"groups": [{"match": "embed"}]}})
