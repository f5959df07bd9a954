"""Number of examples in a source, counted in its files without loading them, for ``hooktrain plan``."""

from __future__ import annotations

from pathlib import Path

from hooktrain import DataError
from hooktrain_hf.source import HFSourceConfig, files_of, name_and_split

__all__ = ["count_examples"]

_MOST = 4 * 2**30
"""Bytes of a file up to which its lines are counted."""
_LINES = (".jsonl", ".ndjson", ".txt")


def count_examples(config: HFSourceConfig) -> int:
    """Count the examples of a source.

    Raises:
        DataError: counting would take long, or the files are not on this machine.
    """
    name, split = name_and_split(config)
    path = Path(name).expanduser()
    if config.streaming:
        raise DataError(f"'{name}' is a stream of unknown length")
    files = [Path(file) for file in files_of(name, path)]
    if not files:
        where = "a folder, which is read when the data are prepared" if path.is_dir() else "not on this machine"
        raise DataError(f"'{name}' is {where}")
    counted = sum(_examples(file) for file in files)
    if "[" in split or "+" in split:
        raise DataError(f"of the {counted:,} examples of '{name}', a slice is taken when the data are prepared")
    if config.sample_ratio is not None:
        return round(counted * config.sample_ratio)
    return counted if config.sample_count is None else min(counted, config.sample_count)


def _examples(file: Path) -> int:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(file).num_rows)
    if suffix in _LINES and file.stat().st_size <= _MOST:
        return _lines(file)
    raise DataError(f"the examples of '{file.name}' are only known when it is read")


def _lines(file: Path) -> int:
    """Count the lines that are not blank."""
    with file.open("rb") as opened:
        return sum(1 for line in opened if line.strip())
