"""Packages that are broken, in conflict with others, older than the hooks, or without what they require."""

from __future__ import annotations

import json
import re

import pytest

from tests.facts import facts
from tests.third_party.runs import done, refused

OUT = ("misspelt", "other_lion", "swa")  # packages that stop every run with the good ones
STEPS = {"gradient_accumulation_steps": 2, "train_iters": 3}


def test_plugins_that_do_not_work_are_listed_with_the_reason(crowded, tmp_path):
    listed = {fact["name"]: fact for fact in json.loads(done(crowded.hooktrain(tmp_path, "plugins", "--json")).stdout)}
    reasons = {name: fact["reason"] for name, fact in listed.items() if fact["state"] == "failed"}
    assert reasons.keys() == {"unimportable", "defaults", "other_lion", "older_declared", "older_undeclared"}
    assert "No module named 'a_library_that_was_forgotten'" in reasons["unimportable"]
    assert re.search(facts("on_step_end", "'trainer'", "default"), reasons["defaults"])
    assert ">=0.5,<1.0" in reasons["older_declared"], "the versions of hooks that it was written for"
    assert "on_step_end" in reasons["older_undeclared"] and "loss" in reasons["older_undeclared"]
    assert (listed["unimportable"]["distribution"], listed["unimportable"]["version"]) == ("hooktrain-broken", "0.1")


@pytest.mark.parametrize(
    ("blocked", "loaded", "named"),
    [
        ("", "", ["'misspelt' (hooktrain-broken 0.1)", "'on_step_ended'", "'on_step_end'"]),
        (
            "misspelt",
            "",
            [
                "'lion' (hooktrain-lion 1.2.0)",
                "optimizer 'lion'",
                "plugins: {block: [other_lion]} or {block: [lion]}",
            ],
        ),
        ("misspelt other_lion", "", ["'ema' (hooktrain-ema 0.9.2)", "'swa' (hooktrain-rivals 4.0)"]),
        ("misspelt other_lion swa", "", ["run_step", "plugins: {loop_hooks: {run_step: "]),
        (
            "misspelt other_lion swa",
            "unimportable",
            ["a_library_that_was_forgotten", "'unimportable'", "-p unimportable"],
        ),
        ("misspelt other_lion swa", "older_declared", ["'older_declared'", ">=0.5,<1.0", "install", " 2.0"]),
    ],
    ids=["misspelt", "same name", "conflict", "same loop hook", "named and broken", "named and older"],
)
def test_a_plan_refuses_conflicts_with_the_line_to_write(crowded, tiny, tmp_path, blocked, loaded, named):
    switches = [word for name in blocked.split() for word in ("-p", f"no:{name}")]
    recipe = tiny(**STEPS, ema={"decay": 0.9})
    said = refused(crowded.hooktrain(tmp_path, "plan", recipe, *switches, *(["-p", loaded] if loaded else [])))
    assert re.search(facts(*named), said), said


def test_a_run_that_resolves_the_conflicts_continues_with_warnings(crowded, tiny, tmp_path):
    resolved = {"block": [*OUT], "loop_hooks": {"run_step": "backwards"}, "on_error": {"raises": "warn"}}
    run = done(crowded.hooktrain(tmp_path, "train", tiny("resolved", **STEPS, plugins=resolved)))
    assert "backwards has done the steps" in run.stdout
    warnings = [line for line in run.stderr.splitlines() if "warning" in line]
    for name in ("unimportable", "defaults", "older_declared", "older_undeclared"):
        assert len([line for line in warnings if f"plugin '{name}' (hooktrain-" in line]) == 1, name
    for named in (
        ["'older_tags' (hooktrain-older 0.7)", "describe_run", "'run_dir'"],
        ["'raises' (hooktrain-broken 0.1)", "on_step_end", "step 2", "rank 0", "ZeroDivisionError"],
    ):
        assert any(re.search(facts(*named), line) for line in warnings), (named, run.stderr)
    manifest = {each["name"] for each in json.loads((run.folder / "plugins.json").read_text())["plugins"]}
    assert {"raises", "backwards", "lion"} <= manifest and not {*OUT, "unimportable", "older_declared"} & manifest


def test_a_hook_that_fails_stops_the_run(crowded, tiny, tmp_path):
    plugins = {"block": [*OUT], "loop_hooks": {"run_step": "forwards"}}
    stopped = crowded.hooktrain(tmp_path, "train", tiny("stops", **STEPS, plugins=plugins))
    assert stopped.status == 1
    named = ("'raises'", "on_step_end", "step 2", "ZeroDivisionError")
    assert re.search(facts(*named), stopped.stderr.splitlines()[-1])


def test_a_plugin_without_the_one_that_it_requires_is_not_active(good, tiny, tmp_path):
    listed = done(good.hooktrain(tmp_path, "plugins", "--json", "-p", "no:beacon"))
    (fact,) = [fact for fact in json.loads(listed.stdout) if fact["name"] == "beacon_host"]
    assert fact["state"] == "failed"
    assert "'beacon>=2'" in fact["reason"] and "blocked" in fact["reason"]
    recipe = tiny(train_iters=1)
    assert "'beacon>=2'" in refused(good.hooktrain(tmp_path, "plan", recipe, "-p", "no:beacon", "-p", "beacon_host"))
    run = done(good.hooktrain(tmp_path, "train", recipe, "-p", "no:beacon"))
    assert "plugin 'beacon_host' (hooktrain-beacon-host 0.2)" in run.stderr and "'beacon>=2'" in run.stderr


def test_a_lock_names_the_distribution_that_is_missing(good, tiny, tmp_path):
    required = tiny("required", train_iters=1, plugins={"lock": "plugins.lock"})
    written = done(good.hooktrain(tmp_path, "plan", tiny(train_iters=1), "--lock", "plugins.lock"))
    assert "plugins: {lock: plugins.lock}" in written.stdout
    blocked = ("-p", "no:transcripts")
    assert "'transcripts' (hooktrain-transcripts " in refused(good.hooktrain(tmp_path, "train", required, *blocked))
