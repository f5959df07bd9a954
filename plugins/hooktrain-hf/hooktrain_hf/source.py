"""Data source ``huggingface``: local files, saved data sets and the hub, through ``datasets``."""

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
from hooktrain_hf.verbosity import quiet_datasets

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["HFSourceConfig", "files_of", "load_examples", "name_and_split"]

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
    data_files: tuple[str, ...] = field(default=())
    """Files of a folder or a hub data set to read, instead of all."""
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
    columns: Mapping[str, str] = field(factory=dict)
    """Columns to rename, as ``ours: theirs``."""
    role_mapping: Mapping[str, str] = field(factory=dict)
    """The column with the turn of each role."""
    content_key: str | None = field(default=None)
    """The field with the text, for entries that ``role_mapping`` finds."""

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


def load_examples(config: HFSourceConfig, world: World) -> Dataset | IterableDataset:
    """Load a source's examples, without the network for anything that looks like a path or a data file.

    Returns:
        The examples as dictionaries, in the order of the source, also after drawing a sample; an iterable of them with
        ``streaming``.

    Raises:
        DataError: there is no such source, it cannot be read, or it has no examples.
    """
    name, split = name_and_split(config)
    # a bar helps during a download only
    with quiet_datasets(world.is_main and not Path(name).expanduser().exists()):
        examples = _load(config, name, split)
    if config.streaming and examples is not None:
        return examples
    if examples is None or len(examples) == 0:
        raise DataError(
            f"data.sources: given '{config.name_or_path}', whose split '{split}' has no examples; expected at least"
            " one; check the file and the split's slice"
        )
    return _draw(config, examples)


def name_and_split(config: HFSourceConfig) -> tuple[str, str]:
    """Return the name to load, and its split with the slice, in the data set's own terms."""
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
            examples = datasets.load_dataset(builder, data_files=files, split=split, **lazily, **separator)
            if config.streaming:
                return examples
            examples.data.validate(full=True)  # text that is not UTF-8 would be found later, one example at a time
            return examples
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
                f" ({first_line(cause)}); expected examples of one form in it, and a split that it has; correct the"
                " file, the split or the slice"
            ) from error
        raise DataError(
            f"data.sources: given '{config.name_or_path}' (split '{split}'), which is no file or folder on this machine"
            f" and cannot be loaded from the hub ({first_line(cause)}); {_EXPECTED}; check the spelling, the split, the"
            " network and your access to it, or give a local file"
        ) from error


def files_of(name: str, path: Path) -> list[str]:
    """Return the files that match ``name``, sorted; empty when it can only be a hub name."""
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
    """Return the builder of ``datasets`` for files, which must all be of one kind."""
    suffixes = sorted({Path(file).suffix.lower() for file in files})
    builders = {_BUILDERS.get(suffix) for suffix in suffixes}
    if len(builders) != 1 or None in builders:
        raise DataError(
            f"data.sources: given '{name}', which matches files ending in {', '.join(suffixes) or 'nothing'};"
            f" {_EXPECTED}; give one kind of data file per source"
        )
    return str(builders.pop())


def _slice_saved(config: HFSourceConfig, saved: Any, split: str) -> Dataset:
    """Apply a split with slices to one data set, or several by name, that ``save_to_disk`` wrote."""
    import datasets

    splits = {split.partition("[")[0]: saved} if isinstance(saved, datasets.Dataset) else dict(saved)
    lengths = {name: len(examples) for name, examples in splits.items()}
    parts = []
    for one in datasets.ReadInstruction.from_spec(split).to_absolute(lengths):
        start, end = one.from_ or 0, lengths[one.splitname] if one.to is None else one.to
        parts.append(splits[one.splitname].select(range(start, end)))
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _draw(config: HFSourceConfig, examples: Dataset) -> Dataset:
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
