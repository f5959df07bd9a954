"""Terms that plugins add to the loss: normalised, added, logged, and refused by name where they are wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hooktrain import (
    CheckpointError,
    CoefficientSchedule,
    HooktrainWarning,
    LoopHookError,
    LossSum,
    LossTerm,
    PluginError,
    PluginInfo,
    RecipeError,
    coefficient_at,
    hookimpl,
)
from hooktrain.inspection.plan import plan_of
from hooktrain.inspection.plan_text import print_plan
from hooktrain.inspection.value_origins import Sources
from hooktrain.testing import Recorder, TinyModel, TinyModelConfig, TinyPlugin
from hooktrain.training.gradient_conflicts import layer_of
from hooktrain.training.load import make_host
from tests.facts import facts
from tests.term_plugins import Evens, Gradients, Scale, evens, expected_gradients, scale

Run = Callable[..., Any]


# ------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize(("size", "accumulation"), [(2, 3), (13, 1)])
def test_gradients_are_those_of_a_plain_loop(run_tiny: Run, size: int, accumulation: int) -> None:
    seen, recorder = Gradients(), Recorder()
    trainer = run_tiny(
        Evens(), Scale(), seen, recorder, micro_batch_size=size, gradient_accumulation_steps=accumulation, epochs=2
    )
    assert len(seen.steps) == len(recorder.metrics)
    for step, line in zip(seen.steps, recorder.metrics, strict=True):
        gradients, means = expected_gradients(trainer.model, step["model"], step["batches"])
        for name, expected in gradients.items():
            torch.testing.assert_close(step["gradients"][name].double(), expected, rtol=1e-5, atol=1e-6, msg=name)
        counted = sum(evens(trainer.model, batch)[1] for batch in step["batches"])
        assert ("evens" in line) == (counted > 0), "a mean of nothing is left out"
        assert {name: line[name] for name in means if name in line} == pytest.approx(
            {name: value for name, value in means.items() if name in line}, rel=1e-5
        )


def test_evaluation_logs_each_and_adds_none(run_tiny: Run) -> None:
    plain, with_terms = Recorder(), Recorder()
    off = {"optimizer": {"type": "sgd", "lr": 0.0}}
    run_tiny(plain, **off)
    trainer = run_tiny(Evens(), Scale(), with_terms, **off)
    one, other = plain.metrics[-1], with_terms.metrics[-1]
    assert other["eval/held_out/loss"] == one["eval/held_out/loss"], "bit by bit"
    rows = trainer.data.evaluation["held_out"].rows
    batches = [trainer.data.collate(rows[at : at + 2]) for at in range(0, len(rows), 2)]
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    with torch.no_grad():
        found = [evens(trainer.model, batch) for batch in batches]
        scales = [float(scale(trainer.model, batch)) for batch in batches]
    assert other["eval/held_out/evens"] == pytest.approx(float(sum(t for t, _ in found)) / sum(n for _, n in found))
    weighted = sum(value * count for value, count in zip(scales, counts, strict=True))
    assert other["eval/held_out/scale"] == pytest.approx(weighted / sum(counts))


def test_a_log_line_is_over_all_steps_since_the_last(run_tiny: Run) -> None:
    seen, recorder = Gradients(), Recorder()
    trainer = run_tiny(Evens(), seen, recorder, log_interval=1000, optimizer={"type": "sgd", "lr": 0.0})
    found = [evens(trainer.model, batch) for step in seen.steps for batch in step["batches"]]
    expected = float(sum(total.detach() for total, _ in found)) / sum(number for _, number in found)
    assert recorder.metrics[-1]["evens"] == pytest.approx(expected, rel=1e-5)


def test_a_coefficient_of_zero_is_logged_and_trains_nothing(run_tiny: Run) -> None:
    class Watches:
        hooktrain_plugin = PluginInfo(only_observes=True)

        @hookimpl
        def collect_loss_terms(self, trainer: Any, batch: Any) -> dict[str, LossTerm]:
            return {"watched": LossTerm(scale(trainer.model, batch), 0.0)}

    plain, watched = Recorder(), Recorder()
    one, other = run_tiny(plain), run_tiny(Watches(), watched)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
    assert [line["loss"] for line in plain.metrics] == [line["loss"] for line in watched.metrics]
    assert all(line["watched"] > 0 for line in watched.metrics)


def test_terms_of_the_loss_itself(run_tiny: Run) -> None:
    class Returns:
        @hookimpl(wrapper=True)
        def compute_loss(self, trainer: Any, batch: Any, denominator: float) -> Any:
            loss: LossSum = yield
            term = scale(trainer.model, batch) * denominator
            return loss._replace(terms={"mine": LossTerm(term, 0.05), "within": LossTerm(term, 9.0, in_loss=True)})

    class Same(Scale):
        """The same through the hook."""

    by_loss, by_hook = Recorder(), Recorder()
    one, other = run_tiny(Returns(), by_loss), run_tiny(Same(), by_hook)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
    assert [line["mine"] for line in by_loss.metrics] == [line["scale"] for line in by_hook.metrics]
    assert by_loss.metrics[0]["within"] == by_loss.metrics[0]["mine"]


def test_a_run_without_terms_calls_nothing(run_tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LossTerms.__init__", "add_terms", "settled"):
        monkeypatch.setattr(f"hooktrain.training.loss_terms.{name}", None)
    monkeypatch.setattr("hooktrain.training.trainer.add_terms", None)
    monkeypatch.setattr("hooktrain.training.trainer.settled", None)
    trainer = run_tiny()
    assert trainer.loss_terms is None and trainer.global_step > 0


# ------------------------------------------------------------------------------------------------------- mistakes


def term_of(value: Any, coefficient: Any = 0.1) -> Any:
    """A plugin whose term is ``value(trainer, batch)``."""

    class Returns:
        @hookimpl
        def collect_loss_terms(self, trainer: Any, batch: Any) -> Any:
            return (
                value(trainer, batch) if coefficient is None else {"mine": LossTerm(value(trainer, batch), coefficient)}
            )

    return Returns()


@pytest.mark.parametrize(
    ("plugin", "texts"),
    [
        (term_of(lambda *_: 1.0, None), ["a float", "a mapping of hooktrain.LossTerm by name"]),
        (term_of(lambda *_: {"mine": 1.0}, None), ["a float as 'mine'", "hooktrain.LossTerm(total, coefficient)"]),
        (term_of(lambda *_: 1.0), ["a float as the total of 'mine'", "a floating tensor of shape ()"]),
        (term_of(lambda t, b: t.model.head.weight), ["shape (17, 8)", "'mine'", "sum it up"]),
        (term_of(lambda *_: torch.ones((), dtype=torch.long)), ["torch.int64", "'mine'"]),
        (term_of(lambda *_: torch.ones((), device="meta")), ["a tensor on meta", "expected it on cpu"]),
        (term_of(lambda *_: torch.ones(())), ["'mine' without a graph", "coefficient 0"]),
        (term_of(lambda t, b: scale(t.model, b) * math.nan), ["nan as the total of 'mine'", "finite"]),
        (term_of(lambda t, b: scale(t.model, b), math.inf), ["inf as the coefficient of 'mine'"]),
        (term_of(lambda t, b: scale(t.model, b), torch.ones(())), ["Tensor as the coefficient of 'mine'"]),
        (term_of(lambda t, b: {"loss": LossTerm(scale(t.model, b))}, None), ["the term 'loss'", "the engine"]),
    ],
)
def test_a_wrong_term_is_the_plugins_error(run_tiny: Run, plugin: Any, texts: list[str]) -> None:
    with pytest.raises(PluginError, match=facts("plugin 'Returns'", "hook collect_loss_terms", *texts)):
        run_tiny(plugin)


@pytest.mark.parametrize("number", [-1.0, math.nan, "two", None])
def test_a_wrong_count_is_the_plugins_error(run_tiny: Run, number: Any) -> None:
    class Counts:
        @hookimpl
        def count_loss_terms(self) -> Any:
            return {"mine": number}

    with pytest.raises(PluginError, match=facts("plugin 'Counts'", "count_loss_terms", "'mine'", "finite number")):
        run_tiny(Counts())


def test_two_plugins_with_one_name(run_tiny: Run) -> None:
    class Other(Evens):
        pass

    with pytest.raises(PluginError, match=facts("'Evens'", "'Other'", "'evens'", "/evens")):
        run_tiny(Evens(), Other())
    for each in (first := Evens(), second := Other()):
        each.hooktrain_plugin = PluginInfo(loss_terms=["evens"])  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=facts("Evens", "Other", "both add a term 'evens'", "block")):
        run_tiny(first, second)


def test_a_term_that_comes_and_goes(run_tiny: Run) -> None:
    class Sometimes:
        @hookimpl
        def collect_loss_terms(self, trainer: Any, batch: Any) -> Any:
            return {"mine" if trainer.global_step < 2 else "yours": LossTerm(scale(trainer.model, batch))}

    with pytest.raises(PluginError, match=facts("'Sometimes'", "the terms yours", "expected mine", "count 0")):
        run_tiny(Sometimes())


def test_a_metric_of_the_same_name(run_tiny: Run) -> None:
    class Logs:
        @hookimpl
        def collect_metrics(self) -> dict[str, float]:
            return {"scale": 1.0}

    with pytest.raises(PluginError, match=facts("plugin 'Logs'", "collect_metrics", "'scale'")):
        run_tiny(Scale(), Logs())


def test_one_that_only_observes_adds_nothing(run_tiny: Run) -> None:
    class Watches(Scale):
        hooktrain_plugin = PluginInfo(only_observes=True)

    with pytest.raises(PluginError, match=facts("'Watches'", "the coefficient 0.05", "only_observes")):
        run_tiny(Watches())


def test_what_a_term_writes_is_held(run_tiny: Run) -> None:
    class Writes(Scale):
        @hookimpl
        def collect_loss_terms(self, trainer: Any, outputs: Any, batch: Any) -> Any:
            with torch.no_grad():
                trainer.model.head.bias.add_(1.0)
            return super().collect_loss_terms(trainer, outputs, batch)

    with pytest.raises(
        PluginError, match=facts("'Writes'", "collect_loss_terms", "wrote to the parameter 'head.bias'")
    ):
        run_tiny(Writes())


@pytest.mark.parametrize("policy", ["warn", "disable"])
def test_a_failure_that_may_be(run_tiny: Run, policy: str) -> None:
    class Fails(Scale):
        hooktrain_plugin = PluginInfo(on_error=policy)

        @hookimpl
        def collect_loss_terms(self, trainer: Any, outputs: Any, batch: Any) -> Any:
            if trainer.global_step == 1:
                raise ValueError("no such thing")
            return super().collect_loss_terms(trainer, outputs, batch)

    recorder = Recorder()
    with pytest.warns(HooktrainWarning, match=facts("Fails", "collect_loss_terms", "step 1", "no such thing")):
        run_tiny(Fails(), recorder)
    lines = [line.get("scale") for line in recorder.metrics]
    assert lines[0] is not None and lines[1] is None
    assert (lines[2] is None) == (policy == "disable")


def test_outputs_that_nobody_asked_for_or_provides(run_tiny: Run) -> None:
    class Takes:
        @hookimpl
        def collect_loss_terms(self, outputs: Any) -> Any:
            return {"mine": LossTerm(outputs["hidden_states"])}

    with pytest.raises(KeyError, match=facts("'hidden_states'", "PluginInfo(needs_outputs=['hidden_states'])")):
        run_tiny(Takes())

    class Needs(Takes):
        hooktrain_plugin = PluginInfo(needs_outputs="hidden_states")

    with pytest.raises(RecipeError, match=facts("loss: ", "hidden_states", "Needs", "none", "another loss")):
        run_tiny(Needs())


def test_a_wrong_term_of_the_loss_itself(run_tiny: Run) -> None:
    class Returns:
        @hookimpl(wrapper=True)
        def compute_loss(self) -> Any:
            loss: LossSum = yield
            return loss._replace(terms={"mine": LossTerm(torch.ones(2))})

    with pytest.raises(LoopHookError, match=facts("compute_loss", "shape (2,)", "'mine'", "LossSum.terms")):
        run_tiny(Returns())


def test_a_run_without_the_plugin_of_a_term_is_another(run_tiny: Run, tmp_path: Path) -> None:
    saves = [{"type": "full", "save_every_n_steps": 1, "output_dir": str(tmp_path / "saves")}]
    run_tiny(Scale(), train_iters=1, checkpoint=saves)
    with pytest.raises(CheckpointError, match=facts("Scale", "was active and is missing", "collect_loss_terms")):
        run_tiny(train_iters=1, checkpoint=saves, trainer={"resume_from": tmp_path / "saves" / "step-00000001"})


def test_a_plan_lists_the_terms(tiny_recipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Declares(Evens):
        hooktrain_plugin = PluginInfo(loss_terms="evens")

    host = make_host()
    for plugin in (TinyPlugin(), Declares(), Scale()):
        host.register(plugin)
    facts_ = plan_of(host, Sources(file=None, raw=tiny_recipe), estimates=False)
    assert [(term["name"], term["plugin"]) for term in facts_["loss_terms"]] == [(None, "Scale"), ("evens", "Declares")]
    print_plan(facts_)
    text = capsys.readouterr().out
    assert "loss terms" in text and "evens" in text and "known in the first step" in text


# ------------------------------------------------------------------------------------------ schedules, conflicts


def test_coefficients_that_change(run_tiny: Run) -> None:
    linear = CoefficientSchedule(start=0.0, end=1.0, begin=2, steps=4)
    assert [linear.at(step, 10) for step in (0, 2, 3, 6, 9)] == [0.0, 0.0, 0.25, 1.0, 1.0]
    cosine = CoefficientSchedule(start=1.0, end=0.0, shape="cosine")
    assert [cosine.at(step, 10) for step in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])
    shrinking = CoefficientSchedule(start=1.0, end=0.01, steps=0.5, shape="exponential")
    assert [shrinking.at(step, 8) for step in (0, 2, 4, 7)] == pytest.approx([1.0, 0.1, 0.01, 0.01])
    with pytest.raises(ValueError, match=facts("exponential", "0", "same sign")):
        CoefficientSchedule(start=0.0, end=1.0, shape="exponential")

    class Ramps:
        def __init__(self) -> None:
            self.coefficients: list[float] = []

        @hookimpl
        def collect_loss_terms(self, trainer: Any, batch: Any) -> Any:
            if torch.is_grad_enabled():
                self.coefficients.append(coefficient_at(linear, trainer))
            return {"mine": LossTerm(scale(trainer.model, batch), self.coefficients[-1])}

    ramps = Ramps()
    trainer = run_tiny(ramps, train_iters=7)
    assert ramps.coefficients == [linear.at(step, trainer.training_horizon) for step in range(7)]


def test_conflicts_are_the_cosines_of_the_gradients(run_tiny: Run) -> None:
    seen, recorder, plain = Gradients(), Recorder(), Recorder()
    settings = {"gradient_accumulation_steps": 2, "train_iters": 4}
    one = run_tiny(Scale(), Evens(), plain, **settings)
    trainer = run_tiny(Scale(), Evens(), seen, recorder, objectives={"conflicts": 2}, **settings)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), "it only looks"
    found = [{name: v for name, v in line.items() if name.startswith("cosine/")} for line in recorder.metrics]
    assert [bool(each) for each in found] == [False, True, False, True]
    step = seen.steps[1]
    parts = {}
    for name in ("scale", "evens"):
        net = trainer.model
        net.load_state_dict(step["model"])
        net.zero_grad()
        for batch in step["batches"]:
            count = int((batch["labels"][:, 1:] != -100).sum())
            (scale(net, batch) * count if name == "scale" else evens(net, batch)[0]).backward()
        parts[name] = {key: value.grad for key, value in net.named_parameters() if value.grad is not None}
    a, b = parts["scale"], parts["evens"]
    inner = sum((a[key] * b[key]).sum() for key in a.keys() & b.keys())
    norms = [torch.stack([value.square().sum() for value in each.values()]).sum().sqrt() for each in (a, b)]
    names = {name for name in found[1] if "scale" in name and "evens" in name}
    complete = next(name for name in names if name.count("/") == 2)
    assert found[1][complete] == pytest.approx(float(inner / (norms[0] * norms[1])), rel=1e-4)
    assert {name.removeprefix(f"{complete}/") for name in names - {complete}} == {"embedding", "head"}


def test_layers_are_named_by_their_number() -> None:
    assert layer_of("model.layers.3.self_attn.q_proj.weight") == "model.layers.3"
    assert layer_of("model.embed_tokens.weight") == "model.embed_tokens"
    assert layer_of("scale") == "scale"


# ---------------------------------------------------------------------------------------------------------- ranks

RANKS = """
import torch
from hooktrain import hookimpl
from tests.term_plugins import Evens, Scale

