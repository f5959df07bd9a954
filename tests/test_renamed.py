"""Whoever uses an old name is told the new one."""

from __future__ import annotations

import importlib

import attrs
import click
import pytest

import hooktrain
from hooktrain import (
    BatchCounts,
    DataEstimate,
    HooktrainError,
    LossSum,
    PluginError,
    PluginHost,
    PluginInfo,
    RecipeError,
)
from hooktrain import hookimpl as impl
from hooktrain.bench import Case, Comparison, Target
from hooktrain.cli.main import cli
from hooktrain.config import field, part
from hooktrain.plugin.records import PluginRecord
from hooktrain.protocols import CheckpointEngine, missing_members
from hooktrain.renamed import RENAMED
from hooktrain.testing import TinyPlugin
from hooktrain.training.load import load, make_host
from tests.facts import facts

CASE = Case(name="c", variants={"a": len})


def rows(kind: str) -> list[tuple[str, str]]:
    return list(RENAMED[kind].items())


@pytest.mark.parametrize(("old", "new"), rows("import"))
def test_imports(old, new):
    package, _, name = old.rpartition(".")
    with pytest.raises(ImportError, match=facts(name, new)):
        exec(f"from {package} import {name}")
    home, _, renamed = new.rpartition(".")
    assert renamed in importlib.import_module(home).__all__


@pytest.mark.parametrize(("old", "new"), rows("module"))
def test_modules(old, new):
    if old.partition(".")[0] == "hooktrain":
        with pytest.raises(ModuleNotFoundError, match=facts(old, new)):
            importlib.import_module(old)
    assert importlib.util.find_spec(new), "there is one of the new name"


def test_a_plugin_that_imports_a_moved_module_is_told(installed):
    installed("a-old", "from hooktrain.state import Batch\n")
    assert "hooktrain.types" in make_host().records["a-old"].reason


@pytest.mark.parametrize(("old", "new"), rows("hook"))
def test_hooks(old, new):
    class Old:
        pass

    setattr(Old, old, impl(lambda self: None))
    host = PluginHost(discover=False)
    host.register(Old())
    with pytest.raises(PluginError, match=facts("'Old'", old, new)):
        host.check()


@pytest.mark.parametrize(("old", "new"), rows("parameter"))
def test_parameters(old, new):
    hook, _, parameter = old.rstrip(")").partition("(")
    scope: dict = {"impl": impl}
    exec(f"class Old:\n    @impl\n    def {hook}(self, {parameter}): ...", scope)
    with pytest.raises(PluginError, match=facts("'Old'", hook, f"'{parameter}'", new)):
        make_host().register(scope["Old"]())


@pytest.mark.parametrize(("old", "new"), rows("argument"))
def test_arguments(old, new):
    with pytest.raises(TypeError, match=facts("neutral", new)):
        eval(old.replace("(", "('loss', " if old.startswith("part") else "("), {"field": field, "part": part})


@pytest.mark.parametrize(("old", "new"), rows("attribute"))
def test_attributes(old, new, run_tiny):
    trainer = run_tiny(train_iters=1)
    objects = {
        "BatchCounts": BatchCounts(1, 1, 1),
        "Case": CASE,
        "Comparison": Comparison(name="c", metric="seconds", variant="a", verdict="passed"),
        "DataEstimate": DataEstimate(),
        "LossSum": LossSum(None, 1),
        "PluginHost": trainer.host,
        "PluginRecord": trainer.host.records["loop"],
        "Target": Target(variant="a", at_most=1),
        "Trainer": trainer,
        "TrainerState": trainer.state,
    }
    owner, _, name = old.partition(".")
    with pytest.raises(AttributeError, match=facts(name, new)):
        getattr(objects[owner], name)
    assert hasattr(objects[owner], new.partition(".")[2])


@pytest.mark.parametrize("made", [Case, Comparison, Target])
def test_keywords_of_the_classes_of_a_suite(made):
    for old, new in rows("attribute"):
        owner, _, name = old.partition(".")
        if owner == made.__name__:
            with pytest.raises(TypeError, match=facts(f"{owner}()", f"'{name}'", new)):
                made(**{name: "anything"})


def test_a_target_of_a_plugin_with_the_old_method():
    old = type("Old", (), {"name": "old", "judge": lambda self, case, measured: None})
    with pytest.raises(ValueError, match=facts("case 'c'", "'judge'", "'evaluate'")):
        Case(name="c", variants={"a": len}, targets=[old()])


