"""Weighted tokens from the data to the gradients: equal to a plain loop in float64, however a step is divided."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hooktrain_sft import collate_flat, collate_stacked, per_token
from hooktrain_sft.data.arrow_store import StoreWriter, TokenStore
from hooktrain_sft.data.documents import Documents, fit
from hooktrain_sft.data.packed_dataset import PackedDataset
from hooktrain_sft.data.packing import Bins
from hooktrain_sft.loss.config import DFTLossConfig, SFTLossConfig
from hooktrain_sft.loss.selective_loss import SelectiveLoss
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hooktrain import DataError, LoopHookError, LossSum, NonFiniteError, Trainer, hookimpl, padding_batch
from hooktrain.testing import Recorder
from hooktrain.testing.tiny_llama import make_tokenizer, sample_rows
from hooktrain.training.default_loop import Loop
from tests.facts import facts

WEIGHTS = (0.3, 1.0, 2.5, 0.0, 0.1, 1.0)


def weighted_rows() -> list[dict[str, Any]]:
    """Conversations whose answers have weights, of which the last and one more are plain."""
    rows = sample_rows()
    for row, weight in zip(rows, WEIGHTS, strict=True):
        row["messages"].append({"role": "user", "content": "What?"})
        row["messages"].append({"role": "assistant", "content": "It is.", "weight": weight})
    return rows


def documents_of(batch: Mapping[str, Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids, labels and weights of each document of a micro-batch."""
    labels = batch["labels"].flatten()
    weights = batch["token_weights"].flatten() if "token_weights" in batch else (labels != -100).float()
    values = batch["input_ids"].flatten(), labels, weights
    return list(zip(*(value.split(list(batch["document_lengths"])) for value in values), strict=True))


def plain(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], each: Callable[[Tensor, Tensor], Tensor] | None = None
) -> tuple[float, float, dict[str, Tensor]]:
    """The weighted mean of a step, the sum of its weights, and the gradients: a plain loop in float64."""
    exact = copy.deepcopy(model).double()
    exact.zero_grad()
    documents = [document for batch in batches for document in documents_of(batch)]
    divisor = sum(float(w[1:][goal[1:] != -100].double().sum()) for _, goal, w in documents)
    mean = 0.0
    for ids, goal, weights in documents:
        logits = exact(ids[None]).logits[0, :-1]
        there = goal[1:] != -100
        losses = (each or _cross_entropy)(logits[there], goal[1:][there])
        total = (losses * weights[1:][there].double()).sum() / divisor
        mean += float(total.detach())
        total.backward()
    return mean, divisor, {name: value.grad for name, value in exact.named_parameters() if value.grad is not None}


def _cross_entropy(logits: Tensor, goal: Tensor) -> Tensor:
    return functional.cross_entropy(logits, goal, reduction="none")


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float((found[name].double() - value).norm() / value.norm()) <= tolerance, name


class Watch:
    """Has the run compute in float64, and compares the gradients of each step with those of the plain loop."""

    def __init__(self) -> None:
        self.batches: list[Mapping[str, Any]] = []
        self.seen: list[tuple[float, float, float]] = []

    @hookimpl(wrapper=True)
    def make_model(self) -> Any:
        return (yield).double()

    @hookimpl
    def on_step_start(self, batches: Any) -> None:
        self.batches = list(batches)

    @hookimpl
    def on_optimizer_step_start(self, trainer: Any) -> None:
        mean, divisor, expected = plain(trainer.model, self.batches)
        found = {name: value.grad for name, value in trainer.model.named_parameters()}
        assert_close(found, expected)
        self.seen.append((mean, divisor, trainer.denominator))


