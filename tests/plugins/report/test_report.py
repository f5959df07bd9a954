"""The page: what it shows of real runs, that it names no URL, and that it never ends a run."""

from __future__ import annotations

import json
import re
import sys
import threading
from html.parser import HTMLParser

import hooktrain_report.page
import pytest
from click.testing import CliRunner
from hooktrain_report import plugin, write_report
from hooktrain_report.command import report_command
from hooktrain_report.origins import origins_of

from hooktrain import HooktrainError, RecipeError, RunFiles, hookimpl, read_run
from hooktrain.testing import conformance
from tests.facts import facts

test_report = conformance("report", settings={"report": True}, checks=["import", "observes"])
test_all_checks = pytest.mark.thorough(
    conformance(
        "report", settings={"report": True}, skip={"cost": "a run asks for it", "import": "is in the default tier"}
    )
)
test_unused = pytest.mark.thorough(conformance("report", checks=["cost"], calls=0, allocations=0))

EVIL = "<script>alert('x')</script><img src=//evil.example/x.png>"


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch):
    """The machine may be busy."""
    monkeypatch.setattr(plugin, "_LIMIT", 60.0)


class Page(HTMLParser):
    """The text of a page, its elements and its links."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.text, self.tags, self.links, self.ids = source, "", set(), [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if re.search(r"href|src|action|data|poster|background", name)]
        self.links += [found for _, value in attrs for found in re.findall(r"url\(([^)]*)\)", value or "")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data + "\n"


def page_of(path):
    page = Page(path.read_text())
    assert not page.tags & {"script", "link", "img", "iframe", "object", "base", "form", "a"}
    assert all(link.startswith("#") for link in page.links), page.links
    assert "://" not in page.source and "default-src 'none'" in page.source
    return page


def test_a_page_shows_all_of_a_run(run_chat, tmp_path):
    class Warns:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 2:
                trainer.host.warn(f"something odd {EVIL}")

        @hookimpl(wrapper=True)
        def compute_loss(self):
            loss = yield
            return loss._replace(sums={**loss.sums, "odd/loss": loss.total.detach()})

    trainer = run_chat(
        Warns(),
        samples={"prompts": [EVIL], "max_new_tokens": 4},
        checkpoint={"type": "full", "save_every_n_steps": 2},
        eval_at_start=True,
        report=True,
        data={
            "sources": [str(tmp_path / "rows.jsonl")],
            "eval_sources": [{"name_or_path": str(tmp_path / "rows.jsonl"), "name": "held"}],
            "max_length": 40,
            "overflow": "truncate",
            "max_dropped": 1.0,
            "pack_samples": True,
        },
    )
    page = page_of(tmp_path / "run" / "report.html")
    run = read_run(tmp_path / "run")
    assert EVIL in page.text and EVIL not in page.source
    assert "ended" in page.text and "4 of 4" in page.text and run.facts["id"] in page.text
    lowest = min(line["loss"] for line in trainer.history if "loss" in line)
    assert f"lowest {lowest:.4f}" in page.text
    for name in ("training loss", "evaluation: odd/loss, held", "learning rate", "grad_norm", "tokens per second"):
        assert re.search(rf"<figcaption>{name}</figcaption><svg", page.source), name
    assert "<figcaption>evaluation: loss, held</figcaption>" in page.source
    assert re.search(r"optimizer\.lr</td><td>0\.01</td><td>given in Python", page.source)
    assert re.search(r"<td>seed</td><td>42</td></tr>", page.source), "among the defaults"
    for each in run.plugins:
        assert each["name"] in page.text
    assert run.environment["torch"] in page.text
    assert str(tmp_path / "run" / "checkpoints" / "step-00000004") in page.text
    counts = run.data["train"]
    assert f"trained {counts['tokens_trained']}" in page.text and f"train: {counts['tokens_in']} tokens" in page.text
    assert "before training" in page.text and "after step 4" in page.text
    assert "step 2: something odd" in page.text
    assert page.source.count("<svg") == page.source.count("<figcaption>") + 1, "the events over time"


def test_several_runs_side_by_side(run_tiny, tiny_recipe, tmp_path):
    for name, rate in (("first", 1e-2), ("second", 3e-2)):
        run_tiny(run_dir=str(tmp_path / name), optimizer={"lr": rate})
    folders = [str(tmp_path / name) for name in ("first", "second")]
    shown = CliRunner().invoke(report_command, [*folders, "-o", str(tmp_path / "both.html")], catch_exceptions=False)
    assert shown.output == f"wrote {tmp_path / 'both.html'}\n"
    page = page_of(tmp_path / "both.html")
    assert re.search(r"<tr><th>optimizer\.lr</th><td>0\.01</td><td>0\.03</td></tr>", page.source)
    differences = page.source.partition("Recipe differences")[2].partition("</table>")[0]
    assert differences.count("<tr>") == 2, "and nothing else is different"
    loss = page.source.partition("<figcaption>training loss")[2].partition("</figure>")[0]
    assert {">first<", ">second<"} <= set(re.findall(r">first<|>second<", loss)), "the legend"


def test_a_failed_run_is_shown_as_failed(run_tiny, tmp_path):
    class Raises:
        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == 3:
                raise RuntimeError("enough of this")

    with pytest.raises(RuntimeError):
        run_tiny(Raises(), report=True)
    page = page_of(tmp_path / "run" / "report.html")
    assert "failed" in page.text and "3 of 7" in page.text
    assert re.search(r"enough of this.*on_step_end", page.text)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "failed"


def messages_of(run, **given):
    found = []

    class Reads:
        @hookimpl
        def on_message(self, message):
            found.append(message)

    run(Reads(), **given)
    return found


def test_without_it_the_last_line_names_the_command(run_tiny, tmp_path):
    said = messages_of(run_tiny, console={"enabled": True})
    assert f"hooktrain report {tmp_path / 'run'}" in said[-1]
    assert not (tmp_path / "run" / "report.html").exists()
    assert not any("hooktrain report" in each for each in messages_of(run_tiny)), "where nothing is shown"


def test_a_report_that_fails_or_takes_long_does_not_end_the_run(run_tiny, tmp_path, monkeypatch):
    def fails(*given, **more):
        raise OSError("no more space")

    monkeypatch.setattr(hooktrain_report.page, "write_report", fails)
    with pytest.warns(UserWarning, match=facts("report", "no more space")):
        assert run_tiny(report=True).global_step == 7
    go = threading.Event()
    monkeypatch.setattr(hooktrain_report.page, "write_report", lambda *given, **more: go.wait(60))
    monkeypatch.setattr(plugin, "_LIMIT", 0.0)
    said = messages_of(run_tiny, report=True)
    go.set()
    assert f"hooktrain report {tmp_path / 'run'}" in said[-1] and "takes longer" in said[-1]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "ended"


def test_without_matplotlib_there_are_tables_and_a_remedy(run_tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hooktrain_report.curves", None)
    monkeypatch.delattr(sys.modules["hooktrain_report"], "curves", raising=False)
    run_tiny(report=True)
    page = page_of(tmp_path / "run" / "report.html")
    assert "pip install 'hooktrain-report[plots]'" in page.text and "<svg" not in page.source
    assert "held_out" in page.text


def test_what_cannot_be_read_is_named(run_tiny, tmp_path):
    run_tiny()
    folder = tmp_path / "run"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    odd = json.dumps({**json.loads(lines[2]), "loss": "nan"})
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:2], odd, "{", "[1]", *lines[3:]]) + '\n{"step": 9')
    (folder / "data.json").write_text("[")
    (folder / "events.jsonl").unlink()
    page = page_of(write_report([folder]))
    assert "metrics.jsonl: 2 of 9 lines cannot be read" in page.text and "data.json cannot be read" in page.text
    assert "run: loss is not finite in 1 lines, first at step 3" in page.text
    with pytest.raises(HooktrainError, match=facts(str(tmp_path / "nothing"), "run.json", "hooktrain runs")):
        write_report([tmp_path / "nothing"])
    with pytest.raises(HooktrainError, match=facts(str(tmp_path / "no" / "page.html"), "-o")):
        write_report([folder], tmp_path / "no" / "page.html")


def test_a_part_that_cannot_be_shown_does_not_take_the_page_with_it(run_tiny, tmp_path):
    folder = run_tiny().run_dir
    (folder / "data.json").write_text('{"train": {"tokens_in": [1]}, "warnings": 5}')
    with (folder / "events.jsonl").open("a") as file:
        file.write((folder / "events.jsonl").read_text().splitlines()[0].replace('"start"', "{}") + "\n")
    page = page_of(write_report([folder]))
    assert page.text.count("cannot be shown") == 3 and "held_out" in page.text


def test_an_earlier_run_in_the_folder_is_not_mixed_in(run_tiny, tmp_path):
    first = run_tiny()
    second = run_tiny(seed=3)
    assert first.run_id != second.run_id
    assert {each["run"] for each in read_run(tmp_path / "run").events} == {second.run_id}


def test_origins_of_values(run_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hooktrain", "train", "recipe.yaml", "-o", "optimizer.lr=0.5", "-oseed=3"])
    run_tiny(optimizer={"lr": 0.5}, seed=3, checkpoint={"type": "full", "save_every_n_steps": 3})
    found = origins_of(read_run(tmp_path / "run"))
    assert found["optimizer.lr"] == found["seed"] == "command line"
    assert found["checkpoint[0].save_every_n_steps"] == found["micro_batch_size"] == "given in Python"
    assert found["checkpoint[0].enabled"] == found["log_interval"] == "default"


def test_origins_of_values_in_a_short_form(tmp_path):
    recipe = {
        "data.sources[0].type": "huggingface",
        "data.sources[0].name_or_path": "rows.jsonl",
        "report.enabled": True,
        "callbacks.use": [{"name": "Mine"}],
    }
    given = {"data": {"sources": ["rows.jsonl"]}, "report": True, "callbacks": ["Mine"]}
    run = RunFiles(folder=tmp_path, facts={}, recipe=recipe, given=given, source="/there/recipe.yaml")
    assert origins_of(run) == {
        "data.sources[0].type": "default",
        "data.sources[0].name_or_path": "recipe.yaml",
        "report.enabled": "recipe.yaml",
        "callbacks.use": "recipe.yaml",
    }


@pytest.mark.parametrize(
    ("value", "expected"), [("yes please", "true or false"), ([1], "true or false"), (3, "mapping")]
)
def test_other_values_are_refused(run_tiny, value, expected):
    with pytest.raises(RecipeError, match=facts("report: given", expected)):
        run_tiny(report=value)
