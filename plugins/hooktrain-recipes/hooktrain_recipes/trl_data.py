"""TRL's data sets: ``dataset_name`` and its splits, ``dataset_mixture``, and the handbook's ``dataset_mixer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hooktrain import Collector
from hooktrain_recipes.reasons import CONTRADICTION
from hooktrain_recipes.tables import Row
from hooktrain_recipes.values import flag_of, listed, number, share, text, whole

__all__ = ["DATA_ROWS", "translate_data"]

PROGRAM = "TRL"
_COLUMNS = "columns are recognised by their names"
_ENTRY = {"id": "name_or_path", "path": "name_or_path", "split": "split"}
_NO_EVALUATION = "nothing is evaluated with eval_strategy: no"

DATA_ROWS: tuple[Row, ...] = (
    Row(key="dataset_name", ours="`data.sources[0].name_or_path`"),
    Row(key="dataset_config", ours="`data.sources[0].subset`"),
    Row(key="dataset_train_split", ours="`data.sources[0].split`"),
    Row(key="dataset_test_split", ours="`data.eval_sources[0].split`", about="where something is evaluated"),
    Row(key="dataset_streaming", ours="`data.sources[0].streaming`"),
    Row(key="dataset_mixture.datasets[].id", ours="`data.sources[].name_or_path`", about="also as `path`"),
    Row(key="dataset_mixture.datasets[].config", ours="`data.sources[].subset`", about="also as `name`"),
    Row(key="dataset_mixture.datasets[].split", ours="`data.sources[].split`"),
    Row(key="dataset_mixture.datasets[].weight", ours="`data.sources[].sample_ratio`", about="also as `fraction`"),
    Row(key="dataset_mixture.datasets[].columns", about=_COLUMNS, kind="ignored"),
    Row(key="dataset_mixture.seed", ours="`data.seed`, `data.sources[].sample_seed`"),
    Row(key="dataset_mixture.test_split_size", ours="`data.train_eval_split`, `data.val_size`",
        about="a share, or a number of examples"),
    Row(key="dataset_mixer", ours="`data.sources`", about="shares by name; `dataset_splits` and `dataset_configs` too"),
)  # fmt: skip


def evaluates(found: Collector) -> bool:
    """Whether the recipe evaluates at all."""
    strategy = found.get("eval_strategy", found.get("evaluation_strategy", "no"))
    return str(strategy) not in ("no", "False") or flag_of(found.get("do_eval"))


def translate_data(found: Collector) -> None:
    """Account for the data sets."""
    given = [key for key in ("dataset_mixture", "dataset_mixer", "dataset_name") if found.get(key)]
    if not given:
        found.unsupported("dataset_name", "no data set is named", "name one with dataset_name")
    for key in ("dataset_mixture", "dataset_mixer", "dataset_name"):
        if key in found and not found.get(key):
            found.ignored(key, "none is the default")
    for other in given[1:]:
        if other == "dataset_name":
            found.ignored(other, f"{given[0]} precedes there too")
        else:
            CONTRADICTION.refuse(found, other, given[0])
    if given and given[0] == "dataset_name":
        _one(found)
    elif given and given[0] == "dataset_mixer":
        _mixer(found)
    elif given:
        _mixture(found)
    for key in ("dataset_config", "dataset_train_split", "dataset_test_split", "dataset_streaming"):
        if key in found:
            found.ignored(key, "belongs to dataset_name" if found.get(key) is not None else "null is the default")


def _one(found: Collector) -> None:
    found.copy("dataset_name", "data.sources[0].name_or_path", text)
    if not found.has("data.sources[0].name_or_path"):
        return
    _subset(found, "dataset_config", "data.sources[0].subset")
    found.copy("dataset_train_split", "data.sources[0].split", text)
    if flag_of(found.get("dataset_streaming")):
        found.copy("dataset_streaming", "data.sources[0].streaming", bool)
    if not evaluates(found):
        if "dataset_test_split" in found:
            found.ignored("dataset_test_split", _NO_EVALUATION)
        return
    found.set("data.eval_sources[0].name_or_path", found.values["dataset_name"])
    found.translated("dataset_name", "data.eval_sources[0].name_or_path")
    _subset(found, "dataset_config", "data.eval_sources[0].subset")
    found.copy("dataset_test_split", "data.eval_sources[0].split", text)
    found.default("data.eval_sources[0].split", "test", f"the default of {PROGRAM}")


def _subset(found: Collector, key: str, to: str) -> None:
    if found.get(key) == "default":
        found.ignored(key, "is what a data set has by default")
    else:
        found.copy(key, to, text)


def _mixture(found: Collector) -> None:
    mixture = found.values["dataset_mixture"]
    entries = mixture.get("datasets") if isinstance(mixture, Mapping) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(each, Mapping) for each in entries):
        found.unsupported(
            "dataset_mixture", "expected a list of mappings under datasets", "write {datasets: [{id: x}]}"
        )
        return
    seed = found.get("dataset_mixture.seed", 0)
    for at, entry in enumerate(entries):
        _entry(found, f"dataset_mixture.datasets[{at}]", entry, seed)
    if "dataset_mixture.streaming" in found:
        for at in range(len(found.recipe.get("data", {}).get("sources", []))):
            found.copy("dataset_mixture.streaming", f"data.sources[{at}].streaming", flag_of)
    found.copy("dataset_mixture.seed", "data.seed", whole)
    key = "dataset_mixture.test_split_size"
    if found.get(key) is None:
        if key in found:
            found.ignored(key, "null is the default")
    elif _is_share(found.values[key]):
        found.copy(key, "data.train_eval_split", lambda held: [round(1 - number(held), 10), number(held)])
    else:
        found.copy(key, "data.val_size", _count)


def _is_share(value: Any) -> bool:
    try:
        return 0 < number(value) < 1
    except ValueError:
        return False


def _count(value: Any) -> int:
    made = whole(value)
    if made < 1:
        raise ValueError(f"given {value!r}, expected a share below 1, or a number of examples")
    return made


def _entry(found: Collector, key: str, entry: Mapping[str, Any], seed: Any) -> None:
    name = entry.get("id", entry.get("path"))
    if not isinstance(name, str) or not name:
        found.unsupported(key, "a data set without id or path", "give its name")
        return
    to = f"data.sources[{len(found.recipe.get('data', {}).get('sources', []))}]"
    for field in entry:
        path = f"{key}.{field}"
        if field in _ENTRY:
            found.copy(path, f"{to}.{_ENTRY[field]}", text)
        elif field in ("config", "name"):
            _subset(found, path, f"{to}.subset")
        elif field in ("weight", "fraction"):
            _share_of(found, path, to, seed)
        elif field == "columns":
            found.ignored(path, _COLUMNS)
        elif field == "data_files" and isinstance(entry[field], (str, list)):
            found.copy(path, f"{to}.data_files", lambda files: [files] if isinstance(files, str) else files)
        elif field == "data_files" and isinstance(entry[field], Mapping):
            _files_of_split(found, path, to, entry)
        elif field == "data_dir" and entry[field] is not None:
            found.copy(path, f"{to}.data_files", lambda folder: [f"{text(folder).rstrip('/')}/**"])
        elif entry[field] is None:
            found.ignored(path, "null is the default")


def _files_of_split(found: Collector, path: str, to: str, entry: Mapping[str, Any]) -> None:
    """Set the files of the split that an entry reads, of files by split."""
    split = str(entry.get("split") or "train").partition("[")[0]
    for name in entry["data_files"]:
        if name == split:
            found.copy(f"{path}.{name}", f"{to}.data_files", listed)
        else:
            found.ignored(f"{path}.{name}", f"the split {split} is read")


def _share_of(found: Collector, path: str, to: str, seed: Any) -> None:
    try:
        everything = found.values[path] is None or share(found.values[path]) == 1
    except ValueError:
        everything = False
    if everything:
        found.ignored(path, "all of it, which is the default")
        return
    found.copy(path, f"{to}.sample_ratio", share)
    if seed != 42 and isinstance(seed, int) and found.has(f"{to}.sample_ratio"):
        found.set(f"{to}.sample_seed", seed)
        if "dataset_mixture.seed" in found:
            found.translated("dataset_mixture.seed", f"{to}.sample_seed")
        else:
            found.notes[f"{to}.sample_seed"] = f"the default of {PROGRAM}"


def _mixer(found: Collector) -> None:
    """``{name: share}`` with the splits of all of them."""
    mixer = found.values["dataset_mixer"]
    if not isinstance(mixer, Mapping):
        found.unsupported("dataset_mixer", "expected shares by name", "write {name: 1.0}")
        return
    splits = found.get("dataset_splits", ["train", "test"])
    if not isinstance(splits, list) or not all(isinstance(each, str) for each in splits):
        found.unsupported("dataset_splits", "expected a list of splits", "write [train, test]")
        return
    configs = found.get("dataset_configs")
    for at, name in enumerate(mixer):
        key = f"dataset_mixer.{name}"
        if isinstance(mixer[name], (Mapping, list)):
            found.unsupported(key, f"given {mixer[name]!r:.60}, expected a share", "write a number from 0 to 1")
            continue
        for split in splits:
            section = "eval_sources" if "test" in split else "sources"
            if section == "eval_sources" and not evaluates(found):
                continue
            place = f"data.{section}[{len(found.recipe.get('data', {}).get(section, []))}]"
            found.set(f"{place}.name_or_path", str(name))
            found.set(f"{place}.split", split)
            found.translated(key, f"{place}.name_or_path")
            if isinstance(configs, list) and at < len(configs) and configs[at] not in (None, "default"):
                found.set(f"{place}.subset", configs[at])
                found.translated("dataset_configs", f"{place}.subset")
            if section == "sources":
                _share_of(found, key, place, 42)
            if "dataset_splits" in found:
                found.translated("dataset_splits", f"{place}.split")
                found.notes[f"{place}.split"] = "from dataset_splits"  # shown where the key is refused as well
            else:
                found.notes[f"{place}.split"] = "the default of the alignment handbook"
    if "dataset_configs" in found:
        found.ignored("dataset_configs", "those of the data sets by default")
    if "dataset_splits" in found:
        found.ignored("dataset_splits", "none is used")
