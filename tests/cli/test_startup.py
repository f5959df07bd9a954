"""The start of a command: what it says first, what it imports, and how it ends.

Each test starts real processes and looks at what was imported and in which order; none looks at a clock.
"""

from __future__ import annotations

import gc
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hooktrain.cli.startup import collect_rarely, say_on_terminal, short_path, sleep_while_waiting
from hooktrain.testing.subprocess_runs import run_cli

pytestmark = pytest.mark.usefixtures("real_starts")

HEAVY = ("torch", "numpy", "transformers", "datasets", "pyarrow", "peft", "deepspeed", "lightning", "trl")

WATCHED = """
import json, os, sys

class Order:
    '''Notes each heavy package when it is first imported, with what has been printed until then.'''
    def find_spec(self, name, path=None, target=None):
        # importlib.util.find_spec comes here too, and imports nothing
        imports = sys._getframe(2).f_code.co_name == "_find_and_load_unlocked"
        if imports and name in HEAVY and name not in seen:
            seen[name] = os.path.getsize(printed)  # what waits in a buffer has not been printed
        return None

HEAVY, printed, notes = json.loads(sys.argv[1])
sys.argv[1:2] = []
seen = {}
sys.meta_path.insert(0, Order())

import atexit
def note():
    with open(notes, "w") as stream:
        json.dump(seen, stream)
atexit.register(note)

sys.argv[0] = "hooktrain"
from hooktrain.cli.main import main
main()
"""


