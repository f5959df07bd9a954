"""Start Python processes by forking a server that has imported what takes seconds.

Importing torch and transformers takes longer than most runs of a test. Inside ``forked_starts()`` every
``subprocess.Popen`` of this interpreter (``python -m hooktrain``, ``python -c``, a script) is a fork of a server that
has imported them and has run nothing. To the one who starts it, it is the process that ``Popen`` makes otherwise: a
child of the caller with its own process id, exit status, signals, process group, environment, working directory and
open files. Such a process may start others in the same way.

What cannot be had that way is started as usual: another interpreter, its options other than ``-u``, other ``PYTHON*``
variables, a path with copies of what the server has imported. Tests of the start itself (imports, warnings while
importing) use ``real_starts()``.

Linux only, as an orphan is adopted by the nearest *subreaper* there (``man 2 PR_SET_CHILD_SUBREAPER``). On other
systems ``forked_starts()`` changes nothing.
"""

from __future__ import annotations

import array
import atexit
import builtins
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import importlib.machinery
import importlib.util
import os
import pickle
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hooktrain.errors import HooktrainError

__all__ = ["Done", "Job", "forked_starts", "real_starts", "run_jobs"]

IMPORT_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "HF_HOME", "HF_HUB_OFFLINE", "MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    *("TRANSFORMERS_OFFLINE", "TRITON_INTERPRET"),
)
"""Variables that libraries read while they are imported: there is one server for each set of their values."""
START_VARIABLES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
"""Beginnings of the names of variables that are read before Python runs: other values need a real start."""
FORKED_PACKAGES = ("benchmarks", "hooktrain", "pytest", "torch")
"""Whose modules ``python -m`` is forked for; the imports of the server are of no use to others, such as pip."""
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_FIRST_FREE = 600
"""Received files are moved to numbers from here, while their own numbers are made free."""


class _Request(NamedTuple):
    """What a server needs to know of a process that it forks.

    Attributes:
        words: the command line without the interpreter.
        env: all its variables.
        folder: its working directory.
        files: the numbers that the received files get, in their order.
        session: whether it leads a session of its own.
        group: the process group that it joins; 0 is one of its own.
        umask: -1 is the server's.
        may_fork: whether processes that it starts are forked as well.
    """

    words: Sequence[str]
    env: Mapping[str, str]
    folder: str
    files: Sequence[int]
    session: bool
    group: int
    umask: int
    may_fork: bool


# -------------------------------------------------------------------------------------------------- to start a process

_real_fork_exec: Callable[..., int] | None = getattr(subprocess, "_fork_exec", None)  # Python 3.11 and later
_local = threading.local()
_asking = threading.Lock()


class _Server:
    """A server, as seen from the process that asks it.

    Args:
        connection: to the server.
        preload: the modules that it has imported.
        variables: of those that matter at a start, the ones that it was started with.
    """

    def __init__(self, connection: socket.socket, preload: frozenset[str], variables: Mapping[str, str]) -> None:
        self.connection, self.preload, self.variables = connection, preload, variables

    def fork(self, request: _Request, files: Sequence[int]) -> int:
        """Fork a process that does what the request says; returns its process id."""
        with _adopting_orphans():
            _send(self.connection, request, files)
            return int.from_bytes(_receive_exactly(self.connection, 8), "little")


_servers: dict[tuple[int, frozenset[tuple[str, str]]], list[_Server]] = {}
"""By the process that asks and the variables that matter at a start."""
_inherited: list[_Server] = []
"""In a forked process, the one that forks for it."""


