"""Packages of strangers: built into wheels, installed in virtual environments, and seen through the command line."""

from __future__ import annotations

import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file

from hooktrain.testing import save_llama, write_rows
from tests.environments import Environment, build_wheels, make_environment, shared, write_recipe
from tests.launching import TIMES, stored_weights

PACKAGES = Path(__file__).parent / "packages"
GOOD = ("beacon-host", "confidence", "ema", "lion", "robust-loss", "transcripts")  # the first brings beacon along
BAD = ("broken", "older", "rivals")
OUT = ("misspelt", "other_lion", "swa")  # what nobody can run with, beside the good ones


def _fill(folder: Path) -> None:
    wheels = build_wheels(folder, sorted(PACKAGES.glob("hooktrain-*")))
    good = make_environment(folder / "good", wheels, [f"hooktrain-{name}" for name in GOOD])
    make_environment(folder / "crowded", wheels, [f"hooktrain-{name}" for name in BAD], beside=good)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The wheels and the environments."""
    return shared(tmp_path_factory, "packages", _fill)


@pytest.fixture
def good(made, tmp_path):
    """An environment with packages that get along, with a cache of its own."""
    return Environment(made / "good/bin/python", {"HOOKTRAIN_CACHE": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"})


@pytest.fixture
def crowded(made, tmp_path):
    """The same, and packages that do not work, clash, or were written for other hooks."""
    return Environment(made / "crowded/bin/python", {"HOOKTRAIN_CACHE": str(tmp_path / "cache")})


@pytest.fixture
def tiny(tmp_path):
    """``tiny(key=value)``: a recipe of 8 steps on random rows, in a file."""

    def write(name: str = "tiny", **changes) -> Path:
        recipe = {
            "type": "tiny",
            "run_dir": f"runs/{name}",
            "micro_batch_size": 4,
            "train_iters": 8,
            "data": {"rows": 32},
            "model": {"dropout": 0.0},
            "optimizer": {"type": "lion", "lr": 0.01, "weight_decay": 0.1},
            "strategy": {"dtype": "fp32", "device": "cpu"},
            **changes,
        }
        recipe["plugins"] = {"load": ["hooktrain.testing:TinyPlugin"], **changes.get("plugins", {})}
        return write_recipe(tmp_path / f"{name}.yaml", recipe)

    return write


@pytest.fixture
def chat(tmp_path):
    """``chat(key=value)``: a recipe that puts every good package to use, in a file."""
    save_llama(tmp_path / "llama")
    dialog = "user: Is it forty-two?\nassistant: It is.\n  What?"
    write_rows(
        tmp_path / "rows.jsonl", [{"id": number, "transcript": f"{dialog}{'?' * number}"} for number in range(5)]
    )

    def write(name: str = "chat", **changes) -> Path:
        recipe = {
            "type": "sft",
            "run_dir": f"runs/{name}",
            "train_iters": 4,
            "micro_batch_size": 2,
            "model": {"name_or_path": "llama"},
            "data": {
                "sources": ["rows.jsonl", {"type": "transcripts", "collection": "small_talk"}],
                "eval_sources": [{"type": "transcripts", "collection": "arithmetic", "name": "sums"}],
                "max_length": 96,
            },
            "loss": {"type": "robust", "q": 0.001, "chunk_size": 16},
            "optimizer": {"type": "lion", "lr": 0.001},
            "scheduler": {"type": "constant"},
            "strategy": {"dtype": "fp32", "device": "cpu"},
            "ema": {"decay": 0.6},
            "confidence": {"enabled": True},
            **changes,
        }
        return write_recipe(tmp_path / f"{name}.yaml", recipe)

    return write


def done(run):
    assert run.status == 0, run.output
    return run


def numbers(lines):
    """Log lines without what the clock decides."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def plugin_states(path):
    return torch.load(path / "parts.pt", weights_only=True)["plugins"]


def step(run, number):
    return run.folder / "checkpoints" / f"step-{number:08d}"


# -------------------------------------------------------------------------------------------------- what is seen