class Started:
    """What a command did.

    Attributes:
        status: its exit status.
        stdout: what it printed.
        stderr: what it printed on the standard error.
        imported: the heavy packages that it imported, in their order, each with what had been printed before it.
    """

    def __init__(self, folder: Path, *words: str | Path) -> None:
        program, printed, notes = folder / "watched.py", folder / "printed", folder / "notes.json"
        program.write_text(WATCHED, encoding="utf-8")
        given = json.dumps([HEAVY, str(printed), str(notes)])
        with printed.open("wb") as stream:
            line = [sys.executable, str(program), given, *map(str, words)]
            done = subprocess.run(line, cwd=folder, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
        self.status, self.stderr = done.returncode, done.stderr
        text = printed.read_bytes()
        self.stdout = text.decode()
        places = json.loads(notes.read_text(encoding="utf-8"))
        self.imported = {name: text[:place].decode() for name, place in places.items()}


@pytest.fixture(autouse=True)
def _buffered(monkeypatch):
    """What a command does not flush stays in its buffer, as it does for a user."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture
def sft(tmp_path, chat_recipe):
    """A recipe file of a tiny Llama with real rows, which shows its progress."""
    path = tmp_path / "sft.yaml"
    raw = {**chat_recipe, "train_iters": 1, "console": {"enabled": True}}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


@pytest.fixture
def tiny(tiny_recipe):
    """A recipe of type ``tiny`` which shows its progress, as a mapping."""
    raw = {**tiny_recipe, "train_iters": 1}
    raw.pop("console", None)
    return raw


@pytest.mark.parametrize("words", [["plugins"], ["plugins", "torch"], ["hooks"], ["hooks", "run_step"], ["schema"]])
def test_listings_import_nothing_heavy(tmp_path, words):
    started = Started(tmp_path, *words)
    assert started.status == 0, started.stderr
    assert started.imported == {}
    assert len(started.stdout.splitlines()) > 5


def test_the_watcher_sees_an_import_at_the_top_of_a_plugin(tmp_path):
    """Which third parties may have, and which shows that the tests here can fail."""
    (tmp_path / "eager.py").write_text(
        "import torch\nfrom hooktrain import hookimpl\n@hookimpl\ndef on_log(): ...\n", encoding="utf-8"
    )
    started = Started(tmp_path, "plugins", "-p", "eager")
    assert started.status == 0, started.stderr
    assert "torch" in started.imported
    assert "eager" in started.stdout


def test_a_plan_without_estimates_imports_nothing_heavy(tmp_path, sft):
    started = Started(tmp_path, "plan", sft, "--no-estimates", "-o", "micro_batch_size=0", "-o", "optimzer.lr=1")
    assert started.status == 1
    assert started.imported == {}
    assert "what it takes" not in started.stdout
    assert "micro_batch_size: given 0" in started.stdout and "optimzer: unknown key" in started.stdout


def test_a_plan_without_estimates_says_the_rest_of_the_plan(tmp_path, sft):
    facts = {}
    for words in ((), ("--no-estimates",)):
        started = Started(tmp_path, "plan", sft, "--json", *words)
        facts[words] = json.loads(started.stdout)
    assert "estimates" in facts[()]
    del facts[()]["estimates"]
    assert facts[()] == facts[("--no-estimates",)]


def test_a_difference_without_estimates_imports_nothing_heavy(tmp_path, sft):
    other = tmp_path / "other.yaml"
    other.write_text(sft.read_text(encoding="utf-8") + "log_interval: 7\n", encoding="utf-8")
    started = Started(tmp_path, "plan", sft, "--diff", other, "--no-estimates")
    assert started.status == 0, started.stderr
    assert started.imported == {}
    assert "log_interval" in started.stdout


def test_a_plan_is_shown_up_to_its_last_plugin_before_it_imports_torch(tmp_path, sft):
    """Where nothing is wrong, so that nothing is printed after the table of plugins."""
    started = Started(tmp_path, "plan", sft)
    assert started.status == 0, started.stderr
    assert started.imported["torch"] == started.stdout.partition("\nwhat it takes")[0]


def test_a_plan_shows_what_is_known_before_it_imports_torch(tmp_path, sft):
    """The errors of ``check_recipe`` included."""
    changes = ("strategy.data_parallel=fsdp2", "strategy.dtype=fp16")
    started = Started(tmp_path, "plan", sft, *(word for change in changes for word in ("-o", change)))
    assert started.status == 1
    before = started.imported["torch"]
    for known in ("and where each value comes from", "# sft.yaml:", "plugins\n", "hooktrain-torch", "errors"):
        assert known in before
    assert "strategy.dtype: given fp16" in before
    assert "what it takes" not in before
    assert "LlamaForCausalLM" in started.stdout.removeprefix(before)


def test_a_run_says_what_it_loads_before_it_imports_torch(tmp_path, sft):
    started = Started(tmp_path, "train", sft)
    assert started.status == 0, started.stderr
    plugins, parts, saves = started.imported["torch"].splitlines()
    assert plugins == f"{sft}: loading plugins"
    assert parts.startswith(f"{sft}: loading strategy torch, tokenizer huggingface, data sft, model huggingface (")
    assert "nothing will be saved" in saves
    assert next(iter(started.imported)) == "torch"
    assert not {"peft", "deepspeed", "lightning", "trl"} & set(started.imported), "which the recipe does not need"
    assert started.stdout.removeprefix(started.imported["torch"]).startswith("model ")


def test_the_first_line_is_there_before_plugins_are_imported(tmp_path, tiny):
    (tmp_path / "eager.py").write_text(
        "import torch\nfrom hooktrain import hookimpl\n@hookimpl\ndef on_log(): ...\n", encoding="utf-8"
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny, "plugins": {"load": ["eager", "hooktrain.testing:TinyPlugin"]}}))
    started = Started(tmp_path, "train", path)
    assert started.status == 0, started.stderr
    assert started.imported["torch"] == f"{path}: loading plugins\n"


@pytest.mark.parametrize(
    "words",
    [["-o", "console.enabled=false"], pytest.param(["-p", "no:console"], marks=pytest.mark.thorough)],
    ids=["by the recipe", "by a switch"],
)
def test_a_run_without_the_console_says_nothing_of_its_start(tmp_path, tiny, words):
    shown = run_cli(tmp_path, "train", tiny, *words)
    assert shown.status == 0, shown.stderr
    assert shown.stdout == ""


@pytest.mark.parametrize("looks", [True, False])
def test_a_command_whose_output_is_its_result_says_its_start_to_who_looks(monkeypatch, looks):
    class Error(io.StringIO):
        def isatty(self):
            return looks

    monkeypatch.setattr("sys.stderr", Error())
    say_on_terminal(Path("recipe.yaml"), "loading plugins")
    assert sys.stderr.getvalue() == ("recipe.yaml: loading plugins\n" if looks else "")


def test_paths_are_short(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert short_path(str(tmp_path / "models" / "tiny")) == "models/tiny"
    assert short_path("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert short_path("/a/very/long/way/to/the/folder/of/some/model") == ".../long/way/to/the/folder/of/some/model"
    assert short_path("/" + "x" * 50) == ".../" + "x" * 50


def test_ranks_other_than_0_say_nothing_of_their_start(tmp_path, tiny):
    shown = run_cli(tmp_path, "train", {**tiny, "micro_batch_size": 1}, "--nproc", "2")
    assert shown.status == 0, shown.stderr
    said = [line.partition(": ")[2] for line in shown.stdout.splitlines() if line.startswith(str(tmp_path))]
    *said, saves = said
    assert said == ["loading plugins", "starting 2 ranks", "loading strategy torch, data tiny, model tiny"]
    assert saves.startswith("nothing will be saved")


# ------------------------------------------------------------------------------------------------------ the end

ENDING = """
import atexit, sys, threading
from hooktrain import hookimpl

def last():
    print("atexit", flush=False)
    sys.stderr.write("atexit on the standard error")

atexit.register(last)

@hookimpl(trylast=True)
def on_train_end():
    released = threading.Event()
    def late():
        released.wait()
        print("thread", flush=False)
    threading.Thread(target=late).start()  # one that the end of the process waits for
    threading._register_atexit(released.set)  # called when the interpreter begins to end
"""


@pytest.mark.parametrize("profiled", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_threads_are_waited_for_and_everything_is_written(tmp_path, tiny_recipe, profiled):
    """With a profiler the interpreter ends as usual, since its results come after the program."""
    path = tmp_path / "tiny.yaml"
    plugins = {"load": ["hooktrain.testing:TinyPlugin", "ending"]}
    path.write_text(yaml.safe_dump({**tiny_recipe, "plugins": plugins}))
    (tmp_path / "ending.py").write_text(ENDING, encoding="utf-8")
    runner = ["-m", "cProfile", "-o", "profile"] if profiled else []
    line = [sys.executable, *runner, "-m", "hooktrain", "train", str(path), "-o", "train_iters=1"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["thread", "atexit"]
    assert done.stderr.endswith("atexit on the standard error")
    assert (tmp_path / "profile").exists() == profiled


@pytest.mark.parametrize(("word", "status"), [("0", 0), ("7", 7)])
def test_the_status_is_kept_and_nothing_is_torn_down(tmp_path, word, status):
    """The ordinary end has finalizers called; here the system takes everything back."""
    code = (
        "import sys, torch\nfrom hooktrain.cli.startup import end\n"
        "class Left:\n    def __del__(self): print('torn down', flush=True)\n"
        "left = Left()\n"
        "print('written')\n"
        f"end({word})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "written\n", "")


def test_a_process_without_torch_ends_as_usual(tmp_path):
    code = "from hooktrain.cli.startup import end\ntry: end(3)\nexcept SystemExit as asked: print(asked.code)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n")


# --------------------------------------------------------------------------------------------- garbage collection


def test_the_collector_is_as_before_when_training_begins_and_after_an_error(tmp_path, tiny_recipe):
    source = """
    import gc, sys

    @hookimpl
    def make_model(config):
        note(where="make_model", thresholds=gc.get_threshold())

    @hookimpl
    def on_train_start():
        note(where="on_train_start", thresholds=gc.get_threshold())
    """
    shown = run_cli(tmp_path, "train", tiny_recipe, "-o", "train_iters=1", source=source)
    assert shown.status == 0, shown.stderr
    notes = [json.loads(line) for line in (tmp_path / "notes.0").read_text(encoding="utf-8").splitlines()]
    found = {note["where"]: tuple(note["thresholds"]) for note in notes}
    code = "import gc; print(*gc.get_threshold())"
    usual = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found["on_train_start"] == tuple(map(int, usual))
    assert found["make_model"][0] > found["on_train_start"][0]


def test_thresholds_come_back_after_an_error():
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), collect_rarely():
        assert gc.get_threshold() != before
        raise ZeroDivisionError
    assert gc.get_threshold() == before


def test_threads_sleep_while_they_wait_and_are_counted(run_cli, tiny_recipe, monkeypatch):
    source = "@hookimpl\ndef on_train_start(): print('waits', os.environ.get('OMP_WAIT_POLICY'))\n"
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    recipe = {**tiny_recipe, "console": {"enabled": True}}
    run = run_cli("train", recipe, "-p", "extra", source=source)
    assert "waits PASSIVE" in run.stdout, run.output
    assert re.search(r"model .* on cpu \(\d+ threads?\)", run.stdout)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    sleep_while_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ, "the user has chosen"
