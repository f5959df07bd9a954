"""Records what each hook of a run receives and sees, when it is called, and by what: for the hook reference."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hooktrain import BatchCounts, LossSum, OptimizerStep, StepOutput, Trainer, hookimpl, hookspecs
from hooktrain.hookspecs import HOOKS
from hooktrain.testing import train


@attrs.define
class Seen:
    """What one call of a hook found.

    Attributes:
        received: its parameters without the trainer, and how they look.
        gradients: how many backward passes those of the weights hold; None outside of a run.
        updated: whether the weights have changed since the step began; None outside of a step.
        counted: whether ``trainer.global_step`` counts the step at hand; None before the first.
        made: how the result looks, where a wrapper sees one.
        callers: methods of the trainer that are being executed, such as ``trainer.step``.
        inside: wrapped hooks that are being executed.
    """

    received: dict[str, str]
    gradients: int | None = None
    updated: bool | None = None
    counted: bool | None = None
    made: str = ""
    callers: frozenset[str] = frozenset()
    inside: tuple[str, ...] = ()


class Witness:
    """Implements every hook of a run, and records what it finds there."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Seen]] = []
        self.open: list[str] = []
        self.step = 0
        self.within = False
        self.before: Tensor | None = None
        self.passes: list[float] = []

    @property
    def order(self) -> list[str]:
        """The hooks in the order in which they were called."""
        return [hook for hook, _ in self.calls]

    def saw(self, hook: str, arguments: Mapping[str, Any]) -> Seen:
        trainer = arguments.get("trainer")
        seen = Seen(
            {name: looks(value) for name, value in arguments.items() if name not in ("trainer", "self", "seen")}
        )
        seen.callers, seen.inside = _callers(), tuple(self.open)
        model = getattr(trainer, "model", None)
        if hook == "on_step_start":
            self.step, self.within = trainer.global_step + 1, True
            self.before = next(model.parameters()).detach().clone()
        if model is not None:
            seen.gradients, seen.updated = self._gradients(model), self._updated(model)
            seen.counted = trainer.global_step == self.step if self.step else None
        self.within = self.within and hook != "on_step_end"
        self.calls.append((hook, seen))
        return seen

    def _gradients(self, model: nn.Module) -> int:
        gradient = next(model.parameters()).grad
        if gradient is None:
            self.passes.clear()
            return 0
        total = gradient.abs().sum().item()
        if total not in self.passes:
            self.passes.append(total)
        return len(self.passes)

    def _updated(self, model: nn.Module) -> bool | None:
        return not torch.equal(next(model.parameters()), self.before) if self.within else None


