"""Cache of tokenized examples on disk, one folder for each fingerprint, which appears when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from filelock import FileLock, Timeout

from hooktrain import DataError
from hooktrain_sft.data.arrow_store import Block, DamagedError, StoreWriter, TokenStore, UnwritableError, verify

__all__ = ["CachedSequences", "SequenceCache"]

_TOKENS, _ENTRY, _LOCK = "tokens.arrow", "entry.json", "lock"
_LAYOUT = 3
"""Version of the files; increased when earlier ones can no longer be read."""
_ENTRY_BYTES = 256 << 20
_VERIFIED_AT_ONCE = 256 * 2**20
"""Bytes of tokens up to which a file is verified whenever it is opened, which takes a quarter of a second at most."""


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
        try:
            found = self._open(final)
            if found is not None:
                return found
            damage = ""
        except DamagedError as problem:  # or it is being replaced
            damage = f"'{final}' is damaged ({problem}) and "
        except OSError as problem:
            return self._for_this_run(f"'{final}' cannot be read ({_reason(problem)})", prepare)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self._folder / f"{fingerprint}.{_LOCK}"))
            self._wait(lock)
        except (OSError, NotImplementedError) as problem:  # the latter where the file system has no locks
            what = damage or f"given '{self._folder.parent}', which "
            return self._for_this_run(f"{what}cannot be written ({_reason(problem)})", prepare)
        try:
            try:
                found = self._open(final)
                if found is not None:
                    return found
            except DamagedError as problem:
                if not _is_ours(final):
                    return self._for_this_run(f"'{final}' of another user is damaged ({problem})", prepare)
                self._say(f"data.cache_dir: '{final}' is damaged ({problem}); its examples are prepared again")
            partial = final.with_name(f"{final.name}.{os.getpid()}.partial")
            try:
                for left in self._folder.glob(f"{final.name}.*.partial"):  # of a killed process: its lock is free
                    if _is_ours(left):
                        shutil.rmtree(left, ignore_errors=True)
                partial.mkdir()
            except OSError as problem:
                what = f"given '{self._folder.parent}', which cannot be written ({_reason(problem)})"
                return self._for_this_run(what, prepare)
            return self._publish(partial, final, prepare)
        finally:
            lock.release()

    def _for_this_run(self, why: str, prepare: Callable[[StoreWriter], Mapping[str, Any]]) -> CachedSequences:
        self._say(f"data.cache_dir: {why}; examples are prepared for this run only")
        return self._temporary(prepare)

    def _wait(self, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            self._say("data: another process is preparing the same examples; waiting for it")
            lock.acquire()

    def _publish(
        self, partial: Path, final: Path, prepare: Callable[[StoreWriter], Mapping[str, Any]]
    ) -> CachedSequences:
        try:
            self._write(partial, prepare, final.name)
            try:
                if final.is_dir() and not final.is_symlink():
                    shutil.rmtree(final)  # it was found damaged
                else:
                    final.unlink(missing_ok=True)
                os.rename(partial, final)
                _sync(final.parent)
            except OSError as problem:
                raise DataError(
                    f"data.cache_dir: '{final}' cannot be replaced ({_reason(problem)}); remove it, or name another"
                    " folder"
                ) from problem
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        try:
            opened = self._open(final)
        except OSError:
            opened = None
        if opened is None:
            raise DataError(f"data.cache_dir: the tokens just written to '{final}' cannot be read; check the disk")
        return attrs.evolve(opened, found=False)

    def _temporary(self, prepare: Callable[[StoreWriter], Mapping[str, Any]]) -> CachedSequences:
        try:
            folder = Path(tempfile.mkdtemp(prefix="hooktrain-rows-"))
        except OSError as problem:
            raise DataError(
                f"data: tokenized examples need a temporary folder ({_reason(problem)}); set TMPDIR, or data.cache_dir,"
                " to a folder that can be written"
            ) from problem
        try:
            entry = self._write(folder, prepare, "")
            store = TokenStore(folder / _TOKENS, entry.digest, entry.blocks)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(store, _remove, folder, os.getpid())
        return CachedSequences(store, entry.facts, None, found=False)

    def _write(self, folder: Path, prepare: Callable[[StoreWriter], Mapping[str, Any]], fingerprint: str) -> _Entry:
        path = folder / _TOKENS
        try:
            with _writing():
                writer = StoreWriter(path)
            try:
                began = time.perf_counter()
                facts = {**prepare(writer), "seconds": round(time.perf_counter() - began, 2)}
                with _writing():
                    digest, blocks = writer.close()
            except BaseException:
                with contextlib.suppress(OSError):
                    writer.abandon()
                raise
            with _writing():
                _sync(path)
                entry = _Entry(fingerprint, digest, tuple(blocks), facts, _identity(path))
                (folder / _ENTRY).write_text(entry.text(), encoding="utf-8")
                _sync(folder / _ENTRY)
        except UnwritableError as problem:
            raise DataError(
                f"data.cache_dir: the tokenized examples cannot be written to '{folder.parent}'"
                f" ({_reason(problem)}); free some space there, or name another folder"
            ) from problem
        return entry

    def _open(self, folder: Path) -> CachedSequences | None:
        """Open the entry in ``folder``; None when there is none.

        Raises:
            DamagedError: it is not what was written.
            OSError: it cannot be read.
        """
        if not os.path.lexists(folder):
            return None
        path, described = folder / _TOKENS, folder / _ENTRY
        try:
            if described.stat().st_size > _ENTRY_BYTES:
                raise ValueError(f"larger than {_ENTRY_BYTES >> 20} MiB")
            entry = _Entry.read(described.read_text(encoding="utf-8"))
            identity = _identity(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as problem:
            raise DamagedError(f"a file is missing: {problem}") from problem
        except ValueError as problem:  # no UTF-8, no JSON, or with another digest
            raise DamagedError(f"{_ENTRY}: {problem}") from problem
        if entry.fingerprint != folder.name:
            raise DamagedError(f"{_ENTRY} belongs to {entry.fingerprint}")
        size = identity[1]
        if size != entry.blocks[-1].end:
            raise DamagedError(f"{_TOKENS} has {size:,} bytes instead of {entry.blocks[-1].end:,}")
        known = identity == entry.identity
        if size <= _VERIFIED_AT_ONCE or not known:
            verify(path, entry.blocks)
        store = TokenStore(path, entry.digest, entry.blocks, size <= _VERIFIED_AT_ONCE or not known)
        counts = entry.facts.get("sequences")
        if counts is not None and sum(counts) != sum(len(piece.supervised) for piece in store.pieces):
            raise DamagedError(f"{_ENTRY} counts other sequences than {_TOKENS} holds")
        with contextlib.suppress(OSError):  # the cache of another user, or one that cannot be written
            if not known:
                replaced = described.with_name(f"{_ENTRY}.{uuid.uuid4().hex}")
                replaced.write_text(attrs.evolve(entry, identity=identity).text(), encoding="utf-8")
                os.replace(replaced, described)
            os.utime(described)  # the time of the last use, for cleaning up
        return CachedSequences(store, entry.facts, folder, found=True)


@attrs.frozen
class _Entry:
    """What ``entry.json`` holds.

    Attributes:
        fingerprint: of the entry, which is its folder's name as well.
        digest: of the sequences.
        blocks: blocks of the file with the tokens.
        facts: facts for the report.
        identity: identity of that file when its bytes were last verified.
    """

    fingerprint: str
    digest: str
    blocks: tuple[Block, ...]
    facts: Mapping[str, Any]
    identity: tuple[int, ...]

    def text(self) -> str:
        """Return the text of the file, which holds its own digest."""
        plain = {"layout": _LAYOUT, **attrs.asdict(self, recurse=False)}
        text = json.dumps(plain, indent=1)
        return json.dumps({**plain, "check": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}, indent=1)

    @classmethod
    def read(cls, text: str) -> _Entry:
        """Read the text of the file.

        Raises:
            ValueError: it is not what :meth:`text` returned.
        """
        try:
            plain = json.loads(text)
            blocks = tuple(Block(int(end), str(digest)) for end, digest in plain["blocks"])
            entry = cls(plain["fingerprint"], plain["digest"], blocks, plain["facts"], tuple(plain["identity"]))
            same = entry.text() == text
        except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as problem:
            raise ValueError(f"not what was written ({type(problem).__name__}: {problem})") from problem
        if not same:
            raise ValueError("not what was written, or by another version")
        entry.require_form()
        return entry

    def require_form(self) -> None:
        """Raise a ValueError where anything is of another form than a run writes, whoever wrote it."""
        ends = [block.end for block in self.blocks]
        facts = self.facts
        notes = facts.get("notes", {}) if isinstance(facts, Mapping) else None
        counts = facts.get("sequences") if isinstance(facts, Mapping) else None
        if (
            not isinstance(self.fingerprint, str)
            or not isinstance(self.digest, str)
            or len(ends) < 2
            or ends != sorted(ends)
            or ends[0] < 0
            or not isinstance(notes, Mapping)
            or not all(isinstance(note, Mapping) and {"count", "first"} <= note.keys() for note in notes.values())
            or not all(type(note["count"]) is int for note in notes.values())
            or not (counts is None or (isinstance(counts, list) and all(type(n) is int and n > 0 for n in counts)))
            or type(facts.get("rows")) is not int
        ):
            raise ValueError("of another form than this version writes")


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise UnwritableError(problem.errno, problem.strerror) from problem


def _identity(path: Path) -> tuple[int, ...]:
    """Return what changes with each change of a file; the last of the numbers cannot be set by anyone."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_ours(path: Path) -> bool:
    return path.lstat().st_uid == os.geteuid()


def _reason(problem: BaseException) -> str:
    return (problem.strerror if isinstance(problem, OSError) else "") or str(problem)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # worker processes inherit the finalizer
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
