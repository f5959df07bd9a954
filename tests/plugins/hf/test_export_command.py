"""``hooktrain export``: the folder that the run itself would have exported, of any strategy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from hooktrain import HooktrainError
from hooktrain.cli.main import cli
from hooktrain.testing import make_llama, make_tokenizer, train
from tests.facts import facts
from tests.preload import DEEPSPEED

pytestmark = pytest.mark.preload(*DEEPSPEED)

Run = Callable[..., Any]
SAVES: list[dict[str, Any]] = [
    {"type": "full", "save_every_n_steps": 2},
    {"type": "huggingface", "save_every_n_steps": 2, "save_end_of_training": True},
]
LORA = {"type": "lora", "r": 4}


def export(*words: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, words)], catch_exceptions=True)


def exported(*words: object) -> Path:
    """Export to a new folder, and return it."""
    result = export(*words)
    assert result.exit_code == 0, result.exception
    found = re.search(r": (\S+), [\d,]+ weights", result.output)
    assert found is not None, result.output
    return Path(found[1])


def refused(*words: object) -> str:
    result = export(*words)
    assert isinstance(result.exception, HooktrainError), result.output
    return str(result.exception)


def assert_equal_folders(made: Path, expected: Path) -> None:
    """The same files with the same bytes, earlier exports inside left out."""
    here, there = ({p.name for p in folder.iterdir() if p.is_file()} for folder in (made, expected))
    assert here == there
    for name in here:
        assert (made / name).read_bytes() == (expected / name).read_bytes(), name


def test_the_export_of_a_checkpoint_is_the_runs_own_at_that_step(run_chat: Run) -> None:
    """The newest one of a run without naming a folder, and an earlier one by its path."""
    run_dir = run_chat(checkpoint=SAVES).run_dir
    made = exported(run_dir)
    assert made == run_dir / "export-step-4"
    assert_equal_folders(made, run_dir / "export")
    earlier = exported(run_dir / "checkpoints/step-00000002", "--output", run_dir / "mine")
    assert earlier == run_dir / "mine"
    assert_equal_folders(earlier, run_dir / "export/step-2")


@pytest.mark.parametrize(
    "changes",
    [
        {"peft": LORA},
        {"peft": {**LORA, "merge_on_export": True}},
        {"tokenizer": {"add_tokens": ["<new>"]}, "checkpoint": [SAVES[0], {**SAVES[1], "save_dtype": "bf16"}]},
        pytest.param({"model": {"weights_dtype": "bf16"}}, marks=pytest.mark.thorough),
        pytest.param({"peft": {**LORA, "init_lora_weights": "pissa"}}, marks=pytest.mark.thorough),
        pytest.param({"peft": {**LORA, "modules_to_save": ["lm_head"]}}, marks=pytest.mark.thorough),
        pytest.param({"peft": LORA, "model": {"quantization": "nf4"}}, marks=pytest.mark.thorough),
        pytest.param(
            {"peft": {**LORA, "merge_on_export": True}, "model": {"quantization": "nf4"}}, marks=pytest.mark.thorough
        ),
    ],
    ids=str,
)
def test_adapters_tokens_and_precisions_are_those_of_the_run(
    run_chat: Run, chat_recipe: dict[str, Any], changes: dict[str, Any]
) -> None:
    changes = {"checkpoint": SAVES, **changes, "model": {**chat_recipe["model"], **changes.get("model", {})}}
    run_dir = run_chat(**changes).run_dir
    assert_equal_folders(exported(run_dir), run_dir / "export")


STRATEGIES = {
    "ddp": {"data_parallel": "ddp"},
    "fsdp2": {"data_parallel": "fsdp2"},
    **{f"zero{stage}": {"type": "deepspeed", "zero_stage": stage} for stage in range(4)},
}


@pytest.mark.parametrize(
    "strategy", [name if name == "fsdp2" else pytest.param(name, marks=pytest.mark.thorough) for name in STRATEGIES]
)
def test_two_ranks_of_any_strategy(run_cli: Run, chat_recipe: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    recipe = {
        **chat_recipe,
        "checkpoint": SAVES,
        "strategy": {**STRATEGIES[strategy], "dtype": "fp32", "device": "cpu"},
    }
    done = run_cli("train", recipe, "--nproc", "2")
    assert done.status == 0, done.output
    run_dir = Path(chat_recipe["run_dir"])
    assert_equal_folders(
        exported(run_dir / "checkpoints/step-00000002", "--output", tmp_path / "a"), run_dir / "export/step-2"
    )
    assert_equal_folders(exported(run_dir), run_dir / "export")


def test_merged_it_is_what_merge_on_export_gives(run_chat: Run, tmp_path: Path) -> None:
    shared = {"checkpoint": SAVES, "train_iters": 2}
    run_dir = run_chat(**shared, peft=LORA).run_dir
    expected = run_chat(**shared, peft={**LORA, "merge_on_export": True}, run_dir=str(tmp_path / "merged")).run_dir
    made = exported(run_dir, "--merge")
    assert made == run_dir / "export-step-2-merged"
    assert_equal_folders(made, expected / "export")
    half = exported(run_dir, "--merge", "--dtype", "bf16", "--output", tmp_path / "half")
    assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype == torch.bfloat16


def test_the_best_checkpoint(run_chat: Run) -> None:
    """By the metric of the recipe, and otherwise by the only loss of its evaluation."""
    full = {"type": "full", "save_every_n_steps": 1}
    trainer = run_chat(checkpoint=[full], eval_interval=1, optimizer={"lr": 0.5})
    losses = {line["step"]: line["eval/rows/loss"] for line in trainer.history if "eval/rows/loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert best != max(losses), "the newest is another one"
    assert f"step {best}:" in export(trainer.run_dir, "--best").output
    run_dir = trainer.run_dir.with_name("unmeasured")
    run_chat(
        checkpoint=[full],
        eval_interval=100,
        train_iters=1,
        run_dir=str(run_dir),
        data={**trainer.recipe.as_dict()["data"], "eval_sources": []},
    )
    assert re.search(facts("--best", f"'{run_dir}'", "save_best"), refused(run_dir, "--best"))


def test_nothing_is_overwritten_and_what_cannot_be_exported_is_named(
    run_chat: Run, chat_recipe: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    full = {"type": "full", "save_end_of_training": True}
    run_dir = run_chat(checkpoint=[full], train_iters=1, peft=LORA, model={"name_or_path": str(base)}).run_dir
    before = sorted(tiny_llama.iterdir())
    assert re.search(facts("--output", f"'{tiny_llama}'", "exists"), refused(run_dir, "--output", tiny_llama))
    assert sorted(tiny_llama.iterdir()) == before
    exported(run_dir)
    assert re.search(facts("export-step-1", "exists", "remove"), refused(run_dir))
    out = ("--output", tmp_path / "out")
    assert re.search(facts(f"'{tmp_path / 'nowhere'}'", "exist"), refused(tmp_path / "nowhere", *out))
    assert re.search(facts(f"'{base}'", "an export already", "--merge"), refused(base, *out))
    assert re.search(facts(f"'{base}'", "nothing to merge"), refused(base, "--merge", *out))
    empty = run_chat(checkpoint=[], train_iters=1, run_dir=str(tmp_path / "empty")).run_dir
    assert re.search(facts(f"'{empty}'", "no checkpoint", "save_end_of_training"), refused(empty, *out))
    assert re.search(facts("URL", "s3:"), refused(run_dir, "--output", "s3://bucket/x"))
    with torch.no_grad():
        other = AutoModelForCausalLM.from_pretrained(base)
        other.model.norm.weight.mul_(2)
        other.save_pretrained(base)
    message = refused(run_dir, *out)
    assert re.search(facts("frozen", "model.norm.weight", "-o model.name_or_path"), message)
    damaged = run_dir / "checkpoints/step-00000001/model-0.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert re.search(facts("model-0.pt", "damaged"), refused(damaged.parent, *out))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*writing"))


HALVED = """
import attrs
import torch
from hooktrain import hookimpl


