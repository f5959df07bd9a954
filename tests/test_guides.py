"""The guides: what they show is what runs, and `hooktrain guide` shows them."""

from __future__ import annotations

import os
import re

import pytest
import torch

from hooktrain import HooktrainError, LossSum, hookimpl
from hooktrain.cli.guide import FOLDER, GUIDES, about, files_of, text_of, write_files
from tests import guides
from tests.environments import Environment
from tests.facts import facts


def test_the_guides_are_fresh(tiny_recipe, tmp_path):
    (tmp_path / "here").mkdir()
    for path, text in guides.rendered(tiny_recipe, tmp_path / "here").items():
        assert text == path.read_text(encoding="utf-8"), f"{path.name}: run `python -m tests.readme`"


def test_every_guide_is_listed():
    assert sorted(path.stem for path in FOLDER.glob("*.md")) == sorted(GUIDES)
    shown = {path.name for name in GUIDES for path in files_of(name)}
    assert shown == {path.name for path in (FOLDER / "code").glob("*.*") if path.suffix in (".py", ".yaml")}
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    for name in GUIDES:
        assert f"(hooktrain/guides/{name}.md)" in readme
        for link in re.findall(r"the guide\s+`([\w-]+)`", text_of(name)):
            assert link in GUIDES, f"{name} speaks of the guide '{link}'"
        for block in re.findall(r"```(?:python|yaml|toml)\n(.*?)```", text_of(name), re.DOTALL):
            assert max(map(len, block.splitlines())) <= 90, f"{name}: wider than a terminal"


