"""What plugins declare about themselves is checked before anything is built; and the order that a recipe states."""

from __future__ import annotations

import re
import warnings

import attrs
import pytest

from hooktrain import (
    API_VERSION,
    HooktrainError,
    HooktrainWarning,
    PluginError,
    PluginInfo,
    PluginsConfig,
    RecipeError,
    Trainer,
    field,
    hookimpl,
    hookspec,
)
from hooktrain.plugin.dependencies import drop_unmet
from hooktrain.testing import TinyPlugin, host_of
from hooktrain.training.load import load, make_host
from tests.facts import facts

DECLARES = """
import attrs, hooktrain
hooktrain_plugin = hooktrain.PluginInfo({info})
Config = attrs.make_class("Config", {{}}, frozen=True)
@hooktrain.hookimpl
def register_configs():
    return {{"optimizer": {{"{offers}": Config}}}}
"""


def declares(info: str, offers: str = "mine") -> str:
    return DECLARES.format(info=info, offers=offers)


# ------------------------------------------------------------------------------------------------------ itself


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"api": "one"}, ["api", "'one'", "'>=2.0,<3'"]),
        ({"api": 1.5}, ["api", "1.5", "'>=2.0,<3'"]),
        ({"requires": ["not a name"]}, ["requires", "'not a name'"]),
        ({"excludes": [None]}, ["excludes", "None"]),
        ({"on_error": "ignore"}, ["on_error", "'ignore'", "stop", "disable", "warn"]),
        ({"changes_gradients": True, "on_error": "warn"}, ["gradients", "on_error", "'warn'", "stop"]),
    ],
)
def test_a_declaration_that_says_nothing_sensible_is_refused_where_it_stands(given, texts):
    with pytest.raises(ValueError, match=facts(*texts)):
        PluginInfo(**given)


def test_one_name_may_be_given_without_a_list():
    assert PluginInfo(requires="sft>=0.1").requires == ("sft>=0.1",)


def test_a_declaration_of_another_kind_is_refused():
    class Wrong:
        hooktrain_plugin = "1.0"  # noqa: RUF100

        @hookimpl
        def on_step_end(self): ...

    wrong = facts("'Wrong' (tests)", "hooktrain_plugin", "'1.0'", "hooktrain.PluginInfo")
    with pytest.raises(PluginError, match=wrong):
        host_of(Wrong())


# ----------------------------------------------------------------------------------------------------- the API


def test_a_plugin_for_other_hooks_is_out_and_stops_only_a_run_that_names_it(installed, run_tiny):
    # the older plugin's other faults, such as a parameter that is no more, are consequences and not said first
    installed("a-older", declares('api="<1.0"') + "@hooktrain.hookimpl\ndef on_step_end(trainer, result): pass\n")
    installed("b-fits", declares(f'api="~={API_VERSION}"'))
    with pytest.warns(UserWarning, match=facts("'a-older' (a-older 1.2)", "hooks", "<1.0")):
        trainer = run_tiny()
    assert trainer.host.records["a-older"].state == "failed"
    assert trainer.host.records["b-fits"].state == "active"
    with pytest.raises(PluginError, match=facts("'a-older' (a-older 1.2)", "<1.0", f" {API_VERSION}", "-p no:a-older")):
        make_host(PluginsConfig(load=("a-older",)))


class Retires:
    """Brings a hook that had other parameters once, and one that is to go."""

    @hookimpl
    def register_hookspecs(self, pluginmanager):
        class Hooks:
            @hookspec(warn_on_impl_args={"folder": HooktrainWarning("'folder' is retired; take trainer.run_dir")})
            def on_spike(self, trainer, folder): ...

            @hookspec(warn_on_impl=HooktrainWarning("is retired; implement on_spike"))
            def on_jump(self): ...

        pluginmanager.add_hookspecs(Hooks)


class TakesIt:
    @hookimpl
    def on_spike(self, folder): ...


class TakesBoth(TakesIt):
    @hookimpl
    def on_jump(self): ...


@pytest.mark.parametrize("order", [(Retires, TakesIt, TakesBoth), (TakesIt, TakesBoth, Retires)])
def test_who_takes_what_is_retired_is_told_by_name(order):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load({"type": "tiny"}, plugins=[TinyPlugin(), *(kind() for kind in order)])
    one, two, three = sorted(str(each.message) for each in caught)
    folder = "'folder' is retired; take trainer.run_dir"  # as the plugin that brings the hook says it
    assert "'TakesBoth' (tests), hook on_jump: " in one and one.endswith("is retired; implement on_spike")
    assert "'TakesBoth' (tests), hook on_spike: " in two and two.endswith(folder)
    assert "'TakesIt' (tests), hook on_spike: " in three and three.endswith(folder)


