"""Plugins: found in order, switched, refused when they break a rule, named when they clash."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys

import attrs
import pytest
import yaml

from hooktrain import (
    HooktrainError,
    PluginError,
    PluginHost,
    PluginsConfig,
    RecipeError,
    failure_of,
    hookimpl,
    hookspec,
)
from hooktrain.inspection.plan import read_plan
from hooktrain.testing import Recorder, TinyPlugin, host_of
from hooktrain.training.load import load, make_host
from tests.facts import facts

WATCHES = """
import hooktrain
@hooktrain.hookimpl
def on_train_start(trainer):
    trainer.seen = getattr(trainer, "seen", []) + [__name__]
"""


def names(host: PluginHost) -> list[str]:
    return [name for name in host.records if name.startswith(("a-", "b-", "c-"))]


def test_plugins_are_loaded_in_the_order_of_their_names(installed):
    for name in ("c-third", "a-first", "b-second"):
        installed(name, WATCHES)
    assert names(make_host()) == ["a-first", "b-second", "c-third"]


def test_switching(installed, monkeypatch):
    installed("a-first", WATCHES)
    installed("b-second", "raise RuntimeError('imported although it was blocked')")
    host = make_host(PluginsConfig(block=("b-second",)))
    assert host.records["b-second"].state == "blocked"
    assert "mod_b_second" not in sys.modules
    host = make_host(PluginsConfig(only=("a-first",)))
    assert "plugins.only" in host.records["b-second"].reason
    host = make_host(PluginsConfig().switched(["no:*"]))
    assert {record.state for record in host.records.values() if record.distribution != "hooktrain"} == {"blocked"}
    host = make_host(PluginsConfig().switched(["no:*", "a-first"]))
    assert host.records["a-first"].state == "active"
    monkeypatch.setenv("HOOKTRAIN_PLUGINS", "no:b-second,no:a-first")
    _, host = load({"type": "tiny"}, plugins=[TinyPlugin()])
    assert [host.records[name].state for name in ("a-first", "b-second")] == ["blocked", "blocked"]
    _, host = load({"type": "tiny"}, plugins=[TinyPlugin()], switches=["a-first"])
    assert host.records["a-first"].state == "active"


def test_a_plugin_that_fails_to_import_stops_only_a_run_that_names_it(installed, run_tiny):
    installed("b-broken", "import a_module_that_is_not_there")
    trainer = run_tiny()
    record = trainer.host.records["b-broken"]
    assert (record.state, record.version) == ("failed", "1.2")
    cause = ("ModuleNotFoundError", "'a_module_that_is_not_there'")
    assert re.search(facts(*cause), record.reason)
    with pytest.raises(PluginError, match=facts("'b-broken' (b-broken 1.2)", *cause, "-p no:b-broken")):
        make_host(PluginsConfig(load=("b-broken",)))
    with pytest.raises(RecipeError, match=facts("optimizer", "'lion'", "'b-broken' (b-broken 1.2)", *cause)):
        load({"type": "tiny", "optimizer": "lion"}, plugins=[TinyPlugin()])
    with pytest.raises(RecipeError, match=facts("b-broken: ", *cause)):
        load({"type": "tiny", "b-broken": {}}, plugins=[TinyPlugin()])


def test_a_module_that_quits_does_not_end_the_program_as_if_all_were_well(run_cli, tiny_recipe):
    run = run_cli("train", tiny_recipe, source="raise SystemExit(0)")
    assert run.status == 1 and re.search(facts("'extra'", "SystemExit: 0"), run.stderr), run.output


def test_a_class_that_quits_is_a_plugin_that_fails(installed):
    installed("a-quits", "class Plugin:\n    def __init__(self): raise SystemExit(0)\n")
    with pytest.raises(PluginError, match=facts("'mod_a_quits:Plugin' (mod_a_quits)", "SystemExit: 0")):
        make_host(PluginsConfig(load=("mod_a_quits:Plugin",), block=("a-quits",)))


def test_what_a_plugin_prints_when_it_is_loaded_spoils_no_output(run_cli):
    source = "print('I am here')\n@hookimpl\ndef on_step_end(): pass\n"
    run = run_cli("plugins", "--json", "-p", "extra", source=source)
    assert "extra" in [each["name"] for each in json.loads(run.stdout)]
    assert "I am here" in run.stderr


def test_settings_under_a_key_of_the_recipe_are_refused():
    class Takes:
        @hookimpl
        def register_configs(self):
            return {"settings": {"data": Lion.Config, "epochs": Lion.Config}}

    with pytest.raises(RecipeError) as caught:
        load({"type": "tiny"}, plugins=[TinyPlugin(), Takes()])
    for key in ("data", "epochs"):
        (text,) = [str(each) for each in caught.value.complaints if each.where == key]
        assert re.search(facts(f"{key}: ", "'Takes' (tests)", "plugins: {block: [Takes]}"), text)


def test_wrappers_that_yield_never_or_twice_are_named(run_tiny):
    class Never:
        @hookimpl(wrapper=True)
        def run_step(self):
            if self is None:
                yield

    class Twice:
        @hookimpl(wrapper=True)
        def run_step(self):
            yield
            return (yield)

    texts = set()
    for plugin in (Never(), Twice()):
        name = type(plugin).__name__
        with pytest.raises(PluginError, match=facts(f"'{name}'", "run_step", "wrapper", "yield")) as caught:
            run_tiny(plugin)
        texts.add(str(caught.value).replace(name, ""))
        assert failure_of(caught.value).where == f"plugin '{name}', hook run_step, step 0, rank 0"
    assert len(texts) == 2, "a yield too few reads otherwise than one too many"


def test_two_distributions_with_one_plugin_name_are_refused(installed):
    installed("a-same", WATCHES, distribution="first-dist")
    installed("a-same", WATCHES, distribution="second-dist")
    said = facts("'a-same'", "first-dist", "second-dist", "uninstall")
    host = make_host()
    assert re.search(said, host.records["a-same"].reason), "a listing works anyway"
    with pytest.raises(PluginError, match=said):
        host.check()
    make_host(PluginsConfig(block=("a-same",))).check()


def test_a_plugin_named_as_one_of_the_engine_is_out_and_the_engine_keeps_its_own(installed, run_tiny, tmp_path):
    installed("jsonl", WATCHES, distribution="stranger")
    with pytest.warns(UserWarning, match=facts("stranger:jsonl", "'jsonl'", "engine")):
        trainer = run_tiny(train_iters=2)
    record = trainer.host.records["stranger:jsonl"]
    assert (record.state, record.distribution) == ("failed", "stranger")
    assert trainer.host.records["jsonl"].state == "active"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not hasattr(trainer, "seen")


def test_one_object_under_two_names_stays_registered_under_the_first():
    host, plugin = host_of(), Lion()
    host.register(plugin, "first")
    with pytest.raises(PluginError, match=facts("'second' (tests)", "'first'")):
        host.register(plugin, "second")
    assert host.manager.get_plugin("first") is plugin
    assert host.parts["optimizer"]["lion"].plugin.name == "first"


def test_the_recipe_that_a_run_keeps_gives_its_plugins_again(run_cli, tmp_path, tiny_recipe):
    text = "import hooktrain\n@hooktrain.hookimpl\ndef on_step_end(): pass\n"
    text += "@hooktrain.hookimpl(wrapper=True)\ndef make_optimizer():\n    return (yield)\n"
    (tmp_path / "wraps.py").write_text(text)
    folder = tmp_path / "run"
    recipe = {
        **tiny_recipe,
        "plugins": {"load": ["hooktrain.testing:TinyPlugin"]},
        "train_iters": 2,
        "checkpoint": [{"type": "full", "save_end_of_training": True}],
    }
    switched = {"HOOKTRAIN_PLUGINS": "no:samples,no:liger"}
    first = run_cli("train", recipe, "-p", "wraps", "-p", "no:neftune", env=switched)
    assert first.status == 0, first.output
    before = json.loads((folder / "plugins.json").read_text())["plugins"]
    kept = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert kept["plugins"]["load"] == ["hooktrain.testing:TinyPlugin", "wraps"]
    assert kept["plugins"]["block"] == ["samples", "liger", "neftune"]
    again = run_cli("train", folder / "recipe.yaml", "-o", f"run_dir={tmp_path / 'again'}", env=switched)
    assert again.status == 0, again.output
    assert json.loads((tmp_path / "again" / "plugins.json").read_text())["plugins"] == before
    assert (tmp_path / "again" / "recipe.yaml").read_text() == (folder / "recipe.yaml").read_text().replace(
        str(folder), str(tmp_path / "again")
    )
    resumed = ("--resume", folder / "checkpoints" / "step-00000002", "-o", f"run_dir={tmp_path / 'on'}")
    same = run_cli("train", recipe, "-p", "wraps", "-p", "no:neftune", *resumed, env=switched)
    assert same.status == 0 and "plugins." not in same.output, same.output
    without = run_cli("train", recipe, "-p", "no:neftune", *resumed, env=switched)
    assert without.status == 1
    assert re.search(facts("plugins.wraps: ", "make_optimizer"), without.stderr)


def test_the_last_word_about_a_module_wins(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lacks.py").write_text(
        "import hooktrain\nhooktrain_plugin = hooktrain.PluginInfo(requires=['nonesuch'])\n"
        "@hooktrain.hookimpl\ndef on_step_end(): pass\n"
    )
    named = {"type": "tiny", "plugins": {"load": ["lacks"]}}
    for raw, switches, advice in (
        ({"type": "tiny"}, ["lacks"], "command line -p lacks"),
        (named, [], "-p no:lacks"),
    ):
        with pytest.raises(PluginError, match=facts("'lacks'", "'nonesuch'", advice)):
            load(raw, plugins=[TinyPlugin()], switches=switches)
        made, host = load(raw, plugins=[TinyPlugin()], switches=[*switches, "no:lacks"])
        assert "lacks" not in host.records
        assert (made.plugins.load, made.plugins.block) == ((), ()), "what is kept can be read again"
    with pytest.raises(RecipeError, match=facts("plugins: ", "'lakcs'", "torch", "'lacks'", "'nonesuch'")):
        load(named, plugins=[TinyPlugin()], switches=["no:lakcs"])


def test_what_was_blocked_is_said_where_something_is_missing(monkeypatch):
    with pytest.raises(RecipeError, match=facts("optimizer", "'adamw'", "torch", "command line -p no:torch")):
        load({"type": "tiny"}, plugins=[TinyPlugin()], switches=["no:torch"])
    monkeypatch.setenv("HOOKTRAIN_PLUGINS", "no:peft")
    with pytest.raises(RecipeError) as caught:
        load({"type": "tiny", "peft": {}, "pefd": {}}, plugins=[TinyPlugin()])
    first, second = caught.value.complaints
    assert str(first).startswith("peft: ") and "environment HOOKTRAIN_PLUGINS=no:peft" in str(first)
    assert str(second).startswith("pefd: ") and re.search(facts("peft", "HOOKTRAIN_PLUGINS=no:peft"), str(second))
    monkeypatch.delenv("HOOKTRAIN_PLUGINS")
    with pytest.raises(RecipeError, match=facts("optimizer", "'adamw'", "torch", "plugins.autoload of the recipe")):
        load({"type": "tiny", "plugins": {"autoload": False}}, plugins=[TinyPlugin()])
    with pytest.raises(RecipeError, match=facts("peft: ", "plugins.block of the recipe")):
        load({"type": "tiny", "peft": {}, "plugins": {"block": ["peft"]}}, plugins=[TinyPlugin()])


@pytest.mark.parametrize("config", [{"block": ("my*",)}, {"only": ("my*",)}, {"load": ("my*",)}, {"block": ("*",)}])
def test_names_are_no_patterns(config):
    ((name,),) = config.values()
    with pytest.raises(PluginError, match=facts("plugins: ", repr(name), "-p 'no:*'")):
        make_host(PluginsConfig(**config))
    with pytest.raises(PluginError, match=facts("'my*'", "-p 'no:*'")):
        load({"type": "tiny"}, plugins=[TinyPlugin()], switches=["no:my*"])


def test_unknown_names_are_refused():
    with pytest.raises(PluginError, match=facts("plugins: ", "'torhc'", "'torch'")):
        make_host(PluginsConfig(block=("torhc",)))
    with pytest.raises(PluginError, match=facts("'no_such_module'", "plugin", "module")):
        make_host(PluginsConfig(load=("no_such_module",)))


WRONG = {
    "type": "tiny",
    "plugins": {"blok": ["x"], "block": ["torhc"], "load": ["no_such_module"], "loop_hooks": {"run_stp": "loop"}},
    "optimizer": {"lr": "fast"},
    "epohcs": 2,
}


def test_mistakes_about_plugins_hide_none_of_the_rest(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load(WRONG, plugins=[TinyPlugin()])
    expected = {
        "plugins.blok": "'block'",
        "plugins": "'torhc'|'no_such_module'",
        "plugins.loop_hooks": "'run_stp'",
        "optimizer.lr": "'fast'",
        "epohcs": "'epochs'",
    }
    found = caught.value.complaints
    assert {each.where for each in found} == set(expected) and len(found) == 6
    assert all(re.search(expected[each.where], each.message) for each in found)
    path = tmp_path / "recipe.yaml"
    recipe = {**WRONG, "plugins": {**WRONG["plugins"], "load": ["hooktrain.testing:TinyPlugin", "no_such_module"]}}
    path.write_text(yaml.safe_dump(recipe))
    planned = [(each["where"], each["message"]) for each in read_plan(path, estimates=False)["complaints"]]
    assert sorted(where for where, _ in planned) == sorted(each.where for each in found)


def test_a_module_can_be_named(installed):
    installed("c-module", WATCHES)
    host = make_host(PluginsConfig(load=("mod_c_module",), block=("c-module",)))
    assert host.records["mod_c_module"].state == "active"


class Lion:
    Config = attrs.make_class("Lion", {}, frozen=True)

    @hookimpl
    def register_configs(self):
        return {"optimizer": {"lion": self.Config}}


class OtherLion(Lion):
    pass


def test_one_name_offered_twice_names_both():
    both = ("'OtherLion' (tests)", "'Lion' (tests)", "{block: [OtherLion]}", "{block: [Lion]}")
    with pytest.raises(PluginError, match=facts(*both, "optimizer", "'lion'")):
        host_of(Lion(), OtherLion())


OFFERS = """
import attrs, hooktrain
Config = attrs.make_class("Config", {}, frozen=True)
@hooktrain.hookimpl
def register_configs():
    return {"optimizer": {"lion": Config}}