def test_the_code_of_the_guides_passes_its_tests(tmp_path):
    """As a reader has it, with nothing of this repository around."""
    for name in GUIDES:
        if files_of(name):
            write_files(name, tmp_path)
    run = Environment.of().run(tmp_path, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider")
    assert run.status == 0, run.output
    count = sum(path.read_text().count("\ndef test_") for path in tmp_path.glob("test_*.py"))
    passed = int(re.findall(r"(\d+) passed", run.stdout)[0])
    # the kit measures a cost and judges no time, which it says by a skip
    skipped = re.findall(r"SKIPPED \[(\d+)\] .* cost: ", run.stdout)
    assert passed + sum(map(int, skipped)) == count + 10, run.stdout


def test_the_commands_of_the_guides_do_what_they_say(tmp_path, monkeypatch, capsys):
    """Those that a guide tells the reader to type; what they print stands there only where it is an ``output``."""
    monkeypatch.chdir(tmp_path)
    done = 0
    for name in GUIDES:
        folder = tmp_path / name
        folder.mkdir()
        for command in re.findall(r"^\$ (hooktrain (?:guide|train) .*)", text_of(name), re.MULTILINE):
            if "recipe.yaml" in command or "budget.token=" in command:
                continue
            line = guides.output(command, folder)
            assert "wrote" in line or "trained " in line or "| grep" in command, line
            done += 1
    assert done >= 10


def test_guide_in_the_terminal(run_cli, tmp_path):
    listed = run_cli("guide").stdout
    for name in GUIDES:
        assert f"{name:<18}{about(name)}\n" in listed
    shown = run_cli("guide", "wrap-a-model").stdout
    assert shown == text_of("wrap-a-model"), "Markdown where no terminal is"
    assert "<!--" not in shown
    assert "'own-hooks'" in run_cli("guide", "own-hook").stderr
    assert run_cli("guide", "keep-state", "--write", "new").stdout.splitlines() == [
        f"wrote new/{name}" for name in ("patience.py", "test_patience.py", "tiny.yaml")
    ]
    (tmp_path / "new" / "patience.py").write_text("mine")
    again = run_cli("guide", "keep-state", "--write", "new")
    assert again.status == 1 and "new/patience.py" in again.stderr
    assert (tmp_path / "new" / "patience.py").read_text() == "mine"


def test_a_terminal_of_80_columns(monkeypatch):
    """Rich renders Markdown; no line of code is broken by it."""
    from rich.console import Console
    from rich.markdown import Markdown

    for name in GUIDES:
        if name == "hooks":
            continue  # its lines are for wider ones
        console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(Markdown(text_of(name)))
        printed = [line.strip() for line in console.export_text().splitlines()]
        for block in re.findall(r"```python\n(.*?)```", text_of(name), re.DOTALL):
            for line in filter(None, map(str.strip, block.splitlines())):
                assert line in printed, f"{name}: {line}"


def test_guides_without_code(tmp_path):
    with pytest.raises(HooktrainError, match=facts("'hooks'", "guide")):
        write_files("hooks", tmp_path)


def test_names_that_are_not_there():
    with pytest.raises(HooktrainError, match="'Patienec'"):
        guides.code("patience.py Patienec")


# -------------------------------------------------------------------------- what the reference says can be seen


class Looks:
    """One hook for each line of the table, and what it finds there."""

    def __init__(self):
        self.found = {}

    @hookimpl
    def on_step_start(self, trainer, batches):
        self.before = trainer.model.head.weight.detach().clone()
        self.found["rows of a step"] = [batch["input_ids"] for batch in batches]

    @hookimpl
    def on_microbatch_start(self, batch):
        self.found["micro-batch on the device"] = batch["input_ids"]

    @hookimpl(wrapper=True)
    def compute_loss(self, model):
        handle = model.register_forward_hook(lambda module, given, output: self.found.update(logits=output))
        loss = yield
        handle.remove()
        if torch.is_grad_enabled():
            self.found["with its graph"] = loss
        return loss

    @hookimpl
    def on_microbatch_end(self, loss):
        self.found["detached"] = loss

    @hookimpl
    def on_optimizer_step_start(self, trainer):
        self.found["gradients"] = trainer.model.head.weight.grad.clone()
        self.found["rates"] = trainer.optimizer.param_groups[0]["lr"]

    @hookimpl
    def on_optimizer_step_end(self, trainer):
        self.found["changed"] = trainer.model.head.weight - self.before

    @hookimpl
    def on_step_end(self, output):
        self.found["step"] = output

    @hookimpl
    def on_evaluate_end(self, metrics):
        self.found["evaluation"] = dict(metrics)

    @hookimpl
    def on_log(self, metrics):
        self.found["logged"] = dict(metrics)


def test_what_a_hook_can_see(run_tiny):
    looks = Looks()
    run_tiny(
        looks,
        train_iters=1,
        gradient_accumulation_steps=2,
        gradient_clipping=0.0,
        data={"length": 6},
        optimizer={"type": "sgd", "lr": 0.5},
    )
    found = looks.found
    assert [ids.shape[0] for ids in found["rows of a step"]] == [2, 2]
    assert torch.equal(found["micro-batch on the device"], found["rows of a step"][1])
    assert found["logits"].shape[-1] == 17
    assert isinstance(found["with its graph"], LossSum)
    assert found["with its graph"].total.requires_grad
    assert torch.equal(found["detached"].total, found["with its graph"].total.detach())
    assert found["rates"] == 0.5
    assert torch.allclose(found["changed"], -0.5 * found["gradients"], atol=1e-6), "as they were when they were used"
    assert found["step"].total == pytest.approx(
        found["logged"]["loss"] * found["logged"]["supervised_tokens"], rel=1e-5
    )
    assert found["evaluation"]["eval/held_out/loss"] == found["logged"]["eval/held_out/loss"]


def test_every_line_of_the_table_has_its_hook():
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", text_of("hooks").partition("| to see |")[2].partition("\n\n")[0], re.M)
    named = {name for _, where in rows for name in re.findall(r"`((?:on|compute)_\w+)`", where)}
    assert named == {name for name in vars(Looks) if hasattr(getattr(Looks, name), "hooktrain_impl")}
