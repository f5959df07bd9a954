"""Every hook is declared fully, stands in the hook reference, and is implemented by some test."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from hooktrain import hookspecs
from hooktrain.hookspecs import EVENTS, FACTORIES, LOOP_HOOKS
from hooktrain.testing import LoopHookRecorder, Recorder

ROOT = Path(__file__).parents[1]
HOOKS = {
    name: function
    for name, function in vars(hookspecs).items()
    if inspect.isfunction(function) and hasattr(function, "hooktrain_spec")
}

QUESTIONS = (
    *("fingerprint_source", "preview_examples", "adopt_model", "make_meta_model"),
    *("estimate_examples", "estimate_data", "estimate_memory"),
)
"""Hooks of which the first answer counts, and that are neither factories nor loop hooks."""


@pytest.mark.parametrize("name", HOOKS)
def test_every_part_of_the_docstring_is_there(name):
    function = HOOKS[name]
    text = inspect.getdoc(function) or ""
    first, _, rest = text.partition("\n")
    assert re.fullmatch(r"[A-Z].*\.", first), "one line, a sentence"
    assert rest.startswith("\n")
    for section in ("Called: ", "Ranks: ", "Device: ", "Returns:\n", "Default: "):
        assert text.count(f"\n{section}") == 1, section
    parameters = list(inspect.signature(function).parameters)
    described = re.findall(r"^    (\w+): \S", text.partition("\nArgs:\n")[2].partition("\nReturns:")[0], re.MULTILINE)
    assert described == parameters
    returns = text.partition("\nReturns:\n")[2].partition("\n\n")[0]
    if name in (*FACTORIES, *LOOP_HOOKS):
        assert re.search(rf"{'None' if name in FACTORIES else 'NotImplemented'} leaves \w+( \w+)? to the\s+next plugin", returns)
    if name in EVENTS:
        assert returns.strip() == "Ignored."


def test_the_kinds_are_complete():
    assert set(FACTORIES) | set(LOOP_HOOKS) | set(EVENTS) <= set(HOOKS)
    for name in HOOKS:
        if name.startswith("on_"):
            assert name in EVENTS
        elif name.startswith(("run_", "compute_", "save_", "load_checkpoint", "count_")):
            assert name in LOOP_HOOKS
    for name, function in HOOKS.items():
        first = bool(function.hooktrain_spec.get("firstresult"))
        assert first == (name in FACTORIES or name in LOOP_HOOKS or name in QUESTIONS), name


def test_every_hook_stands_in_the_reference():
    reference = (ROOT / "hooktrain" / "guides" / "hooks.md").read_text(encoding="utf-8")
    for name in HOOKS:
        assert f"\n### `{name}(" in reference, name


def test_every_hook_is_implemented_by_a_test():
    """Recorders do not count: a test must use the hook for what it is for."""
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name in HOOKS:
        implemented = re.search(rf"@(hooktrain\.)?hookimpl(\([^)]*\))?\s+def {name}\(", written)
        parametrized = re.search(rf"hook.*\[.*\"{name}\"", written)
        assert implemented or parametrized, f"no test implements {name}"


def test_recorders_hear_everything():
    assert all(hasattr(Recorder, name) for name in EVENTS)
    assert all(hasattr(LoopHookRecorder, name) for name in (*FACTORIES, *LOOP_HOOKS, *EVENTS))
