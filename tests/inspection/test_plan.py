"""The plan says what a run then does: origins, parts, sizes and steps, conflicts, and what is different elsewhere."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from hooktrain import DataEstimate, HooktrainError, MemoryEstimate, PluginInfo, RecipeError, hookimpl
from hooktrain.cli.main import cli
from hooktrain.inspection.plan import plan_of, read_plan
from hooktrain.inspection.plan_diff import compare, print_difference
from hooktrain.inspection.plan_text import print_plan
from hooktrain.inspection.value_origins import Sources
from hooktrain.plugin.config import plugins_config
from hooktrain.testing import TinyPlugin
from hooktrain.training.load import load, make_host
from hooktrain.types import World
from tests.facts import facts

TINY = {"load": ["hooktrain.testing:TinyPlugin"]}


@pytest.fixture
def written(tmp_path):
    """``written(text)``: a recipe file, with the tiny plugin loaded."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text + f"plugins: {json.dumps(TINY)}\n" if "plugins:" not in text else text)
        return path

    return write


# ------------------------------------------------------------------------------------------------------ origins

RECIPE = """\
type: tiny
defaults: &defaults
  lr: 0.5
optimizer:
  <<: *defaults
  eps: 1e-6
data: {rows: 10}
strategy: torch
log_interval: 2
checkpoint:
  - type: full
    save_every_n_steps: 3
"""


def test_every_value_has_its_origin(written, monkeypatch):
    text = RECIPE.replace("defaults: &defaults\n  lr: 0.5\noptimizer:", "optimizer:").replace(
        "  <<: *defaults\n", "  <<: {learning_rate: 0.5}\n"
    )
    monkeypatch.setenv("HOOKTRAIN_PLUGINS", "no:liger")
    facts = read_plan(written(text), ["data.length=7", "checkpoint.0.output_dir=x", "model.width=4"], ["no:samples"])
    origins = facts["origins"]
    assert facts["complaints"] == []
    assert origins["optimizer.lr"] == "recipe.yaml:3"
    assert origins["optimizer.eps"] == "recipe.yaml:4"
    assert origins["optimizer.betas"] == "default of hooktrain-torch"
    assert origins["optimizer.type"] == "trainer type tiny"
    assert origins["strategy.type"] == "recipe.yaml:6"
    assert origins["strategy.device"] == "default of hooktrain-torch"
    assert origins["data.rows"] == "recipe.yaml:5"
    assert origins["data.length"] == "command line -o data.length=7"
    assert origins["model.width"] == "command line -o model.width=4"
    assert origins["log_interval"] == "recipe.yaml:7"
    assert origins["checkpoint[0].save_every_n_steps"] == "recipe.yaml:10"
    assert origins["checkpoint[0].output_dir"] == "command line -o checkpoint.0.output_dir=x"
    assert origins["seed"] == "default"
    assert origins["console.enabled"] == "default of hooktrain"
    assert origins["plugins.block"] == "environment HOOKTRAIN_PLUGINS and command line -p"
    assert facts["recipe"]["plugins"]["block"] == ["liger", "samples"]
    why = {record["name"]: record["why"] for record in facts["plugins"]}
    assert "environment HOOKTRAIN_PLUGINS=no:liger" in why["liger"]
    assert "command line -p no:samples" in why["samples"]
    assert why["torch"] == "installed"
    assert "plugins.load of the recipe" in why["hooktrain.testing:TinyPlugin"]
    assert not _without_origin(facts["recipe"], "", origins)


def test_inherited_values_and_short_forms(chat_recipe, tmp_path):
    path = tmp_path / "chat.yaml"
    del chat_recipe["strategy"]["dtype"]
    chat_recipe["model"]["dtype"] = "bf16"
    path.write_text(yaml.safe_dump(chat_recipe))
    facts = read_plan(path, ["scheduler=cosine"])
    origins = facts["origins"]
    lines = path.read_text().splitlines()
    assert origins["tokenizer.name_or_path"] == "inherited from model.name_or_path"
    assert origins["strategy.dtype"] == "inherited from model.dtype"
    assert origins["data.seed"] == "inherited from seed"
    assert origins["scheduler.type"] == "command line -o scheduler=cosine"
    name, number = origins["data.sources[0].name_or_path"].split(":")
    assert name == "chat.yaml"
    assert "rows.jsonl" in lines[int(number) - 1]
    assert origins["data.sources[0].type"] == "trainer type sft"
    assert origins["peft.type"] == "default of hooktrain-peft"
    assert not _without_origin(facts["recipe"], "", origins)


