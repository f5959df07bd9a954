"""The checkpoint engine ``huggingface``."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hooktrain_hf.export as export_module
import huggingface_hub
import pytest
import torch
from hooktrain_hf.export import HFCheckpointConfig, HFCheckpointEngine, generation_config_for
from hooktrain_hf.plugin import HFPlugin
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hooktrain import CheckpointError, World, hookimpl
from hooktrain.testing import host_of
from tests.facts import facts


def engine(path: Path, **more: Any) -> HFCheckpointEngine:
    return HFCheckpointEngine(HFCheckpointConfig(output_dir=path, **more), path.parent / "run", World())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(12)[None] + 5).logits  # type: ignore[no-any-return]


def names(path: Path) -> set[str]:
    with safe_open(path / "model.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("tied", [True, False])
def test_a_reloaded_export_gives_equal_logits(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any], tied: bool, tokenizer: Any
) -> None:
    model = make_llama(tied)
    before = (model.config.to_dict(), model.generation_config.to_dict())
    path = engine(tmp_path / "out").save(make_trainer(model))
    assert path == tmp_path / "out"
    assert ("lm_head.weight" in names(path)) is not tied and "model.embed_tokens.weight" in names(path)
    reloaded = AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(logits(reloaded), logits(model))
    assert (reloaded.lm_head.weight is reloaded.model.embed_tokens.weight) is tied
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    again = AutoTokenizer.from_pretrained(path)
    chat = [{"role": "user", "content": "What is it?"}]
    assert again.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(chat, tokenize=False)


def test_weights_tied_only_in_the_live_model_are_written_once(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    """The strategy's copies of tied weights do not share memory any more, and may lack one of the names."""
    for drop in ("", "lm_head.weight", "model.embed_tokens.weight"):
        path = engine(tmp_path / f"out{drop}").save(make_trainer(make_llama(), drop=drop))
        assert "lm_head.weight" not in names(path) and "model.embed_tokens.weight" in names(path)


