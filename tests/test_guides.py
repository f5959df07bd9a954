"""The guides: what they show is what runs, and `hooktrain guide` shows them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from hooktrain import HooktrainError, LossSum, Trainer, hookimpl
from hooktrain.cli.convert import NOT_A_RECIPE, UNSUPPORTED
from hooktrain.cli.guide import FOLDER, GROUPS, GUIDES, files_of, text_of, title_of, write_files
from hooktrain.testing.plugin_checks import CHECKS
from hooktrain.training.load import load
from tests import guides
from tests.environments import Environment, build_wheels, unpack
from tests.facts import facts

USING = [name for name in GROUPS["using"][1] if name in GUIDES]
RUN_IN_PROCESS = ("train", "plan", "data", "plugins", "hooks", "schema", "guide", "export", "evaluate")
"""Commands whose console lines are run; the words of others are checked."""


def fenced(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(name), re.DOTALL)


def typed(name: str) -> list[str]:
    """The commands that a guide has its reader type, except those whose output is generated."""
    source = re.sub(r"<!-- output.*?<!-- /output -->", "", GUIDES[name].read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line.replace("\\\n    ", "") for line in re.findall(r"^\$ ((?:.*\\\n)*.*)", source, re.MULTILINE)]


def test_the_guides_are_fresh(tiny_recipe, tmp_path):
    (tmp_path / "here").mkdir()
    for path, text in guides.rendered(tiny_recipe, tmp_path / "here").items():
        assert text == path.read_text(encoding="utf-8"), f"{path.name}: run `python -m tests.readme`"


def test_every_guide_is_listed():
    assert {path for path in FOLDER.glob("*/*.md") if path.parent.name != "code"} == set(GUIDES.values())
    shown = {path.name for name in GUIDES for path in files_of(name)}
    assert shown == {path.name for path in (FOLDER / "code").glob("*.*") if path.suffix in (".py", ".yaml")}
    texts = {name: text_of(name) for name in GUIDES}
    texts["README"] = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    for name, text in texts.items():
        for link in re.findall(r"the\s+guide\s+`([\w-]+)`", text):
            assert link in GUIDES, f"{name} refers to the guide '{link}'"
        for block in re.findall(r"```(?:python|yaml|toml)\n(.*?)```", text, re.DOTALL) if name in GUIDES else ():
            assert max(map(len, block.splitlines())) <= 90, f"{name}: wider than a terminal"
    package_data = (FOLDER.parents[1] / "setup.cfg").read_text(encoding="utf-8")
    assert "guides/*.md, guides/*/*.md, guides/code/*" in package_data


def test_the_code_of_the_guides_passes_its_tests(tmp_path):
    """As a reader has it, with nothing of this repository around."""
    for name in GUIDES:
        if files_of(name):
            write_files(name, tmp_path)
    run = Environment.of().run(tmp_path, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider")
    assert run.status == 0, run.output
    count = sum(path.read_text().count("\ndef test_") for path in tmp_path.glob("test_*.py"))
    assert int(re.findall(r"(\d+) passed", run.stdout)[0]) > count
    # the kit measures a cost and judges no time, and most plugins compute no loss, which it says by skips
    skipped = re.findall(r"SKIPPED \[\d+\] (.*)", run.stdout)
    assert [line for line in skipped if not re.search(r"plugin_checks.* (?:cost|loss|ranks|observes): ", line)] == []


def test_the_package_by_hand_works(tmp_path):
    """Installed as the guide says, and tested as it says, with pytest in a process of its own."""
    source = tmp_path / "source"
    source.mkdir()
    for language, name in (("toml", "pyproject.toml"), ("python", "hooktrain_lion.py"), ("python", "test_lion.py")):
        (text,) = [block for block in fenced("declarations", language) if block.startswith(f"# {name}\n")]
        (source / name).write_text(text)
    site = unpack(build_wheels(tmp_path, [source]).iterdir(), tmp_path / "site")
    (source / "hooktrain_lion.py").unlink()  # what is tested is what the wheel holds
    run = Environment.of(site).run(source, "-m", "pytest", "-v", "-p", "no:cacheprovider", "test_lion.py")
    assert run.status == 0, run.output
    assert run.stdout.count("test_conformance[") == len(CHECKS)
    assert run.stdout.count(" PASSED") + run.stdout.count(" SKIPPED") == len(CHECKS) + 1
    assert "test_lion_moves_the_weights PASSED" in run.stdout


def test_the_commands_of_the_guides_do_what_they_say(tmp_path, monkeypatch, capsys):
    """Those that a guide about plugins has its reader type."""
    monkeypatch.chdir(tmp_path)
    done = 0
    for name in GROUPS["plugins"][1]:
        folder = tmp_path / name
        folder.mkdir()
        for command in typed(name) if name in GUIDES else ():
            if not command.startswith("hooktrain "):
                continue
            runs_here = command.startswith(("hooktrain guide", "hooktrain train")) and "--nproc" not in command
            if "recipe.yaml" in command or not runs_here:
                guides.parse(command, folder)
                continue
            line = guides.output(command, folder)
            assert "wrote" in line or "trained " in line, line
            done += 1
    assert done >= 10


def test_the_commands_for_users_run(tmp_path, chat_recipe, monkeypatch):
    """In a folder with three recipes, as if they were typed one after the other."""
    for key in ("run_dir", "console"):
        chat_recipe.pop(key)
    chat_recipe["checkpoint"] = [{"type": "full", "save_every_n_steps": 2, "overwrite": True}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(chat_recipe))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**chat_recipe, "seed": 1}))
    learns = {"loss": {"type": "distill", "top_k": 8}, "models": {"teacher": {**chat_recipe["model"]}}}
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump({**chat_recipe, **learns}))
    done = 0
    for name in USING:
        for command in typed(name):
            words = command.split()
            if "hooktrain" not in words:
                continue
            guides.parse(command, tmp_path)
            if words[0] == "hooktrain" and words[1] in RUN_IN_PROCESS and "--nproc" not in words:
                printed = guides.output(command.partition(" > ")[0], tmp_path)
                assert "\nhooktrain: " not in printed, printed
                done += 1
    assert done >= 12


def recipes() -> list[str]:
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    found = [
        *re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL),
        *(text for name in USING for text in fenced(name, "yaml")),
    ]
    return [text for text in found if "type: tiny" not in text]  # of which `tests.guides` shows what it prints


def printed(name: str, word: str) -> str:
    """What a guide's command `python -c ...` with a word in it prints."""
    (command,) = [each for each in typed(name) if each.startswith("python -c") and word in each]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(shlex.split(command)[2], {})
    return out.getvalue()


