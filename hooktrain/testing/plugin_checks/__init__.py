"""The conformance kit: one test for each rule that every plugin keeps.

::

    from hooktrain.testing import conformance

    test_conformance = conformance("lion", settings={"optimizer": {"type": "lion", "lr": 1e-3}})

Each check runs the plugin in new processes, so that nothing in its module survives from one run to the next; see
``hooktrain.testing.fork_server``. Nothing is imported before the first check runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hooktrain.errors import did_you_mean
from hooktrain.testing.plugin_checks.strategies import STRATEGIES

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from hooktrain.testing.plugin_checks.kit import Kit

__all__ = ["CHECKS", "conformance"]

CHECKS = {
    "hooks": "check_hooks:check_hooks",
    "import": "check_import:check_import",
    "declines": "check_declines:check_declines",
    "state": "check_resume:check_state",
    "resume": "check_resume:check_resume",
    "observes": "check_observes:check_observes",
    "ranks": "check_observes:check_ranks",
    "loss": "check_loss:check_loss",
    "device": "check_device:check_device",
    "teardown": "check_teardown:check_teardown",
    "together": "check_together:check_together",
    "cost": "check_cost:check_cost",
}
"""Each check and its function."""

THOROUGH = ("state", "resume", "observes", "ranks", "teardown")
"""Checks that ``thorough=True`` repeats under the strategies that shard, see ``STRATEGIES``."""


def conformance(
    plugin: object,
    *,
    recipe: str | Path | Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] = "tiny",
    settings: Mapping[str, Any] = {},
    plugins: Sequence[str] = (),
    checks: Sequence[str] | None = None,
    skip: Mapping[str, str] = {},
    thorough: bool = False,
    changes_gradients: bool | None = None,
    steps: int | None = None,
    tolerance: float = 1e-6,
    ignore: Sequence[str] = (),
    calls: float | None = None,
    device_syncs: float = 0,
    allocations: float | None = None,
    budget: float | str = 100.0,
    import_modules: int = 700,
    import_seconds: float = 1.0,
    leaves: Sequence[str] = (),
    timeout: float = 120.0,
) -> Callable[..., None]:
    """Make a test of a plugin against the rules for plugins: ``test_conformance = conformance("lion")``.

    The checks, each a test of its own:

    - ``hooks``: the plugin implements hooks that exist, with their parameters, and they are called;
    - ``import``: importing the plugin imports few modules, and leaves no thread, file, process or changed setting;
    - ``declines``: a factory that returns None or a loop hook that returns ``NotImplemented`` does nothing before;
    - ``state``: ``collect_state`` returns plain values, and ``restore_state`` restores them in a new process;
    - ``resume``: a run that stops half-way and resumes ends as one without a stop, bit by bit;
    - ``observes``: losses, weights and random numbers are those of a run without the plugin; where it declares
      ``changes_gradients``, weights are others;
    - ``ranks``: one rank and two ranks with the same global batch log the same losses;
    - ``loss``: a micro-batch that holds each sequence twice has twice the loss: it is a sum, and not a mean;
    - ``device``: no hook waits for the device where it must not;
    - ``teardown``: ``on_teardown`` runs once whatever hook failed, and may run early or twice;
    - ``together``: a run is the same with two more plugins that implement the same hooks and do nothing, one called
      before the plugin and one after it, and both get the same arguments;
    - ``cost``: a step makes at most ``calls`` and ``allocations``, and its time stays within the ``budget``.

    A check that does not apply to a plugin, such as ``state`` of one without state, is skipped with the reason. Counts
    are the same on every machine. Times are not: ``budget`` and ``import_seconds`` are checked only where pytest runs
    with ``--hooktrain-time``, and the report says so.

    Args:
        plugin: the name of an installed plugin, ``package.module[:Class]``, a module, a class, or an object that can be
            pickled.
        recipe: the recipe of the runs: ``tiny`` (random sequences, a few hundred weights, no plugin but ``torch``),
            ``chat`` (a tiny Llama on conversations, with ``hf`` and ``sft``), a file, a mapping, or a function that
            returns one for a folder. It should run without the plugin too, as the checks compare with such a run.
        settings: top-level keys of the recipe that use the plugin; they replace the recipe's, but ``model`` and
            ``data`` are merged.
        plugins: other installed plugins that the recipe needs.
        checks: names of the checks; all by default.
        skip: checks to skip, with the reason.
        thorough: whether to repeat the checks ``state``, ``resume``, ``observes``, ``ranks`` and ``teardown`` under
            FSDP2 and, where ``hooktrain-deepspeed`` is installed, ZeRO, on two ranks. These are tests of their own
            (``test_conformance[resume-fsdp2]``) with the marker ``thorough``; ``-m "not thorough"`` skips them.
        changes_gradients: whether the plugin is meant to change the training, as it has to declare too; by default,
            what it declares.
        steps: optimizer steps of a run, at least 2; by default 8, or 4 with ``recipe="chat"``.
        tolerance: largest relative difference between the losses of one rank and two.
        ignore: metrics that differ from run to run, such as times, or that the plugin is meant to change.
        calls: most calls of the plugin's hooks in a step; unlimited by default.
        device_syncs: most device syncs of a step in hooks that must not wait for the device.
        allocations: most tensors that the plugin allocates in a step; unlimited by default.
        budget: most time that a step may cost: microseconds for each call of a hook, or a share of the step such as
            ``"5%"``. Where the plugin changes gradients, this, ``calls`` and ``allocations`` are checked in a run that
            has the plugin installed but does not use it.
        import_modules: most modules that importing may load, without those of hooktrain and of ``import torch``.
        import_seconds: most seconds of processor time that importing may cost.
        leaves: environment variables that the plugin's libraries set for good.
        timeout: seconds after which a process is killed.

    Raises:
        ValueError: for an unknown plugin or check, and for ``thorough`` where the settings choose a strategy.
        TypeError: for a plugin that another process cannot import.
    """
    for name in (*(checks or ()), *skip):
        if name not in CHECKS:
            raise ValueError(
                f"conformance: no check is named '{name}'{did_you_mean(name, CHECKS)}; expected"
                f" one of {', '.join(CHECKS)}"
            )
    if thorough and "strategy" in settings:
        raise ValueError(
            "conformance: thorough=True replaces the recipe's strategy by FSDP2 and ZeRO, but settings has 'strategy';"
            " remove one of them"
        )
    import pytest

    from hooktrain.testing.plugin_checks.plugin_reference import reference_to

    reference = reference_to(plugin)
    options: dict[str, Any] = {
        "recipe": recipe,
        "settings": settings,
        "plugins": plugins,
        "changes_gradients": changes_gradients,
        "steps": steps or (4 if recipe == "chat" else 8),
        "tolerance": tolerance,
        "ignore": ignore,
        "calls": calls,
        "device_syncs": device_syncs,
        "allocations": allocations,
        "budget": budget,
        "import_modules": import_modules,
        "import_seconds": import_seconds,
        "leaves": leaves,
        "timeout": timeout,
    }
    kits: dict[str, Kit] = {}

    @pytest.mark.hooktrain_conformance
    @pytest.mark.parametrize(
        "check", _parameters([name for name in CHECKS if checks is None or name in checks], skip, thorough)
    )
    def test_conformance(
        check: str,
        tmp_path_factory: pytest.TempPathFactory,
        pytestconfig: pytest.Config,
        record_property: Callable[[str, object], None],
    ) -> None:
        from hooktrain.testing.plugin_checks.kit import Broken, Kit, NotApplicable, Options

        name, _, strategy = check.partition("-")
        if strategy not in kits:
            made = Options(**options, strategy=strategy, time=pytestconfig.getoption("--hooktrain-time"))
            kits[strategy] = Kit(reference, made, tmp_path_factory.mktemp("conformance"))
        kit = kits[strategy]
        module, _, function = CHECKS[name].partition(":")
        reason = failure = ""
        try:
            getattr(importlib.import_module(f"{__name__}.{module}"), function)(kit)
        except NotApplicable as problem:
            reason = str(problem)
        except Broken as problem:
            failure = f"plugin '{reference.name}', conformance check '{check}':\n\n{problem}"
        if name in kit.notes:
            record_property("hooktrain", f"{reference.name}, {check}: {kit.notes[name]}")
        if reason:
            pytest.skip(f"'{reference.name}', {check}: {reason}")
        if failure:
            pytest.fail(failure, pytrace=False)

    test_conformance.__doc__ = f"The plugin '{reference.name}' keeps the rules for plugins."
    return test_conformance


def _parameters(checks: Sequence[str], skip: Mapping[str, str], thorough: bool) -> list[Any]:
    """Return the checks as parameters of a test, those under another strategy with the marker ``thorough``."""
    import pytest

    skips = {name: [pytest.mark.skip(reason=reason)] for name, reason in skip.items()}
    repeated = [(name, strategy) for strategy in STRATEGIES for name in checks if thorough and name in THOROUGH]
    return [
        *(pytest.param(name, marks=skips.get(name, [])) for name in checks),
        *(
            pytest.param(f"{name}-{strategy}", marks=[pytest.mark.thorough, *skips.get(name, [])])
            for name, strategy in repeated
        ),
    ]