@pytest.mark.parametrize(("old", "new"), [row for row in rows("method") if not row[0].startswith("TargetLike.")])
def test_methods_of_parts_that_a_plugin_builds(old, new, run_tiny):
    owner, _, name = old.partition(".")
    assert owner == "CheckpointEngine"
    members = {each: None for each in missing_members(CheckpointEngine, object())}
    del members[new.partition(".")[2]]
    engine = type("Engine", (), {**members, name: lambda self, path: False})

    class Old:
        @impl(tryfirst=True)
        def make_checkpoint_engine(self):
            return engine()

    with pytest.raises(PluginError, match=facts("checkpoint", "Engine", name, new.partition(".")[2])):
        run_tiny(Old(), checkpoint={"type": "full", "save_end_of_training": True})


@pytest.mark.parametrize(("old", "new"), rows("plugin attribute"))
def test_attributes_of_plugins(old, new):
    class Old:
        @impl
        def on_step_end(self): ...

    setattr(Old, old, "anything")
    with pytest.raises(PluginError, match=facts("'Old'", old, new)):
        make_host(discover=False).register(Old())
    assert new.partition("(")[2].partition("=")[0] in attrs.fields_dict(PluginInfo)


@pytest.mark.parametrize(("old", "new"), rows("recipe key"))
def test_recipe_keys(old, new):
    raw: dict = {"type": "tiny"}
    *above, key = old.split(".")
    at = raw
    for step in above:
        at = at.setdefault(step, {})
    at[key] = {}
    with pytest.raises(RecipeError, match=facts(f"{old}: ", new)):
        load(raw, plugins=[TinyPlugin()], discover=False)


@pytest.mark.parametrize(("old", "new"), rows("type"))
def test_types_of_parts(old, new, run_tiny):
    with pytest.raises(RecipeError, match=facts("model.type: ", f"'{old}'", new)):
        run_tiny(model={"type": old})
    with pytest.raises(RecipeError, match=facts("type: ", f"'{old}'", new)):
        run_tiny(type=old)


@pytest.mark.parametrize(("old", "new"), rows("command"))
def test_commands(old, new):
    with pytest.raises(click.UsageError, match=facts(f"'{old}'", new)):
        cli.main([old, "anything"], standalone_mode=False)
    assert new.split()[0] in cli.commands


@pytest.mark.parametrize(("old", "new"), rows("api"))
def test_a_plugin_for_the_old_hooks_is_told_what_it_uses(old, new):
    class Old:
        hooktrain_plugin = PluginInfo(api=f">={old},<{new}")
        only_observes = True

        @impl
        def idle_hooks(self): ...

        @impl
        def compute_loss(self, model, batch, weight): ...

    assert new == hooktrain.API_VERSION
    named = ["'Old'", new, "idle_hooks is now unused_hooks", "compute_loss(weight) is now compute_loss(denominator)"]
    with pytest.raises(PluginError, match=facts(*named, "only_observes is now", "PluginInfo(only_observes=...)")):
        make_host(discover=False).register(Old())


def test_every_kind_of_row_is_tried():
    tried = {"api", "import", "module", "hook", "parameter", "argument", "attribute", "method", "plugin attribute"}
    assert {*RENAMED} == tried | {"recipe key", "type", "JSON key", "command"}, "JSON keys are only in the table"


def test_names_that_were_never_there_are_what_python_says():
    with pytest.raises(AttributeError, match="has no attribute 'nonesuch'$"):
        hooktrain.nonesuch  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'hooktrain\.nonesuch'$"):
        importlib.import_module("hooktrain.nonesuch")
    with pytest.raises(AttributeError, match="'LossSum' object has no attribute 'nonesuch'$"):
        LossSum(None, 1).nonesuch  # noqa: B018
    assert issubclass(PluginError, HooktrainError) and not hasattr(PluginRecord, "nonesuch")


@pytest.mark.parametrize(
    "made", [BatchCounts(2.0, 3, num_target_tokens=2), LossSum(None, denominator=2.0)], ids=["counts", "sum"]
)
def test_keywords_of_what_hooks_return(made):
    name = type(made).__name__
    with pytest.raises(TypeError, match=facts(name, "'weight'", f"{name}.denominator")):
        type(made)(weight=1)
    assert made._replace(denominator=1.0).denominator == 1.0


def test_a_parameter_that_a_hook_does_not_have_is_named_with_those_it_has():
    class Misspelt:
        @impl
        def collect_metrics(self, trainr): ...

    named = ["'Misspelt'", "hook collect_metrics", "'trainr'", "did you mean 'trainer'?", "it has trainer"]
    with pytest.raises(PluginError, match=facts(*named)):
        make_host(discover=False).register(Misspelt())


def test_a_part_without_a_required_member_is_refused(run_tiny):
    class Brings:
        @impl(tryfirst=True)
        def make_scheduler(self):
            return object()

    with pytest.raises(
        PluginError, match=facts("scheduler", "make_scheduler", "no 'get_last_lr'", "expected a Scheduler")
    ):
        run_tiny(Brings())
