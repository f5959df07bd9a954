"""What each hook of a run is given, and what it finds: recorded, for the hook reference."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from hooktrain import BatchCounts, LossSum, OptimizerStep, StepOutput, hookimpl, hookspecs
from hooktrain.hookspecs import EVENTS, FACTORIES, LOOP_HOOKS
from hooktrain.testing import train

HEARD = (*FACTORIES, *LOOP_HOOKS, *EVENTS, "collect_metrics", "collect_state", "restore_state")


@attrs.define
class Seen:
    """What one call of a hook found.

    Attributes:
        given: its parameters, the trainer left out, and how they look.
        gradients: how many backward passes those of the weights hold; None outside of a run.
        updated: whether the weights have changed since the step began; None where no step goes on.
        counted: whether ``trainer.global_step`` counts the step at hand; None before the first.
        made: how the result looks, where a wrapper sees one.
    """

    given: dict[str, str]
    gradients: int | None = None
    updated: bool | None = None
    counted: bool | None = None
    made: str = ""


class Witness:
    """Takes part in every hook of a run, and writes down what it finds there."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Seen]] = []
        self.step = 0
        self.within = False
        self.before: Tensor | None = None
        self.passes: list[float] = []

    def saw(self, hook: str, given: Mapping[str, Any]) -> Seen:
        trainer = given.get("trainer")
        seen = Seen({name: looks(value) for name, value in given.items() if name not in ("trainer", "self", "seen")})
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


def _take_part(hook: str, wraps: bool) -> Any:
    parameters = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    body = f"seen = self.saw('{hook}', dict(locals()))"
    if wraps:
        body += "; result = yield; seen.made = looks(result); return result"
    if hook == "collect_state":
        body += "; return {'kept': 1}"  # only who has state in a checkpoint is given it back
    scope: dict[str, Any] = {"looks": looks}
    exec(f"def {hook}(self, {parameters}): {body}", scope)
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


for _hook in HEARD:
    setattr(Witness, _hook, _take_part(_hook, _hook in FACTORIES or _hook in LOOP_HOOKS))


def witnessed(recipe: Mapping[str, Any]) -> dict[str, list[Seen]]:
    """Every call of every hook in three runs of the tiny recipe: one whole, one resumed, one that fails."""
    witness = Witness()
    recipe = {
        **recipe,
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

    first = train(recipe, witness, Says())
    train(recipe, witness, resume_from=first.run_dir / "checkpoints" / "step-00000001")
    with contextlib.suppress(RuntimeError):  # that it was raised shows in what was recorded
        train({**recipe, "checkpoint": []}, witness, Fails())
    found: dict[str, list[Seen]] = {}
    for hook, seen in witness.calls:
        found.setdefault(hook, []).append(seen)
    return found


def table(found: Mapping[str, list[Seen]]) -> str:
    """The recorded runs as a table, hooks in the order in which a run first calls them."""
    lines = [
        "| hook | is given | gradients | weights | step | a wrapper gets back |",
        "|---|---|---|---|---|---|",
    ]
    for hook, calls in found.items():
        given: dict[str, str] = {}
        for seen in calls:
            for name, text in seen.given.items():
                given.setdefault(name, text)
        shown = ", ".join(f"`{name}`: {text}" for name, text in given.items())
        made = next((seen.made for seen in calls if seen.made), "")
        within = [] if hook in ("on_exception", "on_teardown") else [seen for seen in calls if seen.updated is not None]
        lines.append(f"| `{hook}` | {shown} | {_gradients(within)} | {_weights(within)} | {_step(within)} | {made} |")
    return "\n".join(lines)


def _gradients(calls: list[Seen]) -> str:
    passes = tuple(sorted({seen.gradients for seen in calls if seen.gradients is not None}))
    named = {(): "", (0,): "none", (0, 1): "earlier micro-batches'", (1, 2): "up to this one's", (2,): "whole window's"}
    return named[passes]


def _weights(calls: list[Seen]) -> str:
    (said,) = {"updated" if seen.updated else "as before" for seen in calls} or {""}
    return said


def _step(calls: list[Seen]) -> str:
    (said,) = {"counted" if seen.counted else "not counted" for seen in calls} or {""}
    return said