def test_what_is_installed_is_listed_planned_and_completed(good, made, chat, tmp_path):
    (wheel,) = (made / "wheels").glob("hooktrain_transcripts-*.whl")
    assert "hooktrain_transcripts/collections/small_talk.txt" in zipfile.ZipFile(wheel).namelist()

    recipe = chat()
    listed, schema, planned, shown, asked, liger, wrong = good.several(
        tmp_path,
        ["plugins", "--json"],
        ["schema"],
        ["plan", recipe, "--json"],
        ["data", recipe, "--show", "1"],
        ["plan", recipe, "-o", "loss={type: sft}"],
        ["plan", recipe, "-o", "model.type=liger"],
        ["plan", recipe, "-o", "optimizer.betas=[0.9, 1.0]", "-o", "data.sources=[{type: transcripts}]"],
    )

    facts = {fact["name"]: fact for fact in json.loads(done(listed).stdout)}
    assert {fact["state"] for fact in facts.values()} == {"active"}
    lion, ema = facts["lion"], facts["ema"]
    assert (lion["distribution"], lion["version"], lion["summary"]) == (
        "hooktrain-lion",
        "1.2.0",
        "The Lion optimizer for hooktrain",
    )
    assert "Leonie Nguyen" in lion["author"] and ema["author"] == "Emma Ava"
    assert facts["beacon"]["version"] == "2.1.0", "which is found in its module"
    assert lion["offers"] == ["optimizer/lion"] and facts["transcripts"]["offers"] == ["source/transcripts"]
    assert {"make_strategy", "run_evaluate"} <= set(ema["wraps"])
    assert facts["beacon_host"]["info"]["requires"] == ["beacon>=2"]

    validator = jsonschema.Draft202012Validator(json.loads(done(schema).stdout))
    for part, fits in (
        ({"optimizer": {"type": "lion", "betas": [0.9, 0.98]}}, True),
        ({"optimizer": {"type": "lion", "momentum": 0.9}}, False),
        ({"loss": {"type": "robust", "q": 0.3}}, True),
        ({"loss": {"type": "robust", "q": 1.5}}, False),
        ({"ema": {"decay": 0.99}, "beacon": {"url": "http://here"}}, True),
        ({"ema": {"decay": "much"}}, False),
    ):
        whole = {"type": "sft", "model": {"name_or_path": "llama"}, "data": {"sources": ["rows.jsonl"]}, **part}
        assert validator.is_valid(whole) == fits, part

    plan = json.loads(done(planned).stdout)
    assert [plan["parts"][kind][0]["plugin"] for kind in ("optimizer", "loss")] == ["lion", "robust_loss"]
    assert [part["plugin"] for part in plan["parts"]["source"]] == ["hf", "transcripts", "transcripts"]
    assert plan["parts"]["strategy"][0]["wrapped_by"] == ["ema"]
    assert plan["estimates"]["data"]["rows"] == 8
    trained = plan["estimates"]["model"]["trainable"]
    assert plan["estimates"]["memory"]["device"]["averaged weights"] == 4 * trained

    assert "«It is.\nWhat?<|im_end|>»[1]" in done(shown).stdout, "the answer is trained, with its second line"
    assert shown.stdout.count("format transcript, recognised by the column 'transcript'") == 6

    assert asked.status == 1
    assert "makes no logits, which plugin 'confidence' (hooktrain-confidence 0.0.4) needs" in asked.output
    assert "write loss.all_logits: true" in asked.output
    assert "model: makes no logits, which" in liger.output
    assert "write model.fused_linear_cross_entropy: false" in liger.output
    assert "optimizer.betas: given [0.9, 1.0], expected two numbers from 0 to below 1" in wrong.output
    assert "expected either a path or a collection; give one of them" in wrong.output


# ------------------------------------------------------------------------------------------------ what they do


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

    average = {}
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
    for one, other in ((step(run, 4), step(again, 4)),):
        for kind in ("model", "optimizer"):
            first, second = stored_weights(one, kind), stored_weights(other, kind)
            assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        first, second = plugin_states(one)["ema"], plugin_states(other)["ema"]
        assert first["steps"] == second["steps"] == 4
        assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


