"""Examples are prepared once, reused only when nothing that matters has changed, and never incomplete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
from hooktrain_sft.chat.render import Rendered
from hooktrain_sft.config import SFTDataConfig
from hooktrain_sft.data import arrow_store
from hooktrain_sft.data.arrow_store import StoreWriter
from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.fingerprint import SequenceFingerprints
from hooktrain_sft.data.row_cache import SequenceCache
from hooktrain_sft.plugin import SFTPlugin

from hooktrain import DataError, PluginHost, World, hookimpl
from tests.facts import facts


@attrs.frozen
class Source:
    name_or_path: str = "rows"
    examples: tuple[Any, ...] = ()
    name: str | None = None


class SourcePlugin:
    """Loads ``Source`` and vouches for what it holds."""

    @hookimpl
    def load_source(self, config: Any) -> Any:
        return list(config.examples) if isinstance(config, Source) else None

    @hookimpl
    def fingerprint_source(self, config: Any) -> str | None:
        return repr(config.examples) if isinstance(config, Source) else None


def host(*plugins: object) -> Any:
    made = PluginHost(discover=False)
    for plugin in (SFTPlugin(), SourcePlugin(), *plugins):
        made.register(plugin)
    return made.hooks


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


EXAMPLES = tuple(conversation(f"What is {i}?", "yes " * (i % 5 + 1)) for i in range(30))


def prepare(tokenizer: Any, hooks: Any = None, **settings: Any) -> Any:
    hooks = hooks or host()
    settings.setdefault("sources", (Source(examples=EXAMPLES),))
    config = SFTDataConfig(max_length=settings.pop("max_length", 128), **settings)
    recipe = SimpleNamespace(model=None)
    return hooks.make_data(config=config, tokenizer=tokenizer, world=World(), hooks=hooks, recipe=recipe)


def cached(data: Any) -> list[bool]:
    return [source["cached"] for source in data.report["sources"]]


def test_a_second_run_finds_the_sequences(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    first, second = prepare(tokenizer), prepare(tokenizer)
    assert (cached(first), cached(second)) == ([False], [True])
    assert first.fingerprint == second.fingerprint
    for index in range(len(first.train)):
        for name, values in first.train[index].items():
            assert np.array_equal(values, second.train[index][name])
    assert {**first.report, "sources": 0} == {**second.report, "sources": 0}


class Upper:
    @hookimpl
    def render_example(self, example: Any) -> Any:
        return Rendered(example["messages"][0]["content"].upper(), ((0, 5),))


class Configured:
    def __init__(self, word: str) -> None:
        self.word = word

    @hookimpl
    def render_example(self) -> Any:
        return Rendered(self.word, ((0, 5),))


@pytest.mark.parametrize(
    "change",
    [
        {"train_on": "last_assistant"},
        {"train_on": "all"},
        {"sources": (Source(examples=EXAMPLES[:-1]),)},
        {"hooks": host(Upper())},
        {"hooks": host(Configured("other words"))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_options_that_matter_prepare_anew(make_tokenizer: Callable[..., Any], change: dict[str, Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    if isinstance(change.get("hooks"), object) and "hooks" in change:
        prepare(tokenizer, hooks=host(Configured("some words")))
    prepare(tokenizer)
    assert cached(prepare(tokenizer, **change)) == [False]
    assert cached(prepare(tokenizer, **change)) == [True]


def test_a_source_that_holds_other_examples_is_prepared_anew(make_tokenizer: Callable[..., Any]) -> None:
    """As a file does that was edited: the recipe says the same as before."""

    class Edited(SourcePlugin):
        held = EXAMPLES

        @hookimpl
        def load_source(self) -> Any:
            return list(self.held)

        @hookimpl
        def fingerprint_source(self) -> str | None:
            return repr(self.held)

    edited = Edited()
    made = PluginHost(discover=False)
    for plugin in (SFTPlugin(), edited):
        made.register(plugin)
    tokenizer = make_tokenizer("chatml")
    assert [cached(prepare(tokenizer, hooks=made.hooks)) for _ in range(2)] == [[False], [True]]
    edited.held = EXAMPLES[::-1]
    assert [cached(prepare(tokenizer, hooks=made.hooks)) for _ in range(2)] == [[False], [True]]


def test_a_source_that_changes_while_it_is_read_is_not_kept(make_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    """Otherwise the new examples would be found under the fingerprint of the old ones, or the other way round."""

    class Written(SourcePlugin):
        held = EXAMPLES[:5]

        @hookimpl
        def load_source(self) -> Any:
            found, self.held = list(self.held), EXAMPLES
            return found

        @hookimpl
        def fingerprint_source(self) -> str | None:
            return repr(self.held)

    made = PluginHost(discover=False)
    for plugin in (SFTPlugin(), Written()):
        made.register(plugin)
    tokenizer = make_tokenizer("chatml")
    with pytest.raises(DataError, match=facts("rows", "changed while", "complete")):
        prepare(tokenizer, hooks=made.hooks, cache_dir=tmp_path)
    assert not [path for path in (tmp_path / "rows").iterdir() if path.suffix != ".lock"]
    assert cached(prepare(tokenizer, hooks=made.hooks, cache_dir=tmp_path)) == [False]
    assert cached(prepare(tokenizer, hooks=made.hooks, cache_dir=tmp_path)) == [True]


def test_without_a_cache_nothing_is_fingerprinted(make_tokenizer: Callable[..., Any]) -> None:
    class Silent(SourcePlugin):
        @hookimpl
        def fingerprint_source(self) -> str | None:
            raise AssertionError("a large file takes a while")

    made = PluginHost(discover=False)
    for plugin in (SFTPlugin(), Silent()):
        made.register(plugin)
    data = prepare(make_tokenizer("chatml"), hooks=made.hooks, use_data_cache=False)
    assert cached(data) == [False] and "not_cached" not in data.report["sources"][0]


def test_another_template_or_tokenizer_is_prepared_anew(make_tokenizer: Callable[..., Any]) -> None:
    prepare(make_tokenizer("chatml"))
    assert cached(prepare(make_tokenizer("chatml"))) == [True]
    assert cached(prepare(make_tokenizer("llama3"))) == [False]
    other = make_tokenizer("chatml")
    other.add_tokens(["answer"])
    assert cached(prepare(other)) == [False]


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 64},
        {"pack_samples": True},
        {"overflow": "drop"},
        {"max_dropped": 0.5},
        {"workers": 1},
        {"seed": 7},
        {"shuffle": False},
        {"group_by_length": True},
        {"train_eval_split": (0.5, 0.5)},
        {"val_size": 1},
        {"exact_deduplication": True},
        {"sources": (Source(examples=EXAMPLES, name="other"),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_later_options_use_the_same_sequences(make_tokenizer: Callable[..., Any], change: dict[str, Any]) -> None:
    tokenizer = make_tokenizer("chatml")
    prepare(tokenizer)
    assert cached(prepare(tokenizer, **change)) == [True]


def test_a_template_that_writes_the_date_is_rendered_again_tomorrow(
    make_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    config, hooks = SFTDataConfig(sources=(Source(examples=EXAMPLES),)), host()

    def fingerprint() -> str | None:
        return SequenceFingerprints(config, tokenizer, World(), hooks).of(config.sources[0])[0]

    today = fingerprint()
    assert today == fingerprint()

    class Tomorrow:
        class date:
            @staticmethod
            def today() -> str:
                return "2100-01-01"

    monkeypatch.setattr("hooktrain_sft.data.fingerprint.datetime", Tomorrow)
    assert fingerprint() != today


def test_a_plugin_with_state_that_cannot_be_compared_is_not_cached(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer, hooks = make_tokenizer("chatml"), host(Configured(object()))  # type: ignore[arg-type]
    config = SFTDataConfig(sources=(Source(examples=EXAMPLES),))
    fingerprint, reason = SequenceFingerprints(config, tokenizer, World(), hooks).of(config.sources[0])
    assert fingerprint is None and re.search(facts("plugin", __name__, "state"), reason)


def test_a_source_that_nobody_vouches_for_is_not_cached(make_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    class Silent(SourcePlugin):
        @hookimpl
        def fingerprint_source(self) -> str | None:
            return None

    made = PluginHost(discover=False)
    made.register(SFTPlugin())
    made.register(Silent())
    for _ in range(2):
        data = prepare(make_tokenizer("chatml"), hooks=made.hooks, cache_dir=tmp_path)
        assert cached(data) == [False] and "fingerprint_source" in data.report["sources"][0]["not_cached"]
    assert list(tmp_path.iterdir()) == []


def write(writer: StoreWriter) -> dict[str, Any]:
    """50 sequences of three tokens."""
    for number in range(50):
        writer.add(np.full(3, number, np.int32), np.ones(3, np.bool_), np.array([3]))
    return {"rows": 2}


def test_a_damaged_entry_is_named_and_prepared_again(tmp_path: Path) -> None:
    made = SequenceCache(tmp_path).get("abc", write)
    assert made.path is not None and not made.found
    whole = (made.path / "tokens.arrow").read_bytes()
    for damage in (whole[:-20], b"", whole + b"x"):
        (made.path / "tokens.arrow").write_bytes(damage)
        said: list[str] = []
        again = SequenceCache(tmp_path, said.append).get("abc", write)
        assert (
            not again.found
            and re.search(facts("data.cache_dir", str(made.path)), said[0])
            and len(Documents.of_store(again.store)) == 50
        )
    (made.path / "entry.json").write_text("{")
    assert not SequenceCache(tmp_path).get("abc", write).found
    (made.path / "entry.json").unlink()
    assert not SequenceCache(tmp_path).get("abc", write).found
    assert SequenceCache(tmp_path).get("abc", write).found


def test_a_failed_preparation_leaves_nothing(tmp_path: Path) -> None:
    def fail(writer: StoreWriter) -> dict[str, Any]:
        write(writer)
        raise DataError("row 3: nonsense")

    with pytest.raises(DataError, match="row 3"):
        SequenceCache(tmp_path).get("abc", fail)
    assert not [path for path in (tmp_path / "rows").iterdir() if path.suffix != ".lock"]
    assert not SequenceCache(tmp_path).get("abc", write).found


def test_a_full_disk_is_not_taken_for_a_source_that_cannot_be_read(
    make_tokenizer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_store, "_PIECE_TOKENS", 1)
    with monkeypatch.context() as patch:
        patch.setattr("hooktrain_sft.data.row_cache.StoreWriter", lambda path: StoreWriter(Path("/dev/full")))
        with pytest.raises(DataError, match=facts("data.cache_dir", str(tmp_path), "No space", "free some space")):
            prepare(make_tokenizer("chatml"), cache_dir=tmp_path)

    class Broken(SourcePlugin):
        @hookimpl
        def load_source(self) -> Any:
            raise OSError(5, "Input/output error")

    made = PluginHost(discover=False)
    for plugin in (SFTPlugin(), Broken()):
        made.register(plugin)
    with pytest.raises(DataError, match=facts("rows", "cannot be read", "Input/output error", "disk")):
        prepare(make_tokenizer("chatml"), hooks=made.hooks, cache_dir=tmp_path)
    assert not [path for path in (tmp_path / "rows").iterdir() if path.suffix != ".lock"]


PREPARES = """
import json, sys
from pathlib import Path
import numpy as np
from hooktrain_sft.data.row_cache import SequenceCache
from hooktrain_sft.data.documents import Documents

