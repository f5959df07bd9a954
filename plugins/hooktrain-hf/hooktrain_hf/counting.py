"""How many rows a source has, told from its files without loading them, for ``hooktrain plan``."""

from __future__ import annotations

from pathlib import Path

from hooktrain import DataError
from hooktrain_hf.source import HFSourceConfig, files_of, name_and_split

__all__ = ["count_rows"]

_MOST = 4 * 2**30
"""Bytes that are read to count lines."""
_LINES = (".jsonl", ".ndjson", ".txt")


def count_rows(config: HFSourceConfig) -> int:
    """The rows of a source, where its files say so quickly.

    Raises:
        DataError: where they do not, or are not on this machine.
    """
    name, split = name_and_split(config)
    path = Path(name).expanduser()
    if config.streaming:
        raise DataError(f"'{name}' is a stream, whose end is not known")
    files = [Path(file) for file in files_of(name, path)]
    if not files:
        where = "a folder, which is looked at when the data are prepared" if path.is_dir() else "not on this machine"
        raise DataError(f"'{name}' is {where}")
    counted = sum(_rows(file) for file in files)
    if "[" in split or "+" in split:
        raise DataError(f"of the {counted:,} rows of '{name}', a slice is taken when the data are prepared")
    if config.sample_ratio is not None:
        return round(counted * config.sample_ratio)
    return counted if config.sample_count is None else min(counted, config.sample_count)


def _rows(file: Path) -> int:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(file).num_rows)  # type: ignore[no-untyped-call]
    if suffix in _LINES and file.stat().st_size <= _MOST:
        return _lines(file)
    raise DataError(f"'{file.name}' does not tell its rows before it is read")


def _lines(file: Path) -> int:
    """Lines with something in them but white space."""
    with file.open("rb") as opened:
        return sum(1 for line in opened if line.strip())
