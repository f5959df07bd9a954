"""Packages of several authors in one run."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import stored_weights
from tests.third_party.runs import done, numbers, plugin_states, step


def test_all_of_them_in_one_run_which_is_resumed_exactly(good, chat, tmp_path):
    saving = {
        "checkpoint": [{"type": "full", "save_every_n_steps": 1}, {"type": "huggingface", "save_end_of_training": True}]
    }
    run = done(good.hooktrain(tmp_path, "train", chat(**saving)))
    for line in run.metrics:
        assert line["loss"] == pytest.approx(line["cross_entropy"], rel=0.01), "a q near 0 is cross-entropy"
        assert 0 < line["confidence/mean"] < 1
    assert "eval/sums/loss" in run.metrics[-1]
    report = json.loads((run.folder / "data.json").read_text())
    assert [source["format"] for source in report["sources"]] == ["transcript"] * 3

    weights = [stored_weights(step(run, number)) for number in (1, 2, 3, 4)]
    moved = [(weights[3][name] - weights[2][name]).abs() for name in weights[0]]
    sizes = torch.cat([each.flatten() for each in moved])
    assert torch.all((sizes < 1e-9) | ((sizes - 0.001).abs() < 1e-6)), "Lion moves by the rate, or not at all"
    assert {name.rpartition("/")[2] for name in stored_weights(step(run, 4), "optimizer")} == {"exp_avg"}

    average: dict[str, torch.Tensor] = {}
    for number, each in enumerate(weights, 1):
        share = max(0.4, 1 / number)
        average = {name: share * value + (1 - share) * average.get(name, 0) for name, value in each.items()}
    exported = load_file(run.folder / "export" / "model.safetensors")
    assert exported.keys() <= average.keys()
    for name, value in exported.items():
        torch.testing.assert_close(value, average[name])
        assert not torch.equal(value, weights[3][name]), "what is exported is the average"

    again = done(good.hooktrain(tmp_path, "train", chat("again", **saving), "--resume", step(run, 2)))
    assert numbers(again.metrics) == numbers(run.metrics)[2:]
    for kind in ("model", "optimizer"):
        first, second = stored_weights(step(run, 4), kind), stored_weights(step(again, 4), kind)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    first, second = (plugin_states(step(each, 4))["ema"] for each in (run, again))
    assert first["steps"] == second["steps"] == 4
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