"""


def test_installed_plugins_that_offer_one_name_stop_the_run_until_the_recipe_settles_it(installed):
    installed("a-lion", OFFERS)
    installed("b-lion", OFFERS)
    both = ("'b-lion' (b-lion 1.2)", "'a-lion' (a-lion 1.2)", "{block: [b-lion]}", "{block: [a-lion]}")
    with pytest.raises(PluginError, match=facts(*both, "optimizer", "'lion'")):
        load({"type": "tiny"}, plugins=[TinyPlugin()])
    _, host = load({"type": "tiny", "plugins": {"block": ["a-lion"]}}, plugins=[TinyPlugin()])
    assert host.parts["optimizer"]["lion"].plugin.name == "b-lion"


class StepA:
    @hookimpl
    def run_step(self, trainer, batches):
        trainer.who = "A"
        return NotImplemented


class StepB:
    @hookimpl
    def run_step(self, trainer, batches):
        trainer.who = "B"
        return NotImplemented


def test_two_plugins_that_claim_a_loop_hook_stop_the_run_until_the_recipe_settles_it(run_tiny):
    remedies = "plugins: {loop_hooks: {run_step: StepB}}", "plugins: {order: [StepB, StepA]}"
    with pytest.raises(PluginError, match=facts("'StepB' (tests)", "'StepA' (tests)", *remedies)):
        run_tiny(StepA(), StepB())


def test_loop_hooks_settled_in_the_recipe(tiny_recipe):
    for chosen in ("StepA", "StepB"):
        host = PluginHost(PluginsConfig(loop_hooks={"run_step": chosen}), discover=False)
        for plugin in (StepA(), StepB()):
            host.register(plugin)
        host.check()
        trainer = type("Trainer", (), {})()
        host.manager.hook.run_step(trainer=trainer, batches=[])
        assert trainer.who == chosen[-1]
    host = PluginHost(PluginsConfig(loop_hooks={"run_stop": "StepA"}), discover=False)
    with pytest.raises(PluginError, match=facts("plugins.loop_hooks: ", "'run_stop'", "'run_step'")):
        host.check()
    host = PluginHost(PluginsConfig(loop_hooks={"run_step": "StepC"}), discover=False)
    host.register(StepA())
    with pytest.raises(PluginError, match=facts("plugins.loop_hooks.run_step: ", "'StepC'", "StepA")):
        host.check()
    host = PluginHost(PluginsConfig(loop_hooks={"run_step": "TinyPlugin"}), discover=False)
    host.register(TinyPlugin())
    with pytest.raises(PluginError, match=facts("plugins.loop_hooks.run_step: ", "'TinyPlugin'", "implement")):
        host.check()


def test_a_misspelt_hook_is_an_error(run_tiny):
    class Misspelt:
        @hookimpl
        def on_step_edn(self): ...

    names = ("'Misspelt' (tests)", "'on_step_edn'", "'on_step_end'", "`hooktrain hooks`")
    with pytest.raises(PluginError, match=facts(*names)):
        run_tiny(Misspelt())


class Breaks:
    class Unknown:
        @hookimpl
        def on_step_end(self, trianer): ...

    class Default:
        @hookimpl
        def on_step_end(self, trainer=None): ...

    class KeywordOnly:
        @hookimpl
        def on_step_end(self, *, trainer): ...

    class Star:
        @hookimpl
        def on_step_end(self, **given): ...

    class OldStyle:
        @hookimpl(hookwrapper=True)
        def run_step(self):
            yield

    class NoYield:
        @hookimpl(wrapper=True)
        def run_step(self): ...

    class Teardown:
        @hookimpl(wrapper=True)
        def on_teardown(self):
            yield

    class NoClass:
        @hookimpl
        def register_configs(self):
            return {"optimizer": {"x": dict}}


@pytest.mark.parametrize(
    ("plugin", "texts"),
    [
        (Breaks.Unknown, ["on_step_end", "trianer"]),
        (Breaks.Default, ["on_step_end", "'trainer'", "default"]),
        (Breaks.KeywordOnly, ["on_step_end", "'trainer'", "'*'"]),
        (Breaks.Star, ["on_step_end", "'*given'"]),
        (Breaks.OldStyle, ["run_step", "hookwrapper=True", " wrapper=True"]),
        (Breaks.NoYield, ["run_step", "wrapper", "`result = yield`"]),
        (Breaks.Teardown, ["on_teardown", "wrapper"]),
        (Breaks.NoClass, ["optimizer", "'x'", "<class 'dict'>", "attrs"]),
    ],
)
def test_a_plugin_that_breaks_a_rule_is_refused_and_not_left_registered(plugin, texts):
    host = host_of()
    before = set(host.manager.get_plugins())
    with pytest.raises(PluginError, match=facts(f"'{plugin.__name__}' (tests)", *texts)):
        host.register(plugin())
    assert set(host.manager.get_plugins()) == before


def test_hooks_of_plugins_can_be_implemented_by_plugins(run_tiny):
    class Specs:
        @hookspec
        def on_halfway(self, trainer):
            """Half of the steps are done."""

    class Brings:
        @hookimpl
        def register_hookspecs(self, pluginmanager):
            pluginmanager.add_hookspecs(Specs)

        @hookimpl
        def on_step_end(self, trainer):
            if trainer.global_step == trainer.training_horizon // 2:
                trainer.hooks.on_halfway(trainer=trainer)

    class Watches:
        def __init__(self):
            self.at = []

        @hookimpl
        def on_halfway(self, trainer):
            self.at.append(trainer.global_step)

    implements = Watches()
    run_tiny(implements, Brings())
    assert implements.at == [3]


def test_order_of_calls_is_last_registered_first(run_tiny):
    seen = []

    def watcher(name, **options):
        def on_train_start(self):
            seen.append(name)

        return type(name, (), {"on_train_start": hookimpl(**options)(on_train_start)})()

    run_tiny(watcher("one"), watcher("two"), watcher("last", trylast=True), watcher("first", tryfirst=True))
    assert seen == ["first", "two", "one", "last"]


def test_state_travels_through_checkpoints_and_survives_an_absent_plugin(run_tiny, tmp_path):
    class Counts:
        def __init__(self):
            self.steps = 0

        @hookimpl
        def on_step_end(self):
            self.steps += 1

        @hookimpl
        def collect_state(self):
            return {"steps": self.steps}

        @hookimpl
        def restore_state(self, state):
            self.steps = state["steps"]

    saving = {"checkpoint": {"type": "full", "save_every_n_steps": 1, "auto_resume": True}}
    run_tiny(Counts(), exit_iteration=2, **saving)
    with pytest.warns(UserWarning, match=facts("checkpoint: ", "'Counts'") + "(?!.*collect_state)"):
        run_tiny(exit_iteration=4, **saving)
    back = Counts()
    run_tiny(back, **saving)
    assert back.steps == 2 + 3, "steps 1 and 2 from the first run, 5 to 7 from the last"


def test_hooks_without_implementation_cost_nothing_and_wake_up_when_a_plugin_comes(tiny_recipe):
    _, host = load(tiny_recipe, plugins=[TinyPlugin()])
    silent = host.hooks.on_step_start
    assert silent(trainer=None, batches=[]) is None
    recorder = Recorder()
    host.register(recorder)
    host.hooks.on_step_start(trainer=None, batches=[])
    assert recorder.hooks == ["on_step_start"]


def test_answers_are_collected_in_pluggys_order_and_without_those_of_nobody(tiny_recipe):
    class Measures:
        def __init__(self, answer):
            self.answer = answer

        @hookimpl
        def collect_metrics(self):
            return self.answer

    class Wraps:
        @hookimpl(wrapper=True)
        def collect_metrics(self):
            found = yield
            return [*found, {"d": 4}]

    def of(*plugins):
        return load(tiny_recipe, plugins=[TinyPlugin(), *plugins])[1]

    host = of(Measures({"a": 1}), Measures(None), Measures({"b": 2}))
    assert host.hooks.collect_metrics(trainer=None) == [{"b": 2}, {"a": 1}]
    assert host.hooks.collect_metrics(trainer=None) == host.manager.hook.collect_metrics(trainer=None)
    assert of().hooks.collect_metrics(trainer=None) == []
    assert of(Wraps()).hooks.collect_metrics(trainer=None) == [{"d": 4}]


def test_first_party_plugins_that_a_run_does_not_use_are_not_called_in_its_steps(tiny_recipe):
    _, host = load(tiny_recipe, plugins=[TinyPlugin()])
    implements = {
        hook: [found.plugin_name for found in host.implementations(hook)]
        for hook in (*STEP, "collect_metrics", "on_log")
    }
    assert {hook: plugins for hook, plugins in implements.items() if plugins} == {
        "on_step_end": ["signals"],
        "on_log": ["jsonl", "console"],
    }


STEP = [
    f"on_{of}_{when}" for of in ("step", "microbatch", "optimizer_step") for when in ("start", "end")
]  # fmt: skip


def test_an_unknown_hook_is_an_attribute_error():
    with pytest.raises(AttributeError, match=facts("hook", "'on_setp'")):
        host_of().hooks.on_setp  # noqa: B018


def test_the_factory_that_recognises_the_class_builds_the_part(run_tiny):
    made = []

    class Declines(Lion):
        @hookimpl
        def make_optimizer(self, config, model):
            made.append(type(config).__name__)

    run_tiny(Declines())
    assert made == ["AdamWConfig"]
    with pytest.raises(
        HooktrainError,
        match=facts("optimizer: ", "'lion'", "'Declines' (tests)", "make_optimizer"),
    ):
        run_tiny(Declines(), optimizer="lion")


def test_plugins_of_this_distribution_are_found_by_their_entry_points():
    points = {point.name: point.value for point in importlib.metadata.entry_points(group="hooktrain")}
    assert points["torch"] == "hooktrain_torch.plugin:TorchPlugin"
