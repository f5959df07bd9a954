"""Rows of local files: what is written there, and nothing that is guessed."""

from __future__ import annotations

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hooktrain_hf import mapped_files, text_files
from hooktrain_hf.source import HFSourceConfig, load_examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hooktrain import DataError, World
from tests.facts import facts


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.chdir(tmp_path)


def test_equal_names_in_an_object_are_refused() -> None:
    for content, line in (
        ('{"text": "a"}\n{"text": "b", "text": "c"}\n', 2),
        ('[{"text": "a"},\n{"text": {"x": 1, "x": 1}}]', 2),
    ):
        with pytest.raises(DataError, match=facts("rows.jsonl", f"line {line}", "two fields are named")):
            rows("rows.jsonl", content)


def test_a_stream_of_some_rows_returns_to_its_place() -> None:
    content = "".join(json.dumps({"n": n, "kind": "ab"[n % 2]}) + "\n" for n in range(6))
    assert [row["n"] for row in rows("rows.jsonl", content, only={"kind": "b"})] == [1, 3, 5]
    assert [row["n"] for row in rows("rows.csv", "n,kind\n1,True\n2,false\n", only={"kind": True})] == ["1"]


def write_text(name: str, content: str) -> str:
    Path(name).write_bytes(content.encode())
    return name


def rows(name: str, content: str | bytes | None = None, **more: Any) -> list[dict[str, Any]]:
    """Write a file and read it in order, by number and as a stream."""
    if content is not None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    examples: Any = load_examples(HFSourceConfig(name_or_path=name, **more), World())
    found = list(examples)
    assert len(examples) == len(found)
    assert [examples[index] for index in range(len(found))] == found
    last_first = list(range(len(found)))[::-1]
    assert list(examples.select(last_first)) == found[::-1]
    stream: Any = load_examples(HFSourceConfig(name_or_path=name, streaming=True, **more), World())
    assert list(stream) == list(stream) == found
    if found:  # a stream returns to its place
        reading = iter(stream)
        next(reading)
        state = stream.state_dict()
        again: Any = load_examples(HFSourceConfig(name_or_path=name, streaming=True, **more), World())
        again.load_state_dict(json.loads(json.dumps(state)))
        assert list(again) == found[1:]
    return found


# ------------------------------------------------------------------------------------------------------------- JSON

LISTED = '[\n {"a": 1},\n {"a": "é😀"} , {"b": null, "c": [1, "x"]}\n]\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", LISTED),
        ("x.jsonl", LISTED.replace("\n", "")),
        ("x.jsonl", '{"a": 1}\r\n\n \t\n{"a": "é😀"}\n{"b": null, "c": [1, "x"]}'),
        ("x.json", '{"a": 1}\n{"a": "\\u00e9\\ud83d\\ude00"}\n{"b": null, "c": [1, "x"]}\n'),
        ("x.ndjson", '\ufeff{"a": 1}\n{"a": "é😀"}\n{"b": null, "c": [1, "x"]}\n'),
        ("x.json", '{\n "a": 1\n}\n{"a": "é😀"}\n{"b": null,\n "c": [1, "x"]}'),
    ],
)
def test_json_in_every_layout(name: str, content: str) -> None:
    assert rows(name, content) == [{"a": 1}, {"a": "é😀"}, {"b": None, "c": [1, "x"]}]


def test_rows_may_differ_in_all_fields_that_nobody_uses() -> None:
    late = [{"id": n, "tools": None} for n in range(3000)] + [{"id": "x", "tools": [{"a": 1}], "more": {"b": [1, "x"]}}]
    assert rows("x.jsonl", "".join(json.dumps(row) + "\n" for row in late)) == late


