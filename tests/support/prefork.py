"""Start our programs from a process that has imported them already.

More than half of what the suite costs would be a few thousand interpreters that import the same
libraries.  So ``python -m wavry_…`` is forked here from a process that has done that: same code,
own process, own descriptors; a child of the tests, as far as they or the kernel can tell.  What
differs in any other way (interpreter, namespace, limits, variables that an import reads, a
``preexec_fn``) is started as ever, and so is the relay's worker, whose start is the relay's own.

How: the forking process forks twice and the process in between ends, so the program becomes the
child of the nearest reaper above: the tests, which call themselves one.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

from support.paths import REPOSITORY

__all__ = ["Popen"]

MODULES: Final = (
    "wavry_relay",
    "wavry_cp.master",
    "wavry_cp.gateway",
    "wavry_cp.admin",
    "wavry_peer",
)
_IMPORTED: Final = (
    "wavry_relay.cli", "wavry_cp.master.cli", "wavry_cp.gateway.cli",
    "wavry_cp.admin.commands.app", "wavry_peer.cli.app",
)  # fmt: skip
_READ_LATE: Final = ("WAVRY_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "CREDENTIALS_", "PYTEST_")
"""Variables that no import reads."""
_PR_SET_CHILD_SUBREAPER: Final = 36
_LIMITS: Final = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
_OPTIONS: Final = (
    "executable", "preexec_fn", "pass_fds", "shell", "user", "group", "extra_groups",
    "process_group",
)  # fmt: skip


def _surroundings() -> Any:
    """What a program inherits that a process forked elsewhere would not have."""
    spaces = sorted(Path("/proc/thread-self/ns").iterdir())
    limits = [resource.getrlimit(number) for number in _LIMITS]
    cpus = sorted(os.sched_getaffinity(0))
    groups = Path("/proc/self/cgroup").read_text()
    return [[str(space.readlink()) for space in spaces], limits, cpus, groups, os.geteuid()]


def _read_early(environ: dict[str, str]) -> dict[str, str]:
    return {key: text for key, text in environ.items() if not key.startswith(_READ_LATE)}


class _Forker:
    """The process that has imported everything, from the tests' side."""

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None).prctl
        self.environ = _read_early(dict(os.environ))
        self.surroundings = json.dumps(_surroundings())
        self._busy = threading.Lock()
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join((str(REPOSITORY / "tests"), str(REPOSITORY)))
        environ = self.environ | {"WAVRY_TEST_PATH": path}
        code = "import os, sys; sys.path[:0] = os.environ.pop('WAVRY_TEST_PATH').split(os.pathsep)"
        with other:
            self._process = _PLAIN_POPEN(
                [sys.executable, "-c", f"{code}; import support.prefork as f; f.fork_for_ever()",
                 str(other.fileno())],
                env=environ, cwd=REPOSITORY, pass_fds=(other.fileno(),), stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def start(self, order: dict[str, Any], descriptors: list[int]) -> int:
        """Return the pid of a program that has been forked."""
        with self._busy:
            # For this moment only: what other tests orphan is for the machine's own reaper.
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors)
                return int(self._socket.recv(64))
            finally:
                self._prctl(_PR_SET_CHILD_SUBREAPER, 0)


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
        where = Path(options.get("cwd") or os.curdir).resolve()
        if where != REPOSITORY and (where / args[2].partition(".")[0]).exists():
            return False
        with cls._first:
            if cls._forker is None:
                cls._forker = _Forker()
        environ = options.get("env")
        early = _read_early(dict(os.environ if environ is None else environ))
        return (
            early == cls._forker.environ and json.dumps(_surroundings()) == cls._forker.surroundings
        )

    def _execute_child(self, args: Any, *others: Any) -> None:
        if not self._forked:
            super()._execute_child(args, *others)  # type: ignore[misc] # not in the stubs
            return
        cwd, environ = others[4:6]
        ends = others[9:15]
        standard = [end if end != -1 else at for at, end in enumerate((ends[0], ends[3], ends[5]))]
        order = {
            "argv": args[2:],
            "cwd": str(Path(cwd or os.curdir).resolve()),
            "environ": dict(os.environ if environ is None else environ),
            "session": bool(others[20]),
        }
        assert self._forker is not None
        try:
            self.pid = self._forker.start(order, standard)
            self._child_created = True
        finally:
            self._close_pipe_fds(*ends)  # type: ignore[attr-defined] # not in the stubs


_PLAIN_POPEN: Final = subprocess.Popen


# -- The forking process ---------------------------------------------------------------------------


def fork_for_ever() -> None:
    """Fork a program for each order that comes; a program returns from it by running."""
    for module in _IMPORTED:
        __import__(module)
    gc.freeze()
    orders = socket.socket(fileno=int(sys.argv[1]))
    while True:
        order, descriptors, *_ = socket.recv_fds(orders, 1 << 20, 3)
        if not order:
            return
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            program = os.fork()
            if program:
                os.write(writing, str(program).encode())
                os._exit(0)
            orders.detach()
            _become(json.loads(order), descriptors)
            return
        os.close(writing)
        os.waitpid(between, 0)  # From here on the program is the tests' child.
        with os.fdopen(reading, "rb") as pid:
            orders.send(pid.read())
        for descriptor in descriptors:
            os.close(descriptor)


def _become(order: dict[str, Any], descriptors: list[int]) -> None:
    """Make this process what ``python -m`` makes, and run the program."""
    for at, descriptor in enumerate(descriptors):
        os.dup2(descriptor, at)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if order["session"]:
        os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environ"])
    sys.orig_argv = [sys.executable, "-m", *order["argv"]]
    sys.argv = ["", *order["argv"][1:]]
    sys.path[:2] = [order["cwd"]]
    for name in [name for name in sys.modules if name.partition(".")[0] == "support"]:
        del sys.modules[name]
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


def _leave(code: int) -> None:
    """End as the interpreter does, without the taking apart of each module before."""
    threading._shutdown()  # type: ignore[attr-defined] # what the interpreter calls
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):
            stream.flush()
    os._exit(code)
