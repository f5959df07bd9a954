"""Digests are those of the content that files have now; those of unchanged files are not computed again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hooktrain_hf import file_digests as module
from hooktrain_hf.file_digests import file_digests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hooktrain import DataError
from tests.facts import facts


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files, and a cache of its own; files count as settled at once."""
    monkeypatch.setenv("HOOKTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_SETTLED", -(10**12))
    folder = tmp_path / "files"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    names: list[str] = []
    real: Callable[[Path], Any] = module._read

    def noted(path: Path) -> Any:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(module, "_read", noted)
    return names


def of(folder: Path) -> dict[str, str]:
    return file_digests(folder, {path.name: path for path in sorted(folder.iterdir())})


def right(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_only_what_has_changed_is_read_again(folder: Path, read: list[str]) -> None:
    assert of(folder) == right(folder) == of(folder) and sorted(read) == ["a", "b", "c"]
    read.clear()
    (folder / "b").write_text("CONTENT of b")
    (folder / "d").write_text("another")
    (folder / "c").unlink()
    assert of(folder) == right(folder) == of(folder) and sorted(read) == ["b", "d"]


def in_place(path: Path) -> None:
    path.write_text(path.read_text().upper())


def by_another_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(path.read_text().upper())
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    other.replace(path)


def by_a_link(path: Path) -> None:
    other = path.parent.parent / "elsewhere"
    other.write_text(path.read_text().upper())
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("change", [in_place, by_another_file, by_a_link])
def test_an_old_time_stamp_hides_nothing(folder: Path, change: Callable[[Path], None]) -> None:
    """As rsync, tar and package managers leave them: same size, same time of change, other content."""
    of(folder)
    stamp = (folder / "a").stat().st_mtime_ns
    change(folder / "a")
    os.utime(folder / "a", ns=(stamp, stamp))
    assert (folder / "a").stat().st_mtime_ns == stamp
    assert of(folder) == right(folder)


def test_a_file_that_was_just_written_is_read_again(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change within the same tick of the file system's clock would leave no trace."""
    monkeypatch.setattr(module, "_SETTLED", 10**12)
    assert of(folder) == of(folder) == right(folder) and sorted(read) == ["a", "a", "b", "b", "c", "c"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_memories_are_not_believed(folder: Path, place: float, bit: int, cut: bool) -> None:
    expected = of(folder)
    (memory,) = (folder.parent / "cache" / "digests").iterdir()
    data = bytearray(memory.read_bytes())
    at = int(place * len(data))
    data[at] ^= 1 << bit
    memory.write_bytes(data[:at] if cut else data)
    assert of(folder) == expected == of(folder)


def test_sources_of_one_file_each_do_not_read_the_entries_of_others(folder: Path, read: list[str]) -> None:
    """Hundreds of sources in one folder would read and write the digests of all of them, each."""
    for _ in range(2):
        for path in sorted(folder.iterdir()):
            assert file_digests(folder, {path.name: path}) == {path.name: right(folder)[path.name]}
    assert sorted(read) == ["a", "b", "c"]
    entries = [path.read_text() for path in (folder.parent / "cache" / "digests").iterdir()]
    assert sorted(len(json.loads(entry.partition("\n")[2])) for entry in entries) == [1, 1, 1]


def test_a_cache_that_cannot_be_written(folder: Path, read: list[str]) -> None:
    (folder.parent / "cache").write_text("in the way")
    assert of(folder) == right(folder) == of(folder) and len(read) == 6


def test_without_a_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "default_cache_dir", lambda: None)
    assert of(folder) == right(folder)


def test_runs_that_start_at_the_same_time(folder: Path, read: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(of, [folder] * 16)) == [right(folder)] * 16
    read.clear()
    assert of(folder) == right(folder) and not read
    assert len(list((folder.parent / "cache" / "digests").iterdir())) == 1, "no temporary file is left"


def test_a_file_that_is_being_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, writes = hashlib.file_digest, [folder / "b"] * 2

    def while_reading(opened: Any, made: Any) -> Any:
        found = real(opened, made)
        if opened.name == str(folder / "b") and writes:
            with writes.pop().open("a") as file:
                file.write("more")
        return found

    monkeypatch.setattr("hashlib.file_digest", while_reading)
    assert of(folder) == right(folder), "it is read again"
    writes += [folder / "b"] * 10
    in_place(folder / "b")
    with pytest.raises(DataError, match=facts("data.sources", str(folder / "b"), "changes while")):
        of(folder)
