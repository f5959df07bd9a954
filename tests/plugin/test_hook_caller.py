"""Hooks as the loop calls them do what pluggy does, whoever implements them, wraps them, declines or raises."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooktrain import LoopHookError, hookimpl
from hooktrain.plugin.manager import PluginHost
from hooktrain.training.load import make_host
from tests.facts import facts


class Answers:
    """Implements a collecting hook and an event; answers, declines or raises."""

    def __init__(self, seen: list[Any], number: int, does: str) -> None:
        self.seen, self.number, self.does = seen, number, does

    def _answer(self) -> Any:
        self.seen.append(self.number)
        if self.does == "stops":
            raise StopIteration(self.number)
        if self.does == "raises":
            raise KeyError(self.number)
        if self.does == "is empty":
            return {}
        return None if self.does == "declines" else {str(self.number): self.number}

    @hookimpl
    def collect_metrics(self) -> Any:
        return self._answer()

    @hookimpl
    def on_step_start(self) -> None:
        self._answer()

    @hookimpl
    def run_step(self) -> Any:
        found = self._answer()
        return NotImplemented if found is None else found


class Wraps:
    """Wraps the same hooks: passes on, changes, hides what was raised, or raises before or after."""

    def __init__(self, seen: list[Any], number: int, does: str) -> None:
        self.seen, self.number, self.does = seen, number, does

    def _around(self) -> Any:
        self.seen.append(("before", self.number))
        if self.does == "raises before":
            raise ValueError(self.number)
        try:
            found = yield
        except BaseException as problem:
            self.seen.append((repr(problem), self.number))
            if self.does == "hides":
                return "hidden"
            if self.does == "translates":
                raise OSError(self.number) from problem
            raise
        self.seen.append((repr(found), self.number))
        if self.does == "raises after":
            raise ValueError(self.number)
        if self.does == "stops after":
            next(iter(()))  # as a careless wrapper would
        return ("changed", self.number, found) if self.does == "changes" else None if self.does == "drops" else found

    @hookimpl(wrapper=True)
    def collect_metrics(self) -> Any:
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def on_step_start(self) -> Any:
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def run_step(self) -> Any:
        return (yield from self._around())


ANSWERS = st.sampled_from(["runs", "is empty", "declines", "raises", "stops"])
WRAPS = st.sampled_from(
    ["passes", "changes", "drops", "hides", "translates", "raises before", "raises after", "stops after"]
)


def outcome(call: Any, seen: list[Any], given: dict[str, Any]) -> tuple[Any, ...]:
    seen.clear()
    try:
        result = call(**given)
    except Exception as problem:
        chain = []
        while problem is not None:  # what users read under "the direct cause" and "during handling"
            chain.append((type(problem).__name__, str(problem)))
            problem = problem.__cause__ or problem.__context__  # type: ignore[assignment]
        return "raised", chain, list(seen)
    return "returned", result, list(seen)


@settings(max_examples=100, deadline=None)
@given(st.lists(ANSWERS, max_size=3), st.lists(WRAPS, max_size=3), st.randoms(use_true_random=False))
def test_a_call_does_what_pluggys_does(answers: list[str], wraps: list[str], random: Any) -> None:
    seen: list[Any] = []
    plugins = [Answers(seen, n, does) for n, does in enumerate(answers)]
    plugins += [Wraps(seen, n, does) for n, does in enumerate(wraps, start=10)]  # type: ignore[misc]
    random.shuffle(plugins)
    host = PluginHost()
    for plugin in plugins:
        host.register(plugin, name=f"p{plugin.number}")
    for hook, arguments in (("collect_metrics", ["trainer"]), ("on_step_start", ["trainer", "batches"])):
        given = dict.fromkeys(arguments)
        ours = outcome(getattr(host.hooks, hook), seen, given)
        pluggys = outcome(getattr(host.manager.hook, hook), seen, given)
        if hook == "on_step_start" and not wraps and pluggys[0] == "returned":
            pluggys = ("returned", None, pluggys[2])  # nobody looks at what is returned by an event
        assert ours == pluggys
    given = {"trainer": None, "batches": []}
    ours, pluggys = (outcome(call, seen, given) for call in (host.hooks.run_step, host.manager.hook.run_step))
    if pluggys[:2] == ("returned", None):
        assert ours[0] == "raised"
        assert ours[1][0][0] == LoopHookError.__name__, "a loop hook must have an answer"
        assert ours[2] == pluggys[2]
    else:
        assert ours == pluggys


def test_an_empty_result_is_a_result() -> None:
    """Such as no metrics, or an epoch without steps: the next plugin must not do the work again."""
    seen: list[int] = []
    host = PluginHost()
    for number, does in enumerate(["runs", "is empty"]):
        host.register(Answers(seen, number, does), name=f"p{number}")
    assert host.hooks.run_step(trainer=None, batches=[]) == {}
    assert seen == [1]


def test_a_wrapper_that_yields_twice_keeps_no_other_from_its_end() -> None:
    seen: list[Any] = []

    class Twice:
        @hookimpl(wrapper=True, trylast=True)
        def run_step(self) -> Any:
            yield
            return (yield)

    host = make_host(discover=False)
    host.register(Wraps(seen, 1, "hides"))
    host.register(Twice())
    host.register(Answers(seen, 2, "runs"))
    assert host.hooks.run_step(trainer=None, batches=[]) == "hidden"
    (what,) = [text for text, number in seen[2:] if number == 1]
    assert re.search(facts("plugin 'Twice', hook run_step: ", "wrapper", "yield"), what)


def test_what_failed_inside_wrappers_holds_none_of_the_arguments() -> None:
    """A trainer, with its model, is let go of with the exception, not when Python happens to look for cycles."""

    class Given:
        pass

    seen: list[Any] = []
    host = make_host(discover=False)
    host.register(Wraps(seen, 1, "passes"))
    host.register(Answers(seen, 2, "raises"))
    gc.collect()
    gc.disable()
    try:
        trainer = Given()
        gone = weakref.ref(trainer)
        with pytest.raises(KeyError):
            host.hooks.run_step(trainer=trainer, batches=[])
        del trainer
        assert gone() is None
    finally:
        gc.enable()
