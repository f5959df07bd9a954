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

import pytest

from hooktrain.errors import did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CHECKS", "conformance"]

CHECKS = {
    "hooks": "rules:check_hooks",
    "import": "importing:check_import",
    "declines": "declining:check_declines",
    "state": "resume:check_state",
    "resume": "resume:check_resume",
    "observes": "observing:check_observes",
    "ranks": "observing:check_ranks",
    "device": "device:check_device",
    "teardown": "teardown:check_teardown",
    "cost": "cost:check_cost",
}
"""Each check and the function that makes it."""


def conformance(
    plugin: object,
    *,
    recipe: str | Path | Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] = "tiny",
    settings: Mapping[str, Any] = {},
    plugins: Sequence[str] = (),
    checks: Sequence[str] | None = None,
    skip: Mapping[str, str] = {},
    changes_gradients: bool | None = None,
    steps: int | None = None,
    tolerance: float = 1e-6,
    ignore: Sequence[str] = (),
    budget: float | str = 100.0,
    import_seconds: float = 1.0,
    leaves: Sequence[str] = (),
    timeout: float = 120.0,
) -> Callable[..., None]:
    """A test of a plugin against the rules of the platform: ``test_conformance = conformance("lion")``.

    The checks, each a test of its own:

    - ``hooks``: implementations are of hooks that exist, with their parameters, and are called;
    - ``import``: importing it is cheap, and leaves no thread, file, process or changed setting;
    - ``declines``: a factory given another's config, and a segment that declines, have done nothing before;
    - ``state``: ``collect_state`` gives plain values, and ``restore_state`` in a new process gives the same again;
    - ``resume``: steps straight are half of them and the rest from a checkpoint, bit by bit;
    - ``observes``: losses, weights and random numbers are those of a run without it;
    - ``ranks``: two ranks with the same global batch log what one does;
    - ``device``: no hook waits for the device where it must not;
    - ``teardown``: ``on_teardown`` runs once whatever hook failed, and may run early or twice;
    - ``cost``: a step costs at most the budget.

    A check that says nothing about a plugin, such as ``state`` of one without state, is skipped with the reason.

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
        changes_gradients: whether the plugin is meant to change the training; what it declares when left out.
        steps: optimizer steps of a run, at least 2; 8, or 4 with ``recipe="chat"``.
        tolerance: how far losses of one and two ranks may be apart, as a share.
        ignore: metrics that no two runs have in common, such as times, or that the plugin is meant to change.
        budget: what a step may cost, microseconds for each call of a hook, or a share of the step such as ``"5%"``; of
            a plugin that changes gradients, in a run that does not use it.
        import_seconds: what importing may cost, in seconds of a processor.
        leaves: environment variables that stay as the plugin's libraries have set them, when a run is over.
        timeout: seconds after which a process is killed.

    Raises:
        ValueError: for an unknown plugin or check.
        TypeError: for a plugin that a process of its own cannot find.
    """
    for name in (*(checks or ()), *skip):
        if name not in CHECKS:
            raise ValueError(
                f"conformance: no check is named '{name}'{did_you_mean(name, CHECKS)}; there are {', '.join(CHECKS)}"
            )
    from hooktrain.testing.checks.subject import reference_to

    reference = reference_to(plugin)
    given: dict[str, Any] = {
        "recipe": recipe,
        "settings": settings,
        "plugins": plugins,
        "changes_gradients": changes_gradients,
        "steps": steps or (4 if recipe == "chat" else 8),
        "tolerance": tolerance,
        "ignore": ignore,
        "budget": budget,
        "import_seconds": import_seconds,
        "leaves": leaves,
        "timeout": timeout,
    }
    kits: list[Any] = []

    @pytest.mark.hooktrain_conformance
    @pytest.mark.parametrize(
        "check",
        [
            pytest.param(name, marks=[pytest.mark.skip(reason=skip[name])] if name in skip else [])
            for name in CHECKS
            if checks is None or name in checks
        ],
    )
    def test_conformance(
        check: str, tmp_path_factory: pytest.TempPathFactory, record_property: Callable[[str, object], None]
    ) -> None:
        from hooktrain.testing.checks.kit import Broken, Kit, Options, Unjudged

        if not kits:
            kits.append(Kit(reference, Options(**given), tmp_path_factory.mktemp("conformance")))
        module, _, function = CHECKS[check].partition(":")
        reason = failure = ""
        try:
            getattr(importlib.import_module(f"{__name__}.{module}"), function)(kits[0])
        except Unjudged as problem:
            reason = str(problem)
        except Broken as problem:
            failure = f"plugin '{reference.name}', conformance check '{check}':\n\n{problem}"
        if check in kits[0].notes:
            record_property("hooktrain", f"{reference.name}, {check}: {kits[0].notes[check]}")
        if reason:
            pytest.skip(f"'{reference.name}', {check}: {reason}")
        if failure:
            pytest.fail(failure, pytrace=False)

    test_conformance.__doc__ = f"Whether the plugin '{reference.name}' keeps to the rules of the platform."
    return test_conformance
