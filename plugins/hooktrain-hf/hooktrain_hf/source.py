"""The data source ``huggingface``: local files, saved data sets and the hub, through ``datasets``."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from hooktrain import DataError, World, at_least, between, did_you_mean, field
from hooktrain_hf.location import first_line, looks_like_path
from hooktrain_hf.quiet import quiet_datasets

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["HFSourceConfig", "files_of", "load_rows", "name_and_split"]

_BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
_WITH_SPLIT = re.compile(r"(?P<name>.+):(?P<split>[\w.\-]+(\[[^\[\]]*\])?(\+[\w.\-]+(\[[^\[\]]*\])?)*)")
_EXPECTED = (
    f"expected a file ({', '.join(_BUILDERS)}), a glob of such files, a folder, or a data set's name on the Hugging"
    " Face hub such as HuggingFaceH4/ultrachat_200k"
)
_SPLITS = {  # sets whose splits are not called train and eval
    "HuggingFaceH4/ultrachat_200k": {"train": "train_sft", "eval": "test_sft"},
    "HuggingFaceH4/ultrafeedback_binarized": {"train": "train_prefs", "eval": "test_prefs"},
}


def _not_both(config: HFSourceConfig, _: Any, value: int | None) -> None:
    if config is not None and value is not None and config.sample_ratio is not None:
        raise ValueError(
            f"given sample_count {value} and sample_ratio {config.sample_ratio}, expected at most one of them; drop one"
        )


def _positive(_: Any, __: Any, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"given {value}, expected a number above 0; leave the source out to give it no share")


@attrs.frozen(kw_only=True)
class HFSourceConfig:
    """Rows from a file, a folder or the hub."""

    shorthand: ClassVar[str] = "name_or_path"

    name_or_path: str = field()
    """A file, a glob, a folder or a name on the hub; ``name:split`` and ``name:split[10:20]`` choose rows."""
    split: str = field(default="train")
    """The split to take, with an optional slice; one in ``name_or_path`` goes before it."""
    name: str | None = field(default=None)
    """What an evaluation set made of it is called; the last part of ``name_or_path`` when left out."""
    subset: str | None = field(default=None)
    """Name of the configuration of a hub data set that has several."""
    data_files: tuple[str, ...] = field(default=())
    """Files to take from a folder or a hub data set, instead of all."""
    sample_ratio: float | None = field(default=None, validator=between(0.0, 1.0))
    """Share of the rows to draw at random."""
    sample_count: int | None = field(default=None, validator=[at_least(1), _not_both])
    """Number of rows to draw at random; all of them when there are fewer."""
    sample_seed: int = field(default=42)
    """Seed of that drawing."""
    weight: float | None = field(default=None, validator=_positive)
    """Share of an epoch that these rows get, relative to other sources; every row once when none has a weight."""
    streaming: bool = field(default=False)
    """Whether rows are read while training and never all kept, for sets larger than the disk."""
    split_mapping: Mapping[str, str] = field(factory=dict)
    """The data set's own names for splits, such as ``{train: train_sft}``; known for a few hub data sets."""
    format: str | None = field(default=None)
    """How the rows are written; what ``data.format`` says when left out, and so are the next three."""
    columns: Mapping[str, str] = field(factory=dict)
    """Columns to rename, as ``ours: theirs``."""
    role_mapping: Mapping[str, str] = field(factory=dict)
    """Which column holds the turn of which role."""
    content_key: str | None = field(default=None)
    """The field with the text, for entries that ``role_mapping`` finds."""

    def __attrs_post_init__(self) -> None:
        if self.streaming:
            _check_streaming(self)


def _check_streaming(config: HFSourceConfig) -> None:
    if config.sample_ratio is not None or config.sample_count is not None:
        raise ValueError(
            "streaming is given together with sample_ratio or sample_count, which need to know all rows; drop one, or"
            " limit the run with train_iters"
        )
    if "[" in config.split or ((match := _WITH_SPLIT.fullmatch(config.name_or_path)) and "[" in match["split"]):
        raise ValueError("streaming is given together with a slice, which needs to know all rows; drop one of them")


def load_rows(config: HFSourceConfig, world: World) -> Dataset | IterableDataset:
    """Load a source's rows; no network is used for anything that looks like a path or a data file.

    Returns:
        The rows as dictionaries, in the order of the source, also after drawing a sample; an iterable of them when
        the recipe says ``streaming``.

    Raises:
        DataError: there is no such thing, it cannot be read, or it has no rows.
    """
    name, split = name_and_split(config)
    # a bar helps during a download, and is clutter while a local file is read
    with quiet_datasets(world.is_main and not Path(name).expanduser().exists()):
        rows = _load(config, name, split)
    if config.streaming and rows is not None:
        return rows
    if rows is None or len(rows) == 0:
        raise DataError(
            f"data.sources: given '{config.name_or_path}', whose split '{split}' has no rows; expected at least one;"
            " check the file and the split's slice"
        )
    return _draw(config, rows)


