"""Several processes prepare what one would: the same bytes, reports and errors, also when one of them ends."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hooktrain_recipes.prompts import PromptsPlugin
from hooktrain_sft.chat.render import Rendered
from hooktrain_sft.config import SFTDataConfig
from hooktrain_sft.data import source_reader, worker_pool
from hooktrain_sft.data.formats import Format
from hooktrain_sft.data.worker_pool import WorkerPool, number_of_workers
from hooktrain_sft.plugin import SFTPlugin

from hooktrain import DataError, PluginHost, World, hookimpl
from tests.facts import facts


@attrs.frozen
class Source:
    examples: Any
    name_or_path: str = "rows"
    weight: float | None = None


class SourcePlugin:
    @hookimpl
    def load_source(self, config: Any) -> Any:
        return config.examples if isinstance(config, Source) else None

    @hookimpl
    def fingerprint_source(self, config: Any) -> str:
        return "rows"


def conversation(number: int) -> dict[str, Any]:
    """A conversation, which has something to note now and then."""
    answer = "" if number % 9 == 5 else "yes " * (number % 5 + 1)
    messages = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": answer}]
    return {"messages": [*messages, {"role": "user", "content": "So?"}, {"role": "assistant", "content": "So."}]}


EXAMPLES = [conversation(number) for number in range(90)]


def prepare(tokenizer: Any, folder: Path, num_proc: Any, examples: Any = EXAMPLES, *plugins: object) -> Any:
    host = PluginHost(discover=False)
    for plugin in (SFTPlugin(), SourcePlugin(), *plugins):
        host.register(plugin)
    config = SFTDataConfig(sources=(Source(examples),), max_length=128, num_proc=num_proc, cache_dir=folder)
    return host.hooks.make_data(
        config=config, tokenizer=tokenizer, world=World(), hooks=host.hooks, recipe=SimpleNamespace(model=None)
    )


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer("chatml")


class Marked:
    """Renders the process that renders."""

    @hookimpl
    def render_example(self, example: Any) -> Any:
        return Rendered(f"process {os.getpid()}", ((0, 7),)) if "plain" in example else None


class Stopping:
    """Is stopped by an example."""

    def __init__(self, at: Callable[[int], None]) -> None:
        self.main, self.at = os.getpid(), at

    @hookimpl
    def render_example(self, example: Any) -> Any:
        return self.at(self.main) if example.get("special") else None


def test_the_same_bytes_and_reports(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_reader, "_BATCH", 32)
    seen = []
    for number in (1, 2, 3):
        data = prepare(tokenizer, tmp_path / str(number), number)
        (source,) = data.report["sources"]
        content = (Path(source["path"]) / "tokens.arrow").read_bytes()
        seen.append((content, data.fingerprint, data.report["warnings"], {**source, "path": 0, "seconds": 0}))
    assert seen[0] == seen[1] == seen[2]
    assert re.search(facts("rows", "empty", "10 times", "example 5"), seen[0][2][0])


def test_plugins_render_in_other_processes(tokenizer: Any, tmp_path: Path) -> None:
    """Whether they can be pickled or not, and examples that cannot be sent are rendered here."""
    examples = [{"plain": True} for _ in range(16)] + [{"plain": lambda: None}]
    data = prepare(tokenizer, tmp_path, 2, examples, Marked())
    texts = [tokenizer.decode(data.train[index]["input_ids"]) for index in range(17)]
    assert texts[-1].strip() == f"process {os.getpid()}"
    assert str(os.getpid()) not in "".join(texts[:-1]) and len({*texts[:-1]}) <= 2


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def a_data_error(main: int) -> None:
    raise DataError("cannot be used")


def another_error(main: int) -> None:
    raise Unpicklable(1, 2)


class Unreadable(list[Any]):
    """Rows of which one cannot be read."""

    def __iter__(self) -> Iterator[Any]:
        for number, example in enumerate(super().__iter__()):
            if number == 60:
                raise OSError("the disk is gone")
            yield example


def no_conversation() -> list[Any]:
    examples = [*EXAMPLES]
    examples[41] = {"messages": [{"role": "nobody"}]}
    examples[73] = {"messages": 3}
    return examples


@pytest.mark.parametrize(
    ("examples", "stop"),
    [
        (no_conversation(), None),
        ([{**example, "special": number == 33} for number, example in enumerate(EXAMPLES)], a_data_error),
        ([{**example, "special": number == 33} for number, example in enumerate(EXAMPLES)], another_error),
        (Unreadable(EXAMPLES), None),
        (Unreadable(no_conversation()), None),
    ],
)
def test_the_same_errors(tokenizer: Any, tmp_path: Path, examples: Any, stop: Any) -> None:
    plugins = [Stopping(stop)] if stop else []
    seen = []
    for number in (1, 3):
        with pytest.raises(Exception) as caught:
            prepare(tokenizer, tmp_path, number, examples, *plugins)
        seen.append((caught.type, str(caught.value)))
    assert seen[0] == seen[1]


def test_processes_that_cannot_be_started(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, left = os.fork, [1]

    def no_more() -> int:
        if left:
            left.pop()
            return fork()
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_more)
    monkeypatch.setattr(worker_pool, "_PAYS", 10)
    monkeypatch.setattr(worker_pool, "_cores", lambda: 4)
    assert len(prepare(tokenizer, tmp_path, "auto").train) == 90
    with pytest.raises(DataError, match=facts("data.num_proc", "3", "unavailable", "data.num_proc: 1")):
        prepare(tokenizer, tmp_path / "another", 3)
    for process in multiprocessing.active_children():
        process.join()


def test_auto_uses_several_processes(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_PAYS", 10)
    monkeypatch.setattr(worker_pool, "_cores", lambda: 2)
    data = prepare(tokenizer, tmp_path, "auto", [{"plain": True}] * 40, Marked())
    assert str(os.getpid()) not in "".join(tokenizer.decode(data.train[i]["input_ids"]) for i in range(40))


class Counting:
    """Counts what it renders."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def render_example(self) -> None:
        self.count += 1