def test_text_that_looks_like_something_else_stays_text() -> None:
    row = {"when": "2024-01-02T03:04:05", "code": "0042", "none": "None", "price": "1.50", "big": 12345678901234567890}
    assert rows("x.jsonl", json.dumps(row)) == [row]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"a": 1}\n{"a": \n{"a": 3}', ["line 2", "JSON"]),
        ('{"a": 1}\n3\n', ["line 2", "int"]),
        ('[{"a": 1},]', ["line 1", "JSON"]),
        ('[{"a": 1}', ["line 1", "JSON"]),
        ('[{"a": 1}\n] x', ["line 2", "JSON"]),
        ('[{"a": 1}\n{"a": 2}]', ["line 2", "JSON"]),
        ('{"a": 1}\n{"a": "\\ud83d"}\n', ["line 2", "surrogate"]),
        (b'{"a": 1}\n{"a": "\xe9"}\n', ["line 2", "UTF-8"]),
        ('{"a": 1}\n'.encode("utf-16"), ["line 1", "UTF-8"]),
        ('{"a": 1}\n{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", ["line 2", "recursion"]),
        ("[" * 100_000 + "]" * 100_000, ["line 1", "recursion"]),
    ],
)
def test_json_that_cannot_be_read_is_named_by_line(content: str | bytes, told: list[str]) -> None:
    with pytest.raises(DataError, match=facts("data.sources", "'x.jsonl'", *told)):
        rows("x.jsonl", content)


def test_lines_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_files, "_CHUNK", 7)
    content = [{"text": "é" * n} for n in range(12)]
    assert rows("x.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in content)) == content


# -------------------------------------------------------------------------------------------------------------- CSV


def test_cells_are_the_text_that_is_written() -> None:
    content = 'q,a\nx,0042\ny,\n"several\nlines, ""quoted""",None\nNA,1.50\n2024-01-02,1e5\n'
    assert load_examples(HFSourceConfig(name_or_path=write_text("x.csv", content)), World()).column_names == ["q", "a"]
    assert [row["a"] for row in rows("x.csv")] == ["0042", "", "None", "1.50", "1e5"]
    assert rows("x.csv")[2]["q"] == 'several\nlines, "quoted"'
    assert rows("x.tsv", b"\xef\xbb\xbfq\ta\r\n1,5\t007\r\n\r\ntrue\tNULL") == [
        {"q": "1,5", "a": "007"},
        {"q": "true", "a": "NULL"},
    ]
    assert rows("index.csv", ",q\n0,x\n") == [{"column 1": "0", "q": "x"}]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("q,a\nx,1\ny\n", ["line 3", "1 cells", "expected 2"]),
        ('q,a\n"x\nx",1\ny,2,3\n', ["line 4", "3 cells"]),
        ('q,a\nx,1\ny,"2\nz,3\n', ["line 3", "CSV"]),
        ("q,q\nx,1\n", ["line 1", "'q'"]),
        (b"q,a\nx,\xe9\n", ["line 2", "UTF-8"]),
    ],
)
def test_csv_that_cannot_be_read_is_named_by_line(content: str | bytes, told: list[str]) -> None:
    with pytest.raises(DataError, match=facts("'x.csv'", *told)):
        rows("x.csv", content)


CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_every_table_of_text_survives_csv(table: list[tuple[str, str]], ending: str) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([("q", "a"), *table])
    assert rows("x.csv", written.getvalue()) == [{"q": q, "a": a} for q, a in table]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(CELL, st.recursive(CELL | st.none() | st.integers(), st.lists)), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_every_row_survives_json(written: list[dict[str, Any]], is_list: bool, indent: int | None) -> None:
    dumped = [json.dumps(row, ensure_ascii=False, indent=indent) for row in written]
    content = f"[{','.join(dumped)}]" if is_list else "\n".join(dumped)
    if is_list or indent is None or all(written):
        assert rows("x.json", content) == written


# ----------------------------------------------------------------------------------------------- text, compression

BOOK = "\ufeffChapter one\r\n\r\n  It was night.\r\nThe wind blew.\r\n \t\r\n\r\n    def f(x):\r\n        return x\r\n"


