"""A plugin with a server: one rank and several, servers that die, come back, or are required."""

from __future__ import annotations

import re

import pytest
import torch

from tests.facts import facts
from tests.third_party.runs import done, numbers, plugin_states, step


def test_two_ranks_train_like_one_and_continue_when_a_trackers_server_dies(good, tiny, tmp_path, serve):
    saving = {"checkpoint": [{"type": "full", "save_every_n_steps": 4}], "ema": {"decay": 0.9}}
    server = serve()
    alone = done(good.hooktrain(tmp_path, "train", tiny("alone", **saving, beacon={"url": server.url})))
    paths = [path for path, _ in server.requests]
    assert paths == ["/runs", *["/runs/run-7/metrics"] * 8, "/runs/run-7/end"]
    registered, ended = server.requests[0][1], server.requests[-1][1]
    assert registered["name"] == "alone" and registered["facts"]["device"] == "cpu", "as beacon_host says"
    assert ended == {"state": "finished"}
    assert server.lines == alone.metrics, "the server has the lines of the run"

    dying = serve(dies_after=6)
    two = tiny("two", **saving, micro_batch_size=2, beacon={"url": dying.url})
    both = done(good.hooktrain(tmp_path, "train", two, "--nproc", "2"))
    assert [line["step"] for line in dying.lines] == [1, 2, 3, 4, 5, 6]
    (warned,) = [line for line in both.output.splitlines() if "hooktrain: warning" in line and "beacon" in line]
    assert re.search(facts("on_log", "step 7", "rank 0", "BeaconError: beacon.url:"), warned), both.output
    for one, other in zip(alone.metrics, both.metrics, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    at_end = plugin_states(step(both, 8))
    for name, value in plugin_states(step(alone, 8))["ema"]["weights"].items():
        torch.testing.assert_close(at_end["ema"]["weights"][name], value, rtol=0, atol=1e-5)
    assert at_end["beacon"]["run_id"] == "run-7", "a disabled plugin keeps its state"

    back = serve()
    resumed = tiny("resumed", **saving, micro_batch_size=2, beacon={"url": back.url})
    again = done(good.hooktrain(tmp_path, "train", resumed, "--nproc", "2", "--resume", step(both, 4)))
    assert numbers(again.metrics) == numbers(both.metrics)[4:]
    assert back.requests[0][0] == "/runs/run-7/metrics", "the server's run continues"
    for name, value in plugin_states(step(again, 8))["ema"]["weights"].items():
        assert torch.equal(value, at_end["ema"]["weights"][name])


def test_a_server_that_comes_back_gets_every_line(good, tiny, tmp_path, serve):
    away = serve(refuses=(1, 4, 5, 6))
    patient = tiny("patient", beacon={"url": away.url}, plugins={"on_error": {"beacon": "warn"}})
    run = done(good.hooktrain(tmp_path, "train", patient))
    assert away.lines == run.metrics
    for named in (["on_train_start", "step 0", "rank 0", "BeaconError"], ["4 times", "on_log 3, on_train_start 1"]):
        assert any(re.search(facts("'beacon'", *named), line) for line in run.stderr.splitlines()), run.stderr


def test_a_required_server_stops_the_run(good, tiny, tmp_path, serve):
    dying = serve(dies_after=3)
    needed = tiny("needed", beacon={"url": dying.url}, plugins={"on_error": {"beacon": "stop"}})
    stopped = good.hooktrain(tmp_path, "train", needed)
    assert stopped.status == 1 and "Traceback" not in stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert re.search(facts("'beacon'", "on_log", "step 4", dying.url), last), stopped.stderr
    assert len(stopped.metrics) >= 3 and len(dying.lines) == 3