def test_a_small_model_without_a_network(tmp_path, monkeypatch, write_rows):
    """A model as the guide makes it, trained by its recipe."""
    monkeypatch.chdir(tmp_path)
    printed("models", "save_llama")
    (text,) = [each for each in fenced("models", "yaml") if "tiny-llama" in each]
    write_rows().rename("own.jsonl")
    trainer = load(yaml.safe_load(text))
    Trainer(*trainer).run()
    assert (tmp_path / "small" / "model.safetensors").exists()


@pytest.mark.thorough
def test_the_run_that_changes_ranks_and_strategies(tiny_llama, write_rows, tmp_path):
    """The guide's three commands, with fewer steps and a tiny model: the losses are those of one rank throughout."""
    (text,) = [each for each in fenced("several-devices-and-hosts", "yaml") if "ranks.yaml" in each]
    (shown,) = [each for each in fenced("several-devices-and-hosts", "text") if "ranks.yaml" in each]
    recipe = yaml.safe_load(text.replace("00", "")) | {"log_interval": 1, "seed": 1, "epochs": 3}
    recipe["model"]["name_or_path"], recipe["data"]["sources"] = str(tiny_llama), [str(write_rows())]
    recipe["data"]["max_length"], recipe["strategy"]["dtype"] = 128, "fp32"
    (tmp_path / "ranks.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({**recipe, "run_dir": "whole"}))
    commands = shown.replace("00", "").replace("hooktrain ", "").splitlines()
    assert ["--nproc" in each for each in commands] == [False, True, False]
    for words in (*commands, "train whole.yaml"):
        run = Environment.of().run(tmp_path, "-m", "hooktrain", *words.split())
        assert run.status == 0, run.output
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("runs/ranks", "whole")
    ]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("text", recipes(), ids=lambda text: next(iter(text.splitlines())).strip("# ")[:40])
