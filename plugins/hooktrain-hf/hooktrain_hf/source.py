"""Data source ``huggingface``: local files, saved data sets and the hub."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import attrs

from hooktrain import DataError, World, at_least, between, field
from hooktrain_hf.local_files import EXPECTED, SPLITS, files_of, not_read, splits_of
from hooktrain_hf.location import first_line
from hooktrain_hf.verbosity import quiet_datasets

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from hooktrain_hf.file_rows import FileRows, RowStream, TableRows

__all__ = ["HFSourceConfig", "files_of", "load_examples", "name_and_split"]

Rows = TypeVar("Rows", "FileRows", "TableRows")

_SPLIT_NAME = re.compile(r"(?<![^+])[^+\[]+")
_WITH_SPLIT = re.compile(r"(?P<name>.+):(?P<split>[\w.\-]+(\[[^\[\]]*\])?(\+[\w.\-]+(\[[^\[\]]*\])?)*)")
_SPLITS = {  # sets whose splits are not called train and eval
    "HuggingFaceH4/ultrachat_200k": {"train": "train_sft", "eval": "test_sft"},
    "HuggingFaceH4/ultrafeedback_binarized": {"train": "train_prefs", "eval": "test_prefs"},
}


def _not_both(config: HFSourceConfig, _: Any, value: int | None) -> None:
    if config is not None and value is not None and config.sample_ratio is not None:
        raise ValueError(
            f"given sample_count {value} and sample_ratio {config.sample_ratio}, expected at most one; remove the other"
        )


def _positive(_: Any, __: Any, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"given {value}, expected a number above 0; remove the source to give it no share")


@attrs.frozen(kw_only=True)
class HFSourceConfig:
    """Examples from a file, a folder or the hub."""

    shorthand: ClassVar[str] = "name_or_path"

    name_or_path: str = field()
    """A file, a glob, a folder or a name on the hub; ``name:split`` and ``name:split[10:20]`` choose examples."""
    split: str = field(default="train")
    """The split, with an optional slice; one in ``name_or_path`` has priority."""
    name: str | None = field(default=None)
    """Name of an evaluation set made of it; by default the last part of ``name_or_path``."""
    subset: str | None = field(default=None)
    """Name of the configuration of a hub data set that has several."""
    revision: str | None = field(default=None)
    """Branch, tag or commit of a hub data set; its main branch by default."""
    data_files: tuple[str, ...] = field(default=())
    """Files of a folder or a hub data set to read, instead of all."""
    only: Mapping[str, Any] = field(factory=dict)
    """Values of columns that an example must have to be read, such as ``{label: true}`` or ``{lang: [en, de]}``."""
    sample_ratio: float | None = field(default=None, validator=between(0.0, 1.0))
    """Share of the examples to draw at random."""
    sample_count: int | None = field(default=None, validator=[at_least(1), _not_both])
    """Number of examples to draw at random; all of them when there are fewer."""
    sample_seed: int = field(default=42)
    """Seed of that drawing."""
    weight: float | None = field(default=None, validator=_positive)
    """Share of an epoch for these examples, relative to other sources; each example once when none has a weight."""
    streaming: bool = field(default=False)
    """Whether examples are read during training and never all kept, for sets larger than the disk."""
    split_mapping: Mapping[str, str] = field(factory=dict)
    """The data set's own names for splits, such as ``{train: train_sft}``; known for a few hub data sets."""
    format: str | None = field(default=None)
    """Format of the examples; by default ``data.format``, which has the next three keys too."""
    columns: Mapping[str, str | None] = field(factory=dict)
    """Columns to rename, as ``ours: theirs``, or to remove, as ``theirs: null``."""
    role_mapping: Mapping[str, str | tuple[str, ...]] = field(factory=dict)
    """The column with the turn of each role, or several."""
    content_key: str | None = field(default=None)
    """The field with the text, for entries that ``role_mapping`` finds."""
    text_unit: Literal["file", "paragraph", "line"] | None = field(default=None)
    """Part of a text file that is an example; by default ``data.text_unit``, or the file where there is none."""

    def __attrs_post_init__(self) -> None:
        if self.streaming:
            _check_streaming(self)


def _check_streaming(config: HFSourceConfig) -> None:
    if config.sample_ratio is not None or config.sample_count is not None:
        raise ValueError(
            "streaming is given together with sample_ratio or sample_count, which need all examples; remove one, or"
            " limit the run with train_iters"
        )
    if "[" in config.split or ((match := _WITH_SPLIT.fullmatch(config.name_or_path)) and "[" in match["split"]):
        raise ValueError("streaming is given together with a slice, which needs all examples; remove one of them")