@contextlib.contextmanager
def forked_starts(preload: Sequence[str] = ()) -> Iterator[None]:
    """Within it, Python processes of this interpreter are forked from a server.

    Args:
        preload: modules that the server imports, besides those of ``forked_starts()`` around it; a server that has
            imported more of them is taken as well.
    """
    if _real_fork_exec is None or sys.platform != "linux":
        yield
        return
    before = getattr(subprocess, "_fork_exec")  # noqa: B009 - not in typeshed
    wanted = frozenset(preload).union(getattr(before, "preload", ()))

    def fork_exec(*arguments: Any) -> int:
        found = None if getattr(_local, "real", False) else _forked(getattr(_local, "preload", wanted), *arguments)
        return before(*arguments) if found is None else found

    setattr(fork_exec, "preload", wanted)  # noqa: B010
    setattr(subprocess, "_fork_exec", fork_exec)  # noqa: B010
    try:
        yield
    finally:
        setattr(subprocess, "_fork_exec", before)  # noqa: B010


@contextlib.contextmanager
def real_starts() -> Iterator[None]:
    """Within it, this thread starts processes as usual: for tests of what a new process imports, prints or costs."""
    before = getattr(_local, "real", False)
    _local.real = True
    try:
        yield
    finally:
        _local.real = before


def _forked(
    preload: frozenset[str],
    args: Sequence[bytes | str],
    executables: Sequence[bytes],
    close_fds: bool,
    keep: Sequence[int],
    cwd: Any,
    env: Sequence[bytes] | None,
    *rest: Any,
) -> int | None:
    """The process id of a fork that serves the arguments of ``_fork_exec``; None where it has to be a real start."""
    stdin, _, _, stdout, _, stderr, _, error_pipe, _, session, group, gid, gids, uid, umask, preexec, _ = rest
    words = [os.fsdecode(word) for word in args]
    folder = os.path.abspath(os.fsdecode(cwd)) if cwd is not None else os.getcwd()
    variables = dict(os.environ)
    if env is not None:
        variables = dict(os.fsdecode(entry).split("=", 1) for entry in env)
    if (
        list(executables) != [os.fsencode(sys.executable)]
        or not _is_forked_for(words[1:])
        or not close_fds
        or not os.path.isdir(folder)
        or any(value is not None for value in (gid, gids, uid, preexec))
    ):
        return None
    imported = {"hooktrain", *_plugin_packages(), *(name.partition(".")[0] for name in preload)}
    if _has_copies(imported, [folder, *variables.get("PYTHONPATH", "").split(os.pathsep)]):
        return None
    server = _server(preload, variables)
    if server is None:
        return None
    files = {0: stdin, 1: stdout, 2: stderr} | {number: number for number in keep if number != error_pipe}
    files = {number: number if file < 0 else file for number, file in files.items()}
    request = _Request(
        words=words[1:],
        env=variables,
        folder=folder,
        files=list(files),
        session=session,
        group=os.getpgrp() if group < 0 else group,
        umask=umask,
        may_fork="-c" not in words[1:3] and "RANK" not in variables,
    )
    return server.fork(request, list(files.values()))


def _is_forked_for(words: Sequence[str]) -> bool:
    words = words[1:] if words[:1] == ["-u"] else words
    if not words:
        return False
    if words[0] == "-m":
        return len(words) > 1 and words[1].partition(".")[0] in FORKED_PACKAGES
    return words[0] == "-c" or not words[0].startswith("-")


def _has_copies(packages: Collection[str], folders: Sequence[str]) -> bool:
    """Whether a path holds other copies of packages than those that this process imports."""
    for folder in filter(None, folders):
        for name in packages:
            found = os.path.join(folder, name, "__init__.py")
            if os.path.exists(found) and not os.path.samefile(found, _origin(name) or os.devnull):
                return True
    return False


def _origin(package: str) -> str | None:
    """The file that this process has imported a package from, or would; None without one."""
    own = sys.modules.get(package)
    if own is not None:
        return own.__file__
    spec = importlib.util.find_spec(package)
    return spec.origin if spec else None


def _plugin_packages() -> list[str]:
    return [name for name in list(sys.modules) if name.startswith("hooktrain_") and "." not in name]