class Server(ThreadingHTTPServer):
    """A Beacon server that keeps what it is sent, may be out of order for a while, and may die."""

    daemon_threads = True

    def __init__(self, refuses=(), dies_after=0, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.requests, self.lines, self.refuses, self.dies_after = [], [], refuses, dies_after
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def die(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests.append((self.path, body))
        refused = len(server.requests) in server.refuses
        if self.path.endswith("/metrics") and not refused:
            server.lines += body
            if len(server.lines) == server.dies_after:
                server.die()  # before it answers, so that whoever gets the answer finds nobody any more
        answer = json.dumps({"id": "run-7"}).encode()
        self.send_response(503 if refused else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """``serve(...)``: a server that is there until the test ends, or until it dies."""
    servers = []

    def start(**how):
        servers.append(Server(**how))
        return servers[-1]

    yield start
    for server in servers:
        if server.thread.is_alive():
            server.die()
        server.thread.join(10)


def test_two_ranks_do_what_one_does_and_go_on_without_a_tracker_whose_server_dies(good, tiny, tmp_path, serve):
    saving = {"checkpoint": [{"type": "full", "save_every_n_steps": 4}], "ema": {"decay": 0.9}}
    server = serve()
    alone = done(good.hooktrain(tmp_path, "train", tiny("alone", **saving, beacon={"url": server.url})))
    paths = [path for path, _ in server.requests]
    assert paths == ["/runs", *["/runs/run-7/metrics"] * 8, "/runs/run-7/end"]
    registered, ended = server.requests[0][1], server.requests[-1][1]
    assert registered["name"] == "alone" and registered["facts"]["device"] == "cpu", "as beacon_host says"
    assert ended == {"state": "finished"}
    assert server.lines == alone.metrics, "what the server has is what the run has"

    dying = serve(dies_after=6)
    two = tiny("two", **saving, micro_batch_size=2, beacon={"url": dying.url})
    both = done(good.hooktrain(tmp_path, "train", two, "--nproc", "2"))
    assert [line["step"] for line in dying.lines] == [1, 2, 3, 4, 5, 6]
    warned = [line for line in both.output.splitlines() if "hooktrain: warning" in line and "beacon" in line]
    assert len(warned) == 1 and "hook on_log, step 7, rank 0: BeaconError: beacon.url:" in warned[0], both.output
    assert warned[0].endswith("it is left out from here on")
    for one, other in zip(alone.metrics, both.metrics, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    at_end = plugin_states(step(both, 8))
    for name, value in plugin_states(step(alone, 8))["ema"]["weights"].items():
        torch.testing.assert_close(at_end["ema"]["weights"][name], value, rtol=0, atol=1e-5)
    assert at_end["beacon"]["run_id"] == "run-7", "what is left out keeps its state"

    back = serve()
    resumed = tiny("resumed", **saving, micro_batch_size=2, beacon={"url": back.url})
    again = done(good.hooktrain(tmp_path, "train", resumed, "--nproc", "2", "--resume", step(both, 4)))
    assert numbers(again.metrics) == numbers(both.metrics)[4:]
    assert back.requests[0][0] == "/runs/run-7/metrics", "it goes on with the run that the server knows"
    for name, value in plugin_states(step(again, 8))["ema"]["weights"].items():
        assert torch.equal(value, at_end["ema"]["weights"][name])


def test_a_server_that_comes_back_gets_every_line_and_one_that_is_needed_stops_the_run(good, tiny, tmp_path, serve):
    away, dying = serve(refuses=(1, 4, 5, 6)), serve(dies_after=3)
    patient = tiny("patient", beacon={"url": away.url}, plugins={"on_error": {"beacon": "warn"}})
    needed = tiny("needed", beacon={"url": dying.url}, plugins={"on_error": {"beacon": "stop"}})
    run, stopped = good.several(tmp_path, ["train", patient], ["train", needed])
    assert away.lines == done(run).metrics
    assert "hook on_train_start, step 0, rank 0: BeaconError" in run.stderr
    assert "failed 4 times on this rank (on_log 3, on_train_start 1)" in run.stderr
    assert stopped.status == 1 and "Traceback" not in stopped.stderr
    assert "plugin 'beacon', hook on_log, step 4" in stopped.stderr and "does not take it" in stopped.stderr
    assert len(stopped.metrics) >= 3 and len(dying.lines) == 3


def test_a_plugin_without_the_one_that_it_requires_is_left_out(good, tiny, tmp_path):
    recipe, required = tiny(train_iters=1), tiny("required", plugins={"lock": "plugins.lock"})
    listed, named, run, locked, refused = good.several(
        tmp_path,
        ["plugins", "--json", "-p", "no:beacon"],
        ["plan", recipe, "-p", "no:beacon", "-p", "beacon_host"],
        ["train", recipe, "-p", "no:beacon"],
        ["plan", recipe, "--lock", "plugins.lock"],
        ["train", required, "-p", "no:ema"],
    )
    (fact,) = [fact for fact in json.loads(done(listed).stdout) if fact["name"] == "beacon_host"]
    assert fact["state"] == "failed"
    assert fact["reason"].startswith("requires the plugin 'beacon>=2', which is blocked (")
    assert named.status == 1 and "requires the plugin 'beacon>=2', which is blocked" in named.output
    assert "plugin 'beacon_host' (hooktrain-beacon-host 0.2): requires the plugin 'beacon>=2'" in done(run).stderr
    assert "the run goes on without it" in run.stderr
    assert " plugins; a recipe with plugins: {lock: plugins.lock} runs with these alone" in done(locked).stdout
    assert refused.status == 1
    assert "'ema' (hooktrain-ema 0.9.2) is in the lock and does not take part" in refused.stderr


# ---------------------------------------------------------------------------- what is broken, in conflict, or older


def test_what_does_not_work_is_listed_with_the_reason_and_conflicts_with_the_line_to_write(crowded, tiny, tmp_path):
    recipe = tiny(gradient_accumulation_steps=2, train_iters=3)
    out = [word for name in OUT for word in ("-p", f"no:{name}")]
    listed, first, second, third, fourth, named, older = crowded.several(
        tmp_path,
        ["plugins", "--json"],
        ["plan", recipe],
        ["plan", recipe, *out[:2]],
        ["plan", recipe, *out[:4]],
        ["plan", recipe, *out],
        ["plan", recipe, *out, "-p", "unimportable"],
        ["plan", recipe, *out, "-p", "older_declared"],
    )
    facts = {fact["name"]: fact for fact in json.loads(done(listed).stdout)}
    reasons = {name: fact["reason"] for name, fact in facts.items() if fact["state"] == "failed"}
    assert reasons.keys() == {"unimportable", "defaults", "other_lion", "older_declared", "older_undeclared"}
    assert reasons["unimportable"] == (
        "cannot be imported: ModuleNotFoundError: No module named 'a_library_that_was_forgotten'"
    )
    assert "hook on_step_end: parameter 'trainer' has a default value" in reasons["defaults"]
    assert "was written for hooktrain's hooks >=0.5,<1.0, and these are 1.0" in reasons["older_declared"]
    assert "on_step_end" in reasons["older_undeclared"] and "loss" in reasons["older_undeclared"]
    assert facts["unimportable"]["distribution"] == "hooktrain-broken" and facts["unimportable"]["version"] == "0.1"

    for run in (first, second, third, fourth, named, older):
        assert run.status == 1 and "Traceback" not in run.output
    assert "plugin 'misspelt' (hooktrain-broken 0.1): implements 'on_step_ended', which is no hook" in first.output
    assert "did you mean 'on_step_end'?" in first.output
    assert (
        "plugin 'lion' (hooktrain-lion 1.2.0)" in second.output and "both offer the optimizer 'lion'" in second.output
    )
    assert "plugins: {block: [other_lion]} or {block: [lion]}" in second.output
    assert "plugin 'ema' (hooktrain-ema 0.9.2) does not work beside plugin 'swa' (hooktrain-rivals 4.0)" in third.output
    assert "all claim the segment run_step" in fourth.output and "plugins: {segments: {run_step: " in fourth.output
    assert "a_library_that_was_forgotten" in named.output
    assert "mend or uninstall it, or do not name it (command line -p unimportable)" in named.output
    assert "install a version of it for 1.0" in older.output


def test_a_run_that_settles_them_goes_on_with_warnings(crowded, tiny, tmp_path):
    settled = {"block": [*OUT], "segments": {"run_step": "backwards"}, "on_error": {"raises": "warn"}}
    steps = {"gradient_accumulation_steps": 2, "train_iters": 3}
    stops = {"block": [*OUT], "segments": {"run_step": "forwards"}}
    run, stopped = crowded.several(
        tmp_path,
        ["train", tiny("settled", **steps, plugins=settled)],
        ["train", tiny("stops", **steps, plugins=stops)],
    )
    done(run)
    assert "backwards has done the steps" in run.stdout
    for name in ("unimportable", "defaults", "older_declared", "older_undeclared"):
        assert f"plugin '{name}' (hooktrain-" in run.stderr, name
    assert run.stderr.count("the run goes on without it") == 4
    assert (
        "plugin 'older_tags' (hooktrain-older 0.7), hook describe_run: the parameter 'run_dir' is retired" in run.stderr
    )
    assert "plugin 'raises' (hooktrain-broken 0.1), hook on_step_end, step 2, rank 0: ZeroDivisionError" in run.stderr
    manifest = {each["name"] for each in json.loads((run.folder / "plugins.json").read_text())["plugins"]}
    assert {"raises", "backwards", "lion"} <= manifest and not {*OUT, "unimportable", "older_declared"} & manifest

    assert stopped.status == 1
    assert "plugin 'raises', hook on_step_end, step 2" in stopped.stderr and "ZeroDivisionError" in stopped.stderr


# -------------------------------------------------------------------------------------------------- their own tests


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("ema", "state or average or spread"),  # a resume was seen above
        *(
            pytest.param(name.removesuffix("-host"), "", marks=[pytest.mark.thorough, pytest.mark.timeout(900)])
            for name in GOOD
        ),
    ],
)
def test_their_own_tests_pass(good, made, name, which):
    """The conformance kit among them."""
    folder = made / "sources" / f"hooktrain-{name}"
    run = good.run(
        folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-k", which, "tests"
    )
    assert run.status == 0, run.output