def test_text_is_a_file_or_paragraphs_or_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows("book.txt", BOOK) == [{"text": BOOK.removeprefix("\ufeff")}]
    paragraphs = ["Chapter one", "  It was night.\r\nThe wind blew.", "    def f(x):\r\n        return x"]
    assert [row["text"] for row in rows("book.txt", text_unit="paragraph")] == paragraphs
    lines = [line for paragraph in paragraphs for line in paragraph.split("\r\n")]
    assert [row["text"] for row in rows("book.txt", text_unit="line")] == lines
    Path("blank.txt").write_text(" \n\n")
    with monkeypatch.context() as patched, pytest.raises(DataError, match=facts("book.txt", "text_unit: paragraph")):
        patched.setattr(text_files, "_LONGEST_TEXT", 8)
        rows("book.txt")
    for unit in ("file", "paragraph", "line"):
        with pytest.raises(DataError, match=facts("latin.txt", "line 2", "UTF-8")):
            rows("latin.txt", b"a\n\xe9\n", text_unit=unit)
    assert [row["text"] for row in rows("b*.txt")] == [BOOK.removeprefix("\ufeff")], "a blank text is no document"


def _zst(content: bytes) -> bytes:
    target = pa.BufferOutputStream()
    with pa.CompressedOutputStream(target, "zstd") as packed:
        packed.write(content)
    return bytes(target.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".XZ", lzma.compress), (".zst", _zst)]
)
def test_compressed_files(tmp_path: Path, ending: str, pack: Any) -> None:
    line = b'{"a": "0042"}\n'
    assert rows(f"x.jsonl{ending}", pack(line * 3) + pack(line)) == [{"a": "0042"}] * 4
    assert rows(f"x.csv{ending}", pack(b"a\n0042\n")) == [{"a": "0042"}]
    assert rows(f"x.txt{ending}", pack(b"0042\n")) == [{"text": "0042\n"}]
    pa.parquet.write_table(pa.table({"a": ["0042"]}), "x.parquet")
    assert rows(f"x.parquet{ending}", pack(Path("x.parquet").read_bytes())) == [{"a": "0042"}]
    with pytest.raises(DataError, match=facts(f"cut.jsonl{ending}", "cannot be read")):
        rows(f"cut.jsonl{ending}", pack(line * 3)[:-4])


# ----------------------------------------------------------------------------------------------------------- tables


def _write(name: str, table: pa.Table) -> None:
    if name.endswith(".parquet"):
        pa.parquet.write_table(table, name, row_group_size=2)
        return
    opened = pa.ipc.new_file if name == "file.arrow" else pa.ipc.new_stream
    with opened(name, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def test_a_row_of_many_batches_is_taken_alone() -> None:
    batch = pa.record_batch({"text": ["x" * 10_000] * 100})
    with pa.ipc.new_file("x.arrow", batch.schema) as writer:
        for _ in range(10):
            writer.write_batch(batch)
    examples: Any = load_examples(HFSourceConfig(name_or_path="x.arrow"), World())
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        assert len(examples[500]["text"]) == 10_000
    finally:
        pa.set_memory_pool(default)
    assert pool.max_memory() < 2_000_000, "the file has 10 MB"


@pytest.mark.parametrize("name", ["x.parquet", "file.arrow", "stream.arrow"])
def test_tables(name: str) -> None:
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5)
    table = pa.table(
        {
            "n": list(range(5)),
            "at": pa.array([moment] * 5, pa.timestamp("ms")),
            "day": pa.array([moment.date(), None] + [moment.date()] * 3),
            "turns": [[{"at": moment, "text": "x"}]] * 5,
            "price": pa.array([decimal.Decimal("1.50")] * 5),
            "kind": pa.array(["a"] * 5).dictionary_encode(),
            "map": pa.array([[("k", "v")]] * 5, pa.map_(pa.string(), pa.string())),
            "times": pa.array([[("k", moment)]] * 5, pa.map_(pa.string(), pa.timestamp("ms"))),
        }
    )
    _write(name, table)
    found = rows(name)
    assert [row.pop("n") for row in found] == [0, 1, 2, 3, 4]
    assert found[1].pop("day") is None and found[0].pop("day") == "2024-01-02"
    text = "2024-01-02T03:04:05"
    assert [row.pop("times") for row in found] == [{"k": text}] * 5
    price = decimal.Decimal("1.50")
    assert (
        found[0]
        == found[1]
        == {
            **{"at": text, "turns": [{"at": text, "text": "x"}], "price": price, "kind": "a", "map": {"k": "v"}},
        }
    )
    assert [row["n"] for row in load_examples(HFSourceConfig(name_or_path=f"{name}:train[1:4]"), World())] == [1, 2, 3]


