"""A forked process is the same as one that ``subprocess.Popen`` starts: to its parent, its group and itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from hooktrain.testing import fork_server

FACTS = """
import json, os, sys
facts = {
    "argv": sys.argv, "folder": os.getcwd(), "path": sys.path[0], "name": __name__, "env": os.environ.get("MINE"),
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgrp(), "session": os.getsid(0),
    "files": sorted(int(name) for name in os.listdir("/proc/self/fd")), "umask": os.umask(0), "in": sys.stdin.read(),
}
print(json.dumps(facts))
print("an error", file=sys.stderr)
"""
TORCH = "import sys; print('torch' in sys.modules)"


def python(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "cwd": "/", **options}
    return subprocess.run([sys.executable, *words], check=False, **options)


@pytest.fixture(params=["forked", "real"])
def start(request, monkeypatch):
    """Run each test of a start with a real one too, so that the two are the same."""
    if request.param == "real":
        request.getfixturevalue("real_starts")


def test_processes_of_the_tests_are_forked():
    assert python("-c", TORCH).stdout == "True\n"
    with fork_server.real_starts():
        assert python("-c", TORCH).stdout == "False\n"
    assert python("-c", TORCH).stdout == "True\n"


@pytest.mark.usefixtures("start")
def test_a_process_has_its_arguments_files_and_groups(tmp_path):
    (tmp_path / "program.py").write_text(FACTS)
    (tmp_path / "folder").mkdir()
    for words, path in ((["-c", FACTS], ""), ([str(tmp_path / "program.py")], str(tmp_path))):
        process = subprocess.Popen(
            [sys.executable, *words, "a", "b"],
            cwd=tmp_path / "folder",
            env={**os.environ, "MINE": "yes"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=0o27,
        )
        stdout, stderr = process.communicate("given")
        facts = json.loads(stdout)
        assert (process.returncode, stderr) == (0, "an error\n")
        assert facts["argv"] == [words[-1] if words[0] != "-c" else "-c", "a", "b"]
        assert (facts["folder"], facts["path"], facts["name"]) == (str(tmp_path / "folder"), path, "__main__")
        assert (facts["env"], facts["in"], facts["umask"]) == ("yes", "given", 0o27)
        assert (facts["pid"], facts["parent"]) == (process.pid, os.getpid())
        assert (facts["group"], facts["session"]) == (os.getpgrp(), os.getsid(0))
        assert [number for number in facts["files"] if number < 100] == [0, 1, 2, 3], "with the one that lists them"


@pytest.mark.usefixtures("start")
def test_a_session_of_its_own():
    process = subprocess.Popen(
        [sys.executable, "-c", FACTS], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    facts = json.loads(process.communicate()[0])
    assert facts["session"] == facts["group"] == process.pid


@pytest.mark.usefixtures("start")
def test_a_file_that_is_passed_keeps_its_number():
    read, write = os.pipe()
    assert python("-c", f"import os; os.write({write}, b'here')", pass_fds=[write]).returncode == 0
    os.close(write)
    assert os.read(read, 10) == b"here"
    os.close(read)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("import sys; sys.exit()", 0, ""),
        ("import os; os._exit(5)", 5, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt\n"),
        ("raise KeyError('lost')", 1, "KeyError: 'lost'\n"),
        ("import atexit; atexit.register(print, 'the end'); 1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import threading as t; t.Thread(target=lambda: (t.main_thread().join(), print('later'))).start()", 0, ""),
    ],
)
@pytest.mark.usefixtures("start")
def test_exit_statuses(code, status, words):
    done = python("-c", code)
    assert done.returncode == status
    assert done.stderr.endswith(words) and ("Traceback" in done.stderr) == ("Error" in words or "Interrupt" in words)
    assert "fork_server" not in done.stderr, "the server's frames are not in the traceback"
    assert done.stdout == ("the end\n" if "atexit" in code else "later\n" if "threading" in code else "")


@pytest.mark.usefixtures("start")
def test_a_signal_reaches_the_process_and_its_group():
    code = "import signal; print('ready', flush=True); signal.pause()"
    options: dict[str, Any] = {"cwd": "/", "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    for send in (lambda process: process.send_signal(signal.SIGTERM), lambda process: os.killpg(process.pid, 15)):
        with subprocess.Popen([sys.executable, "-c", code], **options) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            send(process)
            assert process.wait() == -signal.SIGTERM


@pytest.mark.usefixtures("start")
def test_a_closed_pipe():
    process = subprocess.Popen(
        [sys.executable, "-c", "print('x' * 100_000)"], cwd="/", stdout=subprocess.PIPE, stderr=-1
    )
    process.stdout.close()
    assert b"BrokenPipeError" in process.stderr.read()
    process.stderr.close()
    assert process.wait() in (1, 120)


def test_a_process_starts_others_that_are_forked_as_well(tmp_path):
    code = f"""
    import os, subprocess, sys
    inner = subprocess.Popen([sys.executable, "-c", "import os; {TORCH}; print(os.getppid()); sys.exit(3)"])
    print(inner.wait(), os.getpid(), inner.pid, flush=True)
    """
    (tmp_path / "outer.py").write_text(textwrap.dedent(code))
    found, parent, status, *pids = python(str(tmp_path / "outer.py")).stdout.split()
    assert (found, status, parent) == ("True", "3", pids[0])
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids[1]), 0)


def test_starts_that_are_not_forked(tmp_path):
    for change in ({"env": {**os.environ, "PYTHONHASHSEED": "7"}}, {"env": {**os.environ, "MALLOC_ARENA_MAX": "1"}}):
        assert python("-c", TORCH, **change).stdout == "False\n"
    assert python("-I", "-c", TORCH).stdout == "False\n", "an option of the interpreter"
    copy = tmp_path / "hooktrain"
    copy.mkdir()
    (copy / "__init__.py").write_text("")
    assert python("-c", TORCH, cwd=tmp_path).stdout == "False\n", "another hooktrain"
    assert python("-c", TORCH, env={**os.environ, "PYTHONPATH": str(tmp_path)}).stdout == "False\n"
    with pytest.raises(FileNotFoundError):
        python("-c", TORCH, cwd=tmp_path / "nowhere")


def test_a_variable_that_is_read_while_importing_has_a_server_of_its_own():
    code = "import os; print(os.environ['OMP_NUM_THREADS']); import torch; print(torch.get_num_threads())"
    assert python("-c", code, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout == "1\n1\n"


def test_more_preloaded_modules():
    with fork_server.forked_starts(["this_is_not_there", "wave"]), pytest.raises(Exception, match="wave has ended"):
        python("-c", "pass")
    with fork_server.forked_starts(["wave"]):
        assert python("-c", "import sys; print('wave' in sys.modules)").stdout == "True\n"


def test_a_module_of_a_folder_on_its_path(tmp_path):
    (tmp_path / "found_on_the_path.py").write_text("print('imported')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert python("-c", "import found_on_the_path", env=env).stdout == "imported\n"
    assert "ModuleNotFoundError" in python("-c", "import found_on_the_path").stderr


def test_random_numbers_differ_from_process_to_process():
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    first, second = (python("-c", code).stdout.split() for _ in range(2))
    assert first[0] != second[0] and first[1] != second[1]
