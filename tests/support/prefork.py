"""Start our programs from a process that has imported them already.

More than half of what the suite costs would be a few thousand interpreters that import the same
libraries.  So ``python -m wavry_…`` is forked here from a process that has done that: same code,
own process, own descriptors; a child of the tests, as far as they or the kernel can tell.  What
differs in any other way (interpreter, namespace, limits, variables that an import reads, a
``preexec_fn``) is started as ever.

How: the forking process forks twice and the process in between ends, so the program becomes the
child of the nearest reaper above: the tests, which call themselves one.  A program that starts
others of ours (a relay, ``wavryctl dev up``) has a forking process of its own, made in the same
way before it does anything: its workers and services are its children.
"""

import atexit
import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from support.paths import REPOSITORY

__all__ = ["Popen"]

MODULES: Final = (
    "wavry_relay",
    "wavry_relay.worker",
    "wavry_cp.master",
    "wavry_cp.gateway",
    "wavry_cp.admin",
    "wavry_peer",
)
_IMPORTED: Final = (
    "wavry_relay.cli", "wavry_relay.worker.process", "wavry_cp.master.cli", "wavry_cp.gateway.cli",
    "wavry_cp.admin.commands.app", "wavry_peer.cli.app",
)  # fmt: skip
_READ_EARLY: Final = (
    "PYTHON", "LD_", "MALLOC_", "LANG", "LC_CTYPE", "SSL_", "OPENSSL_", "AIOHTTP_", "YARL_",
    "MULTIDICT_", "PROMETHEUS_", "_TYPER_", "TERMINAL_WIDTH", "FORCE_COLOR", "PY_COLORS",
    "GITHUB_ACTIONS",
)  # fmt: skip
"""Variables that the interpreter or an import reads."""
_STARTS_OTHERS: Final = frozenset(
    {("wavry_relay", "run"), ("wavry_cp.admin", "up"), ("wavry_cp.admin", "demo")}
)
"""Programs that start others of ours: a module and a word of the command."""
_CLONE_NEWNET: Final = 0x40000000
_MOST_DESCRIPTORS: Final = 64
_ADOPTED_S: Final = 10.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_LIMITS: Final = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
_OPTIONS: Final = (
    "executable", "shell", "user", "group", "extra_groups", "process_group"
)  # fmt: skip


_NETWORK: Final = Path("/proc/thread-self/ns/net")


def _surroundings() -> Any:
    """What a program inherits that a process forked elsewhere would not have.

    The network is not among it: a program is put where its starter is.
    """
    spaces = sorted(set(Path("/proc/thread-self/ns").iterdir()) - {_NETWORK})
    limits = [resource.getrlimit(number) for number in _LIMITS]
    cpus = sorted(os.sched_getaffinity(0))
    groups = Path("/proc/self/cgroup").read_text()
    return [[str(space.readlink()) for space in spaces], limits, cpus, groups, os.geteuid()]


def _read_early(environ: dict[str, str]) -> dict[str, str]:
    return {key: text for key, text in environ.items() if key.startswith(_READ_EARLY)}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class _Forker:
    """The process that has imported everything, from the side of who has programs started."""

    def __init__(self, begin: Callable[[socket.socket], object]) -> None:
        self._prctl = ctypes.CDLL(None).prctl
        self.environ = _read_early(dict(os.environ))
        self.surroundings = json.dumps(_surroundings())
        self._network = _NETWORK.readlink()
        self._busy = threading.Lock()
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = begin(other)

    def start(self, order: dict[str, Any], descriptors: list[int]) -> int:
        """Return the pid of a program that has been forked.

        Raises:
            OSError: it could not be, or the forking process is gone.
        """
        with self._busy, contextlib.ExitStack() as stack:
            if _NETWORK.readlink() != self._network:
                network = os.open(_NETWORK, os.O_RDONLY)
                stack.callback(os.close, network)
                descriptors = [*descriptors, network]
            # For this moment only: what other tests orphan is for the machine's own reaper.
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors)
                pid = int(self._socket.recv(64) or -errno.ESRCH)
            finally:
                self._prctl(_PR_SET_CHILD_SUBREAPER, 0)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid


