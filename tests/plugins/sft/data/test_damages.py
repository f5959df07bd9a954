"""Whatever happens to a cache's files, what is read is what was written, and damage is reported."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hooktrain_sft.data import arrow_store, row_cache
from hooktrain_sft.data.arrow_store import Block, StoreWriter, TokenStore
from hooktrain_sft.data.documents import Documents
from hooktrain_sft.data.row_cache import CachedSequences, SequenceCache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hooktrain import DataError
from tests.facts import facts

FILES = ("tokens.arrow", "entry.json")


def write(writer: StoreWriter) -> dict[str, Any]:
    """Twelve sequences in three blocks."""
    for number in range(12):
        writer.add(np.arange(number, number + 5, dtype=np.int32), np.arange(5) > 1, np.array([3, 2]))
    return {"rows": 24}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_store, "_PIECE_TOKENS", 20)


def get(folder: Path, said: list[str] | None = None, name: str = "abc") -> CachedSequences:
    return SequenceCache(folder, [].append if said is None else said.append).get(name, write)


def content(made: CachedSequences) -> list[Any]:
    documents = Documents.of_store(made.store)
    tokens = [(ids.tolist(), trained.tolist()) for ids, trained in documents]
    return [tokens, documents.supervised.tolist(), documents.digests.tolist(), dict(made.facts)["rows"]]


def noticed(folder: Path, damage: Path, expected: list[Any]) -> None:
    """A damaged entry is named, prepared again, and found the next time."""
    said: list[str] = []
    again = get(folder, said)
    assert not again.found and content(again) == expected, damage
    assert len(said) == 1 and re.search(facts("data.cache_dir", str(damage.parent), "damaged", "again"), said[0])
    assert get(folder, said).found and len(said) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(tmp_path: Path, file: str, place: float, bit: int) -> None:
    entry = get(tmp_path)
    assert entry.path is not None
    _flip(entry.path / file, int(place * (entry.path / file).stat().st_size), bit)
    noticed(tmp_path, entry.path / file, content(get(tmp_path / "another")))


@pytest.mark.thorough
@pytest.mark.parametrize("file", FILES)
def test_every_changed_byte_is_noticed(tmp_path: Path, file: str) -> None:
    entry, expected = get(tmp_path), content(get(tmp_path / "another"))
    assert entry.path is not None
    for place in range(10_000):
        if place >= (entry.path / file).stat().st_size:  # seconds and times are not always equally long
            break
        _flip(entry.path / file, place, place % 8)
        noticed(tmp_path, entry.path / file, expected)


def _flip(path: Path, place: int, bit: int) -> None:
    """Change a byte and set the times back."""
    data, status = bytearray(path.read_bytes()), path.stat()
    data[place] ^= 1 << bit
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_noticed(tmp_path: Path, file: str, place: float) -> None:
    entry = get(tmp_path)
    assert entry.path is not None
    os.truncate(entry.path / file, int(place * (entry.path / file).stat().st_size))
    noticed(tmp_path, entry.path / file, content(get(tmp_path / "another")))


@pytest.mark.parametrize("files", [FILES[:1], FILES[1:], FILES])
def test_another_entrys_files_are_noticed(tmp_path: Path, files: tuple[str, ...]) -> None:
    def others(writer: StoreWriter) -> dict[str, Any]:
        for number in range(12):
            writer.add(np.arange(number, number + 5, dtype=np.int32) + 100, np.arange(5) > 1, np.array([3, 2]))
        return {"rows": 24}

    entry, other = get(tmp_path), SequenceCache(tmp_path).get("def", others)
    expected = content(get(tmp_path / "another"))
    assert entry.path is not None and other.path is not None
    for file in files:
        shutil.copy2(other.path / file, entry.path / file)
    noticed(tmp_path, entry.path / files[0], expected)


def test_edited_facts_are_noticed(tmp_path: Path) -> None:
    entry = get(tmp_path)
    assert entry.path is not None
    edited = json.loads((entry.path / "entry.json").read_text())
    edited["facts"]["rows"] = 25
    (entry.path / "entry.json").write_text(json.dumps(edited, indent=1))
    noticed(tmp_path, entry.path / "entry.json", content(get(tmp_path / "another")))


@pytest.mark.parametrize("file", [*FILES, ""])
def test_something_else_in_the_place_of_a_file(tmp_path: Path, file: str) -> None:
    entry, expected = get(tmp_path), content(get(tmp_path / "another"))
    assert entry.path is not None
    for put in (lambda path: None, Path.mkdir if file else Path.touch):
        path = entry.path / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        put(path)
        if file or path.exists():
            noticed(tmp_path, entry.path / "any", expected)
        else:
            assert not get(tmp_path).found, "nothing is there, which is no damage"


# ----------------------------------------------------------------------------------------- large files


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as large, which are verified as they are read unless they have changed."""
    monkeypatch.setattr(row_cache, "_VERIFIED_AT_ONCE", 0)


