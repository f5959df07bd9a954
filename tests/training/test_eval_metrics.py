"""Metrics of evaluations with models and hooks of strangers, on one rank and on two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch

from hooktrain import DataError, Generation, HooktrainError, PluginError, hookimpl
from hooktrain.testing import Recorder
from hooktrain.training.eval_metrics import answers_in
from tests.facts import facts

PLUGIN = """
import attrs, torch
from hooktrain import Generation

@attrs.frozen(kw_only=True)
class Config:
    pass

class Metric:
    def sum_logits(self, logits, targets):
        return {"right": (logits.argmax(1) == targets).sum(), "tokens": torch.tensor(len(targets))}
    def result(self, sums):
        return {"accuracy": sums["right"] / sums["tokens"], "tokens": sums["tokens"]}
    def score(self, generations):
        seen = sorted((each.prompt, each.reference) for each in generations)
        return {"answers": len(seen), "checksum": sum(len(p) + len(r) for p, r in seen)}

@hookimpl
def register_configs():
    return {"metric": {"counted": Config}}

@hookimpl
def make_metric(config):
    return Metric() if isinstance(config, Config) else None

@hookimpl
def visit_logits(model, batch, visit):
    labels = batch["labels"][:, 1:]
    logits = model(batch["input_ids"])[:, :-1]
    for row in range(len(labels)):
        visit(logits[row][labels[row] != -100], labels[row][labels[row] != -100])
    return True

@hookimpl
def generate_answers(examples):
    return [Generation(str(list(p)), "?", str(list(r))) for p, r in examples]

@hookimpl
def on_evaluate_end(trainer, metrics):
    try:
        note(**metrics)
    except NameError:
        pass
"""


class Counted:
    """The plugin above, as an object."""

    def __init__(self) -> None:
        import hooktrain

        scope: dict[str, Any] = {"hookimpl": hooktrain.hookimpl}
        exec(PLUGIN, scope)
        for name in ("register_configs", "make_metric", "visit_logits", "generate_answers"):
            setattr(self, name, scope[name])


def figures(recorder: Recorder) -> dict[str, float]:
    return {n: v for line in recorder.metrics for n, v in line.items() if n.startswith("eval/")}


def test_two_ranks_have_the_figures_of_one(run_ranks, rank_notes, run_tiny):
    """Five sequences on two ranks, one of which has a padding batch; both have the same figures."""
    settings = {
        "eval_metrics": ["counted"],
        "train_iters": 1,
        "optimizer": {"type": "adamw", "lr": 0.01},
        "eval_generation": {"batch_size": 2},
    }
    recorder = Recorder()
    run_tiny(recorder, Counted(), micro_batch_size=2, **settings)
    run = run_ranks(2, PLUGIN, micro_batch_size=1, **settings)
    assert run.status == 0, run.output
    expected = figures(recorder)
    assert {"eval/held_out/accuracy", "eval/held_out/tokens", "eval/held_out/answers"} <= expected.keys()
    for rank in (0, 1):
        assert rank_notes(rank)[-1] == pytest.approx(expected, abs=1e-5)


def test_metrics_go_with_every_trainer_type_and_change_no_resume(run_tiny, tmp_path):
    save = [{"type": "full", "save_every_n_steps": 1}]
    first = run_tiny(train_iters=2, exit_iteration=1, checkpoint=save)
    path = first.run_dir / "checkpoints/step-00000001"
    recorder = Recorder()
    run_tiny(
        Counted(),
        recorder,
        train_iters=2,
        checkpoint=save,
        eval_metrics=["counted"],
        run_dir=str(tmp_path / "b"),
        trainer={"resume_from": path},
    )
    assert "eval/held_out/accuracy" in figures(recorder)


class Silent(Counted):
    """Builds a metric, and answers for no model."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        delattr(self, hook)


@pytest.mark.parametrize("hook", ["visit_logits", "generate_answers"])
def test_a_model_that_nobody_measures_is_named(run_tiny, hook):
    blocked = {"block": ["sft", "preference"]}
    with pytest.raises(HooktrainError, match=facts("eval_metrics", "TinyModel", hook)):
        run_tiny(Silent(hook), eval_metrics=["counted"], plugins=blocked)


class TooFew(Silent):
    def __init__(self) -> None:
        super().__init__("generate_answers")

    @hookimpl
    def generate_answers(self) -> list[Generation]:
        return []


def test_missing_answers_are_named(run_tiny):
    with pytest.raises(PluginError, match=facts("generate_answers", "0 answers", "expected one for each")):
        run_tiny(TooFew(), eval_metrics=["counted"])


def answers(batch: dict[str, Any]) -> Iterator[Any]:
    return answers_in(batch, "set")


def test_answers_are_found_in_packs_padding_and_several_turns():
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, 3, 4, -100, 6, -100, 8]])
    packed = {"input_ids": ids, "labels": labels, "document_lengths": (4, 4)}
    assert list(answers(packed)) == [([1, 2], [3, 4]), ([5], [6]), ([5, 6, 7], [8])]
    whole = {"input_ids": ids, "labels": labels}
    assert list(answers(whole))[-1] == ([1, 2, 3, 4, 5, 6, 7], [8])
    padded = {**whole, "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]])}
    assert list(answers(padded)) == [([1, 2], [3])]
    text = {"input_ids": ids, "labels": ids}
    assert list(answers(text)) == [([1], [2, 3, 4, 5, 6, 7, 8])], "the first token has nothing before it"
    with pytest.raises(HooktrainError, match=facts("'set'", "strategy.sequence_parallel")):
        list(answers({"input_ids": ids, "shift_labels": labels}))
    with pytest.raises(HooktrainError, match=facts("'set'", "denominator", "labels")):
        list(answers({"denominator": 1}))


class Scored:
    """A metric over answers alone."""

    def score(self, generations: Any) -> dict[str, float]:
        return {}


def test_a_set_without_answers_is_named(run_tiny):
    """Of sequences of which only the first token is trained, as a plugin may collate them."""

    class Untrained:
        @hookimpl(wrapper=True)
        def make_data(self) -> Any:
            data = yield
            collate = data.collate

            def untrained(rows: Any) -> Any:
                batch = collate(rows)
                return {
                    **batch,
                    "labels": torch.full_like(batch["labels"], -100),
                    "denominator": 1.0,
                    "counts": "tokens",
                }

            return attrs.evolve(data, collate=untrained)

        @hookimpl
        def run_evaluate(self, trainer: Any) -> Any:
            return {f"eval/{name}/loss": 0.0 for name in trainer.data.evaluation}

        @hookimpl(tryfirst=True)
        def make_metric(self) -> Any:
            return Scored()

    with pytest.raises(DataError, match=facts("held_out", "no example", "eval_metrics")):
        run_tiny(Counted(), Untrained(), eval_metrics=["counted"], max_skipped_steps=0)
