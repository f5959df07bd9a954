"""The command line as a user meets it: real processes, real output."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.facts import facts

ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def hooktrain(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hooktrain", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
        check=False,
    )


@pytest.fixture
def recipe(tmp_path, tiny_recipe):
    """A recipe file of type ``tiny``, which comes with the test kit and is loaded by name."""
    path = tmp_path / "tiny.yaml"
    raw = {**tiny_recipe, "plugins": {"load": ["hooktrain.testing:TinyPlugin"]}, "console": {"interval": 3}}
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.usefixtures("real_starts")
def test_help_imports_neither_torch_nor_plugins(tmp_path):
    """Which is what makes it quick: a clock here would measure how busy the machine is."""
    code = (
        "import sys, hooktrain.cli.main as c\n"
        "try: c.cli(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m in ('torch', 'transformers', 'rich', 'pluggy') or m.startswith('hooktrain_')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert shown.stdout.rstrip().endswith("[]")
    assert "train" in shown.stdout
    assert "Usage: " in shown.stdout


def test_train(recipe, tmp_path):
    shown = hooktrain("train", str(recipe), "-o", "train_iters=6", "-o", "optimizer.lr=1e-3", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    for named in (
        ["6 steps", "2 x 1 x 1"],
        ["step 3/6", "loss ", "lr 1.0e-03", "tok/s"],
        ["step 6", "held_out/loss"],
        ["trained 6 steps"],
    ):
        assert any(re.search(facts(*named), line) for line in lines), (named, shown.stdout)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 6


def test_run_dir_is_named_after_the_recipe(recipe, tmp_path):
    raw = yaml.safe_load(recipe.read_text())
    del raw["run_dir"]
    recipe.write_text(yaml.safe_dump(raw))
    assert hooktrain("train", str(recipe), "-o", "train_iters=1", cwd=tmp_path).returncode == 0
    assert (tmp_path / "runs" / "tiny" / "metrics.jsonl").exists()


def test_resume(recipe, tmp_path):
    saving = ("-o", "checkpoint=[{type: full, save_every_n_steps: 3}]")
    assert hooktrain("train", str(recipe), *saving, "-o", "exit_iteration=4", cwd=tmp_path).returncode == 0
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    shown = hooktrain("train", str(recipe), *saving, "--resume", str(path), cwd=tmp_path)
    assert re.search(facts("resumed", str(path), "step 3"), shown.stdout)
    assert "trained 7 steps" in shown.stdout
    shown = hooktrain("train", str(recipe), *saving, "--resume", str(tmp_path), cwd=tmp_path)
    assert shown.returncode == 1
    assert re.search(facts(str(tmp_path), "checkpoint engines", "resume", "path of a checkpoint"), shown.stderr)
    shown = hooktrain("train", str(recipe), *saving, "--resume", str(path.with_name("step-9")), cwd=tmp_path)
    assert re.search(facts(str(path.with_name("step-9")), "path of a checkpoint", f"there are {path}"), shown.stderr)


def test_errors_are_sentences_without_tracebacks(recipe, tmp_path):
    shown = hooktrain("train", str(recipe), "-o", "optimzer.lr=1", "-o", "seed=x", cwd=tmp_path)
    assert shown.returncode == 1
    head, *errors = shown.stderr.splitlines()
    assert head.startswith(f"hooktrain: {recipe}: 2 ")
    assert [error.split(":")[0] for error in errors] == ["  - optimzer", "  - seed"]
    assert "'optimizer'" in errors[0] and "'x'" in errors[1]
    shown = hooktrain("train", "nowhere.yaml", cwd=tmp_path)
    assert shown.stderr.startswith("hooktrain: nowhere.yaml: 1 ") and "no such file" in shown.stderr
    assert "Traceback" not in shown.stderr
    shown = hooktrain("trian", cwd=tmp_path)
    assert shown.returncode == 2
    assert re.search(facts("command", "'trian'", "'train'", "bench, chat, convert, data, "), shown.stderr)


def test_a_warning_is_a_line(recipe, tmp_path):
    shown = hooktrain("train", str(recipe), "-o", "eval_interval=1", "-o", "data.eval_rows=0", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stderr.splitlines() if "warning" in line.lower()]
    (line,) = lines
    assert line.startswith("hooktrain: warning: eval_interval: ") and "data.eval_sources" in line


def test_a_failing_hook_is_named_after_its_traceback(recipe, tmp_path):
    (tmp_path / "bad.py").write_text(
        "import hooktrain\n@hooktrain.hookimpl\ndef on_step_end(trainer):\n    if trainer.global_step == 2: {}['x']\n"
    )
    shown = hooktrain("train", str(recipe), "-p", "bad", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert shown.returncode == 1
    assert "bad.py" in shown.stderr
    assert "/click/" not in shown.stderr and "<hook " not in shown.stderr, "frames that say nothing about it"
    last = shown.stderr.rstrip().splitlines()[-1]
    assert last.startswith("hooktrain: ")
    assert re.search(facts("plugin 'bad'", "on_step_end", "step 2", "rank 0", "KeyError: 'x'"), last)


def test_plugins(tmp_path):
    shown = hooktrain("plugins", cwd=tmp_path)
    assert shown.returncode == 0
    assert "optimizer adamw, adam" in shown.stdout
    assert "optimizer: {type: adamw}" in hooktrain("plugins", "torch", cwd=tmp_path).stdout
    listed = {
        fact["name"]: fact for fact in json.loads(hooktrain("plugins", "--json", "-p", "no:sft", cwd=tmp_path).stdout)
    }
    assert listed["torch"]["state"] == "active"
    assert listed["torch"]["distribution"] == "hooktrain-torch"
    assert listed["sft"]["state"] == "blocked"
    assert "make_optimizer" in listed["torch"]["hooks"]


def test_hooks(tmp_path):
    shown = hooktrain("hooks", "run_step", cwd=tmp_path)
    assert shown.stdout.startswith("run_step(trainer, batches)\n")
    assert re.search(facts("optimizer step", "accumulation window"), shown.stdout)
    assert re.search(r"^\s*loop\b", shown.stdout, re.MULTILINE)
    assert re.search(facts("'run_stpe'", "'run_step'"), hooktrain("hooks", "run_stpe", cwd=tmp_path).stderr)
    names = [fact["name"] for fact in json.loads(hooktrain("hooks", "--json", cwd=tmp_path).stdout)]
    assert {"on_step_end", "make_model", "register_configs"} <= set(names)


def test_plan(recipe, tmp_path):
    (tmp_path / "wraps.py").write_text(
        "import hooktrain\n@hooktrain.hookimpl(wrapper=True)\ndef make_model():\n    return (yield)\n"
        "@hooktrain.hookimpl\ndef run_step(trainer, batches):\n    return NotImplemented\n"
    )
    shown = hooktrain("plan", str(recipe), "--json", "-p", "wraps", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    plan = json.loads(shown.stdout)
    assert plan["parts"]["model"] == [
        {
            "type": "tiny",
            "plugin": "hooktrain.testing:TinyPlugin",
            "distribution": "hooktrain",
            "wrapped_by": ["wraps"],  # peft is not in use
        }
    ]
    roles = [(each["plugin"], each["role"]) for each in plan["hooks"]["run_step"]]
    assert roles == [("wraps", "runs"), ("loop", "not called")]
    assert not (tmp_path / "run").exists(), "a plan runs nothing"
    text = hooktrain("plan", str(recipe), "-p", "wraps", cwd=tmp_path, PYTHONPATH=str(tmp_path)).stdout
    for named in (
        ["model ", " tiny ", "hooktrain.testing:TinyPlugin", "wraps"],
        ["run_step ", "wraps, loop"],
        ["TinyModel", "289 parameters", "float32"],
        ["7, 7 ", "epoch", " of 2 "],
    ):
        assert any(re.search(facts(*named), line) for line in text.splitlines()), (named, text)


def test_version(tmp_path):
    assert hooktrain("--version", cwd=tmp_path).stdout.startswith("hooktrain, version 0.")


def test_a_run_goes_on_when_nobody_reads_what_it_prints(recipe, tmp_path):
    words = [sys.executable, "-m", "hooktrain", "train", str(recipe), "-o", "train_iters=6", "-o", "run_dir=unread"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        ended = subprocess.run(words, stdout=nobody, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.search(facts("plugin 'console' (hooktrain", "print"), ended.stderr)
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert len((tmp_path / "unread" / "metrics.jsonl").read_text().splitlines()) == 6


def test_an_error_of_the_engines_own_plugins_names_plugin_and_hook(recipe, tmp_path):
    words = ("train", str(recipe), "-o", "plugins.on_error.console=stop", "-o", "run_dir=full")
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "hooktrain", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    assert ended.returncode == 1
    named = ("plugin 'console'", "on_train_start", "step 0", "rank 0", "OSError: [Errno 28]")
    assert any(re.search(facts(*named), line) for line in ended.stderr.splitlines()), ended.stderr


def test_warnings_and_loggers_are_one_channel(run_cli, tiny_recipe):
    source = """
import logging, warnings
from hooktrain import HooktrainWarning

@hookimpl
def on_train_start(trainer):
    logging.getLogger("hooktrain_mine").warning("mine is %s", "logged")
    logging.getLogger("theirs").warning("theirs")
    logging.getLogger("hooktrain_mine").info("not shown")
    trainer.host.warn("of the host")

@hookimpl
def on_train_end(trainer):
    logging.basicConfig(format="configured %(name)s: %(message)s")
    logging.getLogger("hooktrain_mine").warning("again")
    warnings.warn("once more", HooktrainWarning)
"""
    run = run_cli("train", tiny_recipe, "-p", "extra", source=source)
    said = [line for line in run.stderr.splitlines() if line]
    assert said == [
        "hooktrain: warning: mine is logged",
        "theirs",
        "hooktrain: warning: of the host",
        "configured hooktrain_mine: again",
        "configured hooktrain: once more",
    ], run.output
