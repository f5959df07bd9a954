"""A source's fingerprint follows its content."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
from hooktrain_hf import source_fingerprint
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


def test_a_large_file_is_known_by_size_and_time(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_fingerprint, "_READ_WHOLE", 8)
    before = of(examples)
    assert of(examples) == before
    os.utime(examples, (1, 1))
    assert of(examples) != before


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


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=facts("data.sources", "nowhere.jsonl'", "exist")):
        of(tmp_path / "nowhere.jsonl")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert of("someone/something") is None
