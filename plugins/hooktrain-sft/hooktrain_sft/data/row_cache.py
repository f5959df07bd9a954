"""Cache of tokenized examples on disk, one folder for each fingerprint, which appears when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from filelock import FileLock, Timeout

from hooktrain import DataError
from hooktrain_sft.data.arrow_store import StoreWriter, TokenStore

__all__ = ["CachedSequences", "SequenceCache", "default_cache_dir"]

_TOKENS, _ENTRY, _LOCK = "tokens.arrow", "entry.json", "lock"
_LAYOUT = 1
"""Version of the files; increased when earlier ones can no longer be read."""


@attrs.frozen
class CachedSequences:
    """Tokenized examples of a source.

    Attributes:
        store: their tokens.
        facts: facts for the report, such as format and seconds.
        path: the folder, or None when it is removed at the end of the run.
        found: whether they were in the cache already.
    """

    store: TokenStore
    facts: Mapping[str, Any]
    path: Path | None
    found: bool


def default_cache_dir() -> Path:
    """Return ``HOOKTRAIN_CACHE``, or ``hooktrain`` in the user's cache folder."""
    own = os.environ.get("HOOKTRAIN_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hooktrain"


class SequenceCache:
    """Tokenized examples by their fingerprint.

    Processes that need the same examples at the same time, such as the ranks of a run, wait for the first one. It
    prepares them in a temporary folder and renames that when every byte is on the disk.
    """

    def __init__(self, folder: Path | None, say: Callable[[str], None] = lambda message: None) -> None:
        """Make a cache in ``folder``; None keeps nothing. ``say`` is called with messages for the user."""
        self._folder = None if folder is None else folder / "rows"
        self._say = say

    def has(self, fingerprint: str) -> bool:
        """Return whether there is an entry of this fingerprint, without reading it."""
        return self._folder is not None and (self._folder / fingerprint / _ENTRY).is_file()

    def get(self, fingerprint: str | None, prepare: Callable[[StoreWriter], Mapping[str, Any]]) -> CachedSequences:
        """Return an entry of the cache, or prepare and keep it.

        Args:
            fingerprint: of the entry; None prepares it for this run only.
            prepare: writes the sequences, and returns facts about them.

        Raises:
            DataError: when they cannot be written.
        """
        if self._folder is None or fingerprint is None:
            return self._temporary(prepare)
        final = self._folder / fingerprint
        found = self._open(final)
        if found is not None:
            return found
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self._folder / f"{fingerprint}.{_LOCK}"))
            self._wait(lock)
        except OSError as problem:
            self._say(
                f"data.cache_dir: given '{self._folder.parent}', which cannot be written ({problem.strerror}); examples"
                " are prepared for this run only"
            )
            return self._temporary(prepare)
        try:
            found = self._open(final)
            if found is not None:
                return found
            return self._publish(final, prepare)
        finally:
            lock.release()

    def _wait(self, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            self._say("data: another process is preparing the same examples; waiting for it")
            lock.acquire()

    def _publish(self, final: Path, prepare: Callable[[StoreWriter], Mapping[str, Any]]) -> CachedSequences:
        for left in final.parent.glob(f"{final.name}.*.partial"):  # of a killed process, since its lock is free
            shutil.rmtree(left, ignore_errors=True)
        partial = final.with_name(f"{final.name}.{os.getpid()}.partial")
        partial.mkdir()
        try:
            self._write(partial, prepare)
            shutil.rmtree(final, ignore_errors=True)  # it was found damaged
            os.rename(partial, final)
            _sync(final.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        opened = self._open(final)
        if opened is None:
            raise DataError(f"data.cache_dir: the tokens just written to '{final}' cannot be read; check the disk")
        return attrs.evolve(opened, found=False)

    def _temporary(self, prepare: Callable[[StoreWriter], Mapping[str, Any]]) -> CachedSequences:
        folder = Path(tempfile.mkdtemp(prefix="hooktrain-rows-"))
        try:
            self._write(folder, prepare)
            entry = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))
            store = TokenStore(folder / _TOKENS, entry["digest"])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(store, _remove, folder, os.getpid())
        return CachedSequences(store, entry["facts"], None, found=False)

    def _write(self, folder: Path, prepare: Callable[[StoreWriter], Mapping[str, Any]]) -> None:
        path = folder / _TOKENS
        try:
            writer = StoreWriter(path)
            try:
                began = time.perf_counter()
                facts = {**prepare(writer), "seconds": round(time.perf_counter() - began, 2)}
                digest = writer.close()
            except BaseException:
                writer.abandon()
                raise
            _sync(path)
            entry = {"layout": _LAYOUT, "bytes": path.stat().st_size, "digest": digest, "facts": facts}
            (folder / _ENTRY).write_text(json.dumps(entry), encoding="utf-8")
            _sync(folder / _ENTRY)
        except OSError as problem:
            raise DataError(
                f"data.cache_dir: the tokenized examples cannot be written to '{folder.parent}'"
                f" ({problem.strerror or problem}); free some space there, or name another folder"
            ) from problem

    def _open(self, folder: Path) -> CachedSequences | None:
        """Read the entry in ``folder``; None when it is missing or damaged."""
        if not folder.is_dir():
            return None
        try:
            entry = json.loads((folder / _ENTRY).read_text(encoding="utf-8"))
            path = folder / _TOKENS
            if entry["layout"] == _LAYOUT and path.stat().st_size == entry["bytes"]:
                os.utime(folder / _ENTRY)  # the time of the last use, for cleaning up
                return CachedSequences(TokenStore(path, entry["digest"]), entry["facts"], folder, found=True)
            problem: object = "sizes differ"
        except (OSError, ValueError, KeyError, TypeError) as caught:
            problem = caught
        self._say(f"data.cache_dir: '{folder}' is damaged ({problem}); its examples are prepared again")
        return None


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # worker processes inherit the finalizer
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