def test_generation_ends_at_the_chats_end_of_turn(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any], tokenizer: Any
) -> None:
    path = engine(tmp_path / "out").save(make_trainer(make_llama()))
    ends = json.loads((path / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(tokenizer.convert_ids_to_tokens(ends)) == ["<|endoftext|>", "<|im_end|>"]


def test_a_published_temperature_without_sampling_can_be_saved(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any], tokenizer: Any
) -> None:
    model = make_llama()
    model.generation_config.temperature = 0.6
    engine(tmp_path / "out").save(make_trainer(model))
    assert generation_config_for(model, tokenizer).do_sample and not model.generation_config.do_sample


def test_save_dtype_goes_into_weights_and_config(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    model = make_llama()
    path = engine(tmp_path / "out", save_dtype="bf16").save(make_trainer(model))
    reloaded = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    assert reloaded.dtype == torch.bfloat16 and model.dtype == torch.float32
    assert "lm_head.weight" not in names(path)
    assert torch.equal(reloaded.model.norm.weight, model.model.norm.weight.bfloat16())


def test_earlier_saves_and_foreign_files_survive_the_final_one(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    model, out = make_llama(), tmp_path / "out"
    saver = engine(out)
    assert saver.save(make_trainer(model, step=2, reason="step")) == out / "step-2"
    saver.save(make_trainer(model, step=3))
    (out / "NOTES.md").write_text("mine")
    (out / "model-00001-of-00002.safetensors").write_text("of an older, sharded export")
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    engine(out).save(make_trainer(model, step=4))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(model))
    assert (out / "NOTES.md").read_text() == "mine" and (out / "step-2/config.json").is_file()
    assert not (out / "model-00001-of-00002.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_folder_with_other_things_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    engine(tmp_path / "out")
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match=facts("output_dir", f"'{tmp_path / 'out'}'", "(thesis.tex)")):
        engine(tmp_path / "out")
    with pytest.raises(CheckpointError, match=facts("output_dir", f"'{tmp_path / 'out' / 'thesis.tex'}'", "is a file")):
        engine(tmp_path / "out" / "thesis.tex")
    engine(tmp_path / "out", enabled=False)


@pytest.mark.parametrize(
    ("fault", "expected_text"),
    [
        ({"drop": "model.norm.weight"}, facts("20 weights", "expected the model's 21", "model.norm.weight")),
        ({"spoil": "model.norm.weight"}, facts("model.norm.weight", "shape (15,)", "expected (16,)")),
    ],
)
def test_incomplete_weights_are_never_written(
    tmp_path: Path,
    make_llama: Callable[..., Any],
    make_trainer: Callable[..., Any],
    fault: dict[str, str],
    expected_text: str,
) -> None:
    with pytest.raises(CheckpointError, match=expected_text):
        engine(tmp_path / "out").save(make_trainer(make_llama(), **fault))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_failed_write_leaves_the_last_export_alone(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = make_llama(), tmp_path / "out"
    engine(out).save(make_trainer(model))
    expected = logits(model)
    write = export_module._save_model

    def fail(*args: Any) -> None:
        write(*args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_save_model", fail)
    with pytest.raises(CheckpointError, match=facts(str(out), "No space left on device", "unchanged")):
        engine(out).save(make_trainer(make_llama(tied=False)))

    def spoil(module: Any, weights: Any, *rest: Any) -> None:
        write(module, {name: tensor * 2 for name, tensor in weights.items()}, *rest)

    monkeypatch.setattr(export_module, "_save_model", spoil)
    with pytest.raises(CheckpointError, match=facts("other values", f"'{tmp_path}'")):
        engine(out).save(make_trainer(make_llama(tied=False)))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_cannot_be_resumed_from(tmp_path: Path) -> None:
    saver = engine(tmp_path / "out")
    assert saver.latest() is None and not saver.can_load(tmp_path)
    with pytest.raises(CheckpointError, match="type: full"):
        saver.load(None, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="type: full"):
        engine(tmp_path / "out", auto_resume=True)


def test_a_module_that_is_no_transformers_model_is_refused(tmp_path: Path, make_trainer: Callable[..., Any]) -> None:
    with pytest.raises(CheckpointError, match=facts("Linear", "expected a transformers model", "'type: full'")):
        engine(tmp_path / "out").save(make_trainer(torch.nn.Linear(2, 2)))


def test_by_default_the_folder_is_in_the_run_directory(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    saver = HFCheckpointEngine(HFCheckpointConfig(), tmp_path / "run", World())
    assert saver.save(make_trainer(make_llama())) == tmp_path / "run" / "export"
    shutil.rmtree(tmp_path / "run")


def test_a_plugin_may_write_the_model_in_its_own_form_which_is_still_verified(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any]
) -> None:
    class OnlyTheNorm:
        factor = 1.0

        @hookimpl
        def export_model(self, weights: Any, folder: Path) -> Any:
            norm = {"norm": weights["model.norm.weight"]}
            save_file(norm, folder / "norm.safetensors")
            return {"norm": norm["norm"] * self.factor}

    plugin = OnlyTheNorm()
    trainer = make_trainer(make_llama())
    trainer.hooks = host_of(HFPlugin(), plugin).hooks
    path = engine(tmp_path / "out").save(trainer)
    assert [file.name for file in path.glob("*.safetensors")] == ["norm.safetensors"]
    assert (path / "tokenizer_config.json").is_file() and not (path / "config.json").exists()
    plugin.factor = 2.0
    with pytest.raises(CheckpointError, match=facts(" norm ", "other values", f"'{tmp_path}'")):
        engine(tmp_path / "other").save(trainer)
    assert not (tmp_path / "other").exists()


class Hub(BaseHTTPRequestHandler):
    """A hub that knows nobody."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


def told_by(trainer: Any) -> list[str]:
    warned: list[str] = []
    trainer.host = SimpleNamespace(warn=warned.append)
    return warned


@pytest.mark.parametrize("to", ["org/new", "org/new@branch"])
@pytest.mark.usefixtures("hub")
def test_a_push_that_fails_is_a_warning(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any], to: str
) -> None:
    trainer = make_trainer(make_llama())
    warned = told_by(trainer)
    path = engine(tmp_path / "out", push_to=to).save(trainer)
    assert (path / "config.json").is_file()
    assert len(warned) == 1 and re.search(facts("push_to", to, "hf upload org/new"), warned[0])


def test_nothing_is_pushed_offline_or_before_the_end(
    tmp_path: Path, make_llama: Callable[..., Any], make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    trainer = make_trainer(make_llama())
    warned = told_by(trainer)
    engine(tmp_path / "out", push_to="org/new").save(trainer)
    assert len(warned) == 1 and "HF_HUB_OFFLINE is set" in warned[0]
    early = make_trainer(make_llama(), reason="step")
    warned = told_by(early)
    engine(tmp_path / "more", push_to="org/new").save(early)
    assert warned == []


def test_the_best_export_is_that_of_the_best_evaluation(
    run_chat: Callable[..., Any], chat_recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Evaluations of 3, 1, 2 and 0.5, larger being better: the first one stays, and the end is exported too."""
    weights: list[torch.Tensor] = []

    class Evaluations:
        @hookimpl(wrapper=True)
        def run_evaluate(self, trainer: Any) -> Any:
            yield
            weights.append(trainer.model.model.norm.weight.detach().clone())
            return {"eval/eval/score": (3.0, 1.0, 2.0, 0.5)[trainer.global_step - 1]}

    best = {"type": "huggingface", "save_best": "eval/eval/score", "save_best_mode": "max"}
    rows = chat_recipe["data"]["sources"]
    recipe = {**chat_recipe, "data": {**chat_recipe["data"], "eval_sources": rows}, "optimizer": {"lr": 0.1}}
    folder = (
        run_chat(Evaluations(), **recipe, eval_interval=1, checkpoint=[{**best, "save_end_of_training": True}]).run_dir
        / "export"
    )
    for path, expected in ((folder / "best", weights[0]), (folder, weights[-1])):
        found = AutoModelForCausalLM.from_pretrained(path).model.norm.weight
        assert torch.equal(found, expected)
    assert not torch.equal(weights[0], weights[-1])