@pytest.mark.parametrize("packed", [True, False])
def test_runs_equal_a_plain_loop(
    run: Callable[..., Trainer], recipe: dict[str, Any], write_rows: Any, packed: bool
) -> None:
    """Accumulated micro-batches of one and two sequences, from a source with weights and one without; evaluation."""
    rows = str(write_rows(weighted_rows(), "weighted.jsonl"))
    sources = {"sources": [rows, *recipe["data"]["sources"]], "eval_sources": [rows]}
    data = {**recipe["data"], **sources, "pack_samples": packed, "max_length": 100}
    watch, recorder = Watch(), Recorder()
    settings = {"micro_batch_size": 1 if packed else 2, "gradient_accumulation_steps": 2, "train_iters": 3}
    trainer = run(watch, recorder, data=data, **settings)
    assert len(watch.seen) == len(recorder.metrics) == 3
    for line, (mean, divisor, denominator) in zip(recorder.metrics, watch.seen, strict=True):
        assert denominator == pytest.approx(divisor, rel=1e-12)
        assert line["loss"] == pytest.approx(mean, rel=1e-6)
        assert 0 <= line["token_accuracy"] <= 1
    sequences, evaluated = trainer.data.train, trainer.data.evaluation["weighted"]
    assert {"token_weights" in sequences[number] for number in range(len(sequences))} == {True, False}
    trained = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in watch.batches)
    before, after = recorder.metrics[-2:]
    assert after["supervised_tokens"] - before["supervised_tokens"] == trained, "counts, whatever the weights"
    batch = collate_stacked([evaluated[number] for number in range(len(evaluated))])
    mean, _, _ = plain(trainer.model, [batch])
    assert recorder.metrics[-1]["eval/weighted/loss"] == pytest.approx(mean, rel=1e-6)


RANKS = """
@hookimpl(wrapper=True)
def make_model():
    return (yield).double()

@hookimpl
def on_step_start(batches):
    names = "input_ids", "labels", "token_weights"
    note(batches=[{**{name: batch[name].tolist() for name in names if name in batch},
                   "document_lengths": batch["document_lengths"]} for batch in batches])

@hookimpl
def on_optimizer_step_start(trainer):
    note(gradients={name: p.grad.tolist() for name, p in trainer.model.named_parameters()},
         denominator=trainer.denominator)
"""


