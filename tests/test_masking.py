"""Passwords and tokens: in no file of a run, no plan and no message, and a resume notices another one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from hooktrain import CheckpointError, HooktrainError, RecipeError, hookimpl, mask_text, masked
from hooktrain.config import field
from hooktrain.inspection.plan import plan_of
from hooktrain.inspection.value_origins import Sources
from hooktrain.masking import mask_words
from hooktrain.recipe.yaml_reader import read_recipe
from hooktrain.testing import host_of

KEY, PASSWORD = "correcthorsebattery", "staple9staple9"
LOGGER = {"api_key": KEY, "url": f"https://me:{PASSWORD}@example.org/log?token={PASSWORD}"}


@attrs.frozen
class LoggerConfig:
    api_key: str = field(default="")
    url: str = field(default="")
    level: int = field(default=1)


class Logger:
    @hookimpl
    def register_configs(self):
        return {"settings": {"logger": LoggerConfig}}

    @hookimpl
    def on_train_start(self, trainer):
        self.given = trainer.recipe.settings["logger"]
        trainer.say(f"logging to {self.given.url} with {self.given.api_key}")


def held_by(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_file_of_a_run_holds_them(run_tiny, tmp_path, capfd):
    logger = Logger()
    run_tiny(logger, logger=LOGGER, checkpoint={"type": "full", "save_every_n_steps": 3}, console={"enabled": True})
    assert logger.given == LoggerConfig(**LOGGER), "who needs them has them"
    found = held_by(tmp_path / "run")
    assert any(name.endswith("provenance.json") for name in found)
    for name, content in found.items():
        assert KEY.encode() not in content and PASSWORD.encode() not in content, name
    shown = capfd.readouterr().out
    assert "logging to https://me:***@example.org/log?token=*** with ***" in shown


def test_the_kept_recipe_says_what_was_masked_and_is_not_run_with_stars(run_tiny, tmp_path):
    run_tiny(Logger(), logger=LOGGER)
    kept = tmp_path / "run" / "recipe.yaml"
    assert kept.read_text().startswith("# masked: logger.api_key, logger.url; write them again")
    with pytest.raises(RecipeError) as refused:
        run_tiny(Logger(), **{key: value for key, value in read_recipe(kept).items() if key in ("logger", "plugins")})
    assert {each.where for each in refused.value.complaints} == {"logger.api_key", "logger.url"}


def test_a_kept_recipe_can_be_planned_and_compared(run_tiny, tmp_path):
    run_tiny(Logger(), logger=LOGGER)
    raw = {"type": "tiny", "logger": read_recipe(tmp_path / "run" / "recipe.yaml")["logger"]}
    facts = plan_of(host_of(Logger()), Sources(file=None, raw=raw), estimates=False)
    wrong = {each["where"] for each in facts["complaints"]}
    assert {name for name in wrong if name.startswith("logger")} == {"logger.api_key", "logger.url"}
    assert facts["recipe"]["logger"] == masked(LOGGER) | {"level": 1}


def test_a_resume_compares_their_salted_digests(run_tiny, tmp_path):
    saves = {"type": "full", "save_every_n_steps": 3, "auto_resume": True}
    run_tiny(Logger(), logger=LOGGER, checkpoint=saves, train_iters=3)
    provenance = json.loads((tmp_path / "run/checkpoints/step-00000003/provenance.json").read_text())
    assert set(provenance["masked"]["digests"]) == {"logger.api_key", "logger.url"}
    assert run_tiny(Logger(), logger=LOGGER, checkpoint=saves, train_iters=3).global_step == 3, "the same ones"
    with pytest.raises(CheckpointError, match=r"logger\.api_key: is another \*\*\* than it was") as refused:
        run_tiny(Logger(), logger={**LOGGER, "api_key": "anotherhorse"}, checkpoint=saves, train_iters=3)
    assert "anotherhorse" not in str(refused.value) and KEY not in str(refused.value)
    again = run_tiny(
        Logger(),
        logger={**LOGGER, "api_key": "anotherhorse"},
        checkpoint=saves,
        train_iters=3,
        allow_changes=["logger"],
    )
    assert again.global_step == 3


def test_a_plan_masks_them_and_the_words_of_the_command_line():
    host = host_of(Logger())
    words = (f"logger.api_key={KEY}",)
    raw = {"type": "tiny", "logger": {**LOGGER, "level": "x"}}
    for each in (raw, {"type": "tiny", "logger": LOGGER}):
        facts = plan_of(host, Sources(file=None, raw=each, overrides=words), estimates=False)
        assert KEY not in json.dumps(facts, default=str) and PASSWORD not in json.dumps(facts, default=str)
    assert mask_words(["-o", *words, "optimizer.lr=1"]) == ["-o", "logger.api_key=***", "optimizer.lr=1"]


def test_messages_mask_what_the_recipe_holds(run_cli):
    wrong = {"optimizer": {"lr": f"https://me:{PASSWORD}@example.org"}, "seed": KEY, "logger": {"api_key": KEY}}
    run = run_cli("train", {"type": "tiny", **wrong})
    assert run.status == 1
    assert "optimizer.lr: given 'https://me:***@example.org'" in run.stderr and "seed: given '***'" in run.stderr
    assert KEY not in run.stdout + run.stderr and PASSWORD not in run.stdout + run.stderr


@pytest.mark.parametrize(
    "key",
    ["api_key", "apiKey", "wandb_api_key", "password", "secret", "hf_token", "token", "Authorization", "access_tokens"],
)
def test_keys_that_look_like_secrets(key):
    assert masked({"a": [{key: "abc"}]}) == {"a": [{key: "***"}]}
    assert masked({key: {"nested": ["abc"]}}) == {key: {"nested": ["***"]}}


@pytest.mark.parametrize(
    "key",
    ["tokens", "eos_token", "pad_token", "max_tokens", "add_tokens", "content_key", "tokenizer", "passes", "monkey"],
)
def test_keys_that_do_not(key):
    assert masked({key: "abc"}) == {key: "abc"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/rows", "s3://key:***@bucket/rows"),
        ("/runs/s3:/key:secret@bucket/rows", "/runs/s3:/key:***@bucket/rows"),
        ("https://example.org/x?sig=abc&n=1", "https://example.org/x?sig=***&n=1"),
        ("HF_TOKEN=abc python", "HF_TOKEN=*** python"),
        ("with hf_" + "a1" * 15, "with ***"),
        (
            "git@example.org:a/b, C:\\x, see https://example.org/a@b",
            "git@example.org:a/b, C:\\x, see https://example.org/a@b",
        ),
    ],
)
def test_texts(text, shown):
    assert mask_text(text) == shown


def test_nobody_else_may_write_to_a_runs_files(run_tiny, tmp_path):
    """Whatever the umask; the rights of the group follow it."""
    before = os.umask(0)
    try:
        run_tiny(checkpoint={"type": "full", "save_every_n_steps": 3})
    finally:
        os.umask(before)
    folder = tmp_path / "run"
    modes: dict[str, Any] = {str(path): path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    assert not [name for name, mode in modes.items() if mode & 0o002]
    assert folder.stat().st_mode & 0o020, "the group may, as the umask allows it"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A plugin in the current folder that notes that it was imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strangers_plugin.py").write_text("open('was_imported', 'w')\n")
    return tmp_path


@pytest.mark.parametrize("name", ["strangers_plugin", "antigravity", "os.path"])
def test_a_strangers_recipe_imports_nothing_that_is_not_installed(run_cli, here, name):
    recipe = {"type": "tiny", "plugins": {"load": [name]}}
    run = run_cli("plan", recipe, "--untrusted", "--no-estimates")
    assert run.status == 1
    assert "--untrusted" in run.stdout + run.stderr and "Traceback" not in run.stderr
    assert not list(here.rglob("was_imported"))


def test_what_the_user_names_is_imported(run_cli, here):
    recipe = {"type": "tiny", "plugins": {"load": ["strangers_plugin"]}}
    run_cli("plan", recipe, "--untrusted", "--no-estimates", "-p", "strangers_plugin")
    assert list(here.rglob("was_imported"))


def test_a_strangers_recipe_does_not_allow_remote_code(monkeypatch):
    from hooktrain.recipe.yaml_reader import apply_overrides

    raw = {"type": "sft", "model": {"trust_remote_code": True}}
    monkeypatch.setenv("HOOKTRAIN_UNTRUSTED", "1")
    with pytest.raises(HooktrainError, match=r"model\.trust_remote_code: runs code"):
        apply_overrides(raw, [])
    assert apply_overrides(raw, ["model.trust_remote_code=true"]) == raw
