"""Start Python processes by forking a server that has imported what takes seconds.

Importing torch and transformers takes longer than most runs of a test. Inside ``forked_starts()`` every
``subprocess.Popen`` of this interpreter (``python -m hooktrain``, ``python -c``, a script) is a fork of a server that
has imported them and has run nothing. The caller sees no difference: the process is its child, with its own process id,
exit status, signals, process group, environment, working directory and open files. It may start others in the same way.

A fork cannot replace every start. Another interpreter, its options other than ``-u``, other ``PYTHON*`` variables and
a path with copies of what the server has imported are started as usual. Tests of the start itself (imports, warnings
while importing) use ``real_starts()``.

Linux with Python 3.11 or later only, as an orphan is adopted by the nearest *subreaper* there
(``man 2 PR_SET_CHILD_SUBREAPER``). Elsewhere ``forked_starts()`` changes nothing.
"""

from __future__ import annotations

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
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hooktrain import compat
from hooktrain.errors import HooktrainError

__all__ = ["forked_starts", "real_starts"]

IMPORT_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "HF_HOME", "HF_HUB_OFFLINE", "MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    *("TRANSFORMERS_OFFLINE", "TRITON_INTERPRET"),
)
"""Variables that libraries read while they are imported: each set of their values has a server of its own."""
START_VARIABLES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
"""Prefixes of variables that are read before Python runs: other values need a real start."""
FORKED_PACKAGES = ("benchmarks", "hooktrain", "pytest", "torch")
"""Packages whose modules ``python -m`` is forked for; others, such as pip, have no use for the server's imports."""
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_FIRST_FREE = 600
"""Received files are moved to numbers from here, while their own numbers are made free."""


class _Request(NamedTuple):
    """A process that a server is to fork.

    Attributes:
        words: the command line without the interpreter.
        env: all its variables.
        folder: its working directory.
        files: the file descriptors that the received files get, in their order.
        session: whether it leads a session of its own.
        group: the process group that it joins; 0 is one of its own.
        umask: its file mode mask; -1 is the server's.
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


# -------------------------------------------------------------------------------------------------- starting a process


class _Thread(threading.local):
    """What one thread has changed: real starts, or the modules that it needs forked."""

    real = False
    preload: frozenset[str] | None = None

    @contextlib.contextmanager
    def changed(self, real: bool, preload: frozenset[str] | None = None) -> Iterator[None]:
        before, (self.real, self.preload) = (self.real, self.preload), (real, preload)
        try:
            yield
        finally:
            self.real, self.preload = before


_thread = _Thread()
_adopting = threading.Lock()
_preloads: list[frozenset[str]] = []
"""The modules of each ``forked_starts()`` that is open, the outer one's included."""


class _Server:
    """Client of a server.

    Args:
        connection: to the server.
        preload: the modules that it has imported.
        variables: those of ``IMPORT_VARIABLES`` and ``START_VARIABLES`` that it was started with.
    """

    def __init__(self, connection: socket.socket, preload: frozenset[str], variables: Mapping[str, str]) -> None:
        self.connection, self.preload, self.variables = connection, preload, variables

    def fork(self, request: _Request, files: Sequence[int]) -> int:
        """Fork a process that does what the request says; returns its process id."""
        with _adopting_orphans():
            _send(self.connection, request, files)
            return int.from_bytes(_receive_exactly(self.connection, 8), "little")


_servers: dict[tuple[int, frozenset[tuple[str, str]]], list[_Server]] = {}
"""Servers by the process that started them and by their variables."""
_inherited: list[_Server] = []
"""In a forked process, the server that forks for it."""


@contextlib.contextmanager
def forked_starts(preload: Sequence[str] = ()) -> Iterator[None]:
    """Fork Python processes of this interpreter from a server.

    Args:
        preload: modules that the server imports, besides those of ``forked_starts()`` around it; a server that has
            imported more of them is taken as well.
    """
    if compat.fork_exec is None or sys.platform != "linux":
        yield
        return
    _preloads.append(frozenset(preload).union(*_preloads[-1:]))
    try:
        with compat.replaced_fork_exec(_fork_exec):
            yield
    finally:
        _preloads.pop()