def test_the_recipes_are_accepted(text, tiny_llama, write_rows, tmp_path):
    """With a tiny model and data in place of theirs: read, structured, and checked by every plugin."""
    recipe = yaml.safe_load(text)
    assert {"type", "model", "data"} <= set(recipe), "a complete recipe, so that it can be copied"
    if "gguf_file" in recipe["model"]:  # of a package, whose folder the guide finds
        recipe["model"]["name_or_path"] = printed("models", "find_spec").strip()
        assert (Path(recipe["model"]["name_or_path"]) / recipe["model"]["gguf_file"]).exists()
    else:
        recipe["model"]["name_or_path"] = str(tiny_llama)
    recipe["data"]["sources"] = [str(write_rows())]
    recipe["run_dir"] = str(tmp_path / "run")
    load(recipe)


def test_the_python_of_the_guides_runs(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in fenced("python", "python"):
        tiny = block.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_llama)).replace("range(100)", "range(6)")
        exec(tiny, scope)
    assert (tmp_path / "fine-tuned" / "config.json").exists()
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    assert scope["first"] and "eval/held_out/loss" in scope["metrics"]


def test_the_metric_of_the_guide_measures(run_chat, tmp_path, monkeypatch):
    (metric,) = fenced("evaluate-export-chat", "python")
    (tmp_path / "answer_length.py").write_text(metric)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = {"load": ["answer_length"]}
    trainer = run_chat(plugins=plugins, eval_metrics=["answer_length"], eval_generation={"max_new_tokens": 8})
    assert trainer.history[-1]["eval/rows/words"] > 0


def test_the_configuration_reference_has_every_key():
    """Every value that `hooktrain schema` knows, with a description."""
    table = re.findall(r"^\| (`.*?) \|.*\| (.*?) \|$", text_of("configuration"), re.MULTILINE)
    assert len(table) > 100
    undescribed = [key for key, description in table if not description]
    assert set(undescribed) <= {f"`{kind}`" for kind in guides.configuration.PARTS}
    engines = re.findall(r"^## checkpoint: .*\n\n.* It has the keys of `(\w+)`", text_of("configuration"), re.MULTILINE)
    assert engines == ["checkpoint"] * 3, "those that all engines have, and not another engine's"


def test_every_exit_status_of_convert_is_in_the_guide():
    statuses = re.findall(r"^\| (\d+) \| `hooktrain convert`", text_of("signals-and-exit-statuses"), re.MULTILINE)
    assert statuses == [str(UNSUPPORTED), str(NOT_A_RECIPE)]


def test_errors_of_the_troubleshooting_guide_are_those_of_the_code():
    root = FOLDER.parents[1]
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("hooktrain", "plugins")
        for path in root.glob(f"{folder}/**/*.py")
    )
    quoted = re.findall(r'"([^"]+)"', text_of("troubleshooting"))
    assert len(quoted) >= 3
    for text in quoted:
        assert text in code, text