def _begin_by_exec(other: socket.socket) -> subprocess.Popen[Any]:
    path = os.pathsep.join((str(REPOSITORY / "tests"), str(REPOSITORY)))
    code = "import os, sys; sys.path[:0] = os.environ.pop('WAVRY_TEST_PATH').split(os.pathsep)"
    return _PLAIN_POPEN(
        [sys.executable, "-c", f"{code}; import support.prefork as f; f.import_and_fork()",
         str(other.fileno())],
        env=os.environ | {"WAVRY_TEST_PATH": path}, cwd=REPOSITORY,
        pass_fds=(other.fileno(),), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _begin_by_fork(other: socket.socket) -> None:
    """Begin the forking process of a program that has imported everything and run nothing yet."""
    if os.fork():
        return
    os.setsid()  # No signal to the program's group is meant for it.
    nothing = os.open(os.devnull, os.O_RDWR)
    for at in range(3):
        os.dup2(nothing, at)
    orders = os.dup2(other.fileno(), nothing)
    os.closerange(orders + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    _fork_for_ever(socket.socket(fileno=orders))
    os._exit(0)


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, which forks our programs."""

    _forker: _Forker | None = None
    _first: Final = threading.Lock()

    def __init__(self, args: Any, *others: Any, **options: Any) -> None:
        self._forked = not others and self._may_fork(args, options)
        super().__init__(args, *others, **options)

    def __del__(self, *args: Any, **options: Any) -> None:
        if getattr(self, "_child_created", False):
            self.poll()  # One that has ended is left behind by nobody.
        super().__del__(*args, **options)  # type: ignore[misc] # not in the stubs

    @classmethod
    def _may_fork(cls, args: Any, options: dict[str, Any]) -> bool:
        if not isinstance(args, list | tuple) or list(args[:2]) != [sys.executable, "-m"]:
            return False
        if args[2] not in MODULES:
            return False
        if any(options.get(name) for name in _OPTIONS) or options.get("umask", -1) != -1:
            return False
        before = options.get("preexec_fn")
        if before is not None and not before.__module__.startswith("wavry_"):
            return False
        where = Path(options.get("cwd") or os.curdir).resolve()
        if where != REPOSITORY and (where / args[2].partition(".")[0]).exists():
            return False
        with cls._first:
            if cls._forker is None:
                cls._forker = _Forker(_begin_by_exec)
        environ = options.get("env")
        early = _read_early(dict(os.environ if environ is None else environ))
        return (
            early == cls._forker.environ and json.dumps(_surroundings()) == cls._forker.surroundings
        )

    def _execute_child(self, args: Any, *others: Any) -> None:
        ends = others[9:15]
        standard = [end if end != -1 else at for at, end in enumerate((ends[0], ends[3], ends[5]))]
        if not self._forked or not all(map(_is_open, standard)):
            super()._execute_child(args, *others)  # type: ignore[misc] # not in the stubs
            return
        before, passed, cwd, environ = others[1], *others[3:6]
        order = {
            "argv": args[2:],
            "cwd": str(Path(cwd or os.curdir).resolve()),
            "environ": dict(os.environ if environ is None else environ),
            "session": bool(others[20]),
            "parent": os.getpid(),
            "descriptors": [0, 1, 2, *passed],
            "before": before and [before.__module__, before.__name__],
        }
        assert self._forker is not None
        try:
            self.pid = self._forker.start(order, [*standard, *passed])
            self._child_created = True
        finally:
            self._close_pipe_fds(*ends)  # type: ignore[attr-defined] # not in the stubs


_PLAIN_POPEN: Final = subprocess.Popen


# -- The forking process ---------------------------------------------------------------------------


def import_and_fork() -> None:
    """Import everything, then fork a program for each order."""
    for module in _IMPORTED:
        __import__(module)
    gc.freeze()
    _fork_for_ever(socket.socket(fileno=int(sys.argv[1])))


def _fork_for_ever(orders: socket.socket) -> None:
    """Fork a program for each order that comes; a program never returns from it."""
    while True:
        order, descriptors, *_ = socket.recv_fds(orders, 1 << 20, _MOST_DESCRIPTORS)
        if not order:
            return
        reading, writing = os.pipe()
        try:
            between = os.fork()
            if not between:
                try:
                    answer = os.fork()
                except OSError as error:
                    answer = -(error.errno or errno.EAGAIN)
                if answer:
                    os.write(writing, str(answer).encode())
                    os._exit(0)
                _become(json.loads(order), descriptors)
            os.waitpid(between, 0)  # From here on the program is the child of who ordered it.
        except OSError as error:
            os.write(writing, str(-(error.errno or errno.EAGAIN)).encode())
        os.close(writing)
        with os.fdopen(reading, "rb") as pid:
            orders.send(pid.read())
        for descriptor in descriptors:
            os.close(descriptor)


def _become(order: dict[str, Any], descriptors: list[int]) -> None:
    """Make this process what ``python -m`` makes, and run the program."""
    if len(descriptors) > len(order["descriptors"]):
        if ctypes.CDLL(None).setns(descriptors[-1], _CLONE_NEWNET):
            os._exit(127)
        os.close(descriptors.pop())
    _place(descriptors, order["descriptors"])
    if order["session"]:
        os.setsid()
    end_s = time.monotonic() + _ADOPTED_S
    while os.getppid() != order["parent"] and time.monotonic() < end_s:
        time.sleep(0.001)  # The process in between has not ended yet.
    if order["before"]:
        module, name = order["before"]
        getattr(sys.modules[module], name)()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environ"])
    sys.orig_argv = [sys.executable, "-m", *order["argv"]]
    sys.argv = ["", *order["argv"][1:]]
    sys.path[:2] = [order["cwd"]]
    for name in [name for name in sys.modules if name.partition(".")[0] == "support"]:
        del sys.modules[name]
    module, *words = order["argv"]
    if any((module, word) in _STARTS_OTHERS for word in words):
        Popen._forker = _Forker(_begin_by_fork)
        subprocess.Popen = Popen  # type: ignore[misc] # a class in place of the library's
    for at, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        with contextlib.suppress(OSError):
            errors = "backslashreplace" if at == 2 else None
            stream = os.fdopen(at, mode, errors=errors, closefd=False)
            stream.reconfigure(line_buffering=at == 2 or stream.isatty())
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    try:
        runpy.run_module(order["argv"][0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        _leave(end.code or 0)
    _leave(0)


def _place(descriptors: list[int], wanted: list[int]) -> None:
    """Give descriptors the numbers that they have in the other process, and close all others."""
    above = max(*descriptors, *wanted) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in descriptors]
    for descriptor, number in zip(moved, wanted, strict=True):
        os.dup2(descriptor, number)
    for number in range(above):
        if number not in wanted:
            with contextlib.suppress(OSError):
                os.close(number)
    os.closerange(above, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _leave(code: int) -> None:
    """End as the interpreter does, without the taking apart of each module before."""
    threading._shutdown()  # type: ignore[attr-defined] # what the interpreter calls
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):
            stream.flush()
    os._exit(code)
