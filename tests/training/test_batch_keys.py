"""Micro-batches that say themselves what their loss is divided by, and documents that nobody has to look for."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from hooktrain_torch.sequence import SequenceGroup, divide

from hooktrain import HooktrainError, LoopHookError, StepOutput, World, document_keys, hookimpl, padding_batch
from hooktrain.cli.guide import FOLDER
from hooktrain.testing import Recorder, train
from tests.facts import facts


class InPairs:
    """Has the collate function of the tiny data say that two sequences are one pair."""

    def __init__(self, counts="pairs"):
        self.counts = counts

    @hookimpl(wrapper=True)
    def make_data(self):
        data = yield
        collate = data.collate
        data.collate = lambda rows: {
            **collate(rows),
            "denominator": len(rows) / 2,
            "counts": "pairs",
            "tokens": 7,
        }
        return data

    @hookimpl(wrapper=True)
    def compute_loss(self, batch):
        assert not batch.keys() & {"denominator", "counts", "tokens"}, "they stay on the host"
        loss = yield
        return loss._replace(counts=self.counts)


def test_a_batch_says_what_its_loss_is_divided_by(run_tiny, tmp_path, capsys):
    recorder, rest = Recorder(), Recorder()
    settings = {"data": {"rows": 13}, "console": {"enabled": True}, "eval_interval": 3}
    settings["checkpoint"] = [{"type": "full", "save_every_n_steps": 3}]
    trainer = run_tiny(InPairs(), recorder, **settings)
    steps = trainer.global_step
    assert recorder.metrics[-1]["pairs"] == pytest.approx(6.5 * recorder.metrics[-1]["epoch"])
    assert recorder.metrics[-1]["tokens"] == 7 * steps
    assert f"({recorder.metrics[-1]['pairs']:.10g} pairs)" in capsys.readouterr().out
    assert json.loads((trainer.run_dir / "metrics.jsonl").read_text().splitlines()[-1])["pairs"] > 6
    resume = {"resume_from": tmp_path / "run" / "checkpoints" / "step-00000003"}
    run_tiny(InPairs(), rest, trainer=resume, run_dir=str(tmp_path / "rest"), **settings)
    assert [line["pairs"] for line in rest.metrics] == [line["pairs"] for line in recorder.metrics[3:]]
    assert [line["loss"] for line in rest.metrics] == [line["loss"] for line in recorder.metrics[3:]]


def test_a_run_that_counts_tokens_says_so(run_tiny, capsys):
    trainer = run_tiny(train_iters=2, console={"enabled": True})
    assert trainer.state.counted == {}
    assert f"({trainer.state.supervised_tokens} of them trained)" in capsys.readouterr().out


def test_a_loss_in_another_unit_than_the_batch_is_refused(run_tiny):
    with pytest.raises(LoopHookError, match=facts("compute_loss", "1.0 tokens", "counts='pairs'")):
        run_tiny(InPairs(counts="tokens"))


def test_a_metric_with_the_name_of_the_unit_is_refused(run_tiny):
    class Logs:
        @hookimpl
        def collect_metrics(self):
            return {"pairs": 1.0}

    with pytest.raises(HooktrainError, match=facts("'pairs'", "the engine logs this one")):
        run_tiny(InPairs(), Logs())


def test_a_padding_batch_adds_nothing(run_tiny):
    """Also where the loss of nothing is not nothing, as that of a pair whose answers are equal."""

    class Constant(InPairs):
        @hookimpl(wrapper=True)
        def compute_loss(self):
            loss = yield
            return loss._replace(total=loss.total + 5.0, counts="pairs", sums={"ones": loss.total.detach() * 0 + 1})

    class Pads:
        @hookimpl
        def run_step(self, trainer, batches):
            batches = [*batches, padding_batch(batches[0])]
            trainer.begin_step(batches)
            total = sum(trainer.microbatch(batch).total for batch in batches)
            return StepOutput(total, *trainer.optimizer_step())

    plain, padded = Recorder(), Recorder()
    run_tiny(Constant(), plain, data={"eval_rows": 0})
    run_tiny(Constant(), Pads(), padded, data={"eval_rows": 0})
    lines = [[(line["loss"], line["ones"], line["pairs"]) for line in each.metrics] for each in (plain, padded)]
    assert lines[0] == lines[1]


def test_pairs_wait_for_nothing(tmp_path, tiny_llama, monkeypatch):
    """The plugin of the guide, with a model of transformers: on the meta device nobody can read a value."""
    monkeypatch.syspath_prepend(str(FOLDER / "code"))
    pairs = importlib.import_module("pairs")
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Is it?", "chosen": "It is.", "rejected": "What?"}) + "\n")
    model = {"name_or_path": str(tiny_llama), "dtype": "fp32"}
    recipe = {"type": "pairs", "run_dir": str(tmp_path / "run"), "model": model, "data": {"path": str(path)}}
    trainer = train(recipe, pairs)
    sys.modules.pop("pairs")
    batch = trainer.on_device(trainer.data.collate([trainer.data.train[0]]))
    meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    model = trainer.model.to("meta")
    assert trainer.loss(model, meta, 1.0).total.is_meta
    looks_for_documents = {name: meta[name] for name in ("input_ids", "position_ids")}
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        model(**looks_for_documents)


def test_a_denominator_cannot_be_shared_by_ranks():
    batch = {"input_ids": torch.zeros(1, 4), "denominator": 2.0, "counts": "pairs", **document_keys([4])}
    with pytest.raises(HooktrainError, match=facts("sequence_parallel", "counts pairs", "remove")):
        divide(batch, SequenceGroup(World(rank=0, world_size=2), 2, None))
