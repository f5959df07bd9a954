"""Digests of files by their content, remembered for files that have not changed since."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from hooktrain import DataError, default_cache_dir

__all__ = ["file_digests", "remembered_digest"]

_SETTLED = 2_000_000_000
"""Nanoseconds after which another change of a file has another time stamp, on any file system."""
_TRIES = 3
_QUICK = 1 << 26
"""Bytes that are read in a tenth of a second."""


class _Identity(NamedTuple):
    """What changes with every change of a file: its ctime cannot be set back, unlike its mtime."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def file_digests(root: Path, files: Mapping[str, Path], quick: bool = False) -> dict[str, str] | None:
    """Return the digest of each file's content, of the files that links point to.

    Digests are kept in the cache folder, by ``root``, or by the file where there is one; a file is read again when its
    identity has changed.

    Args:
        root: folder of the files.
        files: the files, by their names relative to it.
        quick: whether to return None where more than 64 MiB would have to be read.

    Raises:
        DataError: a file changes while it is read.
        OSError: a file cannot be read.
    """
    folder = default_cache_dir()
    # one file has an entry of its own, so that hundreds of them do not each read and write the entries of all
    key = os.path.join(os.path.realpath(root), next(iter(files)) if len(files) == 1 else "")
    path = None if folder is None else folder / "digests" / f"{_digest(key.encode())}.json"
    known = {} if path is None else _recall(path)
    now = {name: _Identity.of(file.stat()) for name, file in files.items()}
    found = {name: known[name][1] for name, identity in now.items() if name in known and known[name][0] == identity}
    unknown = [name for name in files if name not in found]
    if quick and sum(now[name].size for name in unknown) > _QUICK:
        return None
    settled: dict[str, tuple[_Identity, str]] = {}
    with ThreadPoolExecutor() as pool:  # hashing runs outside the interpreter's lock
        began = time.time_ns()
        for name, (identity, digest) in zip(unknown, pool.map(_read, map(files.__getitem__, unknown)), strict=True):
            found[name] = digest
            # a file that has just been written can be written again without another time stamp
            if identity.ctime < began - _SETTLED:
                settled[name] = identity, digest
    if path is not None and settled:
        _remember(path, {name: known[name] for name in known if (root / name).exists()} | settled)
    return {name: found[name] for name in files}


def remembered_digest(path: Path) -> str:
    """Return the sha256 of a file, which is read only when it has changed since it was last asked for.

    Raises:
        DataError: it changes while it is read.
        OSError: it cannot be read.
    """
    found = file_digests(path.parent, {path.name: path})
    assert found is not None, "which only a quick look returns"
    return found[path.name]


def _read(file: Path) -> tuple[_Identity, str]:
    for _ in range(_TRIES):
        with file.open("rb") as opened:
            before = _Identity.of(os.fstat(opened.fileno()))
            digest = hashlib.file_digest(opened, "sha256").hexdigest()  # processors have instructions for it
            after = _Identity.of(os.fstat(opened.fileno()))
        if before == after == _Identity.of(file.stat()):
            return after, digest
    raise DataError(
        f"data.sources: '{file}' changes while it is read; expected a file that nobody writes to; start again when it"
        " is complete"
    )


def _recall(path: Path) -> dict[str, tuple[_Identity, str]]:
    """Read remembered digests; nothing where the file is missing, damaged or not readable."""
    try:
        check, _, text = path.read_bytes().partition(b"\n")
        if check.decode() == _digest(text):
            return {name: (_Identity(*identity), digest) for name, (identity, digest) in json.loads(text).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return {}


def _remember(path: Path, known: Mapping[str, tuple[_Identity, str]]) -> None:
    """Write digests for the next run, where the cache folder can be written."""
    text = json.dumps(known).encode()
    written = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # several runs may start at the same time
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            written.write_bytes(_digest(text).encode() + b"\n" + text)
            os.replace(written, path)
        finally:
            written.unlink(missing_ok=True)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
