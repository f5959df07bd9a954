"""The project's suites, and training of a tiny model compared with the hand-written loop."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import parity
from benchmarks.dispatch import bare
from benchmarks.dispatch import ours as one_layer
from benchmarks.dispatch.common import CHUNK, Chunks
from benchmarks.dispatch.targets import STEP, Added, same_training, with_own_plugins
from benchmarks.gpu.inputs import ONE_BILLION, flops_per_token, peak_flops
from benchmarks.gpu.ours import SyncCounter
from benchmarks.peers import PEERS, hand_written, tokenizing
from benchmarks.sft import ours
from benchmarks.sft.catalogue import METRICS, TARGETS
from benchmarks.sft.groups import GROUPS
from benchmarks.sft.growth import Growth
from benchmarks.sft.inputs import for_transformers_4
from benchmarks.sft.metrics import PEAK, TOKENS_PER_SECOND, falling_losses, same_losses
from benchmarks.sft.payback import Payback
from benchmarks.sft.rows import write_long, write_many
from benchmarks.sft.variants import Plan, Training
from benchmarks.suites import register_benchmarks
from hooktrain.bench import Case, Comparison, Settings, Target, Variant, run_suites
from hooktrain.testing import save_llama
from tests.drivers import fork_drivers
from tests.facts import facts
from tests.preload import DEEPSPEED

# --------------------------------------------------------------------------------------------- what is compared


def run(rate: float, losses: tuple[float, ...] = (4.0, 3.0, 2.0), **more: Any) -> dict[str, Any]:
    """Return the findings of a driver that trains 100 tokens per step; the first step takes ten times as long."""
    took = [1000 / rate, *[100 / rate] * (len(losses) - 1)]
    return {
        "tokens": [100] * len(losses),
        "seconds": took,
        "cpu_seconds": [2 * t for t in took],
        "loss": list(losses),
        "others": 0.0,
        **more,
    }


def evaluate(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Comparison:
    target = Target(variant="a", at_least=1.3, checks=(("a", "b", same_losses(0.01)),))
    case = Case(
        name="x",
        variants=[Variant("a", driver="none"), Variant("b", driver="none")],
        metrics=[TOKENS_PER_SECOND],
        targets=[target],
        warmup_steps=1,
    )
    return target.evaluate(case, {"a": a, "b": b})


def test_medians_are_compared_without_the_warm_up() -> None:
    line = evaluate([run(130), run(140), run(150)] * 2, [run(100)] * 4)
    assert (line.ours, line.theirs, line.verdict) == (pytest.approx(140), pytest.approx(100), "passed")
    assert line.figure is not None and line.figure.value == pytest.approx(1.4)
    assert evaluate([run(120)] * 4, [run(100)] * 4).verdict == "failed"


def test_a_fast_wrong_variant_does_not_pass() -> None:
    line = evaluate([run(900, (4.0, 3.0, 2.5))], [run(100)])
    assert line.verdict == "error"
    assert re.search(facts("a and b", "losses", "25.00%", "1.00%"), line.why)
    assert "fall" in falling_losses(run(1, (4.0, 4.1, 4.2)), run(1), 0)


def test_a_timing_on_a_busy_machine_is_given_by_processor_time() -> None:
    line = evaluate([run(200, others=0.3)] * 4, [run(100)] * 4)
    assert line.verdict == "passed" and line.noisy
    (note,) = line.notes
    assert re.search(facts("processor time", "ratio", "2.00"), note)


@pytest.mark.parametrize(("power", "verdict"), [(1.0, "passed"), (2.0, "failed")])
def test_memory_that_grows_with_the_square_does_not_pass(power: float, verdict: str) -> None:
    lengths = (512, 1024, 2048, 4096)
    found = {f"p-{n}": [{"tokens": [n], "peak_mib": 2000 + 500 * (n / 1000) ** power}] for n in lengths}
    case = Case(name="l", variants=[Variant(name, driver="none") for name in found], metrics=[PEAK])
    assert Growth(name="l", prefix="p-").evaluate(case, found).verdict == verdict


def a_training(seconds: tuple[float, ...] = (1.0, 2e-4, 2e-4), **more: Any) -> dict[str, Any]:
    """Return the findings of a driver of the suite ``dispatch``; the first chunk is warm-up."""
    return {"seconds": list(seconds), "steps": 301, "moved": [0.1, 0.2], "loss": 3.0, "others": 0.0, **more}


def test_a_layer_that_was_trained_differently_does_not_pass() -> None:
    one = a_training()
    assert same_training(one, a_training(moved=[0.100001, 0.2]), 1) == ""
    assert re.search(facts("weights", "50.00%"), same_training(one, a_training(moved=[0.1, 0.4]), 1))
    assert re.search(facts("losses", "3.23%"), same_training(one, a_training(loss=3.1), 1))
    assert re.search(facts("301 ", "300 ", "steps"), same_training(one, a_training(steps=300), 1))


def test_what_happens_once_in_many_steps_counts() -> None:
    assert STEP.of(a_training((1.0, 1e-4, 1e-4, 7e-4)), 1) == pytest.approx(300)


def test_a_run_without_a_plugin_of_this_repository_is_refused() -> None:
    check = with_own_plugins(frozenset({"hooktrain-deepspeed", "hooktrain-nowhere"}))
    assert check({"plugins": ["loop", "deepspeed"]}, {}, 0).endswith(" hooktrain-nowhere")
    assert check({"plugins": ["loop"]}, {}, 0).endswith(" deepspeed, hooktrain-nowhere")


@pytest.mark.parametrize(("seconds", "verdict"), [(8e-4, "worse"), (1e-4, "better")])
def test_what_a_plugin_adds_is_given_per_method(seconds: float, verdict: str) -> None:
    found = {"with": [a_training((1.0, seconds))] * 4, "without": [a_training((1.0, 2e-4))] * 4}
    case = Case(name="x", variants=[Variant(name, driver="none") for name in found], metrics=[STEP], warmup_steps=1)
    line = Added(name="each", variant="with", to="without", per=600).evaluate(case, found)
    assert line.figure is not None and line.figure.value == pytest.approx((seconds - 2e-4) * 1e6 / 600)
    assert (line.verdict, line.limit) == (verdict, "")


def test_the_clock_of_steps_is_that_of_whole_chunks() -> None:
    clock = Chunks()
    for _ in range(2 * CHUNK + 1):
        batch = clock([torch.zeros(3), torch.ones(3)])
    assert batch["x"].shape == (2, 3)
    assert len(clock.findings()["seconds"]) == len(clock.findings()["cpu_seconds"]) == 2


def test_targets_name_variants_that_their_groups_have(tmp_path: Path) -> None:
    pytest.importorskip("chatterbot_corpus")
    training = Training(plan(tmp_path, tmp_path))
    assert GROUPS.keys() == TARGETS.keys() == METRICS.keys()
    for group, variants_of in GROUPS.items():
        names = [variant.name for variant in variants_of(training, tmp_path)]
        assert len(set(names)) == len(names)
        for target in TARGETS[group]:
            if isinstance(target, Target):
                wanted = {
                    target.variant,
                    *filter(None, [target.to]),
                    *(n for check in target.checks for n in check[:2]),
                }
                assert wanted <= set(names), target.name
                assert target.metric in ("", *(metric.name for metric in METRICS[group])), target.name
            elif isinstance(target, Payback):
                assert {target.variant, target.to} <= set(names)
            else:
                assert isinstance(target, Growth) and any(name.startswith(target.prefix) for name in names)


SUITES = {suite.name: suite for suite in register_benchmarks()}
SOME = {
    "dispatch": frozenset({"call-10", "wrapped-10", "log-1", "observing", "held-1"}),
    "gpu": frozenset({"speed"}),
    "preference": frozenset({"fp32"}),
    "sft": frozenset({"fp32", "packing", "prepare"}),
}
"""Cases that the default tier runs of suites that would take minutes; the parts of the others are tested below."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                *([pytest.mark.thorough] if name in ("gpu", "resume", "strategy") else []),
                *([pytest.mark.preload(*DEEPSPEED)] if name == "strategy" else []),
            ],
        )
        for name in SUITES
    ],
)
def test_a_short_form_of_every_suite_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_drivers(monkeypatch)
    run_a_short_form(name, SOME.get(name), tmp_path)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("real_starts")
