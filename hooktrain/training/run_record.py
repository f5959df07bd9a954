"""The record of a run: ``run.json`` in its directory, for the run that starts there next and for ``hooktrain runs``.

It is written, as a whole, when the run starts, at each save and when it ends. The last hook and step change too often
for that. They are two numbers in a mapped file alongside, ``.run.position``: storing one is a write to memory, which
costs some 50 nanoseconds, and the system keeps it however the process ends. Only when the machine itself goes down are
they as old as the last time that it wrote its memory to the disk, usually less than a minute.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import struct
import time
import uuid
from array import array
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs

from hooktrain.errors import HooktrainError, failure_of, text_of
from hooktrain.training.run_files import (
    clear_way,
    delete_half_written,
    keep_aside,
    move_aside,
    read_bytes,
    read_json,
    write_whole,
)

if TYPE_CHECKING:
    from hooktrain.plugin.hook_caller import Hooks

__all__ = ["FILE", "KEPT", "RunRecord", "RunRecorder", "local_time", "read_record"]

FILE = "run.json"
KEPT = ("recipe.yaml", "plugins.json", "data.json")
"""Files about a run that are kept with its record when another one begins in its directory."""
_POSITION = ".run.position"
_NUMBERS = struct.Struct("=qq")
_MOST = 32
"""Finished saves that the record keeps."""


@attrs.define(kw_only=True)
class RunRecord:
    """Facts about one run.

    Attributes:
        id: a run that is resumed keeps it.
        name: of its recipe.
        state: ``running``, ``ended`` or ``failed``.
        why: what ended it early, or the error; empty otherwise.
        step: optimizer steps finished.
        steps: those of the whole run, once that is known.
        hook: the innermost hook that was running when the process ended or failed; empty between hooks.
        status: the exit status, once the run is over.
        starts: how often it was started.
        started: when it was last started, in seconds since the epoch.
        written: when this was written, likewise.
        process: its process, on rank 0.
        host: where that is.
        world_size: ranks.
        resumed_from: the checkpoint that the last start resumed from, if any.
        checkpoint: the last checkpoint or export; empty before that.
        saved: saves of which ``on_checkpoint_end`` has been emitted, as ``<step> <engine>``; the last 32.
    """

    id: str
    name: str = ""
    state: str = "running"
    why: str = ""
    step: int = 0
    steps: int | None = None
    hook: str = ""
    status: int | None = None
    starts: int = 1
    started: float = 0.0
    written: float = 0.0
    process: int = 0
    host: str = ""
    world_size: int = 1
    resumed_from: str = ""
    checkpoint: str = ""
    saved: list[str] = attrs.field(factory=list)

    @classmethod
    def of(cls, found: Any) -> RunRecord:
        """Make a record of what a file says.

        Raises:
            ValueError: it is none.
        """
        fields = {item.name: item.type for item in attrs.fields(cls)}
        if not isinstance(found, Mapping) or not isinstance(found.get("id"), str):
            raise ValueError("it has no 'id'")
        kinds: dict[Any, tuple[type, ...]] = {
            "str": (str,),
            "int": (int,),
            "float": (int, float),
            "int | None": (int, type(None)),
            "list[str]": (list,),
        }
        for name, value in found.items():
            if name in fields and (not isinstance(value, kinds[fields[name]]) or isinstance(value, bool)):
                raise ValueError(f"'{name}' is a {type(value).__name__}")
        if not all(isinstance(entry, str) for entry in found.get("saved", ())):
            raise ValueError("'saved' holds something else than text")
        return cls(**{name: value for name, value in found.items() if name in fields})

    def where(self) -> str:
        """Say how far the run came, as in ``step 12 of 100, in the hook run_backward``."""
        steps = "" if self.steps is None else f" of {self.steps}"
        return f"step {self.step}{steps}{f', in the hook {self.hook}' if self.hook else ''}"


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of the run in a folder, with its last hook and step; None where there is none.

    Raises:
        ValueError: there is one that cannot be read.
    """
    found = _read(folder)
    return None if found is None else found[0]


def _read(folder: Path) -> tuple[RunRecord, RunRecord | None] | None:
    """Read a record, and that of the run before it where this one had not found out whether it resumes it."""
    path = folder / FILE
    try:
        plain = read_json(read_bytes(path))
        record = RunRecord.of(plain)
        before = plain.get("before")
        if record.state == "running":
            _add_position(record, folder / _POSITION)
        return record, None if before is None else RunRecord.of(before)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: is no record of a run ({problem})") from problem


