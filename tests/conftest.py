"""Every test has what plugin authors get: the fixtures of ``hooktrain.testing``."""

import contextlib
import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hooktrain.testing import fork_server
from tests.preload import PRELOAD
from tests.tiers import (  # noqa: F401 (hooks of pytest)
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
    pytest_xdist_make_scheduler,
)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONUNBUFFERED", None)  # a user has not set it, and a process without it could not be forked
collect_ignore = ["packages"]  # whose tests run where they are installed, see third_party
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; processes inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if not config.pluginmanager.has_plugin("hooktrain.testing"):
        raise pytest.UsageError(
            "hooktrain is not installed, or was before it had an entry point for pytest; run `pip install -e .`"
        )


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # a collection looks at what tests make, and not at all that was imported each time


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries tell at the end of what they take for leaks


@pytest.fixture(scope="session", autouse=True)
def _forked_processes() -> Iterator[None]:
    """Python processes that tests start are forks of a server, which has imported what most of them need."""
    with fork_server.forked_starts(PRELOAD):
        yield


@pytest.fixture(autouse=True)
def _preload(request: pytest.FixtureRequest) -> Iterator[None]:
    """``@pytest.mark.preload("deepspeed")``: the server has imported these modules as well."""
    more = [name for marker in request.node.iter_markers("preload") for name in marker.args]
    with fork_server.forked_starts([*PRELOAD, *more]) if more else contextlib.nullcontext():
        yield


@pytest.fixture
def real_starts() -> Iterator[None]:
    """Python processes are started as a user starts them: for tests of what is imported, printed or read at the start."""
    with fork_server.real_starts():
        yield


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the caller's shell says about plugins, and what earlier runs have cached, does not reach the tests."""
    monkeypatch.setenv("HOOKTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
    # readline, which pytest imports, writes a width into the environment of the processes that pytest-xdist starts
    for name in ("HOOKTRAIN_PLUGINS", "RANK", "WORLD_SIZE", "LOCAL_RANK", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums depend on the number of threads: a test that leaves another one changes the numbers of those after it."""
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1, f"this test leaves torch with {left} threads"


@pytest.fixture(autouse=True)
def _modules_of_this_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that a test writes and imports is not the one that a later test with the same name for it gets."""
    before = set(sys.modules)
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(written):
            del sys.modules[name]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``installed(name, source)``: a distribution with one plugin, on the path like a pip-installed one."""
    site = tmp_path / "site"

    def install(name: str, source: str, *, distribution: str | None = None, version: str = "1.2") -> None:
        module = f"mod_{(distribution or name).replace('-', '_')}"
        site.mkdir(exist_ok=True)
        (site / f"{module}.py").write_text(source, encoding="utf-8")
        info = site / f"{(distribution or name).replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[hooktrain]\n{name} = {module}\n")

    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)
    yield install
    for name in set(sys.modules) - before:
        if name.startswith("mod_"):
            del sys.modules[name]


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``on_terminal(columns, function, ...)``: the lines that a call prints on a terminal so wide, without colours."""

    def look(columns: int, function: Callable[..., Any], *given: Any) -> list[str]:
        master, slave = os.openpty()
        read: list[bytes] = []

        def drain() -> None:
            with contextlib.suppress(OSError):  # which is how a terminal says that nobody writes to it any more
                while piece := os.read(master, 65536):
                    read.append(piece)

        reader = threading.Thread(target=drain)
        reader.start()
        with monkeypatch.context() as patched, open(slave, "w", encoding="utf-8") as terminal:
            patched.setenv("COLUMNS", str(columns))
            patched.setenv("TERM", "xterm-256color")
            patched.setattr(sys, "stdout", terminal)
            function(*given)
        reader.join()
        os.close(master)
        shown = b"".join(read).decode()
        assert "\x1b[" in shown, "in colour"
        return [line.rstrip("\r") for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).rstrip("\r\n").split("\n")]

    return look
