"""Callbacks named in a recipe: valid entries, and errors that are reported together before anything is built."""

from __future__ import annotations

import re
from pathlib import Path

import hooktrain_callbacks
import pytest
import yaml
from hooktrain_callbacks.events import LIGHTNING, NEVER, TRANSFORMERS
from lightning.pytorch.callbacks import Callback
from transformers import TrainerCallback

from hooktrain import RecipeError, load
from hooktrain.testing import TinyPlugin

README = Path(__file__).parents[3] / "plugins" / "hooktrain-callbacks" / "README.md"


def complaints(tiny_recipe, given) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load({**tiny_recipe, "callbacks": given}, plugins=[TinyPlugin()])
    return [str(complaint) for complaint in caught.value.complaints]


def test_everything_that_is_wrong_is_named_at_once(tiny_recipe):
    found = complaints(
        tiny_recipe,
        {
            "use": [
                "transformers.EarlyStopingCallback",
                "EarlyStoppingCallback",
                "no_such_package.Callback",
                {"name": "transformers.EarlyStoppingCallback", "patience": 3},
                {"name": "lightning.pytorch.callbacks.Timer", "duration": "soon"},
                "transformers.Trainer",
                "collections.OrderedDict",
                "transformers.trainer_callback.DefaultFlowCallback",
            ],
            "arguments": {"learning_rate": 1.0, "load_best_model_at_end": True, "metric_for_best_modle": "loss"},
        },
    )
    expected = [
        r"callbacks\[0\]: .*'EarlyStopingCallback'.*'EarlyStoppingCallback'",
        r"callbacks\[1\]: .*'EarlyStoppingCallback'.* transformers.EarlyStoppingCallback",
        r"callbacks\[2\]: .*pip install no_such_package",
        r"callbacks\[3\]: .*'patience'.*early_stopping_patience, early_stopping_threshold",
        r"callbacks\[4\]: .*Timer.*MisconfigurationException",
        r"callbacks\[5\]: .*transformers\.Trainer",
        r"callbacks\[6\]: .*collections.OrderedDict.* expected a TrainerCallback",
        r"callbacks\[7\]: .*DefaultFlowCallback.*log_interval, eval_interval and checkpoint",
        r"callbacks.arguments.learning_rate: .*optimizer.lr",
        r"callbacks.arguments.load_best_model_at_end: .*keep_best",
        r"callbacks.arguments.metric_for_best_modle: .*TrainingArguments.*'metric_for_best_model'",
    ]
    assert len(found) == len(expected)
    for text, pattern in zip(found, expected, strict=True):
        assert re.match(pattern, text), text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([{"early_stopping_patience": 3}], "expected 'name', the callback's class"),
        ([{"name": "a.B", "on_error": "ignore"}], "on_error is 'ignore', expected one of stop, disable, warn"),
        (
            [{"name": "a.B", "x": 1, "arguments": {"x": 1}}],
            "'x' is given twice, directly and under arguments; keep one",
        ),
        (["transformers.PrinterCallback", 3], "callbacks[1]: given 3 (a whole number), expected text"),
        ({"use": [3]}, "callbacks.use[0]: given 3 (a whole number), expected text"),
        ([{"name": 3}], "callbacks: given {'name': 3}, expected 'name'"),
        ("transformers.PrinterCallback", "expected a list"),
    ],
)
def test_entries_are_read_strictly(tiny_recipe, given, text):
    (found,) = complaints(tiny_recipe, given)
    assert text in found


def test_the_recipe_can_be_read_again(tiny_recipe):
    given = [
        "transformers.PrinterCallback",
        {"name": "transformers.EarlyStoppingCallback", "early_stopping_patience": 2},
    ]
    made, _ = load({**tiny_recipe, "callbacks": given}, plugins=[TinyPlugin()])
    assert made.as_dict()["callbacks"]["use"] == given
    assert load(yaml.safe_load(made.as_yaml()), plugins=[TinyPlugin()])[0].settings == made.settings


@pytest.mark.parametrize("greater", [True, False])
def test_arguments_reach_transformers(run_tiny, greater):
    trainer = run_tiny(
        callbacks={
            "use": [{"name": "transformers.EarlyStoppingCallback", "early_stopping_patience": 2}],
            "arguments": {"metric_for_best_model": "held_out_loss", "greater_is_better": greater},
        },
        eval_interval=1,
        optimizer={"type": "sgd", "lr": 50.0},
        train_iters=4,
    )
    # the first step throws the loss up, the others bring it down
    assert (trainer.state.stop_reason is not None) == greater


def test_without_callbacks_no_hook_is_called(run_tiny):
    trainer = run_tiny()
    called = [
        hook
        for hook in trainer.host.records["callbacks"].hooks
        if "callbacks" in [found.plugin_name for found in trainer.host.implementations(hook)]
    ]
    assert called == []
    assert trainer.host.records["callbacks"].state == "unused"


def test_callbacks_may_come_and_go_when_a_run_is_resumed(run_tiny, tmp_path):
    saving = {"checkpoint": {"type": "full", "save_every_n_steps": 3}}
    begun = run_tiny(callbacks=["lightning.pytorch.callbacks.LearningRateMonitor"], **saving)
    from_there = {"resume_from": begun.run_dir / "checkpoints" / "step-00000003"}
    again = run_tiny(
        callbacks=["transformers.PrinterCallback"], **saving, trainer=from_there, run_dir=str(tmp_path / "b")
    )
    assert again.global_step == 7


def test_the_tables_are_complete():
    """Every event of the real classes is either called or known never to be."""
    for base, table in ((TrainerCallback, TRANSFORMERS), (Callback, LIGHTNING)):
        public = {name for name in vars(base) if not name.startswith("_") and name != "state_key"}
        assert public == set(table) | (NEVER & public)


def test_the_readme_lists_the_events():
    text = README.read_text(encoding="utf-8")
    for table in (TRANSFORMERS, LIGHTNING):
        for event, hooks in table.items():
            assert f"| `{event}` | {', '.join(f'`{hook}`' for hook in hooks)} |" in text, event
    assert hooktrain_callbacks.Callbacks.__name__ in text