@pytest.mark.parametrize("stored", ["x.parquet", "saved"])
def test_class_labels_are_their_names(stored: str) -> None:
    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features(
        {
            "label": label,
            "several": [label],
            "turns": [{"label": label, "text": datasets.Value("string")}],
            "lists": datasets.Sequence({"label": label}),
            "json": datasets.Json(),
        }
    )
    row = {"label": 1, "several": [0, 1], "turns": [{"label": 0, "text": "x"}], "lists": {"label": [1]}}
    empty = dict.fromkeys(features)
    made = datasets.Dataset.from_list([{**row, "json": {"a": [1, "x"]}}, empty], features=features)
    made.to_parquet(stored) if stored == "x.parquet" else made.save_to_disk(stored)
    expected = [
        {
            **{"label": "yes", "several": ["no", "yes"], "turns": [{"label": "no", "text": "x"}]},
            **{"lists": {"label": ["yes"]}, "json": {"a": [1, "x"]}},
        },
        empty,
    ]
    for more in ({}, {"streaming": True}):
        assert list(load_examples(HFSourceConfig(name_or_path=stored, **more), World())) == expected


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_damaged_table_is_named(name: str) -> None:
    with pytest.raises(DataError, match=facts(f"'{name}'", "cannot be read", "correct the file")):
        rows(name, "no table")


# ------------------------------------------------------------------------------------------------ rows of a source


def test_nothing_is_written_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "cache")
    rows("x.jsonl", '{"a": 1}\n{"a": 2}\n')
    assert len(load_examples(HFSourceConfig(name_or_path="x.jsonl:train[:1]"), World())) == 1
    assert not list(home.iterdir())


def test_a_row_is_found_by_file_and_line() -> None:
    Path("a.csv").write_text('q,a\nx,"two\nlines"\n\ny,z\n')
    Path("b.csv").write_text("q,a\nx,y\n")
    examples: Any = load_examples(HFSourceConfig(name_or_path="*.csv"), World())
    assert [examples.place_of(n) for n in range(3)] == ["a.csv, line 2", "a.csv, line 5", "b.csv, line 2"]
    assert examples.select([2]).place_of(0) == "b.csv, line 2"
    pa.parquet.write_table(pa.table({"a": ["x"]}), "x.parquet")
    assert load_examples(HFSourceConfig(name_or_path="x.parquet"), World()).place_of(0) == "x.parquet"


def test_rows_can_be_sent_to_another_process() -> None:
    Path("x.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    Path("x.txt").write_text("a\nb\n")
    for name, unit in (("x.jsonl", None), ("x.txt", "line")):
        examples: Any = load_examples(HFSourceConfig(name_or_path=name, text_unit=unit), World())
        assert list(pickle.loads(pickle.dumps(examples))) == list(examples)


def test_several_files_are_one_after_the_other_in_any_order_of_numbers() -> None:
    for name in ("a", "b", "c"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"n": f"{name}{n}"}) + "\n" for n in range(3)))
    Path("empty.jsonl").write_text("")
    examples: Any = load_examples(HFSourceConfig(name_or_path="*.jsonl"), World())
    chosen = [8, 0, 3, 4, 2, 2]
    assert [row["n"] for row in examples.select(chosen)] == ["c2", "a0", "b0", "b1", "a2", "a2"]
    assert [row["n"] for row in examples.select(chosen).select([1, 3])] == ["a0", "b1"]
    assert examples.column_names is None, "each row has its own"
    shuffled = {
        tuple(
            row["n"]
            for row in load_examples(HFSourceConfig(name_or_path="*.jsonl", streaming=True), World()).shuffle(
                seed=seed, buffer_size=1
            )
        )
        for seed in range(8)
    }
    assert len(shuffled) > 1 and all(sorted(order) == sorted(shuffled.copy().pop()) for order in shuffled)
