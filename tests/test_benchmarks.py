"""The benchmarks run: their statistics, their table, and hooktrain beside the hand-written loop on a tiny model."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import parity
from benchmarks.environments import PEERS
from benchmarks.measuring import StepClock
from benchmarks.peers import hand_written, tokenizing
from benchmarks.ratios import ratio_of_medians
from benchmarks.running import Runner, Side, take_turns
from benchmarks.sft import ours
from benchmarks.sft.__main__ import arguments
from benchmarks.sft.cases import Case, Growth, Row
from benchmarks.sft.catalogue import CASES
from benchmarks.sft.groups import GROUPS
from benchmarks.sft.inputs import for_transformers_4
from benchmarks.sft.metrics import falling_losses, same_losses
from benchmarks.sft.rows import write_long, write_many
from benchmarks.sft.sides import Plan, Training
from benchmarks.sft.table import WIDTH, table
from hooktrain.testing import save_llama

PEER_FILES = Path(__file__).parent.parent / "benchmarks" / "peers"


# ---------------------------------------------------------------------------------------------------- statistics


def test_medians_of_two_runs_are_one_of_three_numbers() -> None:
    # drawn from 1 and 3, a median is 1, 2 or 3, the outer ones with a probability of a quarter each
    assert ratio_of_medians([1.0, 3.0], [1.0, 1.0]) == (2.0, 1.0, 3.0)


def test_one_run_has_no_interval() -> None:
    assert ratio_of_medians([3.0], [2.0, 2.0]) == (1.5, None, None)


def test_no_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="given no measurements"):
        ratio_of_medians([], [1.0])


@given(
    st.lists(st.floats(0.5, 100), min_size=2, max_size=6),
    st.lists(st.floats(0.5, 100), min_size=2, max_size=6),
    st.sampled_from([0.5, 4.0]),
)
def test_a_ratio_does_not_depend_on_the_unit(one: list[float], other: list[float], factor: float) -> None:
    value, low, high = ratio_of_medians(one, other, samples=200)
    assert low is not None and high is not None and min(one) / max(other) <= low <= high <= max(one) / min(other)
    scaled = ratio_of_medians([factor * number for number in one], other, samples=200)
    assert scaled == pytest.approx((factor * value, factor * low, factor * high))


# --------------------------------------------------------------------------------------------- cases and the table


def run(rate: float, losses: tuple[float, ...] = (4.0, 3.0, 2.0), **more: Any) -> dict[str, Any]:
    """What a driver finds that trains 100 tokens a step; the first step takes ten times as long."""
    took = [1000 / rate, *[100 / rate] * (len(losses) - 1)]
    return {
        "tokens": [100] * len(losses),
        "seconds": took,
        "cpu_seconds": [2 * t for t in took],
        "loss": list(losses),
        "others": 0.0,
        **more,
    }


CASE = Case(name="x", title="x", group="g", ours="a", theirs="b", at_least=1.3, checks=(("a", "b", same_losses(0.01)),))


def test_a_case_compares_medians_without_the_warm_up() -> None:
    row = CASE.row({"a": [run(130), run(140), run(150)], "b": [run(100)] * 3}, warmup=1)
    assert (row.ours, row.theirs, row.reached, row.notes) == (pytest.approx(140), pytest.approx(100), True, ())
    assert row.ratio is not None and row.ratio.value == row.cpu_ratio == pytest.approx(1.4)
    assert not CASE.row({"a": [run(120)], "b": [run(100)]}, warmup=1).reached


def test_a_fast_wrong_side_does_not_win() -> None:
    row = CASE.row({"a": [run(900, (4.0, 3.0, 2.5))], "b": [run(100)]}, warmup=1)
    assert row.reached is False
    assert row.notes == ("a and b: losses are up to 25.00% apart, expected at most 1.00%",)
    assert "does not fall" in falling_losses(run(1, (4.0, 4.1, 4.2)), run(1), 0)


def test_a_peer_that_cannot_run_says_why_in_the_table() -> None:
    row = CASE.row({"a": [run(100)], "b": [{"failed": "exit code 1: no such processor"}]}, warmup=1)
    assert row.reached is None
    text = table([row])
    assert "b: exit code 1: no such processor" in text and " ?" in text


def test_a_timing_beside_other_work_is_marked() -> None:
    row = CASE.row({"a": [run(200, others=0.3)], "b": [run(100)]}, warmup=1)
    assert row.reached and row.noisy
    text = table([row])
    assert "yes?" in text and "no clean timing" in text and "by processor time the ratio is 2.00" in text


@pytest.mark.parametrize(("power", "reached"), [(1.0, True), (2.0, False)])
def test_memory_that_grows_with_the_square_is_told_from_a_line(power: float, reached: bool) -> None:
    lengths = (512, 1024, 2048, 4096)
    sides = {f"p-{n}": [{"tokens": [n], "peak_mib": 2000 + 500 * (n / 1000) ** power}] for n in lengths}
    row = Growth(name="l", title="l", group="g", prefix="p-").row(sides, warmup=0)
    assert row.reached is reached


def test_the_table_fits_whatever_is_in_it() -> None:
    row = Row(case="x", title="a title " * 9, unit="tok/s", ours=123456.7, theirs=0.001, target=">= 1.30", reached=True)
    wide = CASE.row({"a": [run(9e4), run(1e5)], "b": [run(0.5), run(900)]}, warmup=1)
    assert max(map(len, table([row, wide]).splitlines())) <= WIDTH


def test_cases_name_sides_that_their_groups_have(tmp_path: Path) -> None:
    pytest.importorskip("chatterbot_corpus")
    training = Training(plan(tmp_path, tmp_path))
    for group, sides_of in GROUPS.items():
        names = [side.name for side in sides_of(training, tmp_path)]
        assert len(set(names)) == len(names)
        for case in CASES:
            if case.group == group:
                wanted = case.sides if isinstance(case, Case) else {n for n in names if case.has(n)}
                assert wanted and wanted <= set(names), case.name


def test_the_command_line() -> None:
    assert (arguments([]).rounds, arguments([]).steps, arguments(["--quick"]).rounds) == (2, 8, 1)
    assert [case.name for case in arguments(["--cases", "packing,fp32-trl"]).cases] == ["fp32-trl", "packing"]


def test_an_unknown_case_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["--cases", "fp32"])
    assert "no case 'fp32'; expected some of fp32-trl" in capsys.readouterr().err


def test_requirements_are_pinned_and_agree_on_torch() -> None:
    constraints = (Path(__file__).parent / "constraints.txt").read_text()
    torch = re.findall(r"^torch==.*$", constraints, re.M)
    for name in {name for names in PEERS.values() for name in names}:
        lines = [line for line in (PEER_FILES / name).read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.\-]+==[\w.]+", line) for line in lines), name
        assert re.findall(r"^torch==.*$", "\n".join(lines), re.M) == torch


# --------------------------------------------------------------------------------------------------- real training


def plan(model: Path, folder: Path) -> Plan:
    """Two steps on two cores' worth of nothing."""
    return Plan(
        model=model,
        model_4=model,
        rows=folder / "rows.jsonl",
        threads=1,
        steps=2,
        warmup=0,
        many=(2, 3),
        lengths=(64, 128),
        packed_lengths=1000,
    )


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answers = ("Forty-two it is.", "What is the answer?")
    rows = [
        {
            "messages": [
                {"role": "user", "content": "What is it? " * (1 + i % 7)},
                {"role": "assistant", "content": answers[i % 2] * (1 + i % 5)},
            ]
        }
        for i in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Training(plan(save_llama(tmp_path / "model"), tmp_path))


def test_hooktrain_and_the_loop_train_alike(training: Training, tmp_path: Path) -> None:
    packs = tmp_path / "packs.pt"
    ours.measure(dict(training.preparing("packs", training.plan.rows, packs=packs).specification))
    one = ours.measure(dict(training.ours("ours", precision="fp32").specification))
    other = hand_written.measure(dict(training.hand_written("loop", "fp32", packs).specification))
    assert one["tokens"] == other["tokens"] and one["supervised"] == other["supervised"]
    assert len(one["seconds"]) == len(other["seconds"]) == 2
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert one["loss"][0] != pytest.approx(one["loss"][1], rel=1e-3)


def test_every_token_is_more_than_the_answers(training: Training) -> None:
    everything = ours.measure(dict(training.ours("all", precision="fp32", train_on="all").specification))
    answers = ours.measure(dict(training.ours("answers", precision="fp32").specification))
    assert sum(everything["supervised"]) > sum(answers["supervised"]) > 0


DRIVER = """
from benchmarks.measuring import drive
def measure(given):
    print("noise of a library")
    kept = bytearray(given["mib"] * 2**20)
    return {"pid": __import__("os").getpid(), "threads": __import__("os").environ["OMP_NUM_THREADS"], "kept": len(kept)}
drive(measure, "pytest")
"""


def test_sides_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "work", lambda peer: Path(sys.executable), timeout=60)
    (tmp_path / "work" / "home").mkdir()
    (tmp_path / "work" / "home" / "driver.py").write_text(DRIVER)
    big, small = (
        Side(name=name, driver="driver", specification={"mib": mib, "threads": 1}, after="home")
        for name, mib in (("big", 300), ("small", 1))
    )
    bad = Side(name="bad", driver="benchmarks.no_such_driver", specification={"threads": 1})
    said: list[str] = []
    found = take_turns([big, small, bad], runner, turns=2, say=said.append)
    assert [line.split(":")[0].split()[-1] for line in said] == ["big", "small", "bad", "small", "big"]
    assert "No module named benchmarks.no_such_driver" in found["bad"][0]["failed"]
    assert len({findings["pid"] for side in ("big", "small") for findings in found[side]}) == 4
    for findings in found["big"]:
        assert 300 < findings["peak_mib"] < 400 and findings["threads"] == "1" and findings["versions"]["pytest"]
    assert all(findings["peak_mib"] < 100 for findings in found["small"])  # not that of the process that started it


