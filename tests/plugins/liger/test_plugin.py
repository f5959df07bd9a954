"""Errors of the plugin before anything is loaded, and its imports."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
import yaml
from hooktrain_hf import HFModelConfig
from hooktrain_liger.config import LigerModelConfig

from hooktrain import ModelError, RecipeError, Trainer, field, hookimpl
from hooktrain.testing import make_llama, make_tokenizer
from hooktrain.training.load import load
from tests.facts import facts

Change = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(tmp_path: Path) -> Change:
    """``recipe(key=value, ...)``: fine-tune a model of which there is a config but no weights."""
    folder = tmp_path / "config-only"
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_llama(tokenizer).config.save_pretrained(folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "Forty"}]}\n'
    )

    def make(loss: Any = None, strategy: Any = None, settings: Any = None, **model: Any) -> dict[str, Any]:
        return {
            "type": "sft",
            "run_dir": str(tmp_path / "run"),
            "model": {"type": "liger", "name_or_path": str(folder), **model},
            "data": {"sources": [str(rows)]},
            "strategy": strategy or {"dtype": "fp32"},
            "console": {"enabled": False},
            **({"loss": loss} if loss else {}),
            **(settings or {}),
        }

    return make


def complaints(recipe: dict[str, Any], *plugins: object) -> str:
    with pytest.raises(RecipeError) as caught:
        load(recipe, plugins=list(plugins))
    return str(caught.value)


def failure(recipe: dict[str, Any]) -> str:
    made, host = load(recipe)
    with pytest.raises(ModelError) as caught:
        Trainer(made, host).run()
    return str(caught.value)


def test_everything_that_huggingface_takes() -> None:
    theirs, ours = attrs.fields_dict(HFModelConfig), attrs.fields_dict(LigerModelConfig)
    assert {name: ours[name].default for name in theirs} == {name: field.default for name, field in theirs.items()}
    assert LigerModelConfig.shorthand == "name_or_path"


def test_defaults(recipe: Change) -> None:
    model = load(recipe())[0].model
    assert isinstance(model, LigerModelConfig)
    assert model.fused_linear_cross_entropy and not model.cross_entropy and model.rms_norm is None


def test_two_cross_entropies(recipe: Change) -> None:
    text = complaints(recipe(cross_entropy=True))
    both = facts(
        "model", "cross_entropy and fused_linear_cross_entropy", "true", "write fused_linear_cross_entropy: false"
    )
    assert re.search(both, text)
    assert load(recipe(cross_entropy=True, fused_linear_cross_entropy=False))[0].model.cross_entropy


def test_misspelt_kernel(recipe: Change) -> None:
    assert re.search(facts("model.rmsnorm", "'rms_norm'"), complaints(recipe(rmsnorm=True)))


@attrs.frozen(kw_only=True)
class Distances:
    """A loss that compares complete distributions."""

    needs_logits: ClassVar[bool] = True
    temperature: float = field(default=1.0)
    """Divisor of the logits."""


class Registers:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    @hookimpl
    def register_configs(self) -> dict[str, dict[str, type]]:
        return {self.kind: {"distances": Distances}}


def test_loss_that_needs_logits_is_refused_at_once(recipe: Change) -> None:
    text = complaints(recipe(loss={"type": "distances"}), Registers("loss"))
    assert re.search(facts("model: ", "logits", "'loss'", "model.fused_linear_cross_entropy: false"), text)


def test_settings_that_need_logits_are_refused_at_once(recipe: Change) -> None:
    text = complaints(recipe(settings={"distances": {}}), Registers("settings"))
    assert re.search(r"model: .*logits.*'distances'.*model\.fused_linear_cross_entropy: false", text)
    assert re.search(r"loss: .*logits.*'distances'.*loss\.all_logits: true", text)


def test_needing_logits_is_fine_without_the_fused_loss(recipe: Change) -> None:
    load(recipe(loss={"type": "distances"}, fused_linear_cross_entropy=False), plugins=[Registers("loss")])


def test_needing_logits_is_fine_for_another_model(recipe: Change) -> None:
    load(recipe(type="huggingface", loss={"type": "distances"}), plugins=[Registers("loss")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_comparing_gradients_is_refused_with_kernels_that_overwrite_them(recipe: Change) -> None:
    given = {**recipe(), "objectives": {"conflicts": 10}}
    with pytest.raises(RecipeError, match=facts("objectives.conflicts", "fused_linear_cross_entropy: false")):
        load(given)


def test_without_a_gpu_the_error_comes_before_weights_are_read(recipe: Change) -> None:
    text = failure(recipe())
    assert re.search(
        facts("model.type", "'liger'", "need a GPU", "torch", "type: huggingface", "TRITON_INTERPRET=1"), text
    )


def test_a_strategy_on_the_cpu_is_an_error_even_with_a_gpu(recipe: Change) -> None:
    text = failure(recipe(strategy={"dtype": "fp32", "device": "cpu"}))
    assert re.search(facts("model.type", "'liger'", "need a GPU", "strategy", "CPU", "type: huggingface"), text)


def test_without_liger_the_error_names_the_packages(recipe: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    text = failure(recipe())
    assert re.search(facts("model.type", "'liger'", "imported", "liger-kernel and triton", "type: huggingface"), text)


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["hooks"], ["plan", "--all", "recipe.yaml"]])
@pytest.mark.usefixtures("real_starts")
def test_listings_import_no_liger(recipe: Change, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    program = (
        "import sys\nfrom hooktrain.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('IMPORTED', [name for name in ('triton', 'liger_kernel', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    imported = done.stdout.splitlines()[-1]
    assert "liger_kernel" not in imported, done.stdout
    if words[0] != "plan":  # which has transformers make the model without its weights, and torch then asks for Triton
        assert imported == "IMPORTED []", done.stdout
    if words[0] == "plugins":
        (line,) = [line for line in done.stdout.splitlines() if "hooktrain-liger" in line]
        assert "model liger" in line
    if words[0] == "plan":
        assert "fused_linear_cross_entropy: true" in done.stdout
