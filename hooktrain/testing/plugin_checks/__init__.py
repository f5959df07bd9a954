"""The conformance kit: what every plugin can be asked to keep to, as one test for each rule.

::

    from hooktrain.testing import conformance

    test_conformance = conformance("lion", settings={"optimizer": {"type": "lion", "lr": 1e-3}})

The checks run in processes of their own, as whatever a plugin keeps in its module would survive in one; see
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
    "device": "check_device:check_device",
    "teardown": "check_teardown:check_teardown",
    "cost": "check_cost:check_cost",
}
"""Each check and the function that makes it."""

THOROUGH = ("state", "resume", "observes", "ranks", "teardown")
"""Checks that ``thorough=True`` also makes under the strategies that shard, see ``STRATEGIES``."""


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
    """A test of a plugin against the rules of the platform: ``test_conformance = conformance("lion")``.

    The checks, each a test of its own:

    - ``hooks``: implementations are of hooks that exist, with their parameters, and are called;
    - ``import``: importing it brings in few modules, and leaves no thread, file, process or changed setting;
    - ``declines``: a factory given another's config, and a loop hook that declines, have done nothing before;
    - ``state``: ``collect_state`` gives plain values, and ``restore_state`` in a new process gives the same again;
    - ``resume``: steps straight are half of them and the rest from a checkpoint, bit by bit;
    - ``observes``: losses, weights and random numbers are those of a run without it;
    - ``ranks``: two ranks with the same global batch log what one does;
    - ``device``: no hook waits for the device where it must not;
    - ``teardown``: ``on_teardown`` runs once whatever hook failed, and may run early or twice;
    - ``cost``: a step makes at most ``calls`` and ``allocations``, and keeps its time within the ``budget``.

    A check that says nothing about a plugin, such as ``state`` of one without state, is skipped with the reason.
    Counts are the same on every machine. Times are not: ``budget`` and ``import_seconds`` are judged only in a pytest
    with ``--hooktrain-time``, and one without it says so.

    Args:
        plugin: the name of an installed plugin, ``package.module[:Class]``, a module, a class, or an object that pickle
            can carry.
        recipe: to run it with: ``tiny`` (random rows, a few hundred weights, only ``torch`` besides), ``chat`` (a tiny
            Llama on conversations, through ``hf`` and ``sft``), a file, a mapping, or a function that makes one in a
            given folder. It should run without the plugin, so that there is something to compare with.
        settings: top-level keys of the recipe that put the plugin to use; they take the place of the recipe's, but
            ``model`` and ``data`` are added to them.
        plugins: further installed plugins that the recipe needs.
        checks: which checks to make; all when left out.
        skip: checks to leave out, with the reason.
        thorough: whether to make the checks ``state``, ``resume``, ``observes``, ``ranks`` and ``teardown`` also under
            FSDP2 and, where ``hooktrain-deepspeed`` is installed, ZeRO, on two ranks; they are tests of their own
            (``test_conformance[resume-fsdp2]``) with the marker ``thorough``, which ``-m "not thorough"`` leaves out.
        changes_gradients: whether the plugin is meant to change the training; what it declares when left out.
        steps: optimizer steps of a run, at least 2; 8, or 4 with ``recipe="chat"``.
        tolerance: how far losses of one and two ranks may be apart, as a share.
        ignore: metrics that no two runs have in common, such as times, or that the plugin is meant to change.
        calls: how many calls of the plugin's hooks a step may make; any number when left out.
        device_syncs: how often a step may wait for the device in hooks that should not.
        allocations: how many tensors with memory of their own a step may make more than one without the plugin; any
            number when left out.
        budget: the time that a step may cost, microseconds for each call of a hook, or a share of the step such as
            ``"5%"``. Like ``calls`` and ``allocations`` it is that of a run that does not use the plugin, where the
            plugin changes gradients.
        import_modules: how many modules importing may bring in, besides those of hooktrain and of ``import torch``.
        import_seconds: what importing may cost, in seconds of a processor.
        leaves: environment variables that stay as the plugin's libraries have set them, when a run is over.
        timeout: seconds after which a process is killed.

    Raises:
        ValueError: for an unknown plugin or check, and for ``thorough`` where the settings choose a strategy.
        TypeError: for a plugin that a process of its own cannot find.
    """
    for name in (*(checks or ()), *skip):
        if name not in CHECKS:
            raise ValueError(
                f"conformance: no check is named '{name}'{did_you_mean(name, CHECKS)}; there are {', '.join(CHECKS)}"
            )
    if thorough and "strategy" in settings:
        raise ValueError(
            "conformance: thorough=True puts FSDP2 and ZeRO in the place of the recipe's strategy, but settings has"
            " 'strategy'; leave one of them out"
        )
    import pytest

    from hooktrain.testing.plugin_checks.plugin_reference import reference_to

    reference = reference_to(plugin)
    given: dict[str, Any] = {
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
        from hooktrain.testing.plugin_checks.kit import Broken, Kit, Options, Unjudged

        name, _, strategy = check.partition("-")
        if strategy not in kits:
            options = Options(**given, strategy=strategy, time=pytestconfig.getoption("--hooktrain-time"))
            kits[strategy] = Kit(reference, options, tmp_path_factory.mktemp("conformance"))
        kit = kits[strategy]
        module, _, function = CHECKS[name].partition(":")
        reason = failure = ""
        try:
            getattr(importlib.import_module(f"{__name__}.{module}"), function)(kit)
        except Unjudged as problem:
            reason = str(problem)
        except Broken as problem:
            failure = f"plugin '{reference.name}', conformance check '{check}':\n\n{problem}"
        if name in kit.notes:
            record_property("hooktrain", f"{reference.name}, {check}: {kit.notes[name]}")
        if reason:
            pytest.skip(f"'{reference.name}', {check}: {reason}")
        if failure:
            pytest.fail(failure, pytrace=False)

    test_conformance.__doc__ = f"Whether the plugin '{reference.name}' keeps to the rules of the platform."
    return test_conformance


def _parameters(checks: Sequence[str], skip: Mapping[str, str], thorough: bool) -> list[Any]:
    """The checks as parameters of a test, those under another strategy with the marker ``thorough``."""
    import pytest

    skips = {name: [pytest.mark.skip(reason=reason)] for name, reason in skip.items()}
    again = [(name, strategy) for strategy in STRATEGIES for name in checks if thorough and name in THOROUGH]
    return [
        *(pytest.param(name, marks=skips.get(name, [])) for name in checks),
        *(
            pytest.param(f"{name}-{strategy}", marks=[pytest.mark.thorough, *skips.get(name, [])])
            for name, strategy in again
        ),
    ]
