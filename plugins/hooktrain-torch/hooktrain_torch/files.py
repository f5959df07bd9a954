"""Files of a checkpoint, synced to the disk, and the manifest of their sizes and digests that commits it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hooktrain import CheckpointError
from hooktrain_torch.checkpoint_values import read_json

__all__ = [
    "MANIFEST",
    "UNKNOWN",
    "Problem",
    "commit",
    "number_of",
    "problem_of",
    "read_object",
    "require_writable",
    "run_of",
    "sync_folder",
    "write_object",
    "write_text",
]

MANIFEST = "manifest.json"
UNKNOWN = 1 << 62
"""Number of a checkpoint whose manifest cannot be read. It sorts first, so that the user is warned."""
_FORMAT = 4
"""Format of the checkpoints that this version writes, and the only one that it reads; hooktrain 0.1 wrote 1 to 3."""
_LARGE = 1 << 20
"""Bytes from which on hashing them is worth a thread of its own while they are written."""
_SYNC_EVERY = 16 << 20
"""Bytes after which what has been written is synced to the disk."""
_NO_MANIFEST = (OSError, ValueError, TypeError, AttributeError, OverflowError)


class Problem(NamedTuple):
    """Why a checkpoint cannot be read.

    Attributes:
        text: the reason, for people.
        other_format: whether another version of hooktrain can read it; otherwise it is damaged.
    """

    text: str
    other_format: bool = False


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written.

    Raises:
        CheckpointError: saying why not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as problem:
        raise CheckpointError(
            f"checkpoint.output_dir: '{folder}' cannot be written ({problem.strerror}); give another folder"
        ) from problem


class _SyncedStream:
    """A stream that hashes what is written to it, and syncs it to the disk while more of it is written.

    Args:
        stream: of a file, at its beginning.
        helpers: at least two threads.
    """

    def __init__(self, stream: Any, helpers: Executor) -> None:
        self._stream, self._helpers = stream, helpers
        self._hash, self.bytes = hashlib.sha256(), 0
        self._syncing: Future[None] | None = None
        self._synced = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if view.nbytes < _LARGE:
            self._hash.update(view)
            self._stream.write(view)
        else:
            hashing = self._helpers.submit(self._hash.update, view)
            try:
                self._stream.write(view)
            finally:
                hashing.result()  # the viewed memory may be freed when this returns
        self.bytes += view.nbytes
        if self.bytes - self._synced >= _SYNC_EVERY and (self._syncing is None or self._syncing.done()):
            self._wait()
            self._stream.flush()
            self._synced, self._syncing = self.bytes, self._helpers.submit(os.fsync, self._stream.fileno())
        return view.nbytes

    def flush(self) -> None:
        self._stream.flush()

    def end(self) -> dict[str, Any]:
        """Wait until everything is on the disk, and return size and digest."""
        self._wait()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()  # a failed write is reported once, so it must not be missed


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[_SyncedStream]:
    with path.open("wb") as stream, ThreadPoolExecutor(2, "checkpoint") as helpers:
        yield _SyncedStream(stream, helpers)


def write_object(value: Any, path: Path) -> dict[str, Any]:
    """Write tensors and plain values, synced to the disk, and return the file's size and digest.

    The file is read back, as far as that takes no time: names, types and shapes, and the numbers of no tensor.

    Raises:
        CheckpointError: when it can be written, but not read.
        OSError: when it cannot be written.
    """
    with _synced(path) as stream:
        try:
            torch.save(value, stream)  # type: ignore[arg-type]
        except RuntimeError as problem:  # after a failed write torch ends its archive, whose failure hides the first
            first = problem.__context__
            raise first if isinstance(first, (OSError, KeyboardInterrupt)) else problem from None
        facts = stream.end()
    try:
        read_object(path)
    except Exception as problem:
        raise CheckpointError(
            f"{path.name} was written and cannot be read ({type(problem).__name__}: {_first_line(problem)})"
        ) from problem
    return facts


def read_object(path: Path) -> Any:
    """Read what :func:`write_object` wrote; tensors are read from the disk when they are used."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().partition("\n")[0][:200]


def write_text(path: Path, text: str) -> dict[str, Any]:
    """Write text, synced to the disk, and return the file's size and digest."""
    with _synced(path) as stream:
        stream.write(text.encode())
        return stream.end()


def commit(folder: Path, files: Mapping[str, Mapping[str, Any]], **facts: Any) -> None:
    """Write the manifest, which makes a folder a checkpoint."""
    made = {"format": _FORMAT, **facts, "files": files}
    write_text(folder / MANIFEST, json.dumps({**made, "sha256": _digest_of(made)}, indent=2))
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def number_of(folder: Path) -> int:
    """Return a checkpoint's position in the order of saving."""
    try:
        return int(_manifest(folder)["number"])
    except (*_NO_MANIFEST, KeyError):
        return UNKNOWN


def run_of(folder: Path) -> str | None:
    """Return the id of the run that saved a checkpoint; None where its manifest does not say."""
    try:
        return str(_manifest(folder)["run"])
    except (*_NO_MANIFEST, KeyError):
        return None


def problem_of(folder: Path, *, digests: bool = True) -> Problem | None:
    """Return why a checkpoint cannot be read, or None.

    Args:
        folder: the checkpoint.
        digests: whether to read all files and compare their digests, not only their sizes.
    """
    try:
        facts = _manifest(folder)
        found = int(facts["format"])
        if found != _FORMAT:
            reader = "hooktrain 0.1" if found < _FORMAT else "a later version of hooktrain"
            return Problem(f"its format is {found}, which {reader} reads, and this version reads {_FORMAT}", True)
        for name, expected in facts["files"].items():
            if Path(name).name != name:
                return Problem(f"its {MANIFEST} names the file '{name[:60]}', which is not in the folder")
            path = folder / name
            if not path.is_file():
                return Problem(f"{name} is missing")
            if path.stat().st_size != expected["bytes"] or (digests and _digest(path) != expected["sha256"]):
                return Problem(f"{name} is damaged")
    except FileNotFoundError:
        return Problem(f"it has no {MANIFEST}, so it was never committed")
    except KeyError as problem:
        return Problem(f"its {MANIFEST} is damaged: it has no {problem}")
    except _NO_MANIFEST as problem:
        return Problem(f"its {MANIFEST} cannot be read ({' '.join(str(problem).split())[:200]})")
    return None


def _manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and compare it with its own digest."""
    facts = read_json(folder / MANIFEST)
    if facts["format"] == _FORMAT and facts.pop("sha256") != _digest_of(facts):
        raise ValueError("it is damaged")
    return facts


def _digest_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _digest(path: Path) -> str:
    made = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            made.update(block)
    return made.hexdigest()
