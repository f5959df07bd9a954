"""A plugin that a recipe does not use takes no part in its run; several that are used share a loop hook as it says."""

from __future__ import annotations

import attrs
import pytest

from hooktrain import PluginError, PluginInfo, RecipeError, TrainerType, field, hookimpl
from hooktrain.cli.data import data_of
from hooktrain.inspection.plan import plan_of
from hooktrain.inspection.value_origins import Sources
from hooktrain.testing import Recorder, TinyPlugin
from hooktrain.training.load import load, make_host
from tests.facts import facts


def plugin_of(name, *, active_when=None, answers=True, **declared):
    """A plugin with settings ``NAME: {scale: 0}`` that implements ``run_step`` and counts its calls."""

    @attrs.frozen(kw_only=True)
    class Settings:
        scale: float = field(default=0.0)

    class Made:
        hooktrain_plugin = PluginInfo(name=name, active_when=active_when, **declared)
        calls = 0

        @hookimpl
        def register_configs(self):
            return {"settings": {name: Settings}}

        @hookimpl
        def run_step(self, trainer, batches):
            self.calls += 1
            if not answers:
                return NotImplemented
            return _plain_step(trainer, batches)

    return Made()


def _messages(recorder):
    return [arguments["message"] for hook, arguments in recorder.calls if hook == "on_message"]


def _plain_step(trainer, batches):
    from hooktrain.training.default_loop import Loop

    return Loop().run_step(trainer, batches)


def scaled(name):
    return lambda recipe: recipe.settings[name].scale > 0


# ------------------------------------------------------------------------------------------------------ active_when


def test_unused_plugins_neither_clash_nor_are_called(run_tiny):
    one, two = plugin_of("one", active_when=scaled("one")), plugin_of("two", active_when=scaled("two"))
    plain, unused = Recorder(), Recorder()
    run_tiny(plain)
    trainer = run_tiny(unused, one, two)
    assert [line["loss"] for line in unused.metrics] == [line["loss"] for line in plain.metrics]
    assert {trainer.host.records[name].state for name in ("one", "two")} == {"unused"}
    assert not {"one", "two"} & {record["name"] for record in trainer.host.manifest()}
    trainer = run_tiny(one, two, one={"scale": 1})
    assert (one.calls, two.calls) == (trainer.global_step, 0)
    with pytest.raises(PluginError, match=facts("'one'", "'two'", "loop_hooks", "order")):
        run_tiny(one, two, one={"scale": 1}, two={"scale": 1})


def test_plugins_without_active_when_clash_only_with_hooks_that_they_use(run_tiny):
    class Unused:
        @hookimpl
        def unused_hooks(self):
            return ["run_step"]

        @hookimpl
        def run_step(self):
            raise AssertionError("is not called")

    run_tiny(Unused(), plugin_of("two"))


def test_a_plan_shows_what_is_unused():
    host = make_host()
    for plugin in (TinyPlugin(), plugin_of("one", active_when=scaled("one")), plugin_of("two")):
        host.register(plugin)
    found = plan_of(host, Sources(file=None, raw={"type": "tiny"}), estimates=False)
    assert not found["complaints"]
    shown = {each["name"]: each for each in found["plugins"]}
    assert shown["one"]["state"] == "unused" and "active_when" in shown["one"]["why"]
    assert [each["plugin"] for each in found["hooks"]["run_step"]] == ["two", "loop"]


def test_a_chosen_part_makes_its_plugin_used(run_tiny):
    import torch

    @attrs.frozen(kw_only=True)
    class Config:
        lr: float = field(default=0.1)

    class Steps:
        hooktrain_plugin = PluginInfo(active_when=lambda recipe: False)
        ends = 0

        @hookimpl
        def register_configs(self):
            return {"optimizer": {"steps": Config}}

        @hookimpl
        def make_optimizer(self, config, model):
            return torch.optim.SGD(model.parameters(), lr=config.lr) if isinstance(config, Config) else None

        @hookimpl
        def on_train_end(self):
            self.ends += 1

    plugin = Steps()
    assert run_tiny(plugin).host.records["Steps"].state == "unused" and plugin.ends == 0
    assert run_tiny(plugin, optimizer="steps").host.records["Steps"].state == "active" and plugin.ends == 1


