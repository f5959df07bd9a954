"""The checks of one plugin: its recipe, the processes that run it, and the results that checks share."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import attrs

from hooktrain.testing.jobs import Done, Job, run_jobs
from hooktrain.testing.plugin_checks.plugin_reference import Reference, Spec
from hooktrain.testing.plugin_checks.strategies import STRATEGIES
from hooktrain.testing.tiny_llama import PRELOAD
from hooktrain.types import World

__all__ = ["HEAVY", "LIGHT", "Broken", "Kit", "NotApplicable", "Options", "Training"]

# torch's optimizers import torch._dynamo in their first step, which takes as long as torch itself
LIGHT = (
    *("torch", "torch._dynamo", "hooktrain.training.build", "hooktrain.builtins.console", "hooktrain.training.trainer"),
    *("hooktrain.testing.tiny_plugin", "hooktrain.testing.plugin_checks.child_run"),
)
HEAVY = (*LIGHT, *PRELOAD)
RUN = "hooktrain.testing.plugin_checks.child_run:run"
FACTS = "hooktrain.testing.plugin_checks.check_hooks:facts"

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
"""Random sequences and a model of a few hundred weights, with everything that a resume has to restore."""

_CHAT: list[Mapping[str, Any]] = []
"""The recipe of ``recipe="chat"``, whose model and examples all plugins share."""


class Broken(Exception):
    """A plugin breaks a rule.

    Args:
        found: what the check found.
        rule: the rule, and the reason for it.
        fix: what to do.
    """

    def __init__(self, found: str, rule: str, fix: str) -> None:
        super().__init__(f"{found}\n\nrule: {rule}\nfix: {fix}")


class NotApplicable(Exception):
    """A check does not apply to this plugin; its text is the reason."""


@attrs.frozen(kw_only=True)
class Options:
    """The arguments of ``conformance``, and more that only tests of the kit set.

    Attributes:
        strategy: one of ``STRATEGIES``, on two ranks; by default the recipe's own on one.
        time: whether times are checked.
        clock: the clock of steps, ``module:function``.
        rounds: how often runs with the plugin and without alternate when times are checked.
        failing: hooks in which a run is made to fail; by default hooks of all kinds.
        patience: seconds that a thread has to end after a run.
    """

    recipe: Any = "tiny"
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    plugins: Sequence[str] = ()
    changes_gradients: bool | None = None
    steps: int = 8
    tolerance: float = 1e-6
    ignore: Sequence[str] = ()
    calls: float | None = None
    device_syncs: float = 0
    allocations: float | None = None
    budget: float | str = 100.0
    import_modules: int = 700
    import_seconds: float = 1.0
    leaves: Sequence[str] = ()
    timeout: float = 120.0
    strategy: str = ""
    time: bool = False
    clock: str = "time:perf_counter"
    rounds: int = 8
    failing: Sequence[str] = ()
    patience: float = 1.0


class Training(NamedTuple):
    """A training run in processes of its own.

    Attributes:
        name: the name of the run; a run of the same name is not repeated.
        variation: see ``Spec.raw``.
        overrides: values that replace the recipe's.
        resume_from: the checkpoint that it resumes from.
        ranks: the number of processes; 0 is one, or two under one of ``STRATEGIES``.
    """

    name: str
    variation: str
    overrides: Mapping[str, Any] = {}
    resume_from: str | None = None
    ranks: int = 0


class Kit:
    """Runs the checks of one plugin, and keeps results that several of them use.

    Args:
        reference: the plugin.
        options: the arguments of ``conformance``.
        folder: the folder for the files of the runs.

    Attributes:
        notes: measurements for pytest's report, by check.
    """

    def __init__(self, reference: Reference, options: Options, folder: Path) -> None:
        self.reference, self.options, self.folder = reference, options, folder
        self.notes: dict[str, str] = {}
        self._kept: dict[str, Any] = {}
        self._runs: dict[str, list[Done]] = {}
        self._preload = HEAVY if options.recipe == "chat" else LIGHT

    @property
    def spec(self) -> Spec:
        """The plugin with its recipe."""
        made: Spec = self.once("spec", self._spec)
        return made

    @property
    def facts(self) -> Mapping[str, Any]:
        """The result of loading the plugin, see ``check_hooks.facts``."""
        done = self.once("facts", lambda: self.start("facts", FACTS, spec=self.spec))
        found: Mapping[str, Any] = self.need(done, "loading the plugin")
        return found

    def _spec(self) -> Spec:
        recipe, only = self.options.recipe, ["torch", *self.options.plugins]
        if recipe == "tiny":
            recipe = {**TINY, "plugins": {"only": only}}
        elif recipe == "chat":
            recipe = {**self._chat(), "plugins": {"only": [*only, "hf", "sft"]}}
        elif isinstance(recipe, Path):
            from hooktrain.recipe.yaml_reader import read_recipe

            recipe = read_recipe(recipe)
        elif callable(recipe):
            recipe = recipe(self.folder)
        if self.options.strategy:
            recipe = _with_strategy(recipe, self.options.strategy)
        return Spec(reference=self.reference, recipe=recipe, settings=self.options.settings, steps=self.options.steps)

    def _chat(self) -> Mapping[str, Any]:
        if not _CHAT:
            done = self.start("chat", "hooktrain.testing.plugin_checks.chat_recipe:make")
            if done.status != 0:
                raise NotApplicable(f"the model and examples of recipe='chat' could not be made:\n{_end(done.output)}")
            _CHAT.append(done.result)
        return _CHAT[0]

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """Return the result of ``make``, which is called once; a failure is kept too."""
        if key not in self._kept:
            try:
                self._kept[key] = make()
            except (Broken, NotApplicable) as problem:
                self._kept[key] = problem
        if isinstance(self._kept[key], (Broken, NotApplicable)):
            raise self._kept[key]
        return self._kept[key]

    # --------------------------------------------------------------------------------------------- processes

    def start(self, name: str, function: str, **arguments: Any) -> Done:
        """Run a function in a process of its own."""
        job = Job(function, arguments, self.folder / name)
        return run_jobs(job, preload=self._preload, timeout=self.options.timeout)[0]

    def runs(self, *trainings: Training) -> list[list[Done]]:
        """Make training runs at the same time; returns the outcomes of each run's ranks."""
        with contextlib.ExitStack() as stores:
            jobs = [job for training in trainings for job in self._jobs(training, stores)]
            done = run_jobs(*jobs, preload=self._preload, timeout=self.options.timeout) if jobs else []
        for job, outcome in zip(jobs, done, strict=True):
            self._runs.setdefault(job.folder.parent.name, []).append(outcome)
        return [self._runs[training.name] for training in trainings]

    def _jobs(self, training: Training, stores: contextlib.ExitStack) -> list[Job]:
        """Return the jobs of a run, none where it has been made."""
        if training.name in self._runs:
            return []
        ranks, folder = training.ranks or (2 if self.options.strategy else 1), self.folder / training.name
        arguments = {
            "spec": self.spec,
            "variation": training.variation,
            "folder": str(folder / "run"),
            "overrides": dict(training.overrides),
            "resume_from": training.resume_from,
        }
        if ranks == 1:
            return [Job(RUN, arguments, folder / "rank-0")]
        variables = stores.enter_context(_rendezvous(ranks))
        return [Job(RUN, arguments, folder / f"rank-{rank}", variables[rank]) for rank in range(ranks)]

    def need(self, done: Done, what: str) -> Any:
        """Return the result of a process that has to succeed.

        Raises:
            Broken: when it failed, with what it printed.
        """
        if done.status != 0:
            self.failed(done, what)
        return done.result

    def need_all(self, ranks: Sequence[Done], what: str) -> list[Any]:
        """Return the results of all ranks of a run that has to succeed.

        Raises:
            Broken: when one failed, with what the first of them printed.
        """
        if len(ranks) == 1:
            return [self.need(ranks[0], what)]
        # the others fail too, as their collectives wait for the one that did
        order = [(", hook " not in done.output, done.status is None, rank) for rank, done in enumerate(ranks)]
        for _, _, rank in sorted(order):
            self.need(ranks[rank], f"{what}: rank {rank} of {len(ranks)}")
        return [done.result for done in ranks]

    def failed(self, done: Done, what: str) -> NoReturn:
        """Raise the error for a process that failed or took too long."""
        how = "did not end in time" if done.status is None else f"ended with status {done.status}"
        raise Broken(
            f"{what} {how}, and printed:\n{_end(done.output)}",
            "a recipe that uses the plugin runs to its end",
            "run the recipe with `hooktrain train`; pass conformance(recipe=..., settings=...) what the plugin needs",
        )


def _with_strategy(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the recipe with a strategy that shards.

    Raises:
        NotApplicable: when it is not installed.
    """
    strategy = dict(STRATEGIES[name])
    needed = strategy["type"]  # each is registered by the plugin of the same name
    if needed not in {point.name for point in importlib.metadata.entry_points(group="hooktrain")}:
        raise NotApplicable(f"the plugin '{needed}' is not installed")
    own = recipe.get("strategy", {})
    own = own if isinstance(own, Mapping) else {}
    kept = {"dtype": "fp32", "device": "cpu", **{key: own[key] for key in ("dtype", "device") if key in own}}
    plugins = dict(recipe.get("plugins", {}))
    if plugins.get("only") is not None:
        plugins["only"] = list(dict.fromkeys([*plugins["only"], needed]))
    return {**recipe, "strategy": {**kept, **strategy}, "plugins": plugins}


@contextlib.contextmanager
def _rendezvous(ranks: int) -> Iterator[list[dict[str, str]]]:
    """Yield the environment variables of each rank, for a rendezvous at a store in this process."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    worlds = [World(rank=rank, world_size=ranks, local_rank=rank) for rank in range(ranks)]
    yield [world.to_environment(store.port) for world in worlds]


def _end(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-15:])
