"""Listings, the schema, plans and previews with the packages' plugins."""

from __future__ import annotations

import json
import re
import zipfile

import jsonschema
import pytest

from tests.facts import facts
from tests.third_party.runs import done, refused


def test_a_wheel_holds_the_data_of_a_package(built):
    (wheel,) = (built / "wheels").glob("hooktrain_transcripts-*.whl")
    assert "hooktrain_transcripts/collections/small_talk.txt" in zipfile.ZipFile(wheel).namelist()


def test_plugins_are_listed_with_what_their_distributions_say(good, tmp_path):
    listed = {fact["name"]: fact for fact in json.loads(done(good.hooktrain(tmp_path, "plugins", "--json")).stdout)}
    assert {fact["state"] for fact in listed.values()} == {"active"}
    lion, ema = listed["lion"], listed["ema"]
    assert (lion["distribution"], lion["version"]) == ("hooktrain-lion", "1.2.0")
    assert lion["summary"] == "The Lion optimizer for hooktrain"
    assert "Leonie Nguyen" in lion["author"] and ema["author"] == "Emma Ava"
    assert listed["beacon"]["version"] == "2.1.0", "which is found in its module"
    assert lion["registers"] == ["optimizer/lion"] and listed["transcripts"]["registers"] == ["source/transcripts"]
    assert {"make_strategy", "run_evaluate"} <= set(ema["wraps"])
    assert listed["beacon_host"]["info"]["requires"] == ["beacon>=2"]


def test_the_schema_has_the_settings_of_packages(good, tmp_path):
    validator = jsonschema.Draft202012Validator(json.loads(done(good.hooktrain(tmp_path, "schema")).stdout))
    for part, fits in (
        ({"optimizer": {"type": "lion", "betas": [0.9, 0.98]}}, True),
        ({"optimizer": {"type": "lion", "momentum": 0.9}}, False),
        ({"loss": {"type": "robust", "q": 0.3}}, True),
        ({"loss": {"type": "robust", "q": 1.5}}, False),
        ({"ema": {"decay": 0.99}, "beacon": {"url": "http://here"}}, True),
        ({"ema": {"decay": "much"}}, False),
    ):
        recipe = {"type": "sft", "model": {"name_or_path": "llama"}, "data": {"sources": ["rows.jsonl"]}, **part}
        assert validator.is_valid(recipe) == fits, part


def test_a_plan_names_the_plugin_of_each_part_and_what_wraps_it(good, chat, tmp_path):
    plan = json.loads(done(good.hooktrain(tmp_path, "plan", chat(), "--json")).stdout)
    assert [plan["parts"][kind][0]["plugin"] for kind in ("optimizer", "loss")] == ["lion", "robust_loss"]
    assert [part["plugin"] for part in plan["parts"]["source"]] == ["hf", "transcripts", "transcripts"]
    assert plan["parts"]["strategy"][0]["wrapped_by"] == ["ema"]
    assert plan["estimates"]["data"]["sequences"] == 8
    trained = plan["estimates"]["model"]["trainable"]
    assert plan["estimates"]["memory"]["device"]["averaged weights"] == 4 * trained


def test_examples_of_a_packages_format_are_shown(good, chat, tmp_path):
    shown = done(good.hooktrain(tmp_path, "data", chat(), "--show", "1")).stdout
    assert "«It is.\nWhat?<|im_end|>»[1]" in shown, "the answer is trained, with its second line"
    shows = [line for line in shown.splitlines() if re.search(facts("format transcript", "column 'transcript'"), line)]
    assert len(shows) == 6


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            ["loss={type: sft}"],
            ["logits", "plugin 'confidence' (hooktrain-confidence 0.0.4)", "loss.all_logits: true"],
        ),
        (["model.type=liger"], ["model: ", "logits", "model.fused_linear_cross_entropy: false"]),
        (
            ["optimizer.betas=[0.9, 1.0]", "data.sources=[{type: transcripts}]"],
            ["optimizer.betas: ", "[0.9, 1.0]", "from 0 to below 1", "either a path or a collection"],
        ),
    ],
    ids=["logits for another plugin", "a model without logits", "values"],
)
def test_a_plan_refuses_what_a_package_cannot_work_with(good, chat, tmp_path, given, named):
    changes = [word for change in given for word in ("-o", change)]
    said = refused(good.hooktrain(tmp_path, "plan", chat(), *changes))
    assert re.search(facts(*named), said), said