def real_starts() -> contextlib.AbstractContextManager[None]:
    """Start this thread's processes as usual: for tests of what a new process imports, prints or costs."""
    return _thread.changed(real=True)


def _fork_exec(*arguments: Any) -> int:
    """Start a process: a fork where that is possible, else as usual."""
    wanted = _preloads[-1] if _thread.preload is None else _thread.preload
    pid = None if _thread.real else _forked(wanted, *arguments)
    assert compat.fork_exec is not None
    return compat.fork_exec(*arguments) if pid is None else pid


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
    """Fork a process for the arguments of ``subprocess._fork_exec``; returns None where it has to be a real start."""
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
    plugins = (name for name in list(sys.modules) if name.startswith("hooktrain_") and "." not in name)
    imported = {"hooktrain", *plugins, *(name.partition(".")[0] for name in preload)}
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
    """Whether a folder of a path holds another copy of a package than this process imports."""
    for folder in filter(None, folders):
        for name in packages:
            found = os.path.join(folder, name, "__init__.py")
            if os.path.exists(found) and not os.path.samefile(found, _origin(name) or os.devnull):
                return True
    return False


def _origin(package: str) -> str | None:
    """Return the file that this process imports a package from; None without one."""
    if package in sys.modules:
        return sys.modules[package].__file__
    spec = importlib.util.find_spec(package)
    return spec.origin if spec else None


def _server(preload: frozenset[str], variables: Mapping[str, str]) -> _Server | None:
    """Return a server that was started with the same variables; None where none can be."""
    wanted = _start_variables(variables)
    if _inherited:
        return _inherited[0] if _inherited[0].variables == wanted else None
    if _interpreter_variables(wanted) != _interpreter_variables(os.environ):
        return None
    started = _servers.setdefault((os.getpid(), frozenset(wanted.items())), [])
    for server in started:
        if server.preload >= preload:
            return server
    with _thread.changed(real=not started, preload=frozenset()):  # a fork of a server has less to import
        started.append(_start_server(preload, wanted))
    return started[-1]


def _start_variables(variables: Mapping[str, str]) -> dict[str, str]:
    read = {name: variables[name] for name in IMPORT_VARIABLES if name in variables}
    return read | _interpreter_variables(variables)