@pytest.mark.usefixtures("_large")
def test_a_large_file_that_has_changed_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get(tmp_path)
    verified: list[Path] = []
    real = row_cache.verify
    monkeypatch.setattr(row_cache, "verify", lambda path, blocks: [verified.append(path), real(path, blocks)])
    assert get(tmp_path).found and not verified, "not since it was written"
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    for _ in range(2):
        said: list[str] = []
        assert get(tmp_path.parent / "copy", said).found and len(verified) == 1 and not said
    made = get(tmp_path)
    assert made.path is not None
    _flip(made.path / "tokens.arrow", 900, 3)
    noticed(tmp_path, made.path / "tokens.arrow", content(get(tmp_path / "another")))


@pytest.mark.usefixtures("_large")
def test_a_large_file_that_a_disk_changes_stops_the_run_and_is_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time stamp tells; the block is noticed when its tokens are first read, in a worker process as well."""
    path = get(tmp_path).path
    assert path is not None
    with monkeypatch.context() as patch:
        patch.setattr(row_cache, "_identity", lambda file, known=row_cache._identity(path / "tokens.arrow"): known)
        data = (path / "tokens.arrow").read_bytes()
        at = data.index(np.arange(11, 16, dtype=np.int32).tobytes())
        _flip(path / "tokens.arrow", at, 1)
        documents = Documents.of_store(get(tmp_path).store)
    for some in (documents, pickle.loads(pickle.dumps(documents))):
        assert some.tokens(0)[0].tolist() == [0, 1, 2], "other blocks are whole"
        with pytest.raises(DataError, match=facts("data.cache_dir", str(path), "damaged", "block 3", "again")):
            some.tokens(23)
    noticed(tmp_path, path / "tokens.arrow", content(get(tmp_path / "another")))


# ----------------------------------------------------------------------------------------- permissions


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A cache with one entry that this process may read and not write; for root, another user's."""
    folder = Path(tempfile.mkdtemp(prefix="hooktrain-test-"))
    get(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # whom no permission is given beyond those above
    yield folder
    if root:
        os.seteuid(0)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_cache_that_cannot_be_written_is_used(theirs: Path) -> None:
    said: list[str] = []
    before = {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
    assert get(theirs, said).found and not said
    other = get(theirs, said, name="def")
    assert not other.found and other.path is None and "damaged" not in said[0]
    assert re.search(facts("data.cache_dir", str(theirs), "cannot be written", "this run only"), said[0])
    assert before == {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("_large")
def test_a_large_cache_that_cannot_be_written_is_used(theirs: Path) -> None:
    said: list[str] = []
    assert get(theirs, said).found and not said


def test_a_cache_that_cannot_be_read_is_not_called_damaged(theirs: Path) -> None:
    root = os.geteuid() != os.getuid()
    if root:
        os.seteuid(0)
    (theirs / "rows" / "abc" / "entry.json").chmod(0)
    if root:
        os.seteuid(65534)
    said: list[str] = []
    made = get(theirs, said)
    assert not made.found and "damaged" not in said[0]
    assert re.search(facts("data.cache_dir", str(theirs / "rows" / "abc"), "cannot be read", "this run only"), said[0])
    assert (theirs / "rows" / "abc" / "entry.json").exists()


def test_a_damaged_entry_of_another_user_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = get(tmp_path)
    assert entry.path is not None
    _flip(entry.path / "tokens.arrow", 900, 3)
    left = entry.path.with_name("abc.1.partial")
    left.mkdir()
    monkeypatch.setattr(row_cache, "_is_ours", lambda path: False)
    said: list[str] = []
    again = get(tmp_path, said)
    assert again.path is None and content(again) == content(get(tmp_path / "another"))
    assert re.search(facts(str(entry.path), "another user", "damaged", "this run only"), said[0])
    assert left.exists() and sorted(path.name for path in entry.path.iterdir()) == sorted(FILES)


def _resealed(folder: Path, change: Any) -> None:
    """Change an entry as someone does who can compute its digest."""
    plain = json.loads((folder / "entry.json").read_text())
    plain.pop("check")
    plain = change(plain)
    check = hashlib.blake2b(json.dumps(plain, indent=1).encode(), digest_size=16).hexdigest()
    (folder / "entry.json").write_text(json.dumps({**plain, "check": check}, indent=1))


FORGED = {
    "no blocks": lambda entry: {**entry, "blocks": []},
    "one block": lambda entry: {**entry, "blocks": entry["blocks"][-1:]},
    "blocks of text": lambda entry: {**entry, "blocks": ["abc"]},
    "a block without end": lambda entry: {**entry, "blocks": [[None, "x"], *entry["blocks"]]},
    "backwards": lambda entry: {**entry, "blocks": [*entry["blocks"], [-1, "x"], entry["blocks"][-1]]},
    "facts": lambda entry: {**entry, "facts": 3},
    "notes": lambda entry: {**entry, "facts": {**entry["facts"], "notes": {"a": 1}}},
    "notes without place": lambda entry: {**entry, "facts": {**entry["facts"], "notes": {"a": {"count": "x"}}}},
    "sequences": lambda entry: {**entry, "facts": {**entry["facts"], "sequences": [5]}},
    "no rows": lambda entry: {**entry, "facts": {}},
    "another layout": lambda entry: {**entry, "layout": 99},
    "a number for a name": lambda entry: {**entry, "fingerprint": 3},
}


@pytest.mark.parametrize("case", FORGED)
def test_an_entry_of_another_form_is_prepared_again(tmp_path: Path, case: str) -> None:
    entry = get(tmp_path)
    assert entry.path is not None
    _resealed(entry.path, FORGED[case])
    noticed(tmp_path, entry.path / "entry.json", content(get(tmp_path / "another")))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"blocks": 1e999}', "9" * 5000, "null", '{"blocks": [[1e999, 1]]}'])
def test_an_entry_that_json_chokes_on_is_prepared_again(tmp_path: Path, text: str) -> None:
    entry = get(tmp_path)
    assert entry.path is not None
    (entry.path / "entry.json").write_text(text)
    noticed(tmp_path, entry.path / "entry.json", content(get(tmp_path / "another")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _fuzz(folder: Path, count: int) -> None:
    keys = ["blocks", "facts", "identity", "digest", "fingerprint", "layout"]

    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(st.sampled_from(keys), JSON, st.booleans())
    def check(key: str, value: Any, within: bool) -> None:
        entry = get(folder)
        assert entry.path is not None
        whole = content(entry)
        _resealed(entry.path, lambda plain: {**plain, key: {**plain["facts"], "notes": value} if within else value})
        again = get(folder)
        assert content(again)[0] == whole[0], "whatever it says, the tokens are those that were written"

    check()


def test_forged_entries(tmp_path: Path) -> None:
    _fuzz(tmp_path, 30)


@pytest.mark.thorough
def test_many_forged_entries(tmp_path: Path) -> None:
    _fuzz(tmp_path, 2000)


@pytest.mark.parametrize("case", ["other lengths", "a null", "mask and weights", "weights of other lengths"])
def test_forged_columns_are_damage(tmp_path: Path, case: str) -> None:
    """In a file whose digests are right."""
    path = tmp_path / "tokens.arrow"
    masks = {"other lengths": [[1], [1, 1]], "weights of other lengths": [[], []]}
    weights = {"mask and weights": [[0.5, 1.0], [1.0]], "weights of other lengths": [[0.5], [1.0, 1.0]]}
    columns = [
        pa.array([[1, 2], [3]], pa.list_(pa.int32())),
        pa.array(masks.get(case, [[1, 1], [1]]), pa.list_(pa.uint8())),
        pa.array(weights.get(case, [[], []]), pa.list_(pa.float32())),
        pa.array([1, None] if case == "a null" else [1, 1], pa.int32()),
        pa.array([1, 2], pa.uint64()),
    ]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, arrow_store.SCHEMA) as writer:
        writer.write_batch(pa.record_batch(columns, schema=arrow_store.SCHEMA))
    held = path.read_bytes()
    with pytest.raises(arrow_store.DamagedError):
        TokenStore(path, "", [Block(len(held), hashlib.sha256(held).hexdigest())])
