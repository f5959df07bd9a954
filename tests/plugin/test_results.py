"""What a plugin returns is checked: an error names it, and follows its error policy as one that it raises."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from hooktrain import HooktrainError, HooktrainWarning, PluginInfo, failure_of, hookimpl
from tests.facts import facts

METRICS = {
    "no mapping": (5, "a int"),
    "text": ("loss", "a str"),
    "a list": ([("mine", 1.0)], "a list"),
    "a key": ({3: 1.0}, "the key 3"),
    "a text": ({"mine": "1.0"}, "text"),
    "a list of numbers": ({"mine": [1.0]}, "a list"),
    "a vector": ({"mine": torch.zeros(2)}, "shape (2,)"),
    "an empty tensor": ({"mine": torch.zeros(0)}, "shape (0,)"),
    "no storage": ({"mine": torch.zeros((), device="meta")}, "meta"),
    "a complex number": ({"mine": 1j}, "complex"),
    "a number that is too large": ({"mine": 10**400}, "OverflowError"),
    "the engine's name": ({"loss": 1.0}, "'loss'"),
    "another plugin's name": ({"even": 1.0}, "'even'"),
    "an evaluation's name": ({"eval/held_out/loss": 1.0}, "'eval/held_out/loss'"),
}
STATES = {
    "no mapping": (5, "a int"),
    "a set": ({1, 2}, "a set"),
    "a key": ({3: 1.0}, "the key 3"),
    "a value": ({"mine": object()}, "plugins.Returns.mine"),
    "a value inside": ({"mine": [{"deep": {1}}]}, "plugins.Returns.mine[0].deep"),
}


class Even:
    @hookimpl(tryfirst=True)
    def collect_metrics(self, trainer):
        return {"even": trainer.global_step % 2}


class Returns:
    """Returns something from a hook once, and something right afterwards."""

    def __init__(self, hook, result, policy):
        def hooked(self):
            self.calls += 1
            return result

        members = {hook: hookimpl(hooked), "hooktrain_plugin": PluginInfo(on_error=policy), "calls": 0}
        self.plugin = type("Returns", (), members)()


def trained(run_tiny, plugin):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saves = {"type": "full", "save_every_n_steps": 2}
        trainer = run_tiny(plugin, Even(), train_iters=4, eval_interval=1, data={"eval_rows": 1}, checkpoint=saves)
    return trainer, [str(each.message) for each in caught if issubclass(each.category, HooktrainWarning)]


@pytest.mark.parametrize("case", METRICS)
def test_metrics_that_are_none_are_the_plugins_failure(run_tiny, case):
    result, said = METRICS[case]
    plugin = Returns("collect_metrics", result, "disable").plugin
    trainer, warned = trained(run_tiny, plugin)
    assert trainer.global_step == 4 and plugin.calls == 1
    assert trainer.host.records["Returns"].state == "disabled"
    (text,) = [text for text in warned if "collect_metrics" in text]
    assert re.search(facts("'Returns'", "collect_metrics", "step 1", "rank 0", said), text)
    assert "even" in trainer.history[0], "the other plugins' metrics are logged"


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_cannot_be_saved_is_the_plugins_failure(run_tiny, case):
    result, said = STATES[case]
    trainer, warned = trained(run_tiny, Returns("collect_state", result, "warn").plugin)
    assert trainer.global_step == 4 and trainer.saving.last.name == "step-00000004"
    assert any(re.search(facts("'Returns'", "collect_state", "step 2", "rank 0", said), text) for text in warned), (
        warned
    )


@pytest.mark.parametrize(
    ("hook", "result", "said"),
    [
        ("collect_metrics", {"mine": torch.zeros(2)}, "shape (2,)"),
        ("collect_metrics", {"loss": 1.0}, "'loss'"),
        ("collect_state", 5, "a int"),
    ],
)
def test_without_a_policy_the_run_stops_and_the_plugin_is_named(run_tiny, hook, result, said):
    with pytest.raises(HooktrainError, match=facts("plugin 'Returns'", hook, said)) as caught:
        trained(run_tiny, Returns(hook, result, "stop").plugin)
    assert failure_of(caught.value).where.startswith(f"plugin 'Returns', hook {hook}, step ")


@pytest.mark.parametrize(
    ("hook", "result"), [("check_recipe", 5), ("check_recipe", "lr"), ("check_recipe", ["lr"]), ("unused_hooks", 5)]
)
def test_what_is_asked_before_the_run_names_the_plugin(run_tiny, hook, result):
    with pytest.raises(HooktrainError, match=facts("plugin 'Returns'", hook)):
        run_tiny(Returns(hook, result, "stop").plugin)


def test_numbers_of_every_kind_are_logged(run_tiny):
    numpy = pytest.importorskip("numpy")
    found = {"a": 1, "b": True, "c": numpy.float64(2), "d": torch.ones(1, 1), "e": torch.tensor(3), "f": None}
    trainer, warned = trained(run_tiny, Returns("collect_metrics", found, "stop").plugin)
    assert [trainer.history[0].get(name) for name in found] == [1, 1, 2, 1, 3, None]
    assert not [text for text in warned if "Returns" in text]
