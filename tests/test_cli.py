"""The command line as a user meets it: real processes, real output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
        "import sys, hooktrain.cli as c\n"
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
    assert "6 steps of 2 x 1 x 1 rows (micro-batch, accumulation, ranks)" in shown.stdout
    assert "step 3/6  loss " in shown.stdout
    assert "lr 1.0e-03" in shown.stdout
    assert "tok/s" in shown.stdout
    assert "evaluated at step 6: eval/held_out/loss" in shown.stdout
    assert "trained 6 steps, " in shown.stdout
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
    assert f"resumed from {path} at step 3" in shown.stdout
    assert "trained 7 steps" in shown.stdout
    shown = hooktrain("train", str(recipe), *saving, "--resume", str(tmp_path), cwd=tmp_path)
    assert shown.returncode == 1
    assert "none of the recipe's checkpoint engines can resume from it; give the path of a checkpoint" in shown.stderr
    shown = hooktrain("train", str(recipe), *saving, "--resume", str(path.with_name("step-9")), cwd=tmp_path)
    assert (
        f"step-9: is not there; give the path of a checkpoint that one of them wrote (there are {path}" in shown.stderr
    )


def test_errors_are_sentences_without_tracebacks(recipe, tmp_path):
    shown = hooktrain("train", str(recipe), "-o", "optimzer.lr=1", "-o", "seed=x", cwd=tmp_path)
    assert shown.returncode == 1
    assert shown.stderr.startswith(
        f"hooktrain: {recipe}: 2 things to put right\n  - optimzer: unknown key (did you mean 'optimizer'?)"
    )
    assert "Traceback" not in shown.stderr
    shown = hooktrain("train", "nowhere.yaml", cwd=tmp_path)
    assert shown.stderr.startswith("hooktrain: nowhere.yaml: 1 thing to put right\n  - there is no such file")
    shown = hooktrain("trian", cwd=tmp_path)
    assert shown.returncode == 2
    assert "no command is named 'trian' (did you mean 'train'?); there are bench, data, " in shown.stderr


def test_a_warning_is_a_line(recipe, tmp_path):
    shown = hooktrain("train", str(recipe), "-o", "eval_interval=1", "-o", "data.eval_rows=0", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stderr.splitlines() if "warning" in line.lower()]
    assert lines == [
        "hooktrain: warning: eval_interval: nothing will be evaluated, as there is no evaluation set; add"
        " data.eval_sources"
    ]


def test_a_failing_hook_is_named_after_its_traceback(recipe, tmp_path):
    (tmp_path / "bad.py").write_text(
        "import hooktrain\n@hooktrain.hookimpl\ndef on_step_end(trainer):\n    if trainer.global_step == 2: {}['x']\n"
    )
    shown = hooktrain("train", str(recipe), "-p", "bad", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert shown.returncode == 1
    assert "bad.py" in shown.stderr
    assert "/click/" not in shown.stderr and "<hook " not in shown.stderr, "frames that say nothing about it"
    assert shown.stderr.rstrip().endswith(
        "hooktrain: failed in plugin 'bad', hook on_step_end, step 2, rank 0: KeyError: 'x'"
    )


def test_plugins(tmp_path):
    shown = hooktrain("plugins", cwd=tmp_path)
    assert shown.returncode == 0
    assert "optimizer adamw, adam" in shown.stdout
    assert "optimizer: {type: adamw}" in hooktrain("plugins", "torch", cwd=tmp_path).stdout
    facts = {
        fact["name"]: fact for fact in json.loads(hooktrain("plugins", "--json", "-p", "no:sft", cwd=tmp_path).stdout)
    }
    assert facts["torch"]["state"] == "active"
    assert facts["torch"]["distribution"] == "hooktrain-torch"
    assert facts["sft"]["state"] == "blocked"
    assert "make_optimizer" in facts["torch"]["hooks"]


def test_hooks(tmp_path):
    shown = hooktrain("hooks", "run_step", cwd=tmp_path)
    assert "run_step(trainer, batches)\nsegment: " in shown.stdout
    assert "One optimizer step over its whole accumulation window." in shown.stdout
    assert "loop  answers" in shown.stdout
    assert "did you mean 'run_step'?" in hooktrain("hooks", "run_stpe", cwd=tmp_path).stderr
    names = [fact["name"] for fact in json.loads(hooktrain("hooks", "--json", cwd=tmp_path).stdout)]
    assert {"on_step_end", "make_model", "register_configs"} <= set(names)


def test_plan(recipe, tmp_path):
    (tmp_path / "wraps.py").write_text(
        "import hooktrain\n@hooktrain.hookimpl(wrapper=True)\ndef make_model():\n    return (yield)\n"
        "@hooktrain.hookimpl\ndef run_step(trainer, batches):\n    return NotImplemented\n"
    )
    shown = hooktrain("plan", str(recipe), "--json", "-p", "wraps", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    facts = json.loads(shown.stdout)
    assert facts["parts"]["model"] == [
        {
            "type": "tiny",
            "plugin": "hooktrain.testing:TinyPlugin",
            "distribution": "hooktrain",
            "wrapped_by": ["wraps", "peft"],
        }
    ]
    roles = [(each["plugin"], each["role"]) for each in facts["hooks"]["run_step"]]
    assert roles == [("wraps", "answers"), ("loop", "not reached")]
    assert not (tmp_path / "run").exists(), "a plan runs nothing"
    text = hooktrain("plan", str(recipe), "-p", "wraps", cwd=tmp_path, PYTHONPATH=str(tmp_path)).stdout
    assert "model      tiny      from plugin hooktrain.testing:TinyPlugin, wrapped by wraps, peft" in text
    assert "run_step                wraps, loop (not reached)" in text
    assert "TinyModel, 289 parameters (289), all of them trained; float32" in text
    assert "7, 7 in an epoch, of 2 rows each" in text


def test_plugins_add_commands(tmp_path):
    (tmp_path / "brings.py").write_text(
        "import hooktrain, click\n@hooktrain.hookimpl\ndef register_commands(cli):\n"
        "    @cli.command()\n    def greet():\n        click.echo('hello from a plugin')\n"
    )
    shown = hooktrain("greet", cwd=tmp_path, PYTHONPATH=str(tmp_path), HOOKTRAIN_PLUGINS="brings")
    assert shown.stdout == "hello from a plugin\n", shown.stderr


def test_version(tmp_path):
    assert hooktrain("--version", cwd=tmp_path).stdout.startswith("hooktrain, version 0.")


def test_a_run_goes_on_when_nobody_reads_what_it_prints(recipe, tmp_path):
    words = [sys.executable, "-m", "hooktrain", "train", str(recipe), "-o", "train_iters=6", "-o", "run_dir=unread"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        ended = subprocess.run(words, stdout=nobody, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "plugin 'console' (hooktrain" in ended.stderr
    assert "nobody reads any more what is printed; it is left out from here on" in ended.stderr
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
    assert "failed in plugin 'console', hook on_train_start, step 0, rank 0: OSError: [Errno 28]" in ended.stderr