def _interpreter_variables(variables: Mapping[str, str]) -> dict[str, str]:
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
            f"hooktrain.testing: the server that was to import {', '.join(sorted(preload))} has ended with status"
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
    """Adopt the process whose parent, a fork of the server, ends inside this context.

    Other orphans, such as ranks whose launcher was killed, are left to the system, which reaps them.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    with _adopting:
        prctl(_SUBREAPER, 1, 0, 0, 0)
        try:
            yield
        finally:
            prctl(_SUBREAPER, 0, 0, 0, 0)


# ---------------------------------------------------------------------------------------------------- what is passed


def _send(connection: socket.socket, request: object, files: Sequence[int]) -> None:
    text = pickle.dumps(request)
    socket.send_fds(connection, [struct.pack("<Q", len(text))], files)
    connection.sendall(text)


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """Receive a request and its files.

    Raises:
        EOFError: when the other end is closed.
    """
    size, files, _, _ = socket.recv_fds(connection, 8, 200)
    if not size:
        raise EOFError
    return pickle.loads(_receive_exactly(connection, struct.unpack("<Q", size)[0])), files


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    found = connection.recv(count, socket.MSG_WAITALL)
    if len(found) < count:
        raise EOFError
    return found


# -------------------------------------------------------------------------------------------------------- the server


def _serve(connection: int, preload: Sequence[str], base: Sequence[str]) -> None:
    """Import modules, then fork for each request until the connection is closed.

    Args:
        connection: the file descriptor of a socket.
        preload: names of modules.
        base: ``sys.path`` of a new process, without its folder and PYTHONPATH.
    """
    for module in preload:
        importlib.import_module(module)
    sys.path[:] = base
    os.setpgid(0, 0)  # so that Ctrl-C in a terminal does not reach the server
    requests = socket.socket(fileno=connection)
    requests.sendall(b"\0")
    _fork_for(requests)


def _fork_for(connection: socket.socket) -> None:
    gc.collect()
    gc.freeze()
    while True:
        try:
            request, files = _receive(connection)
        except (EOFError, OSError):
            compat.exit_now(0)
        connection.sendall(_fork_orphan(request, files).to_bytes(8, "little"))
        for file in files:
            os.close(file)


def _fork_orphan(request: _Request, files: Sequence[int]) -> int:
    """Fork a process whose parent ends at once, so that the caller adopts it; returns its process id."""
    read_pid, write_pid = os.pipe()
    blocked, release = os.pipe()
    parent = os.fork()
    if not parent:
        pid = os.fork()
        if pid:
            os.write(write_pid, pid.to_bytes(8, "little"))
            compat.exit_now(0)
        os.close(release)
        os.read(blocked, 1)  # until the parent has ended
        _become(request, files)
    os.close(write_pid)
    os.waitpid(parent, 0)
    os.close(release)
    pid = int.from_bytes(os.read(read_pid, 8), "little")
    os.close(read_pid)
    os.close(blocked)
    return pid


def _become(request: _Request, files: Sequence[int]) -> NoReturn:
    """Turn this fork into the process of a request."""
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
            _fork_own_server()
        os.environ.clear()
        os.environ.update(request.env)
        status = _run_main(request.words)
    except BaseException:
        traceback.print_exc()
    finally:
        compat.exit_now(status)


def _take_files(files: Sequence[int], numbers: Sequence[int]) -> None:
    """Give the received files their descriptors, and close all others."""
    import fcntl  # which only Unix has

    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, _FIRST_FREE) for file in files]
    os.closerange(3, _FIRST_FREE)
    for file, number in zip(moved, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def _fork_own_server() -> None:
    """Fork a server for this process, which has run nothing so far."""
    import fcntl

    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        _fork_for(theirs)
    theirs.close()
    number = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)  # low numbers are the program's
    ours.close()
    ours = socket.socket(fileno=number)
    _inherited[:] = [_Server(ours, frozenset(), _start_variables(os.environ))]
    _process.enter_context(forked_starts())
    _at_exit.extend([ours.close, lambda: os.waitpid(pid, 0)])


_process = contextlib.ExitStack()  # for as long as the process lives
_at_exit: list[Callable[[], object]] = []


def _run_main(words: Sequence[str]) -> int:
    """Run a command line of Python as the interpreter does; returns the exit status."""
    unbuffered = words[0] == "-u"  # as torchrun starts ranks
    words = words[1:] if unbuffered else words
    _initialise(words, unbuffered)
    status = 0
    try:
        if words[0] == "-m":
            sys.argv[:] = words[1:]
            compat.run_module_as_main(words[1])
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
    except SystemExit as end:
        status = _exit_status(end.code)
    except BaseException as problem:
        status = 1
        problem.__traceback__ = _without_server(problem.__traceback__)
        sys.excepthook(type(problem), problem, problem.__traceback__)
        if isinstance(problem, KeyboardInterrupt):
            status = -signal.SIGINT
    return _end(status)


def _initialise(words: Sequence[str], unbuffered: bool) -> None:
    """Set what the interpreter sets before it runs a program."""
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


def _without_server(trace: types.TracebackType | None) -> types.TracebackType | None:
    """Remove the server's own frames from a traceback."""
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, compat.__file__):
        trace = trace.tb_next
    return trace


def _end(status: int) -> int:
    """Do what the interpreter does at its end: wait for threads, call exit functions, flush the output."""
    try:
        compat.run_exit_functions()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BrokenPipeError:
        status = status or 120
    for function in _at_exit:
        with contextlib.suppress(OSError):
            function()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status