def prepare(writer):
    for number in range(20):
        writer.add(np.full(3, number, np.int32), np.ones(3, np.bool_), np.array([3]))
    print("preparing", flush=True)
    sys.stdin.readline()
    return {"rows": 2}

made = SequenceCache(Path(sys.argv[1]), lambda message: print(message, flush=True)).get("abc", prepare)
print(json.dumps([made.found, int(Documents.of_store(made.store).lengths.sum())]), flush=True)
"""
"""A process that prepares examples until it receives a line."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts processes that prepare the same examples, and ends them with the test."""
    started: list[subprocess.Popen[str]] = []

    def another() -> subprocess.Popen[str]:
        words, pipe = [sys.executable, "-c", PREPARES, str(tmp_path / "c")], subprocess.PIPE
        started.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True))
        return started[-1]

    yield another
    for process in started:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_processes_that_come_at_the_same_time_prepare_once(start: Callable[[], subprocess.Popen[str]]) -> None:
    first = start()
    assert line_of(first) == "preparing\n"
    others = [start() for _ in range(3)]
    assert all("another process" in line_of(other) for other in others), "they wait"
    assert first.stdin is not None
    print(file=first.stdin, flush=True)
    assert [json.loads(line_of(process)) for process in (first, *others)] == [[False, 60], *[[True, 60]] * 3]