@pytest.mark.parametrize("name", SUITES)
def test_every_case_works_in_its_short_form(name: str, tmp_path: Path) -> None:
    """With drivers that are started as a user's run starts them."""
    run_a_short_form(name, None, tmp_path)


def run_a_short_form(name: str, cases: frozenset[str] | None, folder: Path) -> None:
    """Run cases without a check of their speed; peers are not installed for it."""
    if name in ("sft", "gpu", "preference"):
        pytest.importorskip("chatterbot_corpus")
    options = {"device": "cpu"} if name == "gpu" else {}
    settings = Settings(quick=True, threads=1, envs=folder / "envs", options=options)
    lines = run_suites([(SUITES[name], cases)], settings, out=folder / "out")
    assert lines
    for line in lines:
        assert "skipped" not in line, line
        for variant, found in line["variants"].items():
            if "peer" in found:
                assert "not installed" in found["error"]
            else:
                assert "error" not in found, f"{line['case']}, {variant}: {found['error']}"
                assert any(found["values"].values()), f"{line['case']}, {variant}"
        for compared in line["comparisons"]:
            peers = [
                variant
                for variant in (compared["variant"], compared["to"])
                if "peer" in line["variants"].get(variant, {})
            ]
            assert compared["verdict"] != "error" or peers or "installed" in compared["why"], compared