def _add_position(record: RunRecord, path: Path) -> None:
    with contextlib.suppress(OSError, ValueError, struct.error, IndexError):  # of a run without one
        data = path.read_bytes()
        number, step = _NUMBERS.unpack_from(data)
        owner, *names = data[_NUMBERS.size :].decode().split("\n")
        if owner == f"{record.id} {record.process} {record.host}":
            record.step = max(record.step, step)
            record.hook = names[number] if number >= 0 else ""


class RunRecorder:
    """Keeps the record of this run; on the main rank, once it holds the run directory.

    Args:
        folder: the run directory.
        name: of the recipe.
        world_size: ranks of the run.

    Attributes:
        record: what is known of the run.
        before: the record of the run that was there before, until this one is known to continue it or not.
        continues: whether this run continues another start of it, in the same folders.
        last: the record of that start; None where there is none.
        keeps_folder: whether the run directory stays when the run is over; not that of a trial.
    """

    def __init__(self, folder: Path, name: str, world_size: int) -> None:
        self._folder = folder
        self.record = RunRecord(id=uuid.uuid4().hex[:12], name=name, world_size=world_size)
        self.before: RunRecord | None = None
        self.continues, self.keeps_folder = False, True
        self.last: RunRecord | None = None
        self._warn: Callable[[str], None] = lambda text: None
        self._has_warned = self._is_settled = False
        self._inode: tuple[int, int] | None = None
        self._position: MutableSequence[int] = array("q", [-1, 0])
        self._hooks: Hooks | None = None

    def begin(self, hooks: Hooks, warn: Callable[[str], None]) -> None:
        """Write that the run is running, and warn where the one before it ended without finishing.

        Raises:
            OSError: it cannot be written.
        """
        self._warn = warn
        delete_half_written(self._folder)
        clear_way(self._folder / FILE, warn)
        record = self.record
        record.started, record.process, record.host = time.time(), os.getpid(), socket.gethostname()
        try:
            found = _read(self._folder)
        except ValueError as problem:
            warn(f"{problem}; it is kept as {move_aside(self._folder / FILE).name}")
            found = None
        if found is not None:
            last, earlier = found
            if last.state == "running":
                warn(
                    f"run_dir: the last run in '{self._folder}' (id {last.id}{_since(last)}) ended without"
                    f" finishing, at {last.where()}: its process was killed, or a plugin or library ended it"
                )
            self.before = earlier or last
        self._map(hooks)
        self._inode = _inode_of(self._folder)
        self._write()

    def settle(self, id: str | None, resumed_from: Path | None) -> None:
        """Note what the run turned out to be, before its model is built.

        Args:
            id: of the run that it continues; None where it is a run of its own.
            resumed_from: the checkpoint that it resumes from.

        Raises:
            OSError: that cannot be written.
        """
        record, before = self.record, self.before
        record.id, record.resumed_from = id or record.id, str(resumed_from or "")
        self.continues = id is not None
        if self._inode is None:
            return
        if before is not None and before.id == record.id:
            record.starts, record.saved, record.checkpoint = before.starts + 1, before.saved, before.checkpoint
            self.last = before
        elif before is not None:
            path = keep_aside(self._folder / FILE)  # for its name
            write_whole(path, json.dumps(attrs.asdict(before), indent=2))
            for name in KEPT:
                if (self._folder / name).exists():
                    move_aside(self._folder / name)
            self.before = None
        self._is_settled = True
        self._map(self._hooks)
        self._write()

    def abandon(self) -> None:
        """Leave the folder to the run that was there before, as this one may not run.

        Raises:
            OSError: its record cannot be written.
        """
        if self.before is not None:
            write_whole(self._folder / FILE, json.dumps(attrs.asdict(self.before), indent=2))
            (self._folder / _POSITION).unlink(missing_ok=True)
            self._inode = None

    def saved(self, step: int, entries: Sequence[str], path: Path) -> None:
        """Note saves of which everything is done.

        Args:
            step: the step that they hold.
            entries: their engines.
            path: the last of them.

        Raises:
            HooktrainError: the run directory is gone, or another one.
        """
        self.record.saved = [*self.record.saved, *(f"{step} {entry}" for entry in entries)][-_MOST:]
        self.record.checkpoint = str(path)
        self._update()

    def at_step(self, step: int) -> None:
        """Note the optimizer steps finished."""
        self._position[1] = step

    def at_train_start(self, step: int, steps: int) -> None:
        """Note where training starts, and how many steps it has.

        Raises:
            HooktrainError: the run directory is gone, or another one.
        """
        self.at_step(step)
        self.record.step, self.record.steps = step, steps
        self._update()

    def outcome(self, why: str, status: int, failure: BaseException | None = None) -> RunRecord:
        """Return the record of the run as it will stand where the run ends like this."""
        step = self._position[1]
        if failure is None:
            return attrs.evolve(self.record, state="ended", status=status, why=why, step=step, hook="")
        said = " ".join(f"{_named(failure)} [{failure_of(failure).where}]".split())
        return attrs.evolve(self.record, state="failed", status=_status_of(failure), why=said, step=step)

    def end(self, why: str, status: int, failure: BaseException | None = None) -> None:
        """Note how the run ended; what cannot be written stays ``running``."""
        self.record = record = self.outcome(why, status, failure)
        if self._hooks is not None:
            self._hooks.note_position(array("q", [-1, 0]), ())  # or the file would stay mapped
            self._hooks, self._position = None, array("q", [-1, record.step])
        if self._inode is None:
            return
        with contextlib.suppress(OSError, HooktrainError):
            self._update()
            (self._folder / _POSITION).unlink(missing_ok=True)
        self._inode = None

    def at_failure(self) -> None:
        """Note the hook in which something is failing, before other hooks are called about it."""
        number = self._position[0]
        names = self._hooks.names if self._hooks is not None else ()
        self.record.hook = names[number] if 0 <= number < len(names) else ""

    @property
    def has_folder(self) -> bool:
        """Whether the run directory is still the one that the run began with, as far as this rank knows."""
        return self._inode is None or _inode_of(self._folder) == self._inode

    def require_folder(self) -> None:
        """Refuse to write on where the run directory is not the one that the run began with.

        Raises:
            HooktrainError: it was removed or replaced.
        """
        if not self.has_folder:
            found = _inode_of(self._folder)
            what = "is gone" if found is None else "was replaced by another folder"
            raise HooktrainError(
                f"run_dir: '{self._folder}' {what} while this run used it, so that what it writes would be lost"
                " or mixed with something else; expected the folder that the run began with; put it back, and resume"
                " from the last checkpoint"
            )

    def _update(self) -> None:
        if self._inode is None:
            return
        self.require_folder()
        try:
            self._write()
        except OSError as problem:  # a disk that is full; the run does not depend on its record
            if not self._has_warned:
                self._warn(f"{self._folder / FILE}: cannot be written ({problem.strerror}), and shows what was before")
            self._has_warned = True

    def _write(self) -> None:
        self.record.written, self.record.step = time.time(), max(self.record.step, self._position[1])
        plain = attrs.asdict(self.record)
        if self.before is not None and not self._is_settled:
            plain["before"] = attrs.asdict(self.before)
        write_whole(self._folder / FILE, json.dumps(plain, indent=2))

    def _map(self, hooks: Hooks | None) -> None:
        """Have the hooks note which of them runs in a mapped file; in memory alone where that is not possible."""
        if hooks is None:
            return
        names, record, path = hooks.all_names(), self.record, self._folder / _POSITION
        head = _NUMBERS.pack(self._position[0], self._position[1])
        data = head + "\n".join([f"{record.id} {record.process} {record.host}", *names]).encode()
        self._hooks = hooks
        with contextlib.suppress(OSError, ValueError, BufferError):
            path.unlink(missing_ok=True)
            with path.open("w+b") as file:
                file.write(data)  # all of it is on the disk before it is mapped: a full one would end the process
                file.flush()
                os.fsync(file.fileno())
                mapped = mmap.mmap(file.fileno(), _NUMBERS.size)
            self._position = cast("MutableSequence[int]", memoryview(mapped).cast("q"))
        hooks.note_position(self._position, names)


def local_time(seconds: float) -> str:
    """Return a time as a date in local time; nothing where it is none."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""
    except (OverflowError, ValueError, OSError):
        return ""


def _since(record: RunRecord) -> str:
    started = local_time(record.started)
    return f", started {started}" if started else ""


def _status_of(failure: BaseException) -> int:
    """Return the exit status of a process that an error ends."""
    if isinstance(failure, KeyboardInterrupt):
        return 130
    code = failure.code if isinstance(failure, SystemExit) else 1
    return (code & 0xFF or 1) if isinstance(code, int) else 1


def _inode_of(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _named(failure: BaseException) -> str:
    kind = "" if isinstance(failure, HooktrainError) else f"{type(failure).__name__}: "
    return f"{kind}{text_of(failure)}"
