"""What the console says at the end of a run: how far it came, why it ended there, and how to resume it."""

from __future__ import annotations

import pytest

from hooktrain import hookimpl

SHOWN = {"console": {"enabled": True}}


class Stops:
    """Ends a run after three steps as a signal does."""

    @hookimpl
    def on_step_end(self, trainer):
        if trainer.global_step == 3:
            trainer.request_stop("SIGINT, received by rank 0", urgent=True, exit_status=130)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"type": "full", "auto_resume": True}, "to resume: the same command\n"),
        ({"type": "full"}, "to resume: the same command with --resume "),
        (None, "to resume: not possible, as no checkpoint was saved"),
    ],
)
def test_a_run_that_somebody_ends_says_how_to_resume_it(run_tiny, capsys, engine, said):
    run_tiny(Stops(), **SHOWN, train_iters=8, checkpoint=engine or [])
    shown = capsys.readouterr().out
    assert "trained 3 of 8 steps, " in shown and "stopped early: SIGINT" in shown
    assert said in shown
    assert ("step-00000003" in shown.partition("to resume")[2]) == ("--resume" in said)


@pytest.mark.parametrize("key", ["exit_iteration", "exit_iteration_this_run", "max_tokens"])
def test_a_run_that_the_recipe_ends_early_names_the_key(run_tiny, capsys, key):
    run_tiny(**SHOWN, train_iters=8, **{key: 3})
    shown = capsys.readouterr().out
    assert f"stopped early: {key} is 3" in shown and " of 8 steps" in shown and "to resume" not in shown
    run_tiny(**SHOWN, train_iters=2)
    shown = capsys.readouterr().out
    assert "trained 2 steps, " in shown and "early" not in shown


def test_evaluations_are_named_once(run_tiny, capsys):
    run_tiny(**SHOWN, train_iters=1, data={"rows": 8, "eval_rows": 2}, eval_interval=1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluated at step 1: ")]
    assert "eval/" not in line and "/loss " in line