def _server(preload: frozenset[str], variables: Mapping[str, str]) -> _Server | None:
    """A server whose start had the same variables; None where one cannot be started."""
    wanted = _of_the_start(variables)
    if _inherited:
        return _inherited[0] if _inherited[0].variables == wanted else None
    if _read_before_python(wanted) != _read_before_python(os.environ):
        return None
    started = _servers.setdefault((os.getpid(), frozenset(wanted.items())), [])
    for server in started:
        if server.preload >= preload:
            return server
    with _forked_from_any() if started else real_starts():  # a fork of a server has less to import
        started.append(_start_server(preload, wanted))
    return started[-1]


@contextlib.contextmanager
def _forked_from_any() -> Iterator[None]:
    _local.preload = frozenset()
    try:
        yield
    finally:
        del _local.preload


def _of_the_start(variables: Mapping[str, str]) -> dict[str, str]:
    read = {name: variables[name] for name in IMPORT_VARIABLES if name in variables}
    return read | _read_before_python(variables)


def _read_before_python(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in variables.items()
        if name.startswith(START_VARIABLES) and name not in ("PYTHONPATH", "LD_LIBRARY_PATH")
    }


def _start_server(preload: frozenset[str], variables: Mapping[str, str]) -> _Server:
    ours, theirs = socket.socketpair()
    env = {name: value for name, value in os.environ.items() if name not in (*IMPORT_VARIABLES, "PYTHONPATH")}
    program = (
        "import sys; base = sys.path[1:]; sys.path[:] = sys.argv[2].split(chr(10));"
        f"from {__name__} import _serve; _serve(int(sys.argv[1]), sys.argv[3:], base)"
    )
    path = "\n".join(filter(None, sys.path))
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno()), path, *sorted(preload)],
            env={**env, **variables},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
    if not ours.recv(1):
        raise HooktrainError(
            f"hooktrain.testing: a process that was to import {', '.join(sorted(preload))} has ended with status"
            f" {process.wait()}; its standard error has the cause. Install what is missing, such as hooktrain-hf and"
            " hooktrain-sft for recipe='chat'."
        )

    def close() -> None:
        ours.close()
        process.wait(10)

    atexit.register(close)
    return _Server(ours, preload, variables)


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Become the parent of a process whose own parent, a fork of the server, ends within it.

    Other orphans, such as ranks whose launcher was killed, are left to the system, which reaps them.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    with _asking:
        prctl(_SUBREAPER, 1, 0, 0, 0)
        try:
            yield
        finally:
            prctl(_SUBREAPER, 0, 0, 0, 0)


# ---------------------------------------------------------------------------------------------------- what is passed


