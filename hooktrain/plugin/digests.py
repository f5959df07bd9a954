"""Digests of the files that plugins consist of."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from pathlib import Path

from hooktrain.compat import files_of

__all__ = ["digest_of"]


def digest_of(plugin: object, *, distributed: bool) -> str:
    """A digest of the files that a plugin was loaded from; empty when there are none, as in a notebook.

    Args:
        plugin: the plugin object.
        distributed: whether it comes from a distribution, whose whole package counts; otherwise its module does.
    """
    name = plugin.__name__ if inspect.ismodule(plugin) else type(plugin).__module__
    top = sys.modules.get(name.partition(".")[0] if distributed else name)
    folders, file = files_of(top)
    if folders and distributed:
        return _of_folders(tuple(folders))
    return _of_files(((Path(file).name, file),)) if file and Path(file).is_file() else ""


@functools.cache
def _of_folders(folders: tuple[str, ...]) -> str:
    files = [
        (path.relative_to(folder).as_posix(), str(path))
        for folder in folders
        for path in Path(folder).rglob("*")
        if path.suffix != ".pyc" and not _is_hidden(path.relative_to(folder)) and path.is_file()
    ]
    return _of_files(tuple(sorted(files)))


def _is_hidden(path: Path) -> bool:
    """Return whether a file, or a folder that it is in, is hidden, as caches of tools are."""
    return any(part.startswith(".") for part in path.parts)


@functools.cache
def _of_files(files: tuple[tuple[str, str], ...]) -> str:
    total = hashlib.sha256()
    for name, path in files:
        total.update(name.encode() + b"\0" + hashlib.sha256(Path(path).read_bytes()).digest())
    return total.hexdigest()[:32]
