"""Several ranks on this host: started together, ended together, and the first failure is the one that is reported.

torch's ``elastic_launch`` serves several hosts (``torchrun``). On one host it does not keep what is promised here: its
agent kills ranks 30 seconds after SIGTERM, in the middle of a long save, and does not pass on SIGUSR1; and it ends the
others as soon as one fails, so that a rank that hangs is not named with its stack.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from hooktrain.training.rank_notes import NOTES, OUR_OWN, has_begun, has_left, running_file

__all__ = ["follow_launcher", "launch"]

_PIPE = "HOOKTRAIN_LAUNCHER"
_PATIENCE = 10.0
"""Seconds in which ranks may end by themselves when one has failed."""
_AT_ONCE = 2.0
"""Seconds in which ranks end that a signal meets before their training."""
_WHERE = signal.SIGUSR2
"""Asks a rank what it is doing."""
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
"""Signals that are passed on to ranks; all but the last end them."""
_HUNG = f"hung: it gave the others no answer, nor ended in the {_PATIENCE:.0f} s after they gave up, and was killed"
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
    "Watchdog caught collective operation timeout",
    "waiting for other ranks",
)
"""What a rank says when another one has left it."""


class _Failure(NamedTuple):
    """The end of a rank.

    Attributes:
        when: by the monotonic clock, which the processes of a host share.
        rank: its number.
        status: of the process; negative is a signal.
        message: what it said, or what ended it.
        trace: its traceback, or nothing.
        hung: whether it did not end, and was killed.
    """

    when: float
    rank: int
    status: int
    message: str
    trace: str = ""
    hung: bool = False

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
    from hooktrain.types import World

    server = socket.create_server(("127.0.0.1", 0))  # so that no port is guessed
    reader, writer = os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    stop = _Stop()
    with tempfile.TemporaryDirectory(prefix="hooktrain-") as folder, _passing_on(processes, Path(folder), stop):
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
        common = {NOTES: folder, _PIPE: str(reader), "OMP_NUM_THREADS": threads}
        for rank in range(ranks):
            if stop.number:
                break
            world = World(rank=rank, world_size=ranks, local_rank=rank)
            running_file(Path(folder), rank).touch()
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "hooktrain", *words],
                    env={**os.environ, **common, **world.to_environment(server.getsockname()[1])},
                    pass_fds=[reader],
                    start_new_session=True,  # what a terminal sends comes here, and is passed on once
                )
            )
        os.close(reader)
        try:
            _store = _serve(server)  # for as long as the ranks run
            ended = _wait(processes, Path(folder), stop)
            return _report(Path(folder), [process.returncode for process in processes], ended, stop.number)
        finally:
            os.close(writer)


def _serve(server: socket.socket) -> object:
    """The store that ranks meet at. They need it seconds after their start: torch is imported here meanwhile."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    port = server.getsockname()[1]
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())


@dataclass
class _Stop:
    """A signal that has ended the ranks before they trained: its number, and when it came; 0 for none."""

    number: int = 0
    when: float = 0.0


@contextlib.contextmanager
def _passing_on(processes: Sequence[subprocess.Popen[bytes]], folder: Path, stop: _Stop) -> Iterator[None]:
    """Pass signals on to a rank, which tells the others; to all of them, with what they started, before they train.

    A signal that is ignored, as SIGHUP under nohup, is ignored by the ranks as well, which inherit that.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        alive = [process for process in processes if process.poll() is None]
        if number == signal.SIGUSR1 or (processes and all(has_begun(folder, rank) for rank in range(len(processes)))):
            for process in alive[:1]:
                process.send_signal(number)
            return
        stop.number, stop.when = number, stop.when or time.monotonic()
        for process in alive:
            _kill(process, number)

    numbers = [signal.Signals[name] for name in _SIGNALS if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to a rank and to what it has started, such as workers that read data."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: Path, stop: _Stop) -> dict[int, float]:
    """Wait for all ranks, and end them all when one has failed.

    Returns:
        The ranks that ended by themselves, and when.
    """
    ended: dict[int, float] = {}
    while True:
        for rank, process in enumerate(processes):
            if process.poll() is not None and rank not in ended:
                ended[rank] = time.monotonic()
        if len(ended) == len(processes):
            return ended
        failed = [at for rank, at in ended.items() if processes[rank].returncode or not has_left(folder, rank)]
        late = bool(failed) and time.monotonic() - min(failed) > _PATIENCE
        if late or (stop.number and time.monotonic() - stop.when > _AT_ONCE):
            left = [process for rank, process in enumerate(processes) if rank not in ended]
            if not stop.number:
                _ask_where(left, folder)
            for process in left:
                _kill(process)
                process.wait()
            return ended
        time.sleep(0.02)


def _ask_where(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Have ranks that do not end write down what they are doing."""
    for process in processes:
        process.send_signal(_WHERE)
    until = time.monotonic() + 1
    while time.monotonic() < until and sum(path.stat().st_size > 0 for path in folder.glob("*.stack")) < len(processes):
        time.sleep(0.02)
    time.sleep(0.1)  # for the rest of what is being written


