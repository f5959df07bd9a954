"""Checks that a plugin is torn down after a failure in any hook, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch

from hooktrain import hookspecs
from hooktrain.errors import HooktrainError
from hooktrain.hookspecs import FACTORIES, LOOP_HOOKS
from hooktrain.markers import hookimpl
from hooktrain.testing.plugin_checks.kit import Broken, Kit
from hooktrain.testing.plugin_checks.plugin_reference import Prepared, Spec, prepared
from hooktrain.training.trainer import Trainer

__all__ = ["check_teardown"]

FAILING = (
    "make_strategy",
    "make_data",
    "make_model",
    "make_optimizer",
    "on_train_start",
    "on_epoch_start",
    "count_batch",
    "on_step_start",
    "on_microbatch_start",
    "compute_loss",
    "run_backward",
    "on_microbatch_end",
    "run_optimizer_step",
    "on_step_end",
    "collect_metrics",
    "on_log",
    "on_evaluate_start",
    "run_evaluate",
    "on_checkpoint_start",
    "save_checkpoint",
    "on_train_end",
)
"""Hooks of every kind, in which a run is made to fail."""

_ENOUGH = 8
"""Findings after which no further hook is tried."""


def check_teardown(kit: Kit) -> None:
    """Check that a failure in any hook reaches the user after ``on_teardown``, which may run early and twice."""
    options = kit.options
    failing, leaves = tuple(options.failing) or FAILING, tuple(options.leaves)
    arguments = {"spec": kit.spec, "failing": failing, "leaves": leaves, "patience": options.patience}
    done = kit.start("teardown", f"{__name__}:_failures", **arguments)
    found = kit.need(done, "runs that fail in one hook after another")
    if found:
        raise Broken(
            "\n".join(found[:_ENOUGH]),
            "on_teardown is called on every rank however the run ends, possibly before anything was built; it releases"
            " what the plugin holds, and hides no error",
            "set attributes in __init__ and test them in on_teardown (`if self.server is not None`); close files, end"
            " threads, and restore what on_train_start has changed",
        )


class _Failure(Exception):
    """The error that the runs fail with."""


def _failing(hook: str) -> object:
    """Return a plugin that raises in one hook, as a wrapper where the hook's result matters."""
    parameters = hookspecs.__dict__[hook].__code__.co_varnames[: hookspecs.__dict__[hook].__code__.co_argcount]

    def fail() -> None:
        raise _Failure(hook)

    wraps = hook in LOOP_HOOKS or hook in FACTORIES
    body = "    fail()\n    return (yield)" if wraps else "    fail()"
    scope: dict[str, Any] = {"fail": fail}
    exec(f"def {hook}(self, {', '.join(parameters)}):\n{body}", scope)
    return type("Fails", (), {hook: hookimpl(wrapper=wraps)(scope[hook])})()


def _failures(spec: Spec, failing: tuple[str, ...], leaves: tuple[str, ...], patience: float) -> list[str]:
    """Find errors of teardown when a run fails in one hook after another; in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _settle(spec)
    found: list[str] = []
    for hook in failing:
        found += _failure(spec, hook, leaves, patience) if len(found) < _ENOUGH else []
    made = _made(spec, "early")
    trainer = Trainer(made.recipe, made.host)
    for when in ("before anything is built", "a second time"):
        for name in ("on_exception", "on_teardown"):
            found += _called(made, name, when, trainer)
    return list(dict.fromkeys(found))


def _settle(spec: Spec) -> None:
    """Make a first run, if possible without the plugin, as libraries set variables when they are first used."""
    for variation in ("without", "with"):
        with contextlib.suppress(HooktrainError):
            made = _made(spec, "first", variation=variation)
            Trainer(made.recipe, made.host).run()
            return


def _made(spec: Spec, folder: str, *plugins: object, variation: str = "with") -> Prepared:
    overrides = {
        "run_dir": os.path.abspath(folder),
        "train_iters": 2,
        "epochs": None,
        "checkpoint": [{"type": "full", "save_every_n_steps": 1}],
    }
    return prepared(spec, variation, *plugins, overrides=overrides)


def _failure(spec: Spec, hook: str, leaves: tuple[str, ...], patience: float) -> list[str]:
    """Find errors of teardown when a run fails in one hook."""
    made = _made(spec, hook, _failing(hook))
    trainer = Trainer(made.recipe, made.host)
    calls = _counted(made)
    before, threads = _state(), set(threading.enumerate())
    found: list[str] = []
    try:
        trainer.run()
    except _Failure:
        pass
    except BaseException as problem:
        found.append(f"a failure in {hook} ends the run with another error, {type(problem).__name__} ({problem})")
    else:
        found.append(f"a failure in {hook} does not end the run: the plugin has swallowed the exception")
    mine = f"plugin '{made.name}', hook on_"
    found += [f"after a failure in {hook}: {text}" for text in made.host.warnings if text.startswith(mine)]
    if calls and calls["on_teardown"] != 1:
        found.append(f"after a failure in {hook}, on_teardown is called {calls['on_teardown']} times, expected once")
    found += [f"after a failure in {hook}, {what} is not restored" for what in _changed(before, leaves)]
    for thread in set(threading.enumerate()) - threads:
        thread.join(patience)
        if thread.is_alive():
            found.append(f"after a failure in {hook}, the thread {thread.name} is left")
    found += _called(made, "on_teardown", f"a second time, after a failure in {hook}", trainer)
    return found


def _called(made: Prepared, hook: str, when: str, trainer: Trainer) -> list[str]:
    """Call the plugin's implementation of a hook, and return the error that it raises."""
    arguments = {"trainer": trainer, "exception": _Failure("out of luck")}
    for found in made.host.implementations(hook):
        if found.plugin_name == made.name:
            try:
                found.function(*(arguments[name] for name in found.argnames))
            except Exception as problem:
                return [f"{hook}, called {when}, raises {type(problem).__name__}: {problem}"]
    return []


def _counted(made: Prepared) -> dict[str, int]:
    """Count the calls of the plugin's ``on_teardown``; empty where it has none."""
    calls: dict[str, int] = {}
    for found in made.host.implementations("on_teardown"):
        if found.plugin_name == made.name:
            calls["on_teardown"] = 0
            setattr(found, "function", _counting(found.function, calls))  # noqa: B010 - final for type checkers
    return calls


def _counting(function: Callable[..., Any], calls: dict[str, int]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        calls["on_teardown"] += 1
        return function(*arguments)

    return call


def _changed(before: dict[str, Any], leaves: tuple[str, ...]) -> list[str]:
    """List what has changed, without the environment variables that may stay."""
    after = _state()
    return [
        name for name in {**before, **after} if before.get(name) != after.get(name) and name.split()[-1] not in leaves
    ]


def _state() -> dict[str, Any]:
    """Return the process's state that a run must not change."""
    return {
        **{f"the environment variable {name}": value for name, value in os.environ.items()},
        "a signal handler": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's default dtype": torch.get_default_dtype(),
        "sys.stdout": sys.stdout,
        "sys.excepthook": sys.excepthook,
    }