def test_requirements_are_pinned_and_agree_on_torch() -> None:
    constraints = (Path(__file__).parent / "constraints.txt").read_text()
    pinned = re.findall(r"^torch==.*$", constraints, re.M)
    for peer in PEERS:
        lines = [line for file in peer.requirements for line in file.read_text().splitlines() if line[0] != "#"]
        assert all(re.fullmatch(r"[\w.\-]+==[\w.]+", line) for line in lines), peer.name
        assert set(re.findall(r"^torch==.*$", "\n".join(lines), re.M)) == set(pinned), peer.name


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


def test_the_layer_is_trained_alike_by_the_engine_and_every_form_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = {"chunks": 1, "threads": 1}
    one = one_layer.measure({**common, "log_every": 10, "plugins": {"kind": "silent", "count": 2}})
    assert one["more_plugins"] == 2 and {"sft", "torch"} <= set(one["plugins"])
    for every, loader, groups in ((None, "slices", 1), (10, "DataLoader", 2)):
        other = bare.measure({**common, "log_every": every, "loader": loader, "groups": groups})
        assert same_training(one, other, 0) == ""
    assert len(other["seconds"]) == len(one["seconds"]) == 1
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("run/metrics.jsonl", "metrics.jsonl")
    )
    assert [line["step"] for line in theirs] == [line["step"] for line in ours][: len(theirs)] and len(theirs) == 10
    for a, b in zip(ours, theirs, strict=False):
        assert [a[key] for key in ("loss", "grad_norm", "lr")] == pytest.approx([b["loss"], b["grad_norm"], b["lr"]])


def test_every_token_is_more_than_the_answers(training: Training) -> None:
    everything = ours.measure(dict(training.ours("all", precision="fp32", train_on="all").specification))
    answers = ours.measure(dict(training.ours("runs", precision="fp32").specification))
    assert sum(everything["supervised"]) > sum(answers["supervised"]) > 0


def test_rendering_and_tokenizing_alone_count_what_hooktrain_prepares(training: Training) -> None:
    variant = training.preparing("ours", training.plan.rows)
    prepared = ours.measure(dict(variant.specification))
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


# -------------------------------------------------------------------------------------------- parity of strategies


def test_parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two ranks of one strategy are compared with the reference loop, in a table."""
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


def test_the_suite_for_a_gpu_is_skipped_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (line,) = run_suites([SUITES["gpu"]], Settings(quick=True))
    assert re.search(facts("no GPU", "torch", "--set device=cpu"), line["skipped"])


def test_device_syncs_are_counted_from_the_warnings_of_torch(recwarn: pytest.WarningsRecorder) -> None:
    syncs = SyncCounter()
    with warnings.catch_warnings():
        syncs.begin()
        for _ in range(2):  # from one place, for which Python would warn once
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert syncs.count == 2 and list(syncs.seen.values()) == [2]


def test_operations_of_a_token_are_those_of_the_weights() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {**ONE_BILLION, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, **shape))
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)  # the embedding is the head's
    assert flops_per_token(shape, 100) == 6 * matrices
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("unheard of") is None
