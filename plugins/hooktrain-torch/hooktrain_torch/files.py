"""Files that are whole or not there: written through to the disk, with their sizes and digests in a manifest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooktrain import CheckpointError

__all__ = [
    "FORMAT",
    "MANIFEST",
    "OTHER_FORMAT",
    "UNKNOWN",
    "NotPlainError",
    "load",
    "number_of",
    "problem_of",
    "require_plain",
    "require_writable",
    "save",
    "seal",
    "sync",
    "write",
]

MANIFEST = "manifest.json"
FORMAT = 4
OTHER_FORMAT = "it is of format"
"""Begins what :func:`problem_of` says of a checkpoint that another version has written."""
UNKNOWN = 1 << 62
"""Number of a checkpoint whose manifest cannot be read; looked at first, so that the user hears of it."""
_LARGE = 1 << 20
"""Bytes from which on it is worth a thread to hash them while they are written."""
_STRETCH = 16 << 20
"""Bytes after which the disk is sent what has been written."""
_PLAIN = {type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device}


class NotPlainError(Exception):
    """A state holds what a checkpoint cannot hold."""


def require_plain(value: Any, where: str) -> None:
    """Refuse what ``torch.load`` with ``weights_only=True`` would refuse when it is too late.

    Raises:
        NotPlainError: naming the place.
    """
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            require_plain(key, f"a key of {where}")
            require_plain(item, f"{where}.{key}".removeprefix("."))
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            require_plain(item, f"{where}[{index}]")
    else:
        raise NotPlainError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, expected numbers, text, lists, mappings"
            " and tensors; convert it in state_dict or collect_state"
        )


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


class _Through:
    """A stream that is written once from its beginning, hashed, and sent on to the disk while more of it is written.

    Args:
        stream: unbuffered or not; of a file.
        helpers: threads, two of which are used.
    """

    def __init__(self, stream: Any, helpers: Executor) -> None:
        self._stream, self._helpers = stream, helpers
        self._hash, self.bytes = hashlib.sha256(), 0
        self._sending: Future[None] | None
        self._sent, self._sending = 0, None

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
                hashing.result()  # what the view is of may be gone when this returns
        self.bytes += view.nbytes
        if self.bytes - self._sent >= _STRETCH and (self._sending is None or self._sending.done()):
            self._send()
        return view.nbytes

    def flush(self) -> None:
        self._stream.flush()

    def end(self) -> dict[str, Any]:
        """Wait until everything is on the disk; returns size and digest."""
        self._wait()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}

    def _send(self) -> None:
        self._wait()
        self._stream.flush()
        self._sent, self._sending = self.bytes, self._helpers.submit(os.fsync, self._stream.fileno())

    def _wait(self) -> None:
        if self._sending is not None:
            self._sending.result()  # a disk says only once that it could not write


@contextlib.contextmanager
def _through(path: Path) -> Iterator[_Through]:
    with path.open("wb") as stream, ThreadPoolExecutor(2, "checkpoint") as helpers:
        yield _Through(stream, helpers)


def save(value: Any, path: Path) -> dict[str, Any]:
    """Write tensors and plain values for :func:`load`, through to the disk; returns the file's size and digest."""
    with _through(path) as stream:
        try:
            torch.save(value, stream)  # type: ignore[arg-type]
        except RuntimeError as problem:  # torch ends its archive after a failed write, and that failure hides the first
            raise problem.__context__ if isinstance(problem.__context__, OSError) else problem from None
        return stream.end()


def load(path: Path) -> Any:
    """What :func:`save` wrote; tensors are read from the disk when they are used."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def write(path: Path, text: str) -> dict[str, Any]:
    """Write text through to the disk; returns the file's size and digest."""
    with _through(path) as stream:
        stream.write(text.encode())
        return stream.end()


def seal(folder: Path, files: Mapping[str, Mapping[str, Any]], **facts: int) -> None:
    """Write the manifest: what makes a folder a checkpoint."""
    made = {"format": FORMAT, **facts, "files": files}
    write(folder / MANIFEST, json.dumps({**made, "sha256": _digest_of(made)}, indent=2))
    sync(folder)


def sync(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def number_of(folder: Path) -> int:
    """A checkpoint's place in the order of saving."""
    try:
        return int(_manifest(folder)["number"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return UNKNOWN


def problem_of(folder: Path, *, digests: bool = True) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        facts = _manifest(folder)
        if facts["format"] != FORMAT:
            return f"{OTHER_FORMAT} {facts['format']}, and this version reads {FORMAT}"
        for name, expected in facts["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or (digests and _digest(path) != expected["sha256"]):
                return f"{name} is damaged"
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except KeyError as problem:
        return f"its {MANIFEST} is damaged: it has no {problem}"
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        return f"its {MANIFEST} cannot be read ({problem})"
    return ""


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest, proven to be as it was written."""
    facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise ValueError("it is no mapping")
    if facts["format"] == FORMAT and facts.pop("sha256") != _digest_of(facts):
        raise ValueError("it is damaged")
    return facts


def _digest_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slowly(stream)


def _slowly(stream: Any) -> str:
    made = hashlib.sha256()
    while block := stream.read(1 << 20):
        made.update(block)
    return made.hexdigest()