def _send(connection: socket.socket, request: object, files: Sequence[int]) -> None:
    text = pickle.dumps(request)
    connection.sendmsg(
        [struct.pack("<Q", len(text))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
    )
    connection.sendall(text)


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """A request and its files.

    Raises:
        EOFError: when nobody asks any more.
    """
    size, files, _, _ = socket.recv_fds(connection, 8, 200)
    if not size:
        raise EOFError
    size += _receive_exactly(connection, 8 - len(size)) if len(size) < 8 else b""
    return pickle.loads(_receive_exactly(connection, struct.unpack("<Q", size)[0])), files


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = connection.recv(count - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


# -------------------------------------------------------------------------------------------------------- the server


def _serve(connection: int, preload: Sequence[str], base: Sequence[str]) -> None:
    """Import modules, and fork for each request until nobody asks any more.

    Args:
        connection: the file of a socket.
        preload: names of modules.
        base: ``sys.path`` of a new process, without its folder and PYTHONPATH.
    """
    for module in preload:
        importlib.import_module(module)
    sys.path[:] = base
    os.setpgid(0, 0)  # Ctrl-C of a terminal is for those who use it
    asked = socket.socket(fileno=connection)
    asked.sendall(b"\0")
    _fork_for(asked)


def _fork_for(connection: socket.socket) -> None:
    gc.collect()
    gc.freeze()
    while True:
        try:
            request, files = _receive(connection)
        except (EOFError, OSError):
            os._exit(0)
        connection.sendall(_fork_orphan(request, files).to_bytes(8, "little"))
        for file in files:
            os.close(file)


def _fork_orphan(request: _Request, files: Sequence[int]) -> int:
    """Fork a process whose parent ends at once, so that the one who asks adopts it; returns its process id."""
    told, tell = os.pipe()
    waiting, adopted = os.pipe()
    between = os.fork()
    if not between:
        pid = os.fork()
        if pid:
            os.write(tell, pid.to_bytes(8, "little"))
            os._exit(0)
        os.close(adopted)
        os.read(waiting, 1)  # until the parent has ended
        _become(request, files)
    os.close(tell)
    os.waitpid(between, 0)
    os.close(adopted)
    pid = int.from_bytes(os.read(told, 8), "little")
    os.close(told)
    os.close(waiting)
    return pid


def _become(request: _Request, files: Sequence[int]) -> NoReturn:
    """Be the process that a request asks for."""
    status = 1
    try:
        _take_files(files, request.files)
        if request.session:
            os.setsid()
        else:
            with contextlib.suppress(PermissionError):  # its parent's, which may have ended
                os.setpgid(0, request.group)
        if request.umask >= 0:
            os.umask(request.umask)
        os.chdir(request.folder)
        if request.may_fork:
            _bring_a_server()
        os.environ.clear()
        os.environ.update(request.env)
        status = _run_main(request.words)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _take_files(files: Sequence[int], numbers: Sequence[int]) -> None:
    """Give received files their numbers, and close all others."""
    import fcntl  # which only Unix has

    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, _FIRST_FREE) for file in files]
    os.closerange(3, _FIRST_FREE)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def _bring_a_server() -> None:
    """Fork a server for this process, which has run nothing so far."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        _fork_for(theirs)
    theirs.close()
    import fcntl

    number = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)  # low numbers are the program's
    ours.close()
    ours = socket.socket(fileno=number)
    _inherited[:] = [_Server(ours, frozenset(), _of_the_start(os.environ))]
    _for_good.enter_context(forked_starts())
    _at_the_end.extend([ours.close, lambda: os.waitpid(pid, 0)])


_for_good = contextlib.ExitStack()  # never left
_at_the_end: list[Callable[[], object]] = []


def _run_main(words: Sequence[str]) -> int:
    """Run a command line of Python as the interpreter does; returns the exit status."""
    unbuffered = words[0] == "-u"  # as torchrun starts ranks
    words = words[1:] if unbuffered else words
    _as_at_the_start(words, unbuffered)
    status = 0
    try:
        if words[0] == "-m":
            sys.argv[:] = words[1:]
            runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
        else:
            main = sys.modules["__main__"]
            if words[0] == "-c":
                sys.argv[:] = ["-c", *words[2:]]
                code = compile(words[1], "<string>", "exec")
            else:
                sys.argv[:] = words
                main.__file__ = words[0]
                main.__loader__ = importlib.machinery.SourceFileLoader("__main__", words[0])
                code = compile(Path(words[0]).read_bytes(), words[0], "exec")
            exec(code, main.__dict__)
    except SystemExit as asked:
        status = _exit_status(asked.code)
    except BaseException as problem:
        status = 1
        problem.__traceback__ = _of_the_program(problem.__traceback__)
        sys.excepthook(type(problem), problem, problem.__traceback__)
        if isinstance(problem, KeyboardInterrupt):
            status = -signal.SIGINT
    return _end(status)


def _as_at_the_start(words: Sequence[str], unbuffered: bool) -> None:
    """What the interpreter sets before it runs a program."""
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = {"-m": os.getcwd(), "-c": ""}.get(words[0], os.path.dirname(os.path.abspath(words[0])))
    sys.path[:] = [first, *(os.path.abspath(each) for each in path if each), *sys.path]
    importlib.invalidate_caches()
    main = types.ModuleType("__main__")
    vars(main)["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.orig_argv[:] = [sys.executable, *(["-u"] if unbuffered else []), *words]
    through = unbuffered or bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=through)  # type: ignore[union-attr]
    if faulthandler.is_enabled():
        faulthandler.disable()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _exit_status(code: object) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _of_the_program(trace: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback without the frames of this module."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _end(status: int) -> int:
    """What the interpreter does at its end: wait for threads, call what is registered, write out."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BrokenPipeError:
        status = status or 120
    for last in _at_the_end:
        with contextlib.suppress(OSError):
            last()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