def _without_origin(value, path, origins):
    """Paths of values of which no origin is known."""
    if path in origins:
        return []
    if isinstance(value, dict) and value:
        return [p for key, inner in value.items() for p in _without_origin(inner, f"{path}.{key}".lstrip("."), origins)]
    if isinstance(value, list) and value:
        return [p for i, inner in enumerate(value) for p in _without_origin(inner, f"{path}[{i}]", origins)]
    return [path]


def test_a_printed_plan_is_the_recipe_in_yaml(written, capsys):
    facts = read_plan(written(RECIPE.replace("defaults: &defaults\n  lr: 0.5\n", "").replace("  <<: *defaults\n", "")))
    print_plan(facts, everything=True)
    lines = capsys.readouterr().out.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("type: "))
    shown = "\n".join(lines[begin : lines.index("", begin)]) + "\n"
    assert yaml.safe_load(shown) == facts["recipe"]
    assert f"{'  eps: 1.0e-06':<40}  # recipe.yaml:3\n" in shown
    (unused,) = (line for line in lines if "not used by this recipe" in line)
    named = {record["name"] for record in facts["plugins"] if record["state"] == "unused"}
    assert named and set(unused.rpartition(": ")[2].split(", ")) == named


def test_a_printed_plan_is_short_and_its_lines_fit_a_terminal(chat_recipe, tmp_path, capsys):
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump({**chat_recipe, "seed": 7}))
    facts = read_plan(path, estimates=False)
    print_plan(facts)
    shown = capsys.readouterr().out
    recipe = shown.partition("\n\n")[0].splitlines()[1:]
    assert "  # defaults: " in shown and "weight_decay: 0.1" in shown, "the first defaults of a section"
    assert all(len(line) <= 80 for line in recipe if line.lstrip().startswith("# defaults"))
    assert {"type", "seed", "model"} <= yaml.safe_load("\n".join(recipe)).keys()
    assert not {"epochs", "profiler", "peft"} & yaml.safe_load("\n".join(recipe)).keys()
    assert "run_step" not in shown and "nothing will be saved" in shown
    print_plan(facts, everything=True)
    longer = capsys.readouterr().out
    assert "run_step" in longer and "  epochs: " not in longer and "\nepochs: " in longer
    assert len(longer.splitlines()) > 2 * len(shown.splitlines())


# ---------------------------------------------------------------------------------------------------- conflicts


def rival(name):
    class Rivals:
        hooktrain_plugin = PluginInfo(name=name)

        @hookimpl
        def run_step(self, trainer, batches):
            return NotImplemented

        @hookimpl
        def run_evaluate(self, trainer):
            return NotImplemented

    return Rivals()


def test_all_conflicts_are_shown_with_the_line_to_write_and_the_rest_of_the_plan(capsys):
    host = make_host()
    for plugin in (TinyPlugin(), rival("one"), rival("two")):
        host.register(plugin)
    facts = plan_of(host, Sources(file=None, raw={"type": "tiny", "seed": "x", "optimizer": {"lr": -1}}))
    said = [f"{each['where']}: {each['message']}" for each in facts["complaints"]]
    assert len(said) == 4
    assert "loop_hooks: {run_step: two}" in said[0]
    assert "loop_hooks: {run_evaluate: two}" in said[1]
    assert said[2].startswith("optimizer.lr: ") and "-1.0" in said[2]
    assert said[3].startswith("seed: ") and "'x'" in said[3]
    assert facts["estimates"]["model"]["parameters"] == 289
    assert [each["role"] for each in facts["hooks"]["run_step"]] == ["runs", "not called", "not called"]
    print_plan(facts)
    shown = "".join(capsys.readouterr().out.split())
    assert all("".join(text.split()) in shown for text in said), "however the lines are broken"