# ------------------------------------------------------------------------------------------------------- needs


def test_a_plugin_without_what_it_requires_is_out_and_so_are_those_that_require_it(installed):
    installed("a-top", declares('requires=["b-middle"]', "top"))
    installed("b-middle", declares('requires=["c-absent"]', "middle"))
    host = make_host()
    drop_unmet(host)
    reasons = {name: host.records[name].reason for name in ("a-top", "b-middle")}
    assert re.search(facts("'c-absent'", "install"), reasons["b-middle"])
    assert re.search(facts("'b-middle'", "failed", "'c-absent'"), reasons["a-top"])
    assert not {"top", "middle"} & set(host.parts["optimizer"])
    with pytest.raises(RecipeError, match=facts("optimizer", "'top'", "'a-top' (a-top 1.2)", "'b-middle'")):
        load({"type": "tiny", "optimizer": "top"}, plugins=[TinyPlugin()])
    with pytest.raises(PluginError, match=facts("'b-middle' (b-middle 1.2)", "'c-absent'", "install")):
        load({"type": "tiny"}, plugins=[TinyPlugin()], switches=["b-middle"])


def test_a_plugin_in_hand_without_what_it_requires_stops_the_run(tiny_recipe):
    class Needs:
        hooktrain_plugin = PluginInfo(requires=["nonesuch"])

        @hookimpl
        def on_step_end(self): ...

    with pytest.raises(HooktrainError, match=facts("'Needs' (tests)", "'nonesuch'", "install", "Python")):
        Trainer(tiny_recipe, plugins=[TinyPlugin(), Needs])


def test_a_hook_of_the_plugin_that_is_missing_is_no_misspelling(installed):
    installed("a-needs", declares('requires=["c-absent"]') + "@hooktrain.hookimpl\ndef on_spike(trainer): pass\n")
    _, host = load({"type": "tiny"}, plugins=[TinyPlugin()])
    reason = host.records["a-needs"].reason
    assert re.search(facts("'c-absent'", "install"), reason) and "on_spike" not in reason


def test_a_version_that_is_required(installed):
    installed("a-needs", declares('requires=["b-old>=2"]'))
    installed("b-old", declares("", "old"))
    host = make_host()
    drop_unmet(host)
    assert re.search(facts("'b-old>=2'", "1.2", "install"), host.records["a-needs"].reason)


def test_what_is_required_may_be_a_distribution_or_given_in_python(installed):
    installed("a-needs", declares('requires=["The_Distribution", "Given"]'))
    installed("b-has", declares("", "has"), distribution="the-distribution")

    class Given:
        @hookimpl
        def on_step_end(self): ...

    _, host = load({"type": "tiny"}, plugins=[TinyPlugin(), Given()])
    assert host.records["a-needs"].state == "active"
    _, host = load({"type": "tiny", "plugins": {"block": ["b-has"]}}, plugins=[TinyPlugin(), Given()])
    assert re.search(facts("'The_Distribution'", "plugins.block of the recipe"), host.records["a-needs"].reason)


def test_plugins_that_do_not_go_together_stop_the_run_until_one_is_left_out(installed):
    installed("a-one", declares('excludes=["b-other"]', "one"))
    installed("b-other", declares("", "other"))
    both = ("'a-one' (a-one 1.2)", "'b-other' (b-other 1.2)", "{block: [a-one]}", "{block: [b-other]}")
    with pytest.raises(PluginError, match=facts(*both)):
        load({"type": "tiny"}, plugins=[TinyPlugin()])
    load({"type": "tiny", "plugins": {"block": ["b-other"]}}, plugins=[TinyPlugin()])


# ------------------------------------------------------------------------------------------------------ logits


@attrs.frozen(kw_only=True)
class Watch:
    share: float = field(default=0.0)


class LooksAtLogits:
    """Watches what the model returns, through a module's hook."""

    hooktrain_plugin = PluginInfo(needs_logits=True)

    def __init__(self):
        self.shapes = set()

    @hookimpl
    def on_train_start(self, trainer):
        trainer.model.register_forward_hook(lambda model, inputs, output: self.shapes.add(output.logits.shape[-1]))