def load_examples(config: HFSourceConfig, world: World) -> FileRows | RowStream | TableRows | IterableDataset:
    """Load a source's examples, without the network for anything that looks like a path or a data file.

    Local files are read directly, as they are written. Saved data sets and those on the hub are read with ``datasets``.

    Returns:
        The examples as dictionaries, in the order of the source, also after drawing a sample; an iterable of them with
        ``streaming``.

    Raises:
        DataError: there is no such source, it cannot be read, or it has no examples.
    """
    name, split = name_and_split(config)
    path = Path(name).expanduser()
    splits = splits_of(name, path, config.data_files, config.subset)
    if config.revision is not None and (splits or path.exists()):
        raise DataError(
            f"data.sources: given '{config.name_or_path}' with the revision '{config.revision}', expected a name on the"
            " hub; remove one of them"
        )
    if splits:
        examples: Any = _of_files(config, splits, split)
        examples.remarks = [] if config.data_files else not_read(path)
    else:
        # a bar helps during a download only
        with quiet_datasets(world.is_main and not path.exists()):
            examples = _of_datasets(config, name, split)
    if config.streaming:
        return cast("RowStream | IterableDataset", examples.filter(_wanted(config.only)) if config.only else examples)
    if len(examples) == 0:
        raise DataError(
            f"data.sources: given '{config.name_or_path}', whose split '{split}' has no examples; expected at least"
            " one; check the file and the split's slice"
        )
    drawn: Any = _draw(config, _only(config, examples))
    drawn.remarks = examples.remarks
    return cast("FileRows | TableRows", drawn)


def name_and_split(config: HFSourceConfig) -> tuple[str, str]:
    """Return the name to load, and its split with the slice, in the data set's own terms."""
    name, split = config.name_or_path, config.split
    match = _WITH_SPLIT.fullmatch(name)
    if match and not Path(name).expanduser().exists():
        name, split = match["name"], match["split"]
    mapping = config.split_mapping or _SPLITS.get(name, {})
    return name, re.sub(r"(^|\+)([\w.\-]+)", lambda m: m[1] + mapping.get(m[2], m[2]), split)


def _of_files(config: HFSourceConfig, splits: Mapping[str, Sequence[Path]], split: str) -> FileRows | RowStream:
    """Return the rows of local files that a split with slices selects."""
    import numpy as np

    from hooktrain_hf.file_rows import FileRows, RowStream, open_file

    if config.streaming:  # they are opened again while training, when a plugin may have changed the working directory
        splits = {name: [file.absolute() for file in files] for name, files in splits.items()}
    opened = {name: [open_file(file, config.text_unit or "file") for file in files] for name, files in splits.items()}
    split = re.sub(_SPLIT_NAME, lambda m: m[0] if m[0] in opened else SPLITS.get(m[0].lower(), m[0]), split)
    names = re.findall(_SPLIT_NAME, split)
    for name in names:
        if name not in opened:
            raise DataError(
                f"data.sources: given '{config.name_or_path}' with the split '{name}', an unknown split; expected"
                f" {' or '.join(sorted(opened))}, as the names of the files say; write it after the name, as in"
                f" '{name_and_split(config)[0]}:{min(opened)}'"
            )
    if config.streaming:
        return RowStream([file for name in names for file in opened[name]])
    if split in opened:
        return FileRows(opened[split])
    parts = {name: FileRows(opened[name]) for name in names}
    lengths = {name: len(part) for name, part in parts.items()}
    begins = dict(zip(lengths, itertools.accumulate(lengths.values(), initial=0), strict=False))
    chosen = [np.arange(start, end) + begins[name] for name, start, end in _ranges(config, split, lengths)]
    return FileRows([file for name in parts for file in opened[name]]).select(np.concatenate(chosen))


