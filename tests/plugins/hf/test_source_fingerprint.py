"""A source's fingerprint follows its content."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from hooktrain_hf import file_digests, source_fingerprint
from hooktrain_hf.source import HFSourceConfig
from hooktrain_hf.source_fingerprint import fingerprint

from hooktrain import DataError
from tests.facts import facts


def of(name: Any, **more: Any) -> str | None:
    return fingerprint(HFSourceConfig(name_or_path=str(name), **more))


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps({"text": f"example {i}"}) + "\n" for i in range(10)))
    return path


def test_a_file_is_known_by_its_content(examples: Path) -> None:
    before = of(examples)
    os.utime(examples, (1, 1))
    assert of(examples) == before, "touching it changes nothing"
    stamp = examples.stat().st_mtime_ns
    examples.write_text(examples.read_text().replace("example 3", "example X"))
    os.utime(examples, ns=(stamp, stamp))
    assert of(examples) != before, "same size, same time, other content"


def test_a_turned_link_shows_other_content(examples: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    shutil.copy2(examples, tmp_path / "one" / "x.jsonl")
    (tmp_path / "two" / "x.jsonl").write_text(examples.read_text().replace("example", "Example"))
    shutil.copystat(examples, tmp_path / "two" / "x.jsonl")
    link = tmp_path / "now"
    seen = []
    for version in ("one", "two", "one"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / version)
        seen.append((of(link / "x.jsonl"), of(link)))
    assert seen[0] == seen[2] and not set(seen[0]) & set(seen[1])


def test_names_in_a_folder_count_and_the_folder_does_not(tmp_path: Path) -> None:
    """A split is a file's name, and ``split`` may choose it."""
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    for name in ("train.jsonl", "test.jsonl", "train/x.jsonl"):
        (folder / name).write_text(json.dumps({"text": name}) + "\n")
    before = of(folder)
    for old, new in (("train.jsonl", "keep"), ("test.jsonl", "train.jsonl"), ("keep", "test.jsonl")):
        (folder / old).rename(folder / new)
    assert of(folder) != before, "renamed"
    shutil.copytree(folder, tmp_path / "copy")
    assert of(folder) == of(tmp_path / "copy")
    (folder / "train").rename(folder / "validation")
    assert of(folder) != of(tmp_path / "copy")


def test_folders_that_links_point_to_are_read(tmp_path: Path) -> None:
    for name in ("set", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "linked" / "round").symlink_to(tmp_path / "set")
    before = of(tmp_path / "set")
    (tmp_path / "elsewhere" / "rows.jsonl").write_text('{"text": "b"}\n')
    assert before is not None and of(tmp_path / "set") not in (before, None)


def test_patterns_of_data_files(examples: Path, tmp_path: Path) -> None:
    before = of(tmp_path, data_files=("*.jsonl",))
    (tmp_path / "other.txt").write_text("notes")
    assert of(tmp_path, data_files=("*.jsonl",)) == before
    examples.write_text(examples.read_text().replace("3", "X"))
    assert of(tmp_path, data_files=("*.jsonl",)) != before


def test_slices_and_files_count(examples: Path, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(examples.read_text())
    seen = [
        of(examples),
        of(f"{examples}:train[:3]"),
        of(f"{examples}:train[3:]"),
        of(tmp_path / "*.jsonl"),
        of(tmp_path),
    ]
    assert None not in seen
    assert len(set(seen[:4])) == 4 and seen[3] == seen[4]
    (tmp_path / "third.jsonl").write_text(examples.read_text())
    assert of(tmp_path) != seen[4]


def test_a_saved_data_set(examples: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "saved")
    before = of(tmp_path / "saved")
    datasets.Dataset.from_list([{"text": "b"}]).save_to_disk(tmp_path / "saved")
    assert of(tmp_path / "saved") not in (before, None)


def test_large_files_are_not_read_quickly(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = HFSourceConfig(name_or_path=str(examples))
    known = fingerprint(config, quick=True)
    assert known is not None
    monkeypatch.setattr(file_digests, "_QUICK", 10)
    examples.write_text(examples.read_text() + "{}\n")
    assert fingerprint(config, quick=True) is None and fingerprint(config) not in (known, None)


def test_a_stream_is_known_by_the_sizes_and_the_ends_of_its_files(
    examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_fingerprint, "_EDGE", 20)
    text = examples.read_text()
    seen = []
    for content in (text, text.replace("example 0", "Example 0"), text.replace("example 9", "Example 9"), text + "\n"):
        examples.write_text(content)
        seen.append(of(examples, streaming=True))
    assert None not in seen and len(set(seen)) == 4
    examples.write_text(text)
    assert of(examples, streaming=True) == seen[0]
    (examples.parent / "empty.jsonl").touch()
    assert of(examples.parent, streaming=True) is not None


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=facts("data.sources", "nowhere.jsonl'", "exist")):
        of(tmp_path / "nowhere.jsonl")


def test_a_revision_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def dataset_info(self, name: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
            return SimpleNamespace(sha=f"commit of {revision or 'main'}")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert of("some/thing") == "some/thing commit of main train"
    assert of("some/thing", revision="v2") == "some/thing commit of v2 train"


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert of("someone/something") is None