class Rival:
    def __init__(self, asked):
        self.asked = asked

    @hookimpl
    def run_step(self, trainer, batches):
        self.asked.append(type(self).__name__)
        return NotImplemented


class A(Rival): ...


class B(Rival): ...


@pytest.mark.parametrize(
    ("plugins", "roles"),
    [
        ({"loop_hooks": {"run_step": "A"}}, {"B": "not chosen", "A": "runs", "loop": "not called"}),
        ({"loop_hooks": {"run_step": "B"}}, {"B": "runs", "A": "not chosen", "loop": "not called"}),
        ({"loop_hooks": {"run_step": "loop"}}, {"B": "not chosen", "A": "not chosen", "loop": "runs"}),
        ({"order": ["A", "B"]}, {"A": "runs", "B": "not called", "loop": "not called"}),
        (
            {"order": ["B"], "loop_hooks": {"run_step": "A"}},
            {"B": "not chosen", "A": "runs", "loop": "not called"},
        ),
    ],
)
def test_the_plan_names_who_runs_a_loop_hook_as_the_run_does(run_tiny, plugins, roles):
    asked = []
    trainer = run_tiny(A(asked), B(asked), train_iters=1, plugins=plugins)
    assert trainer.global_step == 1
    host = make_host(plugins_config({"plugins": plugins}, []))
    for plugin in (TinyPlugin(), A(asked), B(asked)):
        host.register(plugin)
    facts = plan_of(host, Sources(file=None, raw={"type": "tiny"}), estimates=False)
    assert facts["complaints"] == []
    found = facts["hooks"]["run_step"]
    assert {each["plugin"]: each["role"] for each in found} == roles
    first = next(each["plugin"] for each in found if each["role"] == "runs")
    assert asked[:1] == ([] if first == "loop" else [first])
    assert all(f"{__file__}:" in each["file"] for each in found if each["plugin"] != "loop"), "not the stub's file"


def test_a_loop_hook_given_to_a_plugin_that_is_not_there_is_a_complaint_with_its_path(run_cli, tiny_recipe, tmp_path):
    source = "class A:\n    @hookimpl\n    def run_step(self): return NotImplemented\n"
    (tmp_path / "act.py").write_text(f"from hooktrain import hookimpl\n{source}")
    recipe = {**tiny_recipe, "plugins": TINY}
    shown = run_cli("plan", recipe, "-p", "act:A", "-o", "plugins.loop_hooks.run_step=act:C", "--json")
    assert shown.status == 1
    (complaint,) = json.loads(shown.stdout)["complaints"]
    assert complaint["where"] == "plugins.loop_hooks.run_step"
    assert all(name in complaint["message"] for name in ("'act:C'", "'act:A'", "act:A, loop"))