def test_a_driver_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "work", lambda peer: Path(sys.executable), timeout=0.01)
    side = Side(name="slow", driver="benchmarks.peers.tokenizing", specification={"threads": 1})
    assert runner.run(side)["failed"] == "no result after 0 s"


def test_rendering_and_tokenizing_alone_count_what_hooktrain_prepares(training: Training) -> None:
    side = training.preparing("ours", training.plan.rows)
    prepared = ours.measure(dict(side.specification))
    alone = tokenizing.measure(dict(training.tokenizing("alone", training.plan.rows).specification))
    assert alone["prepared_tokens"] == prepared["report"]["train"]["tokens_kept"]
    assert alone["prepare_seconds"] > 0 and prepared["prepare_seconds"] > 0


def test_rows_are_drawn_alike(tmp_path: Path) -> None:
    pytest.importorskip("chatterbot_corpus")
    few = write_many(tmp_path, 20).read_text().splitlines()
    assert write_many(tmp_path, 30).read_text().splitlines()[:20] == few
    (long,) = write_long(tmp_path, 3000).read_text().splitlines()
    assert sum(len(message["content"].split()) for message in json.loads(long)["messages"]) > 3000


def test_names_of_transformers_4(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model")
    made = for_transformers_4(model, tmp_path / "model-4")
    config = json.loads((made / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert json.loads((made / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (made / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_clock_keeps_each_step() -> None:
    clock = StepClock()
    clock.step(tokens=5, loss=1.0)
    clock.step(tokens=7, loss=0.5)
    findings = clock.findings()
    assert findings["tokens"] == [5, 7] and findings["loss"] == [1.0, 0.5]
    assert len(findings["seconds"]) == 2 and min(findings["seconds"]) >= 0


# -------------------------------------------------------------------------------------------- parity of strategies


def test_parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two ranks of one strategy beside the reference loop, and a table."""
    monkeypatch.setattr(parity, "STRATEGIES", {"torch, FSDP2": parity.STRATEGIES["torch, FSDP2"]})
    monkeypatch.setattr(
        sys, "argv", ["parity", "--ranks", "2", "--epochs", "2", "--json", str(tmp_path / "found.json")]
    )
    parity.main()
    (line,) = json.loads((tmp_path / "found.json").read_text())["found"]
    assert (line["ranks"], line["steps"]) == (2, 4)
    assert line["loss"] < 1e-6
    assert line["weights"] < 1e-6
    assert "torch, FSDP2" in capsys.readouterr().out
