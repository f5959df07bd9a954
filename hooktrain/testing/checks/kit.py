"""One plugin's checks: its recipe, the processes that run it, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs

from hooktrain.testing.checks.subject import Reference, Spec
from hooktrain.testing.fork_server import Done, Job, run_jobs
from hooktrain.testing.language import PRELOAD

__all__ = ["Broken", "Kit", "Options", "Unjudged"]

# torch's optimizers import torch._dynamo in their first step, which takes as long as torch itself
LIGHT = ("torch", "torch._dynamo", "hooktrain.trainer", "hooktrain.testing.tiny", "hooktrain.testing.checks.runs")
HEAVY = (*LIGHT, *PRELOAD)
RUN = "hooktrain.testing.checks.runs:run"

TINY: Mapping[str, Any] = {
    "type": "tiny",
    "micro_batch_size": 2,
    "model": {"dropout": 0.1},
    "optimizer": {"type": "adamw", "lr": 1e-2},
    "scheduler": {"type": "linear"},
    "eval_interval": 3,
    "strategy": {"dtype": "fp32", "device": "cpu"},
    "console": {"enabled": False},
}
"""Random rows and a model of a few hundred weights, with all that a resume has to bring back."""


class Broken(Exception):
    """A plugin breaks a rule.

    Args:
        found: what it does.
        rule: what is asked of every plugin, and why.
        mend: what to do.
    """

    def __init__(self, found: str, rule: str, mend: str) -> None:
        super().__init__(f"{found}\n\nrule: {rule}\nmend: {mend}")


class Unjudged(Exception):
    """A check that says nothing about this plugin, and why."""


@attrs.frozen(kw_only=True)
class Options:
    """What the author of a plugin may set; see ``conformance``."""

    recipe: Any = "tiny"
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    plugins: Sequence[str] = ()
    changes_gradients: bool | None = None
    steps: int = 8
    tolerance: float = 1e-6
    ignore: Sequence[str] = ()
    budget: float | str = 100.0
    import_seconds: float = 1.0
    leaves: Sequence[str] = ()
    timeout: float = 120.0
    preload: Sequence[str] = ()


class Kit:
    """Runs the checks of one plugin, and keeps what several of them look at.

    Args:
        reference: the plugin.
        options: what its author has set.
        folder: for the files of the runs.
    """

    def __init__(self, reference: Reference, options: Options, folder: Path) -> None:
        self.reference, self.options, self.folder = reference, options, folder
        self.notes: dict[str, str] = {}
        self._kept: dict[str, Any] = {}
        self.is_chat = options.recipe == "chat"
        preload = (*(HEAVY if self.is_chat else LIGHT), *options.preload)
        self._preload = preload

    @property
    def spec(self) -> Spec:
        """The plugin with its recipe."""
        made: Spec = self.once("spec", self._spec)
        return made

    def _spec(self) -> Spec:
        recipe, only = self.options.recipe, ["torch", *self.options.plugins]
        if recipe == "tiny":
            recipe = {**TINY, "plugins": {"only": only}}
        elif recipe == "chat":
            done = self.start("chat", "hooktrain.testing.checks.chat:make")
            if done.status != 0:
                raise Unjudged(f"the model and rows of recipe='chat' could not be made:\n{_end(done.output)}")
            recipe = {**done.result, "plugins": {"only": [*only, "hf", "sft"]}}
        elif isinstance(recipe, Path):
            from hooktrain.reading import read_recipe

            recipe = read_recipe(recipe)
        elif callable(recipe):
            recipe = recipe(self.folder)
        return Spec(reference=self.reference, recipe=recipe, settings=self.options.settings, steps=self.options.steps)

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once; a failure is kept too."""
        if key not in self._kept:
            try:
                self._kept[key] = make()
            except (Broken, Unjudged) as problem:
                self._kept[key] = problem
        if isinstance(self._kept[key], (Broken, Unjudged)):
            raise self._kept[key]
        return self._kept[key]

    # --------------------------------------------------------------------------------------------- processes

    def start(self, name: str, function: str, light: bool = False, **arguments: Any) -> Done:
        """Run a function in a process of its own."""
        preload = LIGHT if light else self._preload
        return run_jobs(Job(function, arguments, self.folder / name), preload=preload, timeout=self.options.timeout)[0]

    def runs(self, *jobs: tuple[str, Mapping[str, Any], Mapping[str, str]]) -> list[Done]:
        """Training runs at the same time: of each its name, the arguments of ``runs.run`` and variables."""
        made = [
            Job(RUN, {"spec": self.spec, "folder": str(self.folder / name / "run"), **given}, self.folder / name, env)
            for name, given, env in jobs
        ]
        return run_jobs(*made, preload=self._preload, timeout=self.options.timeout)

    def need(self, done: Done, what: str) -> Any:
        """The result of a process that has to succeed.

        Raises:
            Broken: with what it printed.
        """
        if done.status != 0:
            self.failed(done, what)
        return done.result

    def failed(self, done: Done, what: str) -> NoReturn:
        """Say how a process ended that should not have."""
        how = "has not ended in time" if done.status is None else f"ended with status {done.status}"
        raise Broken(
            f"{what} {how}, and printed:\n{_end(done.output)}",
            "a recipe that uses the plugin runs to its end",
            "run the recipe with `hooktrain train`; give conformance(recipe=..., settings=...) what the plugin needs",
        )


def _end(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-15:])
