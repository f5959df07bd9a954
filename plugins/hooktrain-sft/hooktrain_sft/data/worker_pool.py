"""Preparation of examples on several processes, in the order of one.

Workers are forked: they have the plugins, the tokenizer and the source as they are, whether these can be pickled or
not, and share their memory. They are forked before this module or the reader start a thread, and tokenize without
threads of their own. Examples are read by the main process alone, as the workers share its open files.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from hooktrain import DataError

__all__ = ["WorkerPool", "number_of_workers"]

T = TypeVar("T")

_PAYS = 2048
"""Examples for which another process takes less time than it costs."""
_MOST = 16
"""Workers that one process can feed."""
_UNIT = 256
"""Most examples that are sent together."""
_CGROUP = Path("/sys/fs/cgroup")

Prepare = Callable[[Sequence[Any], int], T]
"""Prepares consecutive examples, of which the first has this number."""


def number_of_workers(num_proc: int | Literal["auto"], examples: int | None, shared_by: int = 1) -> int:
    """Return how many processes prepare a source; 1 is the main process itself.

    Args:
        num_proc: the recipe's.
        examples: of the source, where the number is known.
        shared_by: processes that prepare at the same time, which share the cores for ``auto``.
    """
    if sys.platform != "linux" or multiprocessing.current_process().daemon:  # forks elsewhere are not safe
        return 1
    if num_proc == "auto":
        return max(1, min(_cores() // shared_by, (examples or 0) // _PAYS, _MOST))
    return num_proc if examples is None else max(1, min(num_proc, examples))


def _cores() -> int:
    """Return the cores that this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        cores = min(cores, -(-int(quota) // int(period)))  # "max" is no number
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = min(cores, -(-int(quota) // int(period))) if int(quota) > 0 else cores
    return cores


class WorkerPool(Generic[T]):
    """Processes that prepare examples; a context manager.

    Attributes:
        unit: most examples that are prepared together, a power of two.
    """

    def __init__(self, workers: int, prepare: Prepare[T], label: str, examples: int | None) -> None:
        """Start the processes.

        Args:
            workers: their number.
            prepare: what they do; it is also called here for examples that cannot be sent, or with which it fails.
            label: name of the source, for errors.
            examples: of the source, where the number is known.

        Raises:
            OSError: when they cannot be started.
        """
        self._workers, self._prepare, self._label = workers, prepare, label
        some = _UNIT if examples is None else max(1, min(_UNIT, examples // (4 * workers)))
        self.unit = 1 << (some.bit_length() - 1)
        fork = multiprocessing.get_context("fork")
        self._pool = ProcessPoolExecutor(workers, fork, initializer=_begin, initargs=(prepare,))
        others = multiprocessing.active_children()
        try:
            with _tokenizers_without_threads():
                self._pool.submit(int).result()  # starts all processes, before there are threads
        except OSError:
            for process in multiprocessing.active_children():
                if process not in others:
                    process.kill()
            raise

    def __enter__(self) -> WorkerPool[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, examples: Iterator[Any]) -> Iterator[T]:
        """Yield the results of consecutive examples, in order.

        Raises:
            DataError: when a process has ended.
            Exception: what reading an example or preparing it raised, as it would without workers.
        """
        pending: deque[tuple[int, list[Any], Future[T | None] | None]] = deque()
        failed: Exception | None = None
        first, more = 0, True
        while more or pending:
            while more and len(pending) < 2 * self._workers:
                batch: list[Any] = []
                try:
                    while len(batch) < self.unit and more:
                        batch.append(next(examples))
                except StopIteration:
                    more = False
                except Exception as problem:  # after those of earlier examples
                    failed, more = problem, False
                if batch:
                    pending.append((first, batch, self._send(first, batch)))
                    first += len(batch)
            if pending:
                yield self._result(*pending.popleft())
        if failed is not None:
            raise failed

    def _send(self, first: int, batch: list[Any]) -> Future[T | None] | None:
        try:
            data = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
        except Exception:  # whatever an example's class raises
            return None
        try:
            return self._pool.submit(_run, data, first)
        except BrokenProcessPool:
            raise self._broken(first) from None

    def _result(self, first: int, batch: list[Any], future: Future[T | None] | None) -> T:
        try:
            made = None if future is None else future.result()
        except BrokenProcessPool:
            raise self._broken(first) from None
        return self._prepare(batch, first) if made is None else made

    def _broken(self, first: int) -> DataError:
        return DataError(
            f"{self._label}, example {first} or a later one: a process that prepares examples was killed, perhaps as"
            f" the memory did not suffice for {self._workers} of them; write `data.num_proc: 1`, or give more memory"
        )


_task: list[Prepare[Any]] = []
"""What a worker process does."""


def _begin(prepare: Prepare[Any]) -> None:
    """Begin a worker process."""
    _task[:] = [prepare]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # a collection would copy every page of the main process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # it was killed; nothing waits for this process, which still holds its locks


def _run(data: bytes, first: int) -> Any:
    try:
        return _task[0](pickle.loads(data), first)
    except Exception:
        return None  # the main process prepares them itself, and raises the error where it can be understood


@contextlib.contextmanager
def _tokenizers_without_threads() -> Iterator[None]:
    """Have a tokenizer that has used threads not warn in each process that is forked."""
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