def _report(folder: Path, statuses: Sequence[int], ended: dict[int, float], stopped_by: int) -> int:
    """Print the first cause and, a line each, what followed; returns the status to end with."""
    failures = []
    for rank, status in enumerate(statuses):
        note = folder / f"{rank}.json"
        if status == 0 and has_left(folder, rank):
            continue
        if note.exists():
            facts = json.loads(note.read_text(encoding="utf-8"))
            failures.append(_Failure(facts["when"], facts["rank"], status, facts["message"], facts["trace"]))
        elif status < 0 and rank in ended:
            name = signal.Signals(-status).name
            why = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
            failures.append(_Failure(ended[rank], rank, status, f"was ended by {name}{why}"))
        elif rank in ended and has_left(folder, rank):
            # its status says why, as after a signal that it has obeyed, or it has said why itself
            failures.append(_Failure(ended[rank], rank, status, ""))
        elif rank in ended:
            failures.append(_Failure(ended[rank], rank, status, f"ended with status {status}"))
        else:
            stack = folder / f"{rank}.stack"
            failures.append(_hung(rank, status, stack.read_text(encoding="utf-8") if stack.exists() else ""))
    if stopped_by and not any(failure.status > 0 and not failure.is_consequence for failure in failures):
        _print(f"hooktrain: {signal.Signals(stopped_by).name}: ended before the training began")
        return 128 + stopped_by
    if not failures:
        return 0
    if all(failure.is_consequence or failure.hung for failure in failures):
        failures = [failure._replace(message=_HUNG if failure.hung else failure.message) for failure in failures]
    first, *others = sorted(failures, key=lambda failure: (failure.is_consequence, failure.when))
    if first.status >= 0 and not has_left(folder, first.rank):
        first = first._replace(message=f"{first.message}{_in_step(others)}, before the run was over")
    alike = {f.rank for f in failures if f.message == first.message} == set(range(len(statuses)))
    who = "" if alike and len(statuses) > 1 else f"rank {first.rank}: "  # such as a mistake in what all of them read
    if first.message:
        _print("\n".join(filter(None, [f"hooktrain: {who}{first.message}", first.trace.rstrip("\n")])))
    said: dict[str, list[int]] = {}
    for other in others:
        line = _in_short(other)
        if line and line != _in_short(first):
            said.setdefault(line, []).append(other.rank)
    for line, ranks in said.items():
        who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, sorted(ranks)))}"
        _print(f"hooktrain: then {who}: {line}")
    return 128 - first.status if first.status < 0 else first.status or 1


def _print(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it: the status says that it failed
        print(text, file=sys.stderr)


def _in_step(failures: Iterable[_Failure]) -> str:
    """The step in which ranks were left by another one."""
    found = (re.search(r"step \d+", failure.message) for failure in failures if failure.is_consequence)
    return next((f" in {step[0]}" for step in found if step), "")


def _hung(rank: int, status: int, stack: str) -> _Failure:
    """A rank that neither failed nor ended; ``stack`` is what faulthandler wrote, the innermost frame first."""
    lines = [line for line in stack.splitlines()[1:] if not any(own in line for own in OUR_OWN)]
    trace = "\n".join(["It was here, the innermost call first:", *lines[:12], ""]) if lines else ""
    return _Failure(
        time.monotonic(),
        rank,
        status,
        f"did not end within {_PATIENCE:.0f} s of another rank's failure, and was killed",
        trace,
        hung=True,
    )


def _in_short(failure: _Failure) -> str:
    """The first line of a rank's message; of one that was left by another, when that was and what it waited for.

    Libraries say that in many words and by addresses, which differ from rank to rank.
    """
    line = failure.message.strip().splitlines()[0] if failure.message.strip() else ""
    if not failure.is_consequence or line.startswith("hang_timeout"):
        return line[:160]
    timeout = re.search(r"(?:Timed out waiting|wait timeout after) (\d+) ?ms", failure.message)
    what = f"waited {int(timeout[1]) / 1000:g} s (strategy.timeout) for an answer" if timeout else "lost the connection"
    where = re.match(rf"failed in (.*), rank {failure.rank}: ", line)
    return f"{what}, in {where[1]}" if where else what


def follow_launcher() -> None:
    """Have this rank end, having saved, when the process that started it is gone; and say where it is when asked."""
    pipe = os.environ.pop(_PIPE, "")
    if not pipe:
        return
    # open for as long as the process lives: who has hung can open nothing
    stack = (Path(os.environ[NOTES]) / f"{os.environ['RANK']}.stack").open("w", encoding="utf-8")
    faulthandler.register(_WHERE, file=stack, all_threads=False, chain=False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the training, where it saves: Python's waits for C code

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(int(pipe), 1)  # nothing is ever written: it returns when the other end is closed
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