class LooksWhenAsked(LooksAtLogits):
    @hookimpl
    def register_configs(self):
        return {"settings": {"watch": Watch}}


def test_a_plugin_that_needs_logits_is_refused_beside_a_loss_that_makes_none(run_chat, tmp_path):
    with pytest.raises(RecipeError, match=facts("loss: ", "'LooksAtLogits' (tests)", "loss.all_logits: true")):
        run_chat(LooksAtLogits())
    looks = LooksAtLogits()
    whole = run_chat(looks, loss={"all_logits": True}, run_dir=str(tmp_path / "whole"))
    assert looks.shapes == {whole.model.config.vocab_size}
    selective = run_chat(run_dir=str(tmp_path / "selective"))
    found = [[line["loss"] for line in run.history] for run in (whole, selective)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_needing_logits_counts_where_the_recipe_asks_for_the_plugin(run_chat, chat_recipe):
    load(chat_recipe, plugins=[LooksWhenAsked()])
    with pytest.raises(RecipeError, match=facts("loss: ", "'LooksWhenAsked' (tests)", "loss.all_logits: true")):
        load({**chat_recipe, "watch": {"share": 0.5}}, plugins=[LooksWhenAsked()])


# ------------------------------------------------------------------------------------------------------- order


def watcher(name, seen, *, hook="on_train_start", **options):
    def on_train_start(self):
        seen.append(name)

    def make_model(self):
        seen.append(f"{name} makes")
        made = yield
        seen.append(f"{name} made")
        return made

    found = {"on_train_start": on_train_start, "make_model": make_model}[hook]
    return type(name, (), {hook: hookimpl(**options)(found)})()


def test_the_recipe_states_who_is_called_first(run_tiny):
    seen = []
    plugins = [
        watcher("One", seen),
        watcher("Two", seen),
        watcher("Eager", seen, tryfirst=True),
        watcher("Late", seen, trylast=True),
    ]
    run_tiny(*plugins)
    assert seen == ["Eager", "Two", "One", "Late"]
    seen.clear()
    trainer = run_tiny(*plugins, plugins={"order": ["Late", "One"]})
    assert seen == ["Late", "One", "Eager", "Two"]
    names = [record["name"] for record in trainer.host.manifest()]
    assert names[-2:] == ["One", "Late"], "the manifest has the order of registration, the last being called first"


def test_the_order_holds_for_wrappers_which_stay_around_the_others(run_tiny):
    seen = []
    plugins = [watcher(name, seen, hook="make_model", wrapper=True) for name in ("Inner", "Outer")]
    run_tiny(*plugins)
    assert seen == ["Outer makes", "Inner makes", "Inner made", "Outer made"]
    seen.clear()
    run_tiny(*plugins, plugins={"order": ["Inner"]})
    assert seen == ["Inner makes", "Outer makes", "Outer made", "Inner made"]


def test_claimants_of_a_loop_hook_are_asked_in_the_order_that_is_stated(run_tiny):
    asked = []

    def rival(name):
        def run_step(self, trainer, batches):
            asked.append(name)
            return NotImplemented

        return type(name, (), {"run_step": hookimpl(run_step)})()

    run_tiny(rival("A"), rival("B"), train_iters=1, plugins={"order": ["A", "B"]})
    assert asked == ["A", "B"]


@pytest.mark.parametrize(
    ("order", "texts"),
    [(["Oen"], ["'Oen'", "'One'"]), (["One", "One"], ["'One'", "twice"]), (["loop"], ["'loop'", "default"])],
)
def test_an_order_that_makes_no_sense_is_refused(run_tiny, order, texts):
    with pytest.raises(PluginError, match=facts("plugins.order: ", *texts)):
        run_tiny(watcher("One", []), plugins={"order": order})


# -------------------------------------------------------------------------------------------------------- seen


def test_listings_show_what_is_declared(run_cli):
    source = (
        'hooktrain_plugin = hooktrain.PluginInfo(api=">=2.0,<3", excludes=["wandb"], on_error="warn")\n'
        "@hookimpl\ndef on_step_end(): pass\n"
    )
    run = run_cli("plugins", "extra", "-p", "extra", source="import hooktrain\n" + source)
    assert re.search(facts("hooks >=2.0,<3", "excludes wandb", "on_error: warn"), run.stdout), run.output