def test_guide_in_the_terminal(run_cli, tmp_path):
    listed = run_cli("guide").stdout
    for title, names in GROUPS.values():
        assert f"{title}:\n" in listed
        for name in filter(GUIDES.get, names):
            assert re.search(rf"^  {name} +{re.escape(title_of(name))}$", listed, re.MULTILINE)
    shown = run_cli("guide", "wrap-a-model").stdout
    assert shown == text_of("wrap-a-model"), "Markdown where no terminal is"
    assert "<!--" not in shown
    assert run_cli("guide", "signals").stdout == text_of("signals-and-exit-statuses"), "the beginning of one name"
    assert re.search(facts("'own-hoks'", "'own-hooks'"), run_cli("guide", "own-hoks").stderr)
    several = run_cli("guide", "coming-from-")
    assert several.status == 1 and re.search(facts("coming-from-trl", "coming-from-axolotl"), several.stderr)
    assert run_cli("guide", "keep-state", "--write", "new").stdout.splitlines() == [
        f"wrote new/{name}" for name in ("patience.py", "test_patience.py", "tiny.yaml")
    ]
    (tmp_path / "new" / "patience.py").write_text("mine")
    again = run_cli("guide", "keep-state", "--write", "new")
    assert again.status == 1 and "new/patience.py" in again.stderr
    assert (tmp_path / "new" / "patience.py").read_text() == "mine"


def test_a_guide_is_found_by_a_beginning_of_its_name():
    assert text_of("signals") == text_of("signals-and-exit-statuses")
    with pytest.raises(HooktrainError, match=facts("'own'", "own-data", "own-hooks")):
        text_of("own")
    with pytest.raises(HooktrainError, match=facts("'signalz'", "`hooktrain guide`")):
        text_of("signalz")


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
        for block in fenced(name, "python"):
            for line in filter(None, map(str.strip, block.splitlines())):
                assert line in printed, f"{name}: {line}"


def test_guides_without_code(tmp_path):
    with pytest.raises(HooktrainError, match=facts("'hooks'", "guide")):
        write_files("hooks", tmp_path)


def test_names_that_are_not_there():
    with pytest.raises(HooktrainError, match="'Patienec'"):
        guides.code("patience.py Patienec")


# ---------------------------------------------------------------------------- what the reference says about hooks


class Looks:
    """One hook for each line of the table, with what it finds."""

    def __init__(self):
        self.found = {}

    @hookimpl
    def on_step_start(self, trainer, batches):
        self.before = trainer.model.head.weight.detach().clone()
        self.found["sequences of a step"] = [batch["input_ids"] for batch in batches]

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
    def on_optimizer_update_start(self, trainer, grad_norm):
        self.found["clipped"] = trainer.model.head.weight.grad.clone(), grad_norm

    @hookimpl
    def on_zero_grad_start(self, trainer):
        self.found["still there"] = trainer.model.head.weight.grad.clone()

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
    assert [ids.shape[0] for ids in found["sequences of a step"]] == [2, 2]
    assert torch.equal(found["micro-batch on the device"], found["sequences of a step"][1])
    assert found["logits"].shape[-1] == 17
    assert isinstance(found["with its graph"], LossSum)
    assert found["with its graph"].total.requires_grad
    assert torch.equal(found["detached"].total, found["with its graph"].total.detach())
    assert found["rates"] == 0.5
    assert torch.equal(found["clipped"][0], found["gradients"]), "nothing was clipped"
    assert found["clipped"][1] == found["logged"]["grad_norm"]
    assert torch.equal(found["still there"], found["gradients"])
    assert torch.allclose(found["changed"], -0.5 * found["gradients"], atol=1e-6), "as they were when they were used"
    assert found["step"].total == pytest.approx(
        found["logged"]["loss"] * found["logged"]["supervised_tokens"], rel=1e-5
    )
    assert found["evaluation"]["eval/held_out/loss"] == found["logged"]["eval/held_out/loss"]


def test_every_line_of_the_table_has_its_hook():
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", text_of("hooks").partition("| to see |")[2].partition("\n\n")[0], re.M)
    named = {name for _, where in rows for name in re.findall(r"`((?:on|compute)_\w+)`", where)}
    assert named == {name for name in vars(Looks) if hasattr(getattr(Looks, name), "hooktrain_impl")}