@attrs.frozen(kw_only=True)
class Settings:
    on: bool = False


@hookimpl
def register_configs():
    return {"settings": {"halved": Settings}}


@hookimpl
def merge_model(module, recipe):
    if not recipe.settings["halved"].on:
        return None
    with torch.no_grad():
        module.model.norm.weight.div_(2)
    return module
"""


def test_a_strangers_plugin_merges_too(
    chat_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here half of a norm stands for what was added to the model."""
    (tmp_path / "halved_merges.py").write_text(HALVED)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = {**chat_recipe, "checkpoint": SAVES, "train_iters": 2, "halved": {"on": True}}
    run_dir = train({**recipe, "plugins": {"load": ["halved_merges"]}}).run_dir
    plain, merged = (AutoModelForCausalLM.from_pretrained(f) for f in (exported(run_dir), exported(run_dir, "--merge")))
    assert torch.equal(merged.model.norm.weight * 2, plain.model.norm.weight)


WATCHED = """
import gc, sys, threading
from hooktrain.training.export import export_model_of

def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    global most
    while not ended.wait(0.002):
        most = max(most, held())

export_model_of(sys.argv[1], sys.argv[3])  # with which everything is imported
gc.collect()
ended, most, before = threading.Event(), 0, held()
thread = threading.Thread(target=watch)
thread.start()
export_model_of(sys.argv[2], sys.argv[4], dtype=sys.argv[5] or None)
ended.set()
thread.join()
print(most - before)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["", "bf16"])
def test_no_more_memory_than_the_model(run_cli: Run, chat_recipe: dict[str, Any], tmp_path: Path, dtype: str) -> None:
    """242 MiB that two ranks have saved: the weights once, and the few that are read at a time."""
    tokenizer = make_tokenizer()
    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    wide = make_llama(tokenizer, tied=False, **size)
    wide.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    recipe = {**chat_recipe, "train_iters": 1, "optimizer": {"type": "sgd", "lr": 0.1}}
    recipe |= {"checkpoint": [{"type": "full", "save_end_of_training": True}]}
    for name, changes, words in (
        ("tiny", {}, ()),
        ("wide", {"model": {"name_or_path": str(tmp_path / "wide")}}, ("--nproc", "2")),
    ):
        strategy = {**recipe["strategy"], "data_parallel": "fsdp2"}
        done = run_cli(
            "train", {**recipe, **changes, "strategy": strategy, "run_dir": str(tmp_path / f"{name}-run")}, *words
        )
        assert done.status == 0, done.output
    words = [tmp_path / "tiny-run", tmp_path / "wide-run", tmp_path / "a", tmp_path / "b", dtype]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    weights = sum(p.numel() * p.element_size() for p in wide.parameters())
    assert 0.5 * weights < int(done.stdout.splitlines()[-1]) < 1.7 * weights