@pytest.mark.thorough
@pytest.mark.preload("datasets", "transformers", "transformers.models.llama.modeling_llama")
def test_two_ranks_equal_a_plain_loop(
    run_ranks: Any, rank_notes: Any, recipe: dict[str, Any], write_rows: Any, tmp_path: Path
) -> None:
    """Packed and accumulated: three sequences in a window of four, of which one only fills a place."""
    from transformers import LlamaForCausalLM

    rows = str(write_rows(weighted_rows(), "weighted.jsonl"))
    data = {**recipe["data"], "sources": [rows], "eval_sources": [], "max_length": 100, "shuffle": False}
    settings = {"micro_batch_size": 1, "gradient_accumulation_steps": 2, "train_iters": 1}
    done = run_ranks(2, RANKS, **{**recipe, "data": data, "run_dir": str(tmp_path / "ranks"), **settings})
    assert done.status == 0, done.output
    notes = [rank_notes(rank) for rank in (0, 1)]
    batches = [
        {name: value if name == "document_lengths" else torch.tensor(value) for name, value in batch.items()}
        for lines in notes
        for line in lines
        for batch in line.get("batches", ())
    ]
    assert len(batches) == 4
    mean, divisor, expected = plain(LlamaForCausalLM.from_pretrained(recipe["model"]["name_or_path"]), batches)
    for lines in notes:
        (line,) = [line for line in lines if "gradients" in line]
        assert line["denominator"] == pytest.approx(divisor, rel=1e-12)
        found = {name: torch.tensor(value, dtype=torch.float64) for name, value in line["gradients"].items()}
        assert_close(found, expected)
    assert done.metrics[0]["loss"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(
    ("config", "each"),
    [
        (SFTLossConfig(chunk_size=5), None),
        (
            SFTLossConfig(label_smoothing=0.1, z_loss=0.01),
            lambda logits, goal: (
                functional.cross_entropy(logits, goal, reduction="none", label_smoothing=0.1)
                + 0.01 * torch.logsumexp(logits, -1).square()
            ),
        ),
        (
            DFTLossConfig(all_logits=True),
            lambda logits, goal: (loss := _cross_entropy(logits, goal)) * torch.exp(-loss.detach()),
        ),
        ("per_token", lambda logits, goal: _cross_entropy(logits, goal).square()),
    ],
    ids=["sft", "smoothing and z-loss", "dft of all logits", "per_token"],
)
@pytest.mark.parametrize("called", [False, True], ids=["head", "head with a hook"])
def test_losses_equal_a_plain_loop(make_llama: Callable[..., Any], config: Any, each: Any, called: bool) -> None:
    model, batch = make_llama().double(), batch_of(random_documents(3)[:1])
    loss = per_token(each, 5) if config == "per_token" else SelectiveLoss.of(config)
    if called:
        model.lm_head.register_forward_hook(lambda module, args, output: output * 1.0)
    counts = Loop().count_batch(batch)
    given = {name: value for name, value in batch.items() if name != "tokens"}
    found = loss(model, {**given, "num_target_tokens": counts.num_target_tokens}, counts.denominator)
    (found.total / found.denominator).backward()
    mean, divisor, expected = plain(model, [batch], each)
    assert (found.denominator, found.counts) == (pytest.approx(divisor, rel=1e-12), "weighted tokens")
    assert float(found.total.detach()) / divisor == pytest.approx(mean, rel=1e-9)
    assert_close({name: value.grad for name, value in model.named_parameters()}, expected)


def test_the_router_loss_is_a_mean_over_the_weights(make_llama: Callable[..., Any]) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    size = make_llama().config.to_dict()
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    config = {name: size[name] for name in names.split()}
    model = MixtralForCausalLM(MixtralConfig(**config, num_local_experts=4, output_router_logits=True))
    batch = batch_of(random_documents(3)[:1])
    counts = Loop().count_batch(batch)
    found = SelectiveLoss.of(SFTLossConfig())(
        model, {**batch, "num_target_tokens": counts.num_target_tokens}, counts.denominator
    )
    expected = float(model(input_ids=batch["input_ids"], output_router_logits=True).aux_loss.detach())
    found_mean = float(found.terms["router_loss"].total.detach()) / counts.denominator
    assert found_mean == pytest.approx(expected, rel=1e-5)
    assert counts.denominator != counts.num_target_tokens


def test_weights_of_zero_and_one_are_todays_losses_bit_by_bit(make_llama: Callable[..., Any]) -> None:
    documents = [(ids, (weights > 1).astype(np.float32)) for ids, weights in random_documents(5)]
    model = make_llama()
    results = []
    for masks in (documents, [(ids, mask.astype(np.bool_)) for ids, mask in documents]):
        batch = batch_of(masks)
        counts = Loop().count_batch(batch)
        model.zero_grad()
        found = SelectiveLoss.of(SFTLossConfig(z_loss=0.01))(
            model, {**batch, "num_target_tokens": counts.num_target_tokens}, counts.denominator
        )
        (found.total / found.denominator).backward()
        gradients = [value.grad.clone() for value in model.parameters()]
        results.append([found.total, torch.tensor(found.denominator), *found.sums.values(), *gradients])
    assert "token_weights" in batch_of(documents) and "token_weights" not in batch
    assert all(torch.equal(one.double(), other.double()) for one, other in zip(*results, strict=True))


# ------------------------------------------------------------------------------------- however a step is divided


def random_documents(seed: int, count: int = 6) -> list[tuple[Any, Any]]:
    made = np.random.default_rng(seed)
    lengths = made.integers(2, 14, count)
    return [
        (made.integers(1, 61, n).astype(np.int32), (made.choice([0, 1, 0.1, 2.7], n)).astype(np.float32))
        for n in lengths
    ]


def batch_of(documents: Sequence[tuple[Any, Any]], stacked: bool = False) -> dict[str, Any]:
    """A micro-batch of the documents in one sequence, or each in its own."""
    made = Documents.of(documents)
    bins = None if stacked else Bins.of([list(range(len(documents)))])
    sequences = PackedDataset(made, bins)
    rows = [sequences[number] for number in range(len(sequences))]
    return collate_stacked(rows) if stacked else collate_flat(rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A model that keeps the documents of a sequence apart, as a run builds it."""
    from hooktrain_hf import HFModelConfig, build_model

    from hooktrain import World
    from hooktrain.testing.tiny_llama import save_llama

    folder = save_llama(tmp_path_factory.mktemp("model"))
    return build_model(HFModelConfig(name_or_path=str(folder)), None, World()).double()


def gradients(model: nn.Module, batches: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    loss = SelectiveLoss.of(SFTLossConfig())
    counts = [Loop().count_batch(batch) for batch in batches]
    divisor = sum(each.denominator for each in counts)
    model.zero_grad()
    for batch, each in zip(batches, counts, strict=True):
        given = {**{name: value for name, value in batch.items() if name != "tokens"}}
        if "token_weights" in batch:
            given["num_target_tokens"] = each.num_target_tokens
        (loss(model, given, each.denominator).total / divisor).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters()}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(6)), st.sets(st.integers(1, 5)), st.lists(st.booleans(), min_size=6, max_size=6))
def test_order_splits_and_packing_leave_the_gradients_alone(
    model: nn.Module, order: list[int], cuts: set[int], stacked: list[bool]
) -> None:
    documents = random_documents(1)
    documents[2] = documents[2][0], np.ones(len(documents[2][0]), np.bool_)  # without weights
    expected = gradients(model, [batch_of(documents)])
    bounds = [0, *sorted(cuts), 6]
    parts = [[documents[i] for i in order[a:b]] for a, b in itertools.pairwise(bounds)]
    batches = [batch_of(part, each) for part, each in zip(parts, stacked, strict=False)]
    batches.append(padding_batch(batches[0]))  # of a rank that has run out of rows
    assert_close(gradients(model, batches), expected)


# --------------------------------------------------------------------------------------------- data and batches


def test_a_store_keeps_masks_and_weights_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hooktrain_sft.data.arrow_store._PIECE_TOKENS", 30)
    documents = random_documents(4, 12)
    writer = StoreWriter(tmp_path / "tokens.arrow")
    kept = []
    for number, (ids, weights) in enumerate(documents):
        mask = weights if number % 5 == 0 else weights > 0
        writer.add(ids, mask, np.array([len(ids)]))
        kept.append((ids, mask))
    digest, blocks = writer.close()
    store = TokenStore(tmp_path / "tokens.arrow", digest, blocks)
    assert len({piece.trained.dtype for piece in store.pieces}) == 2, "a piece without weights has none"
    found, expected = Documents.of_store(store), Documents.of(kept)
    assert (found.supervised == expected.supervised).all()
    for (ids, mask), (other_ids, other_mask) in zip(found, expected, strict=True):
        assert (ids == other_ids).all() and (mask.astype(np.float32) == other_mask.astype(np.float32)).all()


def test_splits_and_cuts_keep_weights() -> None:
    ids, weights = np.arange(1, 11, dtype=np.int32), np.array([0, 0.5, 0, 0.25, 2, 0, 0, 0.1, 1, 3], np.float32)
    fitted, count = fit(Documents.of([(ids, weights)]), 4, "split", "drop", "here")
    # the first token of each piece is predicted by none
    assert [mask.tolist() for _, mask in fitted] == [[0, 0.5, 0, 0.25], [0, 0, 0, pytest.approx(0.1)], [0, 3]]
    assert (count.tokens_trained, fitted.supervised.tolist()) == (4, [2, 1, 1])
    cut, _ = fit(Documents.of([(ids, weights)]), 5, "truncate", "drop", "here")
    assert cut.tokens(0)[1].tolist() == [0, 0.5, 0, 0.25, 2] and cut.supervised.tolist() == [3]


def test_a_batch_without_weights_holds_none() -> None:
    documents = [(ids, weights > 0) for ids, weights in random_documents(2)]
    assert set(batch_of(documents, stacked=True)) == {
        *("input_ids", "labels", "position_ids", "tokens", "document_lengths"),
        *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
    }


def test_padding_weighs_nothing() -> None:
    documents = random_documents(2)
    assert Loop().count_batch(batch_of(documents, stacked=True)) == Loop().count_batch(batch_of(documents))._replace(
        tokens=sum(len(ids) for ids, _ in documents)
    )
    assert Loop().count_batch(padding_batch(batch_of(documents))).denominator == 0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_batches_with_other_weights_are_refused(weight: float) -> None:
    batch = batch_of(random_documents(2))
    batch["token_weights"][batch["labels"] != -100] = weight
    with pytest.raises(DataError, match=facts("micro-batch: token_weights", "negative", "not finite")):
        Loop().count_batch(batch)


def test_a_cache_is_not_read_with_other_rules(
    run: Callable[..., Trainer], recipe: dict[str, Any], tmp_path: Path
) -> None:
    def found(weight: float | None) -> tuple[bool, set[float]]:
        rules = [] if weight is None else [{"match": "answer|it", "weight": weight}]
        data = {**recipe["data"], "cache_dir": str(tmp_path / "cache"), "weights": rules}
        trainer = run(data=data, train_iters=1)
        sequences = trainer.data.train
        weights = {float(w) for n in range(len(sequences)) for w in sequences[n].get("token_weights", [1.0])}
        return trainer.data.report["sources"][0]["cached"], weights

    assert found(None) == (False, {1.0})
    assert found(0.5) == (False, {0.0, 0.5, 1.0})
    assert found(0.5) == (True, {0.0, 0.5, 1.0})


def test_rules_that_fit_nothing_are_named(
    run: Callable[..., Trainer], recipe: dict[str, Any], tmp_path: Path, write_rows: Any
) -> None:
    rules = [{"match": "answer", "weight": 2}, {"match": "nowhere|", "weight": 3}, {"role": "tool", "weight": 0.5}]
    data = {**recipe["data"], "cache_dir": str(tmp_path / "cache"), "weights": rules, "train_on": "completion"}
    text = str(write_rows("text", "text.jsonl"))
    for sources in ([recipe["data"]["sources"][0]], [text], [text]):  # the last one from the cache
        warnings = run(data={**data, "sources": sources, "eval_sources": []}, train_iters=1).data.report["warnings"]
        assert [one for one in warnings if "weights[" in one] == [
            f"data.weights[{number}]: {what} fits no trained text of any example, so that the rule has no effect;"
            " correct or remove it"
            for number, what in ((1, "match 'nowhere|'"), (2, "role 'tool'"))
        ]
        assert not any("rule fits" in one for one in warnings)


def test_a_stream_has_weights(run: Callable[..., Trainer], recipe: dict[str, Any], write_rows: Any) -> None:
    rows = {"name_or_path": str(write_rows(weighted_rows(), "weighted.jsonl")), "streaming": True}
    watch = Watch()
    run(watch, data={**recipe["data"], "sources": [rows], "max_length": 100}, micro_batch_size=2)
    assert len(watch.seen) == 4 and any(divisor % 1 for _, divisor, _ in watch.seen)


def test_weighted_examples_are_shown(run_chat: Any, recipe: dict[str, Any], write_rows: Any) -> None:
    from hooktrain_sft.config import SFTDataConfig
    from hooktrain_sft.data.preview_rows import preview_examples

    from hooktrain import World
    from hooktrain.testing.in_process import host_of
    from hooktrain.training.load import load

    rows = str(write_rows(weighted_rows()[:1], "weighted.jsonl"))
    data = {**recipe["data"], "sources": [rows], "eval_sources": [], "weights": [{"match": "two", "weight": 4}]}
    made, host = load({**recipe, "data": data})
    assert isinstance(made.data, SFTDataConfig) and host_of is not None
    (shown,) = preview_examples(made.data, make_tokenizer(), World(), host.hooks, 1)
    pieces = [(text, rule.rpartition(", ")[2]) for text, trained, rule in shown.pieces if trained]
    assert ("two", "weight 4") in pieces and pieces[-1] == ("It is.<|im_end|>", "weight 0.3")
    assert "weights add up to" in shown.note


# ------------------------------------------------------------------------------------------------------- refusals


def test_a_step_whose_weights_are_zero_moves_nothing(run: Callable[..., Trainer]) -> None:
    class Zero:
        @hookimpl(wrapper=True)
        def make_data(self) -> Any:
            data = yield
            collate = data.collate

            def zero(rows: Any) -> Any:
                batch = collate(rows)
                return {**batch, "token_weights": torch.zeros_like(batch["labels"], dtype=torch.float32)}

            data.collate, data.evaluation = zero, {}
            return data

    with pytest.raises(NonFiniteError, match=facts("4 of 4 steps updated no weight", "nothing was supervised")):
        run(Zero())


def test_a_loss_that_reads_no_weights_is_refused(
    run: Callable[..., Trainer], recipe: dict[str, Any], write_rows: Any
) -> None:
    class Plain:
        @hookimpl
        def compute_loss(self, model: Any, batch: Any, denominator: float) -> LossSum:
            return LossSum(model(input_ids=batch["input_ids"]).logits.sum(), denominator)

    rows = str(write_rows(weighted_rows(), "weighted.jsonl"))
    expected = facts("compute_loss", "'Plain'", "loss of each token times its weight", "counts='weighted tokens'")
    with pytest.raises(LoopHookError, match=expected):
        run(Plain(), data={**recipe["data"], "sources": [rows]})


def test_a_fused_head_without_weights_is_refused(
    run: Callable[..., Trainer], recipe: dict[str, Any], write_rows: Any
) -> None:
    from hooktrain import ModelError

    def fused(hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
        return functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum"), {}

    class Fused:
        @hookimpl
        def make_head_loss(self) -> Any:
            return fused

    rows = str(write_rows(weighted_rows(), "weighted.jsonl"))
    with pytest.raises(ModelError, match=facts("token_weights", "fused", "make_head_loss")):
        run(Fused(), data={**recipe["data"], "sources": [rows]})


def test_the_readers_of_rows_name_the_place(
    run: Callable[..., Trainer], recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "ids.jsonl"
    rows = [{"input_ids": [5, 6, 7], "token_weights": [1, 1, 1]}, {"input_ids": [5, 6], "token_weights": [1, -2]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=facts("ids.jsonl, example 1", "token_weights[1]", "-2")):
        run(data={**recipe["data"], "sources": [str(path)]})
