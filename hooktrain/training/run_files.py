"""Files of a run directory: written whole, and whatever stands in their way is moved aside and never lost."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["clear_way", "delete_half_written", "keep_aside", "move_aside", "read_bytes", "read_json", "write_whole"]

_LONG = 18
"""Digits of a whole number that fits into 64 bits."""


def read_bytes(path: Path) -> bytes:
    """Read a file; not a pipe, which would wait, nor a device, which may have no end.

    Raises:
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return path.read_bytes()


def read_json(text: str | bytes) -> Any:
    """Read JSON that may be another program's: a whole number beyond 64 bits is read as ``float``.

    Raises:
        ValueError: it is none.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _LONG else float(digits))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, and a crash at any moment, finds either the old text or the new one.

    A crash may leave ``.<name>.writing``, which :func:`delete_half_written` or the next write takes away.

    Raises:
        OSError: it cannot be written; what was there is unchanged.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def delete_half_written(folder: Path) -> None:
    """Delete what :func:`write_whole` left in a folder when its process was killed."""
    for path in folder.glob(".*.writing"):
        if path.is_file():
            path.unlink(missing_ok=True)


def move_aside(path: Path) -> Path:
    """Rename a file or folder to the first free of ``name.1.ending``, ``name.2.ending`` and so on; returns that."""
    aside = _free_name(path)
    os.replace(path, aside)
    return aside


def keep_aside(path: Path) -> Path:
    """Give a file a second name as :func:`move_aside` would, and leave it where it is; returns that."""
    aside = _free_name(path)
    try:
        os.link(path, aside)
    except OSError:  # a file system without hard links
        aside.write_bytes(path.read_bytes())
    return aside


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def clear_way(path: Path, warn: Callable[[str], None]) -> None:
    """Move aside what is no file where one is to be written, such as a folder, with a warning.

    Raises:
        OSError: it cannot be moved.
    """
    if os.path.lexists(path) and not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        warn(f"{path}: is {what}, where this run writes a file; it is kept as {move_aside(path).name}")