@pytest.mark.parametrize("excludes", [["two"], ["TWO>=0"]])
def test_a_plugin_excludes_only_what_is_used(run_tiny, excludes):
    one, two = plugin_of("one", excludes=excludes), plugin_of("two", active_when=scaled("two"))
    run_tiny(one, two)
    with pytest.raises((PluginError, RecipeError), match=facts("'one'", "'two'", "block")):
        run_tiny(one, two, two={"scale": 1})


def test_a_resume_does_not_depend_on_unused_plugins(run_tiny, tmp_path):
    checkpoint = {"checkpoint": [{"type": "full", "save_every_n_steps": 2}]}
    one = plugin_of("one", active_when=scaled("one"), changes_gradients=True)
    run_tiny(one, train_iters=2, **checkpoint)
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    recorder = Recorder()
    run_tiny(recorder, trainer={"resume_from": path}, train_iters=4, **checkpoint)
    assert [line["step"] for line in recorder.metrics] == [3, 4]


@pytest.mark.parametrize(
    ("answer", "said"), [("yes", ["'yes'", "True or False"]), (None, ["None"]), (KeyError, ["KeyError"])]
)
def test_an_active_when_that_does_not_answer_is_named(tiny_recipe, answer, said):
    def active_when(recipe):
        if isinstance(answer, type):
            raise answer("scale")
        return answer

    with pytest.raises(PluginError, match=facts("'one'", "active_when", *said)):
        load(tiny_recipe, plugins=[TinyPlugin(), plugin_of("one", active_when=active_when)])


def test_active_when_is_a_function():
    with pytest.raises(ValueError, match=facts("active_when", "True", "function")):
        PluginInfo(active_when=True)


# ------------------------------------------------------------------------------------------- several for a loop hook


def test_the_chosen_plugin_runs_and_the_others_are_named(run_tiny):
    one, two = plugin_of("one"), plugin_of("two")
    recorder = Recorder()
    trainer = run_tiny(recorder, one, two, plugins={"loop_hooks": {"run_step": "one"}})
    assert (one.calls, two.calls) == (trainer.global_step, 0)
    start, first = [text for text in _messages(recorder) if "run_step" in text]
    assert all("plugins.loop_hooks" in text and "'one'" in text and "'two'" in text for text in (start, first))
    assert first.startswith("step 1, ")


def test_plugins_in_an_order_are_tried_until_one_answers(run_tiny):
    one, two, three = plugin_of("one", answers=False), plugin_of("two"), plugin_of("three")
    recorder = Recorder()
    trainer = run_tiny(recorder, one, two, three, plugins={"order": ["one", "two", "three"]})
    assert (one.calls, two.calls, three.calls) == (trainer.global_step, trainer.global_step, 0)
    (first,) = [text for text in _messages(recorder) if text.startswith("step 1, ")]
    assert "'two'" in first and "'three'" in first and "'one'" not in first


def test_a_plugin_that_is_passed_over_ties_no_checkpoint_to_itself(run_tiny, tmp_path):
    checkpoint = {"checkpoint": [{"type": "full", "save_every_n_steps": 2}]}
    run_tiny(
        plugin_of("one"), plugin_of("two"), train_iters=2, plugins={"loop_hooks": {"run_step": "one"}}, **checkpoint
    )
    path = tmp_path / "run" / "checkpoints" / "step-00000002"
    run_tiny(plugin_of("one"), trainer={"resume_from": path}, train_iters=4, **checkpoint)


# ---------------------------------------------------------------------------------------- kinds that there are not


def test_a_misspelt_kind_is_refused_with_the_right_one(tiny_recipe):
    @attrs.frozen(kw_only=True)
    class Config:
        """A part."""

    class Misspelt:
        @hookimpl
        def register_configs(self):
            return {"optimzer": {"mine": Config}}

    class Typed:
        @hookimpl
        def register_trainer_types(self):
            return {"mine": TrainerType({"los": ("cross_entropy",)}, "a type")}

    with pytest.raises(PluginError, match=facts("'Misspelt'", "'mine'", "'optimzer'", "'optimizer'")):
        load(tiny_recipe, plugins=[TinyPlugin(), Misspelt()])
    with pytest.raises(PluginError, match=facts("'Typed'", "'mine'", "'los'", "'loss'")):
        load(tiny_recipe, plugins=[TinyPlugin(), Typed()])


def test_data_that_nobody_shows_are_said_to_be(tiny_recipe):
    made, host = load(tiny_recipe, plugins=[TinyPlugin()])
    found = data_of(made, host, show=2)
    assert found["shown"] == [] and "'tiny'" in found["not_shown"] and "preview_examples" in found["not_shown"]