def name_and_split(config: HFSourceConfig) -> tuple[str, str]:
    """What to load, and which split of it with which slice, in the data set's own terms."""
    name, split = config.name_or_path, config.split
    match = _WITH_SPLIT.fullmatch(name)
    if match and not Path(name).expanduser().exists():
        name, split = match["name"], match["split"]
    mapping = config.split_mapping or _SPLITS.get(name, {})
    return name, re.sub(r"(^|\+)([\w.\-]+)", lambda m: m[1] + mapping.get(m[2], m[2]), split)


def _load(config: HFSourceConfig, name: str, split: str) -> Any:
    import datasets

    path = Path(name).expanduser()
    lazily = {"streaming": True} if config.streaming else {}
    try:
        if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
            saved = _slice_saved(config, datasets.load_from_disk(str(path)), split)
            return saved.to_iterable_dataset() if config.streaming else saved
        files = [] if path.is_dir() else files_of(name, path)
        if files:
            builder = _builder(name, files)
            if not any(Path(file).stat().st_size for file in files):
                return None  # datasets fails on it in a different way for every kind of file
            separator = {"sep": "\t"} if Path(files[0]).suffix == ".tsv" else {}
            rows = datasets.load_dataset(builder, data_files=files, split=split, **lazily, **separator)
            if config.streaming:
                return rows
            rows.data.validate(full=True)  # text that is not UTF-8 would be found a row at a time, far from here
            return rows
        chosen = {"data_files": list(config.data_files)} if config.data_files else {}
        where = str(path) if path.is_dir() else name
        return datasets.load_dataset(where, config.subset, split=split, **lazily, **chosen)
    except DataError:
        raise
    except Exception as error:  # Arrow, JSON, the hub and fsspec each raise kinds of their own
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        local = path.exists() or looks_like_path(name) or Path(name).suffix in _BUILDERS
        if local:
            raise DataError(
                f"data.sources: given '{config.name_or_path}' (split '{split}'), which cannot be read"
                f" ({first_line(cause)}); expected rows of one form in it, and a split that it has; correct the file,"
                " the split or the slice"
            ) from error
        raise DataError(
            f"data.sources: given '{config.name_or_path}' (split '{split}'), which is no file or folder on this machine"
            f" and could not be had from the hub ({first_line(cause)}); {_EXPECTED}; check the spelling, the split, the"
            " network and your access to it, or give a local file"
        ) from error


def files_of(name: str, path: Path) -> list[str]:
    """The files that ``name`` means, sorted; empty when it can only be a hub name."""
    if path.is_file():
        return [str(path)]
    is_glob = any(mark in name for mark in "*?[") and "://" not in name
    found = sorted(file for file in glob(str(path), recursive=True) if Path(file).is_file()) if is_glob else []
    if found:
        return found
    remote = "://" in name
    if not remote and (is_glob or looks_like_path(name) or path.suffix in _BUILDERS):
        near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() and not is_glob else []
        what = "matches no file" if is_glob else "does not exist"
        raise DataError(
            f"data.sources: given '{name}', which {what}{did_you_mean(path.name, near)}; {_EXPECTED}; correct the path"
        )
    return []


def _builder(name: str, files: list[str]) -> str:
    """The builder of ``datasets`` for files that must all be of one kind."""
    suffixes = sorted({Path(file).suffix.lower() for file in files})
    builders = {_BUILDERS.get(suffix) for suffix in suffixes}
    if len(builders) != 1 or None in builders:
        raise DataError(
            f"data.sources: given '{name}', which means files ending in {', '.join(suffixes) or 'nothing'};"
            f" {_EXPECTED}; give one kind of data file per source"
        )
    return str(builders.pop())


def _slice_saved(config: HFSourceConfig, saved: Any, split: str) -> Dataset:
    """Apply a split with slices to what ``save_to_disk`` wrote: one data set, or several by name."""
    import datasets

    splits = {split.partition("[")[0]: saved} if isinstance(saved, datasets.Dataset) else dict(saved)
    lengths = {name: len(rows) for name, rows in splits.items()}
    parts = []
    for one in datasets.ReadInstruction.from_spec(split).to_absolute(lengths):
        start, end = one.from_ or 0, lengths[one.splitname] if one.to is None else one.to
        parts.append(splits[one.splitname].select(range(start, end)))
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _draw(config: HFSourceConfig, rows: Dataset) -> Dataset:
    """The random sample that the recipe asks for, in the source's order."""
    count = config.sample_count
    if config.sample_ratio is not None:
        count = round(len(rows) * config.sample_ratio)
        if count == 0:
            raise DataError(
                f"data.sources: given '{config.name_or_path}' with sample_ratio {config.sample_ratio}, which draws none"
                f" of its {len(rows)} rows; expected at least one; raise the ratio"
            )
    if count is None or count >= len(rows):
        return rows
    return rows.select(sorted(random.Random(config.sample_seed).sample(range(len(rows)), count)))
