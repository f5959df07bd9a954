"""Every hook is declared completely, its documentation is right, and some test implements it."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from hooktrain import Trainer, hookspecs
from hooktrain.hookspecs import EVENTS, FACTORIES, HOOKS, KINDS, LOOP_HOOKS
from hooktrain.inspection.plan import plan_of
from hooktrain.inspection.value_origins import Sources
from hooktrain.testing import LoopHookRecorder, Recorder
from hooktrain.training.load import make_host
from tests import seen

ROOT = Path(__file__).parents[1]
VERBS = {
    "factory": ("make_", "load_source"),
    "event": ("on_",),
    "loop hook": ("run_", "compute_", "save_", "load_checkpoint", "count_", "make_loader"),
    "collected": (
        *("register_", "check_", "collect_", "restore_", "unused_"),
        *("estimate_activations", "make_models", "count_loss_terms"),
    ),
    "question": (
        *("fingerprint_", "preview_", "adopt_", "make_meta_model", "estimate_", "count_positions"),
        *("describe_", "merge_", "visit_", "generate_", "stream_", "store_"),
    ),
}
"""What names of a kind begin with."""
COMMANDS = (
    *("register_benchmarks", "register_recipe_dialects", "preview_examples", "estimate_examples", "store_outputs"),
    *("describe_model", "merge_model", "stream_answer", "make_metric", "visit_logits", "generate_answers"),
)
"""Hooks of commands, of plans whose data is not prepared, and of metrics; no recorded run calls them."""


@pytest.mark.parametrize("name", HOOKS)
def test_the_docstring_is_complete(name):
    function = getattr(hookspecs, name)
    text = inspect.getdoc(function) or ""
    first, _, rest = text.partition("\n")
    assert re.fullmatch(r"[A-Z].*\.", first), "one line, a sentence"
    assert rest.startswith("\n")
    for section in ("Called: ", "Ranks: ", "Device: ", "Returns:\n", "Default: "):
        assert text.count(f"\n{section}") == 1, section
    parameters = list(inspect.signature(function).parameters)
    described = re.findall(r"^    (\w+): \S", text.partition("\nArgs:\n")[2].partition("\nReturns:")[0], re.MULTILINE)
    assert described == parameters
    returns = " ".join(text.partition("\nReturns:\n")[2].partition("\n\n")[0].split())
    kind = HOOKS[name].kind
    if kind in ("factory", "question"):
        assert "None leaves it to the next plugin." in returns
    elif kind == "loop hook":
        assert returns.endswith("NotImplemented leaves it to the next plugin, None is an error.")
    assert (returns == "Ignored.") == (kind == "event" or name in ("register_hookspecs", "restore_state"))
    assert re.search(rf"^Device: {HOOKS[name].device}\b", text, re.MULTILINE), "as its decorator says"


def test_the_kinds_are_those_of_the_names():
    assert {hook.kind for hook in HOOKS.values()} == set(KINDS)
    for name, hook in HOOKS.items():
        assert name.startswith(VERBS[hook.kind]), name
        spec = getattr(hookspecs, name).hooktrain_spec
        assert bool(spec["firstresult"]) == (hook.kind in ("factory", "loop hook", "question"))
        assert bool(hook.makes) == (hook.kind == "factory")


@pytest.fixture
def runs(tiny_recipe, chat_recipe):
    """Recorded runs: three of the tiny recipe, one of conversations with a model passed from Python, and two plans."""
    from transformers import AutoModelForCausalLM

    prepared, planned = seen.Witness(), seen.Witness()
    recipe = {**chat_recipe, "run_dir": chat_recipe["run_dir"] + "-2", "train_iters": 1}
    where = recipe.pop("model")["name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(where)
    Trainer(recipe, model=model, tokenizer=where, plugins=[prepared]).run()
    host = make_host()
    host.register(planned)
    plan_of(host, Sources(file=None, raw=chat_recipe))
    return [*seen.witnessed(tiny_recipe), prepared, planned]


def test_hooks_are_called_when_their_docstrings_say(runs):
    recorded = {hook for run in runs for hook in run.order}
    assert set(HOOKS) - recorded == set(COMMANDS)
    wrong = {
        hook: found
        for hook in recorded
        if (found := seen.contradictions(hook, seen.called_section(getattr(hookspecs, hook)), runs))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("hook", "called"),
    [
        ("make_loss", "by ``trainer.prepare``, after ``make_model``."),
        ("make_model", "by ``trainer.prepare``, before ``make_loss``."),
        ("run_train", "by ``trainer.epoch``."),
        ("on_step_start", "before ``run_epoch``."),
        ("compute_loss", "inside ``run_evaluate``."),
        ("on_log", "inside ``run_evaluate``."),
        ("on_train_end", "by ``trainer.run``, before ``adopt_model``."),
    ],
)
def test_a_wrong_docstring_is_noticed(tiny_recipe, hook, called):
    assert seen.contradictions(hook, called, seen.witnessed(tiny_recipe))


def test_every_call_of_a_hook_gives_all_its_parameters():
    """Hooks are called by name through ``hooks``, whose attributes no type checker knows."""
    called = set()
    for path in [*(ROOT / "hooktrain").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in HOOKS):
                continue
            given = [keyword.arg for keyword in node.keywords]
            if ast.unparse(node.func.value).rpartition(".")[2] == "hooks" and None not in given:
                expected = set(inspect.signature(getattr(hookspecs, node.func.attr)).parameters)
                assert set(given) == expected, f"{path}:{node.lineno}: {node.func.attr}"
                called.add(node.func.attr)
    assert called >= {"make_scheduler", "make_optimizer", "estimate_data"}


def test_every_hook_is_in_the_reference():
    reference = (ROOT / "hooktrain" / "guides" / "plugins" / "hooks.md").read_text(encoding="utf-8")
    for name in HOOKS:
        assert f"\n### `{name}(" in reference, name


def test_every_hook_is_implemented_by_a_test():
    """Recorders do not count: a test must use the hook for its purpose."""
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name in HOOKS:
        implemented = re.search(rf"@(hooktrain\.)?hookimpl(\([^)]*\))?\s+def {name}\(", written)
        parametrized = re.search(rf"hook.*\[.*\"{name}\"", written)
        assert implemented or parametrized, f"no test implements {name}"


def test_recorders_implement_everything():
    assert all(hasattr(Recorder, name) for name in EVENTS)
    assert all(hasattr(LoopHookRecorder, name) for name in (*FACTORIES, *LOOP_HOOKS, *EVENTS))
