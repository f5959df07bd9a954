"""The files of a local source: all of a folder, or an error about those that are left."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hooktrain_hf.example_count import count_examples
from hooktrain_hf.local_files import files_of, splits_of
from hooktrain_hf.source import HFSourceConfig, load_examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hooktrain import DataError, World
from tests.facts import facts

SHARD = "{}-00000-of-00001-0a1b.jsonl"
PARQUET_CARD = """---
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: other
  data_files: other/*.jsonl
---
A data set.
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str, folder: str = "data") -> None:
    """Write files, each with one row that holds its name."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"name": name}
        kind = path.suffix.lower()
        path.write_text(f"name\n{name}\n" if kind in (".csv", ".tsv") else json.dumps(row) + "\n")


def names(name: str = "data", **more: Any) -> list[str]:
    return [row["name"] for row in load_examples(HFSourceConfig(name_or_path=name, **more), World())]


@pytest.mark.parametrize(
    "files",
    [
        ["2024-train.jsonl", "2025.jsonl"],
        ["interview.jsonl", "training_days.jsonl"],
        ["other.jsonl", "support_test_cases.jsonl"],
        ["other.jsonl", "support-test.jsonl"],
        ["extra.jsonl", "train.jsonl"],
        ["a.JSONL", "b.ndjson", "c.json", "sub/deeper/d.jsonl"],
        ["a.csv", "b.TSV"],
        ["train_2023.jsonl", "train_2024.jsonl"],
        ["eval_a.jsonl", "test_b.jsonl"],
    ],
)
def test_a_folder_is_all_its_data_files(files: list[str]) -> None:
    make(*files)
    assert sorted(names()) == sorted(files)
    assert sorted(files_of("data", Path("data"))) == sorted(str(Path("data", file)) for file in files)


WORD = st.sampled_from(["train", "test", "val", "2024", "a", "cases", "rows", "Dev", "00000-of-00002"])
NAME = st.builds(
    lambda folder, words, joint, ending: folder + joint.join(words) + ending,
    st.sampled_from(["", "", "train/", "test/", "other/"]),
    st.lists(WORD, min_size=1, max_size=3),
    st.sampled_from("-_."),
    st.sampled_from([".jsonl", ".jsonl", ".jsonl", ".JSON", ".csv", ".jsonl.gz"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(NAME, min_size=1, max_size=4))
def test_every_data_file_of_a_folder_is_of_one_split_or_named_in_an_error(files: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(*files, folder=folder)
        try:
            splits = splits_of("data", Path(folder))
        except DataError as problem:
            assert any(Path(file).name in str(problem) for file in files)
            return
        found = [str(file.relative_to(folder)) for of_split in splits.values() for file in of_split]
        assert sorted(found) == sorted(files)
        assert len(splits) == 1 or all(re.search("train|test|val|dev", file, re.IGNORECASE) for file in files)


def test_files_about_the_data_are_no_data() -> None:
    make("rows.jsonl", "README.md", "LICENSE", "README.txt", "p1.png", ".hidden.jsonl", ".git/x.jsonl", "a.sha256")
    make("dataset_infos.json", "__pycache__/x.jsonl")
    assert names() == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["a.jsonl", "n1.txt", "n2.txt"], ["1 .jsonl", "2 .txt", "'n1.txt'", "data_files"]),
        (["a.jsonl", "b.jsonl", "c.csv"], ["2 .jsonl", "1 .csv", "'c.csv'"]),
        (["a.jsonl", "b.jsonl.zip"], ["'b.jsonl.zip'", "data_files"]),
        (["a.jsonl", "old/part-0000"], ["'old/part-0000'"]),
        (["test.jsonl", "other.jsonl"], ["'test.jsonl'", "'other.jsonl'", "data_files: ['other.jsonl']"]),
        (["p1.png"], ["without data files"]),
    ],
)
def test_a_folder_whose_files_cannot_all_be_read_is_an_error(files: list[str], told: list[str]) -> None:
    make(*files)
    with pytest.raises(DataError, match=facts("data.sources", "'data'", *told)):
        names()


def test_what_an_error_about_a_folder_proposes_works() -> None:
    make("a.jsonl", "b.jsonl", "c.csv", "n.txt", "x.zip", "test.jsonl")
    assert names(data_files=("*.jsonl",)) == ["a.jsonl", "b.jsonl", "test.jsonl"]
    assert names("data/*.csv") == names(data_files=("c.csv",)) == ["c.csv"]
    with pytest.raises(DataError, match=facts("data_files", "'*.arrow'", "no file")):
        names(data_files=("*.jsonl", "*.arrow"))


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train/a.jsonl", "train/b.jsonl", "dev/a.jsonl"], "train", ["train/a.jsonl", "train/b.jsonl"]),
        (["train.jsonl", "dev.jsonl"], "validation", ["dev.jsonl"]),
        (["train.jsonl", "dev.jsonl"], "dev", ["dev.jsonl"]),
        (["qa_train.jsonl", "qa_test.jsonl"], "train", ["qa_train.jsonl"]),
        ([f"d/{SHARD.format('train')}", f"d/{SHARD.format('test')}"], "train", [f"d/{SHARD.format('train')}"]),
        ([SHARD.format("train_sft"), SHARD.format("test_sft")], "train_sft", [SHARD.format("train_sft")]),
        (["train.jsonl", "test.jsonl"], "test+train", ["test.jsonl", "train.jsonl"]),
    ],
)
def test_splits_of_a_folder(files: list[str], split: str, expected: list[str]) -> None:
    make(*files)
    assert names(f"data:{split}") == names(split=split) == expected
    assert list(load_examples(HFSourceConfig(name_or_path=f"data:{split}", streaming=True), World())) == [
        {"name": name} for name in expected
    ]


def test_a_split_that_a_folder_does_not_have_is_an_error() -> None:
    make("train.jsonl", "test.jsonl")
    with pytest.raises(DataError, match=facts("data:validation", "'validation'", "test or train", "data:test")):
        names("data:validation")
    make("test.jsonl", folder="held")
    with pytest.raises(DataError, match=facts("'train'", "held:test")):
        names("held")
    assert names("held:test") == ["test.jsonl"]


def test_a_card_lists_the_files_of_a_folder() -> None:
    make("main/train-1.jsonl", "main/test-1.jsonl", "other/x.jsonl", "raw.zip")
    Path("data/README.md").write_text(PARQUET_CARD)
    assert names() == ["main/train-1.jsonl"]
    assert names("data:test") == ["main/test-1.jsonl"]
    assert names(subset="other") == ["other/x.jsonl"]
    with pytest.raises(DataError, match=facts("'mian'", "main", "other")):
        names(subset="mian")
    Path("data/README.md").write_text(PARQUET_CARD.replace("  default: true\n", ""))
    with pytest.raises(DataError, match=facts("several subsets", "main", "subset: main")):
        names()


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ("data_files: [{path: [3]}]", ["README.md", "{'path': [3]}", "data_files"]),
        ("data_files: 3", ["README.md", "data_files 3"]),
        ("data_files: [{split: train}]", ["README.md", "{'split': 'train'}"]),
        ("data_files: gone/*", ["without the files", "README.md", "download"]),
        ("data_dir: gone", ["without the files", "README.md"]),
    ],
)
def test_a_card_that_lists_nothing_to_read_is_an_error(listed: str, told: list[str]) -> None:
    make("a.jsonl")
    Path("data/README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {listed}\n---\n")
    with pytest.raises(DataError, match=facts("data.sources", "'data'", *told)):
        names()
    assert names(data_files=("a.jsonl",)) == ["a.jsonl"]


def test_a_card_need_not_name_splits() -> None:
    make("a.jsonl", "b.jsonl")
    Path("data/README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: [{path: b.jsonl}]\n---\n")
    assert names() == ["b.jsonl"]


def test_an_existing_path_is_that_path() -> None:
    make("rows[1].jsonl", "rows1.jsonl", "what?.jsonl", folder="my[v1]")
    assert names("my[v1]/rows[1].jsonl") == names("my[v1]/rows[1].jsonl:train[:1]") == ["rows[1].jsonl"]
    assert names("my[v1]/*1.jsonl") == ["rows1.jsonl"]
    assert names("my[v1]/what?.jsonl") == ["what?.jsonl"]
    assert names("my[v1]", data_files=("rows[1].jsonl",)) == ["rows[1].jsonl"]
    assert len(names("my[v1]")) == 3


def remedy(problem: DataError) -> tuple[str, ...]:
    """The files that an error tells to name."""
    found = re.search(r"`data_files: \['(.*)'\]`", str(problem))
    assert found is not None
    return (found[1],)


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["a.csv", "b.csv", "raw.zip"], ["a.csv", "b.csv"]),
        (["sub/a.tsv", "raw.zip"], ["sub/a.tsv"]),
        (["sub/a.JSON", "b.JSON", "raw.zip"], ["b.JSON", "sub/a.JSON"]),
        (["a.csv", "sub/b.csv", "n.jsonl"], ["a.csv", "sub/b.csv"]),
        (["my[1].csv", "dataset_infos.csv", "raw.zip"], ["my[1].csv"]),
        (["README.jsonl", "a.jsonl", "raw.zip"], ["a.jsonl"]),
    ],
)
def test_the_files_that_an_error_names_can_be_read(files: list[str], read: list[str]) -> None:
    make(*files)
    with pytest.raises(DataError, match="data_files") as raised:
        names()
    assert sorted(names(data_files=remedy(raised.value))) == sorted(read)


def test_a_folder_without_data_files_is_told_to_convert_its_files() -> None:
    make("raw.zip")
    with pytest.raises(DataError, match=facts("'raw.zip'", "convert them")) as raised:
        names()
    assert "data_files" not in str(raised.value)


def test_files_of_several_kinds_that_a_glob_matches() -> None:
    make("a.csv", "b.jsonl")
    with pytest.raises(DataError, match=facts("1 .csv", "1 .jsonl", "such as data/a.csv")) as raised:
        names("data/*")
    assert "data_files" not in str(raised.value) and names("data/a.csv") == ["a.csv"]


def test_files_that_are_not_read_are_named() -> None:
    make("rows.jsonl", "README.md", "sub/notes.md", *(f"{number}.png" for number in range(5)))

    def remarks(**more: Any) -> list[str]:
        examples: Any = load_examples(HFSourceConfig(name_or_path="data", **more), World())
        return list(examples.remarks)

    expected = ["files not read: '0.png', '1.png', '2.png', '3.png', '4.png' and 2 more"]
    assert remarks() == remarks(streaming=True) == remarks(split="train[:1]") == remarks(sample_count=1) == expected
    assert remarks(only={"name": "rows.jsonl"}) == remarks(only={"name": "rows.jsonl"}, streaming=True) == expected
    assert remarks(data_files=("*.jsonl",)) == []


def test_types_that_datasets_has_guessed_are_told() -> None:
    make("rows.csv")
    examples: Any = load_examples(HFSourceConfig(name_or_path="csv", data_files=("data/rows.csv",)), World())
    (remark,) = examples.remarks
    assert re.search(facts("guessed", "csv", "download"), remark)


def test_a_link_to_nothing_is_called_that() -> None:
    Path("broken.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match=facts("'broken.jsonl'", "symbolic link", "'nowhere'")) as raised:
        names("broken.jsonl")
    assert "did you mean" not in str(raised.value)
    make("a.jsonl")
    Path("data/b.jsonl").symlink_to("nowhere")
    for name in ("data", "data/*.jsonl"):
        with pytest.raises(DataError, match=facts("b.jsonl", "symbolic link")):
            names(name)


def test_what_is_no_file_is_called_that() -> None:
    os.mkfifo("pipe.jsonl")
    with pytest.raises(DataError, match=facts("'pipe.jsonl'", "neither a file nor a folder")):
        names("pipe.jsonl")


def test_links_are_followed_once() -> None:
    make("sub/a.jsonl")
    Path("data/sub/up").symlink_to("..")
    Path("data/b.jsonl").symlink_to("sub/a.jsonl")
    assert len(names()) == 2


def test_options_for_folders_are_refused_for_a_file() -> None:
    make("a.jsonl")
    for option in ({"subset": "x"}, {"data_files": ("a.jsonl",)}):
        with pytest.raises(DataError, match=facts("data/a.jsonl", next(iter(option)))):
            names("data/a.jsonl", **option)


def test_the_examples_of_a_folder_are_counted_without_reading_it() -> None:
    make("train.jsonl", "test.jsonl", "train/b.jsonl")
    assert count_examples(HFSourceConfig(name_or_path="data")) == 2
    assert count_examples(HFSourceConfig(name_or_path="data:test")) == 1
    Path("book.txt").write_text("a\n\nb\n")
    assert count_examples(HFSourceConfig(name_or_path="book.txt")) == 1
    assert count_examples(HFSourceConfig(name_or_path="book.txt", text_unit="line")) == 2