def test_a_plugin_that_keeps_a_state_renders_in_one_process(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_PAYS", 10)
    monkeypatch.setattr(worker_pool, "_cores", lambda: 2)
    plugin = Counting()
    data = prepare(tokenizer, tmp_path / "1", "auto", EXAMPLES, plugin)
    assert plugin.count == 90 and not any("Counting" in warning for warning in data.report["warnings"])
    written = prepare(tokenizer, tmp_path / "2", 2, EXAMPLES, Counting())
    assert any(re.search(facts("Counting", "lost", "num_proc: 1"), warning) for warning in written.report["warnings"])
    assert written.fingerprint == data.fingerprint


class Converting:
    """Registers a format whose conversion has a state where ``counts``."""

    def __init__(self, counts: bool) -> None:
        self.count, self.counts = 0, counts

    @hookimpl
    def register_formats(self) -> Any:
        recognise = lambda columns, example: "its columns"  # noqa: E731
        return {"counted": Format("counted", "any", recognise, self.convert if self.counts else dict, None)}

    def convert(self, example: Any) -> Any:
        self.count += 1
        return dict(example)


def test_a_plugin_with_attributes_that_only_registers_a_format_does_not_keep_processes_away(
    tokenizer: Any, tmp_path: Path
) -> None:
    for counts, plugin in ((False, Converting(False)), (True, Converting(True)), (False, PromptsPlugin())):
        data = prepare(tokenizer, tmp_path / f"{counts}-{type(plugin).__name__}", 2, EXAMPLES, plugin)
        warned = [said for said in data.report["warnings"] if "num_proc: 1" in said]
        assert len(warned) == counts and all("Converting" in said for said in warned)


def killed(main: int) -> None:
    if os.getpid() != main:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_error_that_says_where(tokenizer: Any, tmp_path: Path) -> None:
    examples = [{**example, "special": number == 80} for number, example in enumerate(EXAMPLES)]
    with pytest.raises(DataError, match=facts("rows, example ", "killed", "data.num_proc: 1")) as caught:
        prepare(tokenizer, tmp_path, 2, examples, Stopping(killed))
    first = re.search(r"example (\d+)", str(caught.value))
    assert first is not None and int(first[1]) <= 80
    assert len(prepare(tokenizer, tmp_path, 1, examples, Stopping(killed)).train) == 90


@pytest.mark.parametrize(
    ("num_proc", "examples", "shared_by", "expected"),
    [
        ("auto", 100, 1, 1),
        ("auto", 4095, 1, 1),
        ("auto", 4096, 1, 2),
        ("auto", 10**6, 1, 8),
        ("auto", 10**6, 4, 2),
        ("auto", 10**6, 16, 1),
        ("auto", None, 1, 1),
        (3, 100, 8, 3),
        (3, 2, 1, 2),
        (3, None, 1, 3),
        (1, 10**6, 1, 1),
    ],
)
def test_the_number_of_processes(
    num_proc: Any, examples: int | None, shared_by: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_cores", lambda: 8)
    assert number_of_workers(num_proc, examples, shared_by) == expected
    monkeypatch.setattr(sys, "platform", "darwin")
    assert number_of_workers(num_proc, examples, shared_by) == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_the_cores_of_a_container(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(worker_pool, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6))
    assert worker_pool._cores() == cores


def wait(pipe: int) -> None:
    """Write the numbers of two workers, which do not end."""

    def prepare(examples: Any, first: int) -> None:
        os.write(pipe, f"{os.getpid()}\n".encode())
        signal.pause()

    with WorkerPool(2, prepare, "rows", 100) as pool:
        list(pool.map(iter(range(100))))


def test_workers_end_with_a_killed_process() -> None:
    """Otherwise they would hold its locks, and the memory, for good."""
    read, write = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=wait, args=(write,))
    process.start()
    os.close(write)
    with open(read, encoding="utf-8") as lines:
        workers = [int(lines.readline()) for _ in range(2)]
        assert len({os.getpid(), process.pid, *workers}) == 4
        process.kill()
        assert lines.read() == "", "every process that could write has ended"
    process.join()