def _ranges(config: HFSourceConfig, split: str, lengths: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Return the splits of which a split with slices is made, each with its first row and the one after its last."""
    import datasets

    try:
        made = datasets.ReadInstruction.from_spec(split).to_absolute(dict(lengths))
    except Exception as problem:  # also AssertionError
        raise DataError(
            f"data.sources: given '{config.name_or_path}' with the split '{split}', which cannot be used"
            f" ({first_line(problem)}); expected a split with slices within it, such as train[:100] or train[10%:20%];"
            " correct it"
        ) from problem
    return [(one.splitname, one.from_ or 0, lengths[one.splitname] if one.to is None else one.to) for one in made]


def _of_datasets(config: HFSourceConfig, name: str, split: str) -> TableRows | IterableDataset:
    """Load a saved data set, or one on the hub."""
    import datasets

    from hooktrain_hf.file_rows import TableRows

    path = Path(name).expanduser()
    lazily = {"streaming": True} if config.streaming else {}
    try:
        if path.is_dir():
            saved = _slice_saved(config, datasets.load_from_disk(str(path)), split)
            return _stream(saved.to_iterable_dataset()) if config.streaming else TableRows(saved)
        chosen: dict[str, Any] = {"data_files": list(config.data_files)} if config.data_files else {}
        loaded: Any = datasets.load_dataset(
            name, config.subset, split=split, revision=config.revision, **lazily, **chosen
        )
        guessed = loaded.info.builder_name
        rows = _stream(loaded) if config.streaming else TableRows(loaded)
        if isinstance(rows, TableRows) and guessed in ("csv", "json"):
            rows.remarks = [
                f"datasets has guessed the types of its {guessed} files; to read them as they are written, download"
                " them, and name their folder"
            ]
        return rows
    except DataError:
        raise
    except Exception as error:  # Arrow, JSON, the hub and fsspec each raise kinds of their own
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        if path.is_dir():
            raise DataError(
                f"data.sources: given '{config.name_or_path}' (split '{split}'), a saved data set that cannot be read"
                f" ({first_line(cause)}); expected one of save_to_disk, and a split that it has; correct the split or"
                " the slice, or save it again"
            ) from error
        raise DataError(
            f"data.sources: given '{config.name_or_path}' (split '{split}'), which is no file or folder on this machine"
            f" and cannot be loaded from the hub ({first_line(cause)}); {EXPECTED}; check the spelling, the split, the"
            " network and your access to it, or give a local file"
        ) from error


def _stream(examples: Any) -> IterableDataset:
    """Return a stream whose values are those of :class:`TableRows`."""
    from hooktrain_hf.arrow_values import example_converter

    convert = example_converter(examples.features.arrow_schema) if examples.features else None
    return cast("IterableDataset", examples if convert is None else examples.map(convert))


def _slice_saved(config: HFSourceConfig, saved: Any, split: str) -> Dataset:
    """Apply a split with slices to one data set, or several by name, that ``save_to_disk`` wrote."""
    import datasets

    splits = {split.partition("[")[0]: saved} if isinstance(saved, datasets.Dataset) else dict(saved)
    ranges = _ranges(config, split, {name: len(examples) for name, examples in splits.items()})
    parts = [splits[name].select(range(start, end)) for name, start, end in ranges]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _only(config: HFSourceConfig, examples: Rows) -> Rows:
    """Return the examples with the values that the recipe wants."""
    if not config.only:
        return examples
    wanted, names = _wanted(config.only), set[str]()
    chosen = []
    for index, example in enumerate(examples):
        names |= example.keys()
        if wanted(example):
            chosen.append(index)
    if unknown := config.only.keys() - names:
        raise DataError(
            f"data.sources: given '{config.name_or_path}' with only: {', '.join(sorted(unknown))}, expected some of the"
            f" columns {', '.join(sorted(names))}; correct it"
        )
    if not chosen:
        raise DataError(
            f"data.sources: given '{config.name_or_path}', none of whose {len(examples):,} examples has the values"
            f" {dict(config.only)} of `only`; expected at least one; correct it"
        )
    return examples.select(chosen)


def _wanted(only: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    """Return whether an example has a value, or one of several, in each of some columns."""
    choices = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in only.items()}

    def same(value: Any, wanted: Any) -> bool:
        if isinstance(value, str) and not isinstance(wanted, str):  # a cell of CSV
            return value.strip().lower() == json.dumps(wanted)
        return bool(value == wanted)

    return lambda example: all(
        any(same(example.get(name), wanted) for wanted in values) for name, values in choices.items()
    )


def _draw(config: HFSourceConfig, examples: Rows) -> Rows:
    """Draw the recipe's random sample, in the source's order."""
    count = config.sample_count
    if config.sample_ratio is not None:
        count = round(len(examples) * config.sample_ratio)
        if count == 0:
            raise DataError(
                f"data.sources: given '{config.name_or_path}' with sample_ratio {config.sample_ratio}, which draws none"
                f" of its {len(examples)} examples; expected at least one; raise the ratio"
            )
    if count is None or count >= len(examples):
        return examples
    return examples.select(sorted(random.Random(config.sample_seed).sample(range(len(examples)), count)))