evens, scale = Evens(), Scale()
count_loss_terms = evens.count_loss_terms
steps = []

@hookimpl
def collect_loss_terms(trainer, outputs, batch):
    return evens.collect_loss_terms(trainer, batch) | scale.collect_loss_terms(trainer, outputs, batch)

def weights(trainer):
    found = trainer.strategy.full_state_dict(trainer.model)
    return {name: value.clone() for name, value in found.items()}

@hookimpl
def on_step_start(trainer, batches):
    steps.append({"weights": weights(trainer), "batches": [dict(each) for each in batches]})

@hookimpl
def on_train_end(trainer):
    steps.append({"weights": weights(trainer)})
    torch.save(steps, trainer.run_dir / f"steps{trainer.world.rank}.pt")
"""
STRATEGIES = [
    {},
    {"data_parallel": "fsdp2"},
    *({"type": "deepspeed", "zero_stage": stage} for stage in (0, 2, 3)),
]


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_two_ranks_with_ragged_windows(
    run_ranks: Run, monkeypatch: pytest.MonkeyPatch, strategy: dict[str, Any]
) -> None:
    """With SGD and a rate of 1 a step changes the weights by the gradient, wherever a strategy keeps it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    found = run_ranks(
        2,
        RANKS,
        gradient_accumulation_steps=2,
        epochs=2,
        gradient_clipping=0,
        optimizer={"type": "sgd", "lr": 1.0, "weight_decay": 0.0},
        scheduler={"type": "constant"},
        strategy={"dtype": "fp32", "device": "cpu", **strategy},
    )
    assert found.status == 0, found.output
    folder = next(found.folder.rglob("steps0.pt")).parent
    ranks = [torch.load(folder / f"steps{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert len(ranks[0]) == len(found.metrics) + 1 > 4
    for number, line in enumerate(found.metrics):
        before, after = (ranks[0][at]["weights"] for at in (number, number + 1))
        batches = [batch for steps in ranks for batch in steps[number]["batches"]]
        gradients, means = expected_gradients(TinyModel(TinyModelConfig()), before, batches)
        for name, expected in gradients.items():
            moved = before[name].double() - after[name].double()
            torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6, msg=f"{name}, step {number}")
        assert line["loss"] == pytest.approx(means["loss"], rel=1e-5)
        assert line["scale"] == pytest.approx(means["scale"], rel=1e-5)
        assert line.get("evens", 0.0) == pytest.approx(means["evens"], rel=1e-5)


FAILS = """
import torch
from hooktrain import LossTerm, PluginInfo, hookimpl

hooktrain_plugin = PluginInfo(on_error="POLICY")

@hookimpl
def count_loss_terms(batch):
    return {"mine": 1.0}

@hookimpl
def collect_loss_terms(trainer, batch):
    if trainer.world.rank == 1 and trainer.global_step < 1:
        raise ValueError("on one rank")
    return {"mine": LossTerm(trainer.model.head.weight.square().sum(), 0.1)}
"""


@pytest.mark.thorough
@pytest.mark.parametrize("policy", ["warn", "disable", "stop"])
def test_a_failure_on_one_rank(run_ranks: Run, policy: str) -> None:
    found = run_ranks(2, FAILS.replace("POLICY", policy), train_iters=3, strategy={"dtype": "fp32", "device": "cpu"})
    if policy == "stop":
        assert found.status != 0 and "collect_loss_terms" in found.output and "on one rank" in found.output
        return
    assert found.status == 0, found.output
    assert "mine" in found.metrics[0], "rank 0 has it"
    assert ("mine" in found.metrics[-1]) == (policy == "warn")


@pytest.mark.thorough
def test_conflicts_are_over_all_ranks(run_ranks: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    lines = []
    for ranks, size in ((1, 4), (2, 2)):
        folder = tmp_path / f"of{ranks}"
        options = {"train_iters": 2, "objectives": {"conflicts": 1}, "run_dir": str(folder)}
        found = run_ranks(ranks, RANKS, micro_batch_size=size, **options)
        assert found.status == 0, found.output
        first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        lines.append({name: value for name, value in first.items() if name.startswith("cosine/loss/evens")})
    assert lines[0] and lines[1] == pytest.approx(lines[0], rel=1e-4, abs=1e-5)
