"""``measure`` and ``profiler``: what they add, and that a run without them has none of their hooks."""

from __future__ import annotations

import gzip
import json
import math
from typing import Any

import pytest
import torch

from hooktrain import HooktrainError, HooktrainWarning, hookimpl
from hooktrain.testing import Recorder
from tests.facts import facts


def test_memory(run_tiny):
    trainer = run_tiny(measure=["memory"])
    line = trainer.history[-1]
    assert 0.05 < line["memory/process_gib"] <= line["memory/process_peak_gib"] < 100
    assert not any("seconds/" in name or "norm/" in name for name in line)


def test_time_by_phase(run_tiny, tmp_path):
    trainer = run_tiny(measure=["phases"], eval_interval=3, checkpoint={"type": "full", "save_every_n_steps": 2})
    lines = trainer.history
    always = {f"seconds/{phase}" for phase in ("data", "forward", "backward", "optimizer")}
    assert all(always <= line.keys() for line in lines)
    assert ["seconds/evaluation" in line for line in lines] == [line["step"] in (3, 6, 7) for line in lines]
    assert [line["step"] for line in lines if "seconds/save" in line] == [3, 5, 7], "in the line after it"
    for line in lines:
        spent = sum(line[name] for name in always)
        assert spent <= line["step_seconds"] * 1.5 + 0.05 and all(line[name] >= 0 for name in always)


def test_norms_by_layer(run_tiny):
    class Norms:
        def __init__(self) -> None:
            self.found: list[dict[str, float]] = []

        @hookimpl
        def on_optimizer_step_start(self, trainer: Any) -> None:
            named = trainer.model.named_parameters()
            self.found.append({name: float(weight.grad.norm()) for name, weight in named})

    norms = Norms()
    trainer = run_tiny(norms, measure=["norms"], log_interval=2, train_iters=4)
    line, gradients = trainer.history[-1], norms.found[-1]
    assert line["norm/gradients/head"] == pytest.approx(math.hypot(gradients["head.weight"], gradients["head.bias"]))
    assert line["norm/gradients/embedding"] == pytest.approx(gradients["embedding.weight"])
    weights = [trainer.model.head.weight, trainer.model.head.bias]
    assert line["norm/weights/head"] == pytest.approx(float(torch.cat([each.flatten() for each in weights]).norm()))


def test_layers_are_told_by_their_numbers(run_chat):
    line = run_chat(measure=["norms"], train_iters=1).history[-1]
    layers = [name for name in line if name.startswith("norm/weights/model.layers.")]
    assert layers and all(name.rpartition(".")[2].isdigit() for name in layers)
    assert "norm/weights/model.embed_tokens" in line


def test_they_change_nothing_and_cost_nothing_where_they_are_not_asked_for(run_tiny):
    one, two = Recorder(), Recorder()
    plain = run_tiny(one)
    run_tiny(two, measure=["memory", "phases", "norms"])
    assert [line["loss"] for line in two.metrics] == [line["loss"] for line in one.metrics]
    for name in ("measure", "profiler"):
        assert plain.host.records[name].state == "unused"
    memory = run_tiny(measure=["memory"])
    hooks = [hook for hook in memory.host.records["measure"].hooks if memory.host.implementations(hook)]
    mine = [hook for hook in hooks if "measure" in [each.plugin_name for each in memory.host.implementations(hook)]]
    assert set(mine) <= {"collect_metrics", "register_configs", "unused_hooks"}


def test_a_measurement_that_there_is_not(run_tiny):
    with pytest.raises(HooktrainError, match=facts("measure", "'time'", "phases")):
        run_tiny(measure=["time"])


@pytest.mark.thorough
@pytest.mark.parametrize("data_parallel", ["ddp", "fsdp2"])
def test_norms_of_ranks_are_those_of_one(run_ranks, run_tiny, tmp_path, data_parallel):
    settings = {"measure": ["norms"], "train_iters": 2, "optimizer": {"type": "sgd", "lr": 0.1}}
    strategy = {"dtype": "fp32", "device": "cpu", "data_parallel": data_parallel}
    many = run_ranks(2, micro_batch_size=1, **{**settings, "strategy": strategy})
    assert many.status == 0, many.output
    one = run_tiny(micro_batch_size=2, strategy={"dtype": "fp32", "device": "cpu"}, **settings)
    for line, other in zip(many.metrics, one.history, strict=True):
        for name in (name for name in other if name.startswith("norm/")):
            assert line[name] == pytest.approx(other[name], rel=1e-4), name


# ------------------------------------------------------------------------------------------------------- profiler


def test_a_window_of_steps(run_tiny, tmp_path):
    said: list[str] = []

    class Messages:
        @hookimpl
        def on_message(self, message: str) -> None:
            said.append(message)

    run_tiny(Messages(), profiler={"type": "torch", "steps": [3, 4]})
    (path,) = (tmp_path / "run" / "profile").iterdir()
    assert path.name == "steps-3-4.rank0.json.gz"
    with gzip.open(path, "rt") as stream:
        events = json.load(stream)["traceEvents"]
    names = [event.get("name") for event in events]
    # micro-batches of one window each: two steps
    assert [names.count(phase) for phase in ("forward", "backward", "optimizer")] == [2, 2, 2]
    counters = [event for event in events if event.get("ph") == "C"]
    assert counters and all(event["name"] == "memory of processor" for event in counters)
    assert all(event["args"]["MiB"] >= 0 for event in counters)
    assert any("perfetto" in text and path.name in text for text in said)


def test_a_window_beyond_the_run(run_tiny, tmp_path):
    run_tiny(profiler={"steps": [6, 20], "memory": False})
    (path,) = (tmp_path / "run" / "profile").iterdir()
    assert path.name == "steps-6-7.rank0.json.gz"
    with pytest.warns(HooktrainWarning, match=facts("profiler.steps", "[10, 12]", "nothing is recorded")):
        run_tiny(profiler={"steps": [10, 12]}, run_dir=str(tmp_path / "other"))
    assert not (tmp_path / "other" / "profile").exists()


@pytest.mark.parametrize("steps", [[5, 4], [0, 3], [3], 4])
def test_steps_that_are_no_window(run_tiny, steps):
    with pytest.raises(HooktrainError, match=r"profiler\.steps"):
        run_tiny(profiler={"steps": steps})