# ------------------------------------------------------------------------------------------------ to run a function


class Job(NamedTuple):
    """A function to run in a process of its own.

    Attributes:
        function: ``module:name`` of a function that takes ``arguments`` and returns what pickle can carry.
        arguments: its keyword arguments.
        folder: the working directory, where the output and the result are kept.
        env: variables besides those of the process that asks.
    """

    function: str
    arguments: Mapping[str, Any]
    folder: Path
    env: Mapping[str, str] = {}


class Done(NamedTuple):
    """The outcome of a job.

    Attributes:
        status: the exit status; negative where a signal ended it, None where it took too long.
        result: what the function returned.
        output: what it printed, a traceback included.
    """

    status: int | None
    result: Any
    output: str


def run_jobs(*jobs: Job, preload: Sequence[str] = (), timeout: float = 120.0) -> list[Done]:
    """Run jobs at the same time, each in a process of its own, and wait for all of them.

    When one fails, the others have ten more seconds: ranks wait for each other.

    Args:
        jobs: what to run.
        preload: modules that take seconds to import, for the server that is forked.
        timeout: seconds after which the jobs are killed.

    Raises:
        HooktrainError: when the modules cannot be imported.
    """
    processes = []
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "job.pickle").write_bytes(pickle.dumps((job.function, dict(job.arguments), list(sys.path))))
        with (job.folder / "output.txt").open("wb") as output, forked_starts(preload):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", f"from {__name__} import _run_job; _run_job()"],
                    cwd=job.folder,
                    env={**os.environ, "OMP_NUM_THREADS": "1", **job.env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            )
    statuses = _wait(processes, timeout)
    return [_done(job.folder, status) for job, status in zip(jobs, statuses, strict=True)]


def _run_job() -> None:
    """Run the job of this folder."""
    name, arguments, path = pickle.loads(Path("job.pickle").read_bytes())
    sys.path[:] = path
    module, _, attribute = name.partition(":")
    try:
        result = getattr(importlib.import_module(module), attribute)(**arguments)
        Path("result.pickle").write_bytes(pickle.dumps(result))
    except BaseException as problem:
        traceback.print_exc()
        where = getattr(problem, "hooktrain_where", "")  # the engine's own note on what failed
        print(f"{where}: {type(problem).__name__}: {problem}" if where else "", file=sys.stderr)
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # whatever threads a plugin has left


def _wait(processes: Sequence[subprocess.Popen[bytes]], timeout: float) -> list[int | None]:
    """The exit status of each; what takes too long is killed."""
    until = time.monotonic() + timeout
    found: dict[int, int | None] = {}
    while len(found) < len(processes):
        for number, process in enumerate(processes):
            if number not in found and process.poll() is not None:
                found[number] = process.returncode
                if process.returncode != 0:
                    until = min(until, time.monotonic() + 10)
        if time.monotonic() > until:
            for number, process in enumerate(processes):
                if number not in found:
                    process.kill()
                    process.wait()
                    found[number] = None
        time.sleep(0.005)
    return [found[number] for number in range(len(processes))]


def _done(folder: Path, status: int | None) -> Done:
    result, path = None, folder / "result.pickle"
    if status == 0 and path.exists():
        result = pickle.loads(path.read_bytes())
    return Done(status, result, (folder / "output.txt").read_text(encoding="utf-8", errors="replace"))
