"""Several ranks on this host: started together, ended together, and the first failure is the one that is told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

__all__ = ["follow_launcher", "launch", "note_failure"]

_NOTES, _PIPE = "HOOKTRAIN_FAILURES", "HOOKTRAIN_LAUNCHER"
_PATIENCE = 10.0
"""Seconds in which ranks may end by themselves when one has failed, and again when they were told to."""
_CONSEQUENCES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "failed to recv",
    "Timed out waiting",
    "wait timeout after",
    "remote process exited",
    "NCCL",
)
"""What a rank says when another one has left it."""


class _Failure(NamedTuple):
    """How a rank ended.

    Attributes:
        when: seconds since the epoch.
        rank: its number.
        status: of the process; negative is a signal.
        message: what it said, or what ended it.
        trace: its traceback, or nothing.
    """

    when: float
    rank: int
    status: int
    message: str
    trace: str = ""

    @property
    def is_consequence(self) -> bool:
        """Whether it only says that another rank is gone."""
        return any(sign in self.message for sign in _CONSEQUENCES)


def launch(words: Sequence[str], ranks: int) -> int:
    """Run the command line in so many processes on this host.

    Args:
        words: arguments of ``hooktrain``.
        ranks: how many.

    Returns:
        The status to end with: 0, or that of the rank that failed first, 128 plus its number for a signal.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # so that no port is guessed
    reader, writer = os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="hooktrain-") as folder, _passing_on(processes):
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            _NOTES: folder,
            _PIPE: str(reader),
        }
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
        for rank in range(ranks):
            mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "hooktrain", *words],
                    env={**os.environ, **common, **mine},
                    pass_fds=[reader],
                    start_new_session=True,  # what a terminal sends comes here, and is passed on once
                )
            )
        os.close(reader)
        try:
            ended = _wait(processes)
            return _report(Path(folder), [process.returncode for process in processes], ended)
        finally:
            os.close(writer)


@contextlib.contextmanager
def _passing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals on to rank 0, which tells the others."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        if processes and processes[0].poll() is None:
            processes[0].send_signal(number)

    names = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
    before = {getattr(signal, name): signal.signal(getattr(signal, name), pass_on) for name in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> dict[int, float]:
    """Wait for all ranks, and end them all when one has failed.

    Returns:
        The ranks that ended by themselves, and when.
    """
    ended: dict[int, float] = {}
    told = 0.0
    steps = [signal.SIGTERM, signal.SIGKILL]
    while True:
        for rank, process in enumerate(processes):
            if process.poll() is not None and rank not in ended and not told:
                ended[rank] = time.time()
        if all(process.returncode is not None for process in processes):
            return ended
        failed = [at for rank, at in ended.items() if processes[rank].returncode != 0]
        if failed and steps and time.time() - max(min(failed), told) > _PATIENCE:
            told, number = time.time(), steps.pop(0)
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)
        time.sleep(0.02)


def _report(folder: Path, statuses: Sequence[int], ended: dict[int, float]) -> int:
    """Print the first cause and, a line each, what followed; returns the status to end with."""
    failures = []
    for rank, status in enumerate(statuses):
        note = folder / f"{rank}.json"
        if status == 0:
            continue
        if note.exists():
            facts = json.loads(note.read_text(encoding="utf-8"))
            failures.append(_Failure(facts["when"], rank, status, facts["message"], facts["trace"]))
        elif status < 0 and rank in ended:
            name = signal.Signals(-status).name
            why = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
            failures.append(_Failure(ended[rank], rank, status, f"was ended by {name}{why}"))
        elif rank in ended:  # its status says why, as after a signal that it has obeyed, or it has said why itself
            failures.append(_Failure(ended[rank], rank, status, ""))
        else:
            failures.append(_Failure(time.time(), rank, status, "did not end by itself, and was killed"))
    if not failures:
        return 0
    first, *others = sorted(failures, key=lambda failure: (failure.is_consequence, failure.when))
    if first.message:
        print(f"hooktrain: rank {first.rank} {first.message}", file=sys.stderr)
        print(first.trace, end="", file=sys.stderr)
    for other in others:
        line = other.message.strip().splitlines()[0][:160] if other.message else ""
        if line and line != first.message.splitlines()[0][:160]:
            print(f"hooktrain: then rank {other.rank} {line}", file=sys.stderr)
    return first.status if first.status > 0 else 128 - first.status


def note_failure(message: str, problem: BaseException, *, trace: bool) -> bool:
    """Tell whoever has started this rank why it ends.

    Args:
        message: in one line or a few.
        problem: what was raised.
        trace: whether its traceback is of use.

    Returns:
        Whether the launcher is this module's, which prints it.
    """
    when = getattr(problem, "hooktrain_when", time.time())
    text = "".join(traceback.format_exception(type(problem), problem, problem.__traceback__)) if trace else ""
    folder, file = os.environ.get(_NOTES), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if folder:
        with contextlib.suppress(OSError):
            path = Path(folder) / f"{os.environ['RANK']}.json"
            path.write_text(json.dumps({"when": when, "message": message, "trace": text}), encoding="utf-8")
            return True
    elif file and not os.path.exists(file):
        facts = {"message": message, "extraInfo": {"py_callstack": text, "timestamp": str(int(when))}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": facts}), encoding="utf-8")
    return False


def follow_launcher() -> None:
    """Have this rank end, having saved, when the process that started it is gone."""
    pipe = os.environ.pop(_PIPE, "")
    if not pipe:
        return

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(int(pipe), 1)  # nothing is ever written: it returns when the other end is closed
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