def _callers() -> frozenset[str]:
    frame, found = sys._getframe(1), set()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Trainer):
            found.add(f"trainer.{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return frozenset(found)


def _implementation(hook: str, wraps: bool) -> Any:
    parameters = ", ".join(("self", *inspect.signature(getattr(hookspecs, hook)).parameters))
    body = f"seen = self.saw('{hook}', dict(locals()))"
    if wraps:
        body += f"\n self.open.append('{hook}')"
        body += "\n try: result = yield\n finally: self.open.pop()"
        body += "\n seen.made = looks(result)\n return result"
    if hook == "collect_state":
        body += "\n return {'kept': 1}"  # a plugin without state in the checkpoint gets none back
    scope: dict[str, Any] = {"looks": looks}
    exec(f"def {hook}({parameters}):\n {body}", scope)
    return hookimpl(wrapper=wraps)(scope[hook])


def looks(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, LossSum):
        return f"the loss as a sum, {'with its graph' if value.total.requires_grad else 'detached'}"
    if isinstance(value, StepOutput):
        return "loss as a sum, gradient norm, whether it stepped"
    if isinstance(value, OptimizerStep):
        return "gradient norm, whether it stepped"
    if isinstance(value, BatchCounts):
        return "supervised tokens, tokens"
    if isinstance(value, Tensor):
        return f"tensor of shape `{tuple(value.shape)}`{', with its graph' if value.requires_grad else ''}"
    if isinstance(value, Mapping) and "input_ids" in value:
        return "a micro-batch"
    if isinstance(value, Mapping):
        names = [f"`{name}`" for name in value]
        return "".join(["mapping of ", ", ".join(names[:4]), ", ..." if len(names) > 4 else ""])
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return f"{len(value)} micro-batches"
    if isinstance(value, list) and value and isinstance(value[0], Path):
        return "paths"
    if isinstance(value, Path):
        return "path"
    return {"int": "number", "str": "text", "NoneType": "nothing", "function": "function"}.get(
        type(value).__name__, f"`{type(value).__name__}`"
    )


for _hook, _declared in HOOKS.items():
    setattr(Witness, _hook, _implementation(_hook, _declared.kind in ("factory", "loop hook", "question")))


def witnessed(recipe: Mapping[str, Any]) -> list[Witness]:
    """Three runs of the tiny recipe: one complete, one resumed, one that fails."""
    recipe = {
        **recipe,
        "run_dir": str(Path(recipe["run_dir"]) / "seen"),
        "data": {"rows": 8, "eval_rows": 2},
        "gradient_accumulation_steps": 2,
        "eval_interval": 1,
        "checkpoint": {"type": "full", "save_every_n_steps": 1},
    }

    class Says:
        @hookimpl
        def on_train_start(self, trainer: Any) -> None:
            trainer.say("a word")

    class Fails:
        @hookimpl
        def on_step_end(self) -> None:
            raise RuntimeError("on purpose")

    runs = [Witness(), Witness(), Witness()]
    first = train(recipe, runs[0], Says())
    train(recipe, runs[1], resume_from=first.run_dir / "checkpoints" / "step-00000001")
    with contextlib.suppress(RuntimeError):  # on_exception shows that it was raised
        train({**recipe, "checkpoint": []}, runs[2], Fails())
    return runs


def table(runs: Sequence[Witness]) -> str:
    """The recorded runs as a table, hooks in the order in which a run first calls them."""
    found: dict[str, list[Seen]] = {}
    for run in runs:
        for hook, seen in run.calls:
            if HOOKS[hook].kind != "collected" or "trainer.run" in seen.callers:
                found.setdefault(hook, []).append(seen)
    lines = [
        "| hook | receives | gradients | weights | step | a wrapper receives |",
        "|---|---|---|---|---|---|",
    ]
    for hook, calls in found.items():
        received: dict[str, str] = {}
        for seen in calls:
            for name, text in seen.received.items():
                received.setdefault(name, text)
        shown = ", ".join(f"`{name}`: {text}" for name, text in received.items())
        made = next((seen.made for seen in calls if seen.made), "")
        within = [] if hook in ("on_exception", "on_teardown") else [seen for seen in calls if seen.updated is not None]
        lines.append(f"| `{hook}` | {shown} | {_gradients(within)} | {_weights(within)} | {_step(within)} | {made} |")
    return "\n".join(lines)


def _gradients(calls: list[Seen]) -> str:
    passes = tuple(sorted({seen.gradients for seen in calls if seen.gradients is not None}))
    named = {
        (): "",
        (0,): "none",
        (0, 1): "earlier micro-batches'",
        (1, 2): "up to this one's",
        (2,): "of all micro-batches",
    }
    return named[passes]


def _weights(calls: list[Seen]) -> str:
    (said,) = {"updated" if seen.updated else "as before" for seen in calls} or {""}
    return said


def _step(calls: list[Seen]) -> str:
    (said,) = {"counted" if seen.counted else "not counted" for seen in calls} or {""}
    return said


# ------------------------------------------------------------------------------------------ what docstrings state

_NAME = r"``([a-z_.]+)``"
_STATED = re.compile(rf"\b(by|inside|before|after) {_NAME}(?: (?:and|or) {_NAME})?")
_UNORDERED = ("on_message",)
"""Hooks that plugins call whenever they like."""


def called_section(function: Any) -> str:
    """The text after ``Called:`` in a hook's docstring, on one line."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.partition("\nCalled: ")[2].partition("\nRanks: ")[0].split())


def contradictions(hook: str, called: str, runs: Sequence[Witness]) -> list[str]:
    """Return what a hook's ``Called:`` says and the recorded runs do not show; empty where it is right.

    ``by`` and ``inside`` name what is being executed whenever the hook is called. ``before`` and ``after`` name hooks of
    the same run that follow, or precede, each of its calls.

    Args:
        hook: the hook.
        called: the text.
        runs: recorded runs, in some of which it is called.
    """
    stated: dict[str, set[str]] = {}
    for preposition, *names in _STATED.findall(called):
        stated.setdefault(preposition, set()).update(filter(None, names))
    wrong, calls = [], [seen for run in runs for name, seen in run.calls if name == hook]
    allowed = stated.get("by", set()) | stated.get("inside", set())
    for seen in calls:
        active = {*seen.callers, *seen.inside}
        planned = "``hooktrain plan``" in called and not seen.callers
        if allowed and not allowed & active and not planned:
            wrong.append(f"called by {', '.join(sorted(active))}, and not by {', '.join(sorted(allowed))}")
        if "by" not in stated and "trainer.run" in active and not allowed and "by the trainer" not in called:
            wrong.append(f"does not say that it is called by one of {', '.join(sorted(active))}")
    complete = [run for run in runs if hook == "on_exception" or "on_exception" not in run.order]
    for when, other in ((word, name) for word in ("before", "after") for name in stated.get(word, ())):
        both = [run.order for run in complete if hook in run.order and other in run.order]
        if not both and hook not in _UNORDERED:
            wrong.append(f"no recorded run has both {hook} and {other}")
        for order in both:
            if when == "before" and _last(order, hook) > _last(order, other):
                wrong.append(f"called after the last {other}")
            if when == "after" and order.index(hook) < order.index(other):
                wrong.append(f"called before the first {other}")
    return list(dict.fromkeys(wrong))


def _last(order: Sequence[str], hook: str) -> int:
    return len(order) - 1 - order[::-1].index(hook)
