"""The plan reports what a recipe names and is not on this machine, and files that do not fit the recipe."""

from __future__ import annotations

import json

import pytest
import yaml

from hooktrain import Complaint, hookimpl
from hooktrain.inspection.plan import plan_of, read_plan
from hooktrain.inspection.value_origins import Sources
from hooktrain.training.load import make_host

PAIR = {"prompt": "What is 1 + 1?", "chosen": "2", "rejected": "3"}


@pytest.fixture
def complaints(chat_recipe, tmp_path):
    """``complaints(section={key: value}, ...)``: the errors by place in a plan."""

    def planned(estimates=False, **changes):
        path = tmp_path / "planned.yaml"
        changed = {key: {**chat_recipe.get(key, {}), **value} for key, value in changes.items()}
        path.write_text(yaml.safe_dump({**chat_recipe, **changed}))
        found = read_plan(path, estimates=estimates)["complaints"]
        return {each["where"]: each["message"] for each in found}

    return planned


def test_paths_that_do_not_exist(complaints, chat_recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    (here,) = chat_recipe["data"]["sources"]
    data = {"sources": [here, "./nowhere.jsonl"], "eval_sources": [f"{tmp_path}/no*.jsonl"]}
    found = complaints(model={"name_or_path": "./nowhere"}, data=data)
    assert set(found) == {"model.name_or_path", "data.sources[1]", "data.eval_sources[0]"}
    for where in ("model.name_or_path", "data.sources[1]"):
        assert found[where].startswith("given './nowhere")
    assert "matches no file" in found["data.eval_sources[0]"]
    others = {"name_or_path": "some/where", "chat_template": "gone.jinja"}
    found = complaints(
        model={"name_or_path": f"{tmp_path}/empty"}, tokenizer=others, models={"teacher": {"name_or_path": "./gone"}}
    )
    named = {"model.name_or_path", "tokenizer.chat_template", "models.teacher.name_or_path"}
    assert set(found) - {"models.teacher"} == named  # no loss learns from it
    assert "config.json" in found["model.name_or_path"]


def test_examples_that_fit_no_format(complaints, tmp_path):
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps(PAIR) + "\nnot read\n")
    found = complaints(data={"sources": [{"name_or_path": str(rows), "sample_count": 1}]}, estimates=True)
    assert list(found) == ["data.sources[0]"]
    assert "pairs.jsonl" in found["data.sources[0]"] and "rejected" in found["data.sources[0]"]
    assert complaints(data={"sources": ["some/where:train"]}, estimates=True) == {}
    assert complaints() == {}


def test_plugins_check_their_files(chat_recipe):
    class Checks:
        @hookimpl
        def check_files(self, recipe):
            yield Complaint("seed", f"given {recipe.seed}")

    class Fails:
        @hookimpl
        def check_files(self):
            raise OSError("no such disk")

    host = make_host()
    host.register(Checks())
    host.register(Fails())
    failed, found = plan_of(host, Sources(file=None, raw=chat_recipe), estimates=False)["complaints"]
    assert found == {"where": "seed", "message": "given 42"}
    assert all(word in failed["message"] for word in ("Fails", "check_files", "no such disk"))
