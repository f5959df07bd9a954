"""The source ``huggingface``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from hooktrain_hf.source import HFSourceConfig, load_examples

from hooktrain import DataError, World, structure
from tests.facts import facts

EXAMPLES = [{"n": n, "messages": [{"role": "user", "content": f"example {n}"}]} for n in range(10)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def numbers(name: str, **more: Any) -> list[int]:
    examples = load_examples(HFSourceConfig(name_or_path=name, **more), World())
    assert [examples[i]["n"] for i in range(len(examples))] == [example["n"] for example in examples]
    return [int(example["n"]) for example in examples]


def write(path: Path, examples: list[dict[str, Any]] = EXAMPLES) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    elif path.suffix == ".json":
        path.write_text(json.dumps(examples))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(examples).to_parquet(path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        path.write_text(f"n{separator}text\n" + "".join(f"{example['n']}{separator}x\n" for example in examples))
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv", "tsv"])
def test_a_file_gives_its_examples_in_order(tmp_path: Path, ending: str) -> None:
    assert numbers(write(tmp_path / f"examples.{ending}")) == list(range(10))


def test_examples_are_dictionaries(tmp_path: Path) -> None:
    example = load_examples(HFSourceConfig(name_or_path=write(tmp_path / "examples.jsonl")), World())[3]
    assert example == EXAMPLES[3]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "examples.jsonl")
    assert len(numbers("examples.jsonl")) == 10
    write(tmp_path / "examples.jsonl", EXAMPLES[:4])
    assert numbers("examples.jsonl") == [0, 1, 2, 3]


def test_globs_and_folders(tmp_path: Path) -> None:
    write(tmp_path / "data/b.jsonl", EXAMPLES[5:])
    write(tmp_path / "data/a.jsonl", EXAMPLES[:5])
    assert numbers("data/*.jsonl") == list(range(10))
    assert numbers("data") == list(range(10))
    assert numbers("data", data_files=("b.jsonl",)) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("where", ["examples.jsonl", "saved", "several"])
@pytest.mark.parametrize(
    ("split", "expected"), [("train[2:4]", [2, 3]), ("train[:20%]", [0, 1]), ("train[:1]+train[-1:]", [0, 9])]
)
def test_slices(tmp_path: Path, where: str, split: str, expected: list[int]) -> None:
    examples = datasets.Dataset.from_list(EXAMPLES)
    if where == "saved":
        examples.save_to_disk(tmp_path / where)
    elif where == "several":
        datasets.DatasetDict(train=examples, test=examples.select([7])).save_to_disk(tmp_path / where)
        assert numbers("several:test") == [7]
    else:
        write(tmp_path / where)
    assert numbers(f"{where}:{split}") == expected
    assert numbers(where, split=split) == expected


def test_samples_are_drawn_once_each_in_order_and_by_seed(tmp_path: Path) -> None:
    name = write(tmp_path / "examples.jsonl")
    drawn = numbers(name, sample_count=4)
    assert len(set(drawn)) == 4 and drawn == sorted(drawn) == numbers(name, sample_ratio=0.4)
    assert any(numbers(name, sample_count=4, sample_seed=seed) != drawn for seed in (1, 2))
    assert numbers(name, sample_count=99) == list(range(10))


def test_count_and_ratio_together_are_a_complaint() -> None:
    complaints: list[Any] = []
    settings = {"name_or_path": "x.jsonl", "sample_count": 3, "sample_ratio": 0.5}
    assert structure(HFSourceConfig, settings, "data.sources[0]", complaints) is None
    assert re.search(facts("data.sources[0]", "sample_count 3", "sample_ratio 0.5", "at most one"), str(complaints[0]))


@pytest.mark.parametrize(
    ("name", "expected_text"),
    [
        ("./nope.jsonl", "exist"),
        ("nope.parquet", "exist"),
        ("example.jsonl", r"'examples\.jsonl'"),
        ("/nope/data", "exist"),
        ("data/*.jsonl", "no file"),
        ("data:train[:3]", "without data files"),
        ("examples.xyz", r" \.xyz"),
        ("examples.jsonl:test", "(?i)unknown split"),
        ("examples.jsonl:train[20:30]", r"split 'train\[20:30\]'"),
        ("broken.jsonl", "line 2.*read.*JSON"),
        ("empty.jsonl", "split 'train'.*at least one"),
    ],
)
def test_an_unreadable_source_is_one_error(tmp_path: Path, name: str, expected_text: str) -> None:
    write(tmp_path / "examples.jsonl")
    (tmp_path / "examples.xyz").write_text("x")
    (tmp_path / "broken.jsonl").write_text('{"n": 1}\n{"n": ')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=expected_text) as raised:
        numbers(name)
    assert re.search(facts("data.sources: ", name.partition(":")[0]), str(raised.value)) and "\n" not in str(
        raised.value
    )


def test_known_splits_have_the_hubs_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(*args: Any, **more: Any) -> datasets.Dataset:
        calls.append((args, more))
        return datasets.Dataset.from_list(EXAMPLES)

    monkeypatch.setattr(datasets, "load_dataset", load)
    numbers("HuggingFaceH4/ultrachat_200k")
    numbers("HuggingFaceH4/ultrachat_200k:eval[:5]")
    numbers("someone/set", subset="small", split_mapping={"train": "all"}, revision="v2")
    assert calls == [
        (("HuggingFaceH4/ultrachat_200k", None), {"split": "train_sft", "revision": None}),
        (("HuggingFaceH4/ultrachat_200k", None), {"split": "test_sft[:5]", "revision": None}),
        (("someone/set", "small"), {"split": "all", "revision": "v2"}),
    ]


def test_a_file_has_no_revision(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=facts("data.sources", f"'{path}'", "revision 'v2'", "remove")):
        load_examples(HFSourceConfig(name_or_path=str(path), revision="v2"), World())


def test_a_hub_that_cannot_be_reached_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise ConnectionError("Couldn't reach 'someone/set' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError, match=facts("data.sources", "'someone/set'", "Couldn't reach", "spelling", "network")
    ) as raised:
        numbers("someone/set")
    assert "\n" not in str(raised.value) and isinstance(raised.value.__cause__, ConnectionError)


def test_text_that_is_not_utf_8_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"text": "\xe9t\xe9"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"data\.sources.*latin\.jsonl'.*UTF-8"):
        load_examples(HFSourceConfig(name_or_path=str(path)), World())