def test_a_difference_shows_who_was_chosen_for_a_loop_hook(written, tmp_path, monkeypatch):
    source_of_hook = "    @hookimpl\n    def run_step(self): return NotImplemented\n"
    source = f"from hooktrain import hookimpl\nclass A:\n{source_of_hook}class B:\n{source_of_hook}"
    (tmp_path / "two_claims.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    both = [*TINY["load"], "two_claims:A", "two_claims:B"]
    one, other = (
        written(
            f"type: tiny\nplugins: {json.dumps({'load': both, 'loop_hooks': {'run_step': name}})}\n", f"{number}.yaml"
        )
        for number, name in enumerate(both[1:])
    )
    changed = compare(one, read_plan(other), 1)["order of hooks"]["run_step"]
    assert changed == [
        "two_claims:B (not chosen), two_claims:A, loop (not called)",
        "two_claims:B, two_claims:A (not chosen), loop (not called)",
    ]


def test_a_plan_with_complaints_ends_with_status_1(run_cli, tiny_recipe):
    shown = run_cli("plan", {**tiny_recipe, "optimizer": {"lr": -1}, "seeed": 3}, "--json")
    assert shown.status == 1
    facts = json.loads(shown.stdout)
    assert [each["where"] for each in facts["complaints"]] == ["seeed", "optimizer.lr"]
    assert facts["recipe"]["seed"] == 42, "what is right is shown"


# ---------------------------------------------------------------------------------------------------- estimates


def test_what_this_machine_lacks_is_said_and_is_no_error(tiny_recipe, tmp_path, monkeypatch):
    """A plan may be made on another machine than the one that trains, where a run is refused."""
    source = (
        "from hooktrain import Complaint, hookimpl\n\n@hookimpl\ndef check_recipe():\n"
        "    return [Complaint('optimizer.type', 'needs the package quicker', of_machine=True)]\n"
    )
    (tmp_path / "needs_a_package.py").write_text(source)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    monkeypatch.syspath_prepend(tmp_path)
    words = ["plan", str(tmp_path / "tiny.yaml"), "--no-estimates"]
    words += ["-p", "hooktrain.testing.tiny_plugin:TinyPlugin", "-p", "needs_a_package"]
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 0, shown.output
    assert re.search(facts("missing on this machine", "optimizer.type", "the package quicker"), shown.output)
    assert "errors" not in shown.output
    with pytest.raises(RecipeError, match="the package quicker"):
        load(tiny_recipe, plugins=[TinyPlugin()], switches=["needs_a_package"])


def tiny_plan(*plugins, nproc=1, **changes):
    host = make_host()
    for plugin in (TinyPlugin(), *plugins):
        host.register(plugin)
    return plan_of(host, Sources(file=None, raw={"type": "tiny", **changes}), World(world_size=nproc))["estimates"]


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 3, "epochs": 2}, {"epochs": 2, "train_iters": 5}])
def test_steps_are_those_of_the_run(run_tiny, changes):
    trainer = run_tiny(**{"micro_batch_size": 2, **changes})
    facts = tiny_plan(**{"micro_batch_size": 2, **changes})
    assert facts["steps"]["total"] == trainer.training_horizon
    assert facts["steps"]["per_epoch"] == len(trainer.loader)
    assert facts["model"]["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    assert facts["memory"]["device"]["weights"] == 4 * facts["model"]["parameters"]


@pytest.mark.parametrize(
    "optimizer", ["adamw", "sgd", {"type": "sgd", "momentum": 0.9}, {"type": "torch", "name": "Adagrad"}]
)
def test_the_optimizers_state_is_counted_as_it_is(run_tiny, optimizer):
    state = run_tiny(optimizer=optimizer, train_iters=1).optimizer.state
    kept = [t for of in state.values() for t in of.values() if isinstance(t, torch.Tensor) and t.dim()]
    assert tiny_plan(optimizer=optimizer)["model"]["optimizer_bytes"] == sum(t.numel() * t.element_size() for t in kept)


def test_plugins_estimate_what_is_theirs():
    class Estimates:
        @hookimpl
        def estimate_activations(self, model, sequences, tokens):
            ids = torch.zeros(sequences, tokens, dtype=torch.long)
            return {"logits": model(input_ids=ids).numel() * 4}

        @hookimpl(tryfirst=True)
        def estimate_data(self, config, hooks):
            rows = hooks.estimate_examples(config=config)
            return DataEstimate(sequences=rows, longest=6)

        @hookimpl
        def estimate_examples(self, config):
            return 40

        @hookimpl(tryfirst=True)
        def estimate_memory(self, config, recipe, world, model):
            return MemoryEstimate(device={"a": model.weight_bytes, **model.activation_bytes}, host={"b": 7})

        @hookimpl(wrapper=True)
        def make_meta_model(self):
            model = yield
            model.embedding.requires_grad_(False)
            return model

    facts = tiny_plan(Estimates(), micro_batch_size=2, nproc=5)
    assert facts["steps"] == {"rows_per_step": 10, "total": 4, "per_epoch": 4}
    assert facts["memory"]["device"]["logits"] == 2 * 6 * 17 * 4
    assert facts["memory"]["host"] == {"b": 7}
    assert facts["model"]["parameters"] - facts["model"]["trainable"] == 17 * 8


def test_an_estimate_that_fails_is_unknown_and_the_plan_goes_on(capsys):
    class Fails:
        @hookimpl(tryfirst=True)
        def make_meta_model(self):
            raise HooktrainError("the model is on the moon")

        @hookimpl(tryfirst=True)
        def estimate_data(self):
            raise ZeroDivisionError("a bug")

    facts = tiny_plan(Fails(), train_iters=9)
    assert facts["model"] == {"unknown": "the model is on the moon"}
    assert "ZeroDivisionError: a bug" in facts["data"]["unknown"]
    del Fails.make_meta_model
    why = tiny_plan(Fails())["model"]["not_known"]["activations"]
    assert "how long rows are" in why and "max_length" not in why, "these data have none"
    assert facts["steps"]["total"] == 9


def test_the_plan_says_what_precision_auto_is(run_tiny):
    for kind in ("torch", "deepspeed"):
        notes = tiny_plan(strategy={"type": kind, "device": "cpu"})["memory"]["notes"]
        (said,) = [note for note in notes if note.startswith("strategy.dtype: auto")]
        if kind == "torch":
            chosen = run_tiny(strategy={"device": "cpu", "dtype": "auto"}, train_iters=1).strategy.dtype
            assert ("bf16" if chosen is torch.bfloat16 else "fp32") in said
        else:
            assert "fp32" in said
    assert not any("auto" in note for note in tiny_plan(strategy={"dtype": "bf16"})["memory"]["notes"])


@pytest.mark.parametrize("ranks", [1, 4])
def test_strategies_shard_what_they_say(ranks):
    whole = tiny_plan(nproc=ranks)["memory"]["device"]
    sharded = tiny_plan(nproc=ranks, strategy={"data_parallel": "fsdp2"})["memory"]["device"]
    for name in ("weights", "optimizer", "gradients"):
        assert sharded[name] == whole[name] // ranks
    sizes = {
        stage: tiny_plan(nproc=ranks, strategy={"type": "deepspeed", "zero_stage": stage, "dtype": "bf16"})["memory"]
        for stage in (0, 1, 2, 3)
    }
    n = 17 * 8 + 17 * 8 + 17
    assert sizes[0]["device"] == {"weights": 4 * n, "optimizer": 8 * n, "gradients": 4 * n}
    assert sizes[1]["device"]["weights"] == 2 * n
    assert sizes[1]["device"]["optimizer"] == 8 * n // ranks
    assert sizes[1]["device"]["gradients"] == 2 * n
    assert sizes[2]["device"]["gradients"] == 2 * n // ranks
    assert sizes[3]["device"]["weights"] == 2 * n // ranks
    offloaded = tiny_plan(
        nproc=ranks, strategy={"type": "deepspeed", "zero_stage": 3, "offload": "all", "dtype": "bf16"}
    )
    assert set(offloaded["memory"]["host"]) == {"weights", "weights in float32", "optimizer", "gradients"}


def chat_facts(recipe, tmp_path, *overrides):
    path = tmp_path / "chat.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return read_plan(path, overrides)["estimates"]


def test_a_chat_model_is_sized_without_weights_and_data_without_preparing(chat_recipe, run_chat, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    for file in Path(chat_recipe["model"]["name_or_path"]).glob("*.safetensors"):
        chat_recipe["model"]["name_or_path"] = str(_without_weights(file.parent, tmp_path))
    facts = chat_facts(chat_recipe, tmp_path)
    assert facts["model"]["class"] == "LlamaForCausalLM"
    assert facts["data"]["sequences"] is None
    assert re.search(r"\b6\b.*\bpack", facts["data"]["how"])
    assert facts["data"]["longest"] == 96
    assert facts["memory"]["device"]["activations"] > 0
    assert chat_facts(chat_recipe, tmp_path, "data.pack_samples=false")["steps"]["per_epoch"] == 6
    less = chat_facts(chat_recipe, tmp_path, "model.activation_checkpointing=true")
    assert less["memory"]["device"]["activations"] < 0.5 * facts["memory"]["device"]["activations"]
    half = chat_facts(chat_recipe, tmp_path, "model.weights_dtype=bf16")
    assert half["memory"]["device"]["weights"] * 2 == facts["memory"]["device"]["weights"]


def _without_weights(folder, tmp_path):
    copy = tmp_path / "config only"
    copy.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_prepared_rows_are_counted_exactly(chat_recipe, run_chat, tmp_path):
    trainer = run_chat(train_iters=None)
    facts = chat_facts({**chat_recipe, "train_iters": None}, tmp_path)
    assert facts["steps"]["total"] == trainer.training_horizon
    assert facts["data"]["sequences"] == len(trainer.data.train)
    assert facts["data"]["tokens"] == trainer.data.report["train"]["tokens_kept"]
    assert "cache" in facts["data"]["how"]
    assert facts["model"]["parameters"] == sum(p.numel() for p in trainer.model.parameters())


@pytest.mark.parametrize(
    "peft", [{"type": "lora", "r": 4}, {"type": "ia3"}, {"type": "lora", "r": 4, "init_lora_weights": "pissa"}]
)
def test_the_trained_share_of_an_adapter(chat_recipe, run_chat, tmp_path, peft):
    trainer = run_chat(peft=peft, train_iters=1)
    facts = chat_facts({**chat_recipe, "peft": peft}, tmp_path)["model"]
    assert facts["trainable"] == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert facts["parameters"] == sum(p.numel() for p in trainer.model.parameters())


def test_names_on_the_hub_do_not_touch_the_network(tmp_path, monkeypatch):
    def refuse(*given, **more):
        raise AssertionError(f"the network was asked: {given}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    recipe = {
        "model": {"name_or_path": "nobody/nothing"},
        "data": {"sources": ["nobody/rows"]},
        "peft": {"type": "lora"},
    }
    facts = chat_facts(recipe, tmp_path)
    assert all(fact in facts["model"]["unknown"] for fact in ("'nobody/nothing'", "download", "network"))
    assert "'nobody/rows'" in facts["data"]["how"] and facts["data"]["sequences"] is None
    assert facts["steps"]["total"] is None


def test_a_plan_starts_no_process_group_and_no_cuda(chat_recipe, tmp_path):
    for strategy in ("torch", "deepspeed"):
        chat_facts({**chat_recipe, "strategy": {"type": strategy}}, tmp_path)
        assert not torch.distributed.is_initialized()
        assert not torch.cuda.is_initialized()


# --------------------------------------------------------------------------------------------------- difference


def test_the_difference_of_two_plans(written, tmp_path, capsys):
    text = "type: tiny\noptimizer: {lr: 0.1}\n"
    facts = read_plan(written(text), ["optimizer.lr=0.2", "data.rows=40"], ["no:signals"])
    other = written(text, "other.yaml")
    found = compare(other, facts, 1)
    assert found["values"]["optimizer.lr"] == [0.1, 0.2]
    assert found["values"]["data.rows"] == [13, 40]
    assert found["plugins"] == {"signals": ["hooktrain 0.2.0", "-"]}
    assert found["estimates"]["steps.total"] == [13, 40]
    assert "on_train_end" in found["order of hooks"]
    saved = tmp_path / "plan.json"
    saved.write_text(json.dumps(read_plan(other)))
    assert compare(saved, facts, 1) == found
    print_difference(found)
    assert "optimizer.lr" in capsys.readouterr().out
    assert compare(other, read_plan(other), 1) == {}
    print_difference({})
    (line,) = capsys.readouterr().out.splitlines()
    assert line and "optimizer" not in line and "steps" not in line


def test_the_difference_to_a_run_that_was(run_tiny, written, tmp_path):
    run_tiny(optimizer={"lr": 0.1})
    (tmp_path / "run" / "recipe.yaml").write_text(
        (tmp_path / "run" / "recipe.yaml").read_text().replace("load: []", "load: ['hooktrain.testing:TinyPlugin']")
    )
    facts = read_plan(written("type: tiny\noptimizer: {lr: 0.3}\n"))
    found = compare(tmp_path / "run", facts, 1)
    assert found["values"]["optimizer.lr"] == [0.1, 0.3]
    assert found["plugins"] == {"TinyPlugin": ["hooktrain", "-"], "hooktrain.testing:TinyPlugin": ["-", "hooktrain"]}
    with pytest.raises(HooktrainError, match=r"x\.json.*`hooktrain plan RECIPE --json`"):
        (tmp_path / "x.json").write_text("{}")
        compare(tmp_path / "x.json", facts, 1)
