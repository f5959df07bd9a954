"""Number of examples in a source, counted in its files without loading them, for ``hooktrain plan``."""

from __future__ import annotations

from pathlib import Path

from hooktrain import DataError
from hooktrain_hf.local_files import splits_of
from hooktrain_hf.source import HFSourceConfig, name_and_split

__all__ = ["count_examples"]

_MOST = 4 * 2**30
"""Bytes of a file up to which its lines are counted."""
_LINES = (".jsonl", ".ndjson")


def count_examples(config: HFSourceConfig) -> int:
    """Count the examples of a source.

    Raises:
        DataError: counting would take long, or the files are not on this machine.
    """
    name, split = name_and_split(config)
    path = Path(name).expanduser()
    if config.streaming:
        raise DataError(f"'{name}' is a stream of unknown length")
    splits = splits_of(name, path, config.data_files, config.subset)
    if not splits:
        where = "a saved data set, read when the data are prepared" if path.is_dir() else "not on this machine"
        raise DataError(f"'{name}' is {where}")
    counted = sum(_examples(file, config.text_unit or "file") for file in splits.get(split.partition("[")[0], ()))
    if config.only:
        raise DataError(f"of the {counted:,} examples of '{name}', some are chosen when the data are prepared")
    if "[" in split or "+" in split:
        raise DataError(f"of the {counted:,} examples of '{name}', a slice is taken when the data are prepared")
    if config.sample_ratio is not None:
        return round(counted * config.sample_ratio)
    return counted if config.sample_count is None else min(counted, config.sample_count)


def _examples(file: Path, text_unit: str) -> int:
    suffix = file.suffix.lower()
    if suffix == ".txt" and text_unit == "file":
        return 1
    if suffix == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(file).num_rows)
    if (suffix in _LINES or (suffix == ".txt" and text_unit == "line")) and file.stat().st_size <= _MOST:
        return _lines(file)
    raise DataError(f"the examples of '{file.name}' are only known when it is read")


def _lines(file: Path) -> int:
    """Count the lines that are not blank."""
    with file.open("rb") as opened:
        return sum(1 for line in opened if line.strip())