def test_a_killed_preparation_is_not_used_and_keeps_nobody_waiting(
    start: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start()
    assert line_of(process) == "preparing\n"
    process.kill()
    process.wait()
    assert list((tmp_path / "c" / "rows").glob("*.partial"))
    said: list[str] = []
    made = SequenceCache(tmp_path / "c", said.append).get("abc", write)
    assert not made.found and made.store.digest == SequenceCache(None).get("abc", write).store.digest
    assert not said, "no process waits"
    assert not list((tmp_path / "c" / "rows").glob("*.partial"))


def test_a_folder_that_cannot_be_made_is_reported_and_the_run_continues(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    made = SequenceCache(tmp_path / "file", said.append).get("abc", write)
    assert (
        made.path is None
        and re.search(facts("data.cache_dir", str(tmp_path / "file")), said[0])
        and len(Documents.of_store(made.store)) == 50
    )


def test_sequences_without_a_cache_are_removed_with_the_run() -> None:
    made = SequenceCache(None).get("abc", write)
    folder = made.store.path.parent
    assert folder.is_dir()
    del made
    assert not folder.exists()


def test_the_files_are_ordinary_arrow_files(make_tokenizer: Callable[..., Any]) -> None:
    import datasets

    data = prepare(make_tokenizer("chatml"))
    path = Path(data.report["sources"][0]["path"]) / "tokens.arrow"
    examples = datasets.Dataset.from_file(str(path))
    assert examples[0]["input_ids"] == data.train[0]["input_ids"].tolist()
    assert json.loads((path.parent / "entry.json").read_text())["facts"]["rows"] == 30
