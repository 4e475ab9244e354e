"""Machines of a small data centre on one computer: hosts with services, a network between them.

A machine is a network namespace, so ports are the real ones and 127.0.0.1 is its own.  There is no
service manager in it: `systemctl` and `journalctl` are stand-ins, first in the PATH of whatever
runs there.  They are programs, but they only ask this process, which owns the services as an init
does: `start`, `stop`, `restart`, `reload` and `kill` do to the real process of a unit what systemd
does (stop: SIGTERM, SIGCONT so that a stopped one can hear it, SIGKILL after a time), and
`journalctl` shows what the real process wrote.  Our own commands are stand-ins too: this process
starts them in less time.  What is killed stays dead here: the units of systemd-examples start it
again, so a runbook begins where that did not help.
"""

import contextlib
import json
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from support.machines.namespaces import Namespace
from support.system.system import START_TIMEOUT_S, clean_environment
from support.waiting import wait_until

STOP_TIMEOUT_S = 15.0
COMMAND_TIMEOUT_S = 150.0
JOURNAL_LINES = 1000

OURS = {
    "wavryctl": "wavry_cp.admin",
    "wavry-gateway": "wavry_cp.gateway",
    "wavry-master": "wavry_cp.master",
    "wavry-relay": "wavry_relay",
}
"""Our commands, and the module that each runs."""
_ORDER_BYTES = 1 << 16
_STAND_IN = """#!{python} -IS
# Asks the machine's service manager; see support/machines/machines.py.
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect({path!r})
    order = [{program!r}, sys.argv[1:], dict(os.environ), os.getcwd()]
    socket.send_fds(s, [json.dumps(order).encode() + b"\\n"], [0, 1, 2])
    code, out, err = json.loads(s.makefile().readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@dataclass
class Unit:
    """One service.

    Attributes:
        command: of its process.
        environment: beside what every process gets.
        journal: file of what it writes.
        ready_file: exists once it serves; where given, a start waits for that, as for
            ``Type=notify``.
    """

    command: list[str]
    environment: dict[str, str]
    journal: Path
    ready_file: Path | None = None
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Machine:
    """One host.

    Args:
        name: for messages.
        namespace: its network.
        directory: made here; for the stand-ins and the journal.
    """

    def __init__(self, name: str, namespace: Namespace, directory: Path) -> None:
        self.name, self.namespace, self.directory = name, namespace, directory
        self.units: dict[str, Unit] = {}
        self.journal = directory / "journal"
        self._bin = directory / "bin"
        self._lock = threading.Lock()
        for made in (directory, self._bin, self.journal):
            made.mkdir(mode=0o700)
        path = directory / "manager"
        machine = self

        class Asked(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                order, ends, *_ = socket.recv_fds(self.request, _ORDER_BYTES, 3)
                try:
                    while not order.endswith(b"\n"):
                        order += self.request.recv(_ORDER_BYTES)
                    program, words, environment, directory = json.loads(order)
                    if program in OURS:
                        command = [sys.executable, "-m", OURS[program], *words]
                        code = machine._run(command, environment, directory, ends, self.request)
                        answer = (code, "", "")
                    else:
                        answer = machine._answer(program, words)
                finally:
                    for end in ends:
                        os.close(end)
                with contextlib.suppress(OSError):  # It did not wait for the answer.
                    self.request.sendall(json.dumps(answer).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Asked)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        for program in ("systemctl", "journalctl", *OURS):
            script = self._bin / program
            script.write_text(
                _STAND_IN.format(python=sys.executable, path=str(path), program=program)
            )
            script.chmod(0o700)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for name in reversed(self.units):
            self.stop(name)

    # -- Services --------------------------------------------------------------------------

    def add(self, name: str, module: str, *, notifies: bool, **environment: str) -> None:
        """A unit; not started."""
        ready_file = self.directory / f"{name}.ready"
        self.units[name] = Unit(
            [sys.executable, "-m", module, "run", "--ready-file", str(ready_file)],
            environment,
            self.journal / f"{name}.log",
            ready_file if notifies else None,
        )

    def start(self, name: str) -> bool:
        """Start a unit; True once it runs (or serves, where it tells)."""
        unit = self.units[name]
        if unit.is_running:
            return True
        if unit.ready_file is not None:
            unit.ready_file.unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                log: Any = stack.enter_context(unit.journal.open("ab"))
            except OSError:
                log = subprocess.DEVNULL  # A full disk takes no log; the service runs on.
            stack.enter_context(self.namespace.entered())
            process = unit.process = subprocess.Popen(
                unit.command, env=clean_environment(**unit.environment), cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        ready_file = unit.ready_file
        if ready_file is not None:
            wait_until(
                lambda: ready_file.exists() or process.poll() is not None,
                timeout_s=START_TIMEOUT_S,
                what=f"{name} on {self.name} is ready",
            )
        return unit.is_running

    def stop(self, name: str) -> None:
        """End a unit as systemd does."""
        process = self.units[name].process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the main process; waits for the end of one that is killed."""
        process = self.units[name].process
        assert process is not None
        process.send_signal(number)
        if number is signal.SIGKILL:
            process.wait(30)

    def pid(self, name: str) -> int:
        process = self.units[name].process
        assert process is not None
        return process.pid

    def log(self, name: str) -> str:
        return self.units[name].journal.read_text(errors="replace")

    # -- What is typed ---------------------------------------------------------------------

    def environment(self, settings: dict[str, str]) -> dict[str, str]:
        """For a shell of an operator who is logged in here."""
        path = os.pathsep.join(
            [str(self._bin), str(Path(sys.executable).parent), "/usr/sbin", "/usr/bin", "/sbin"]
        )
        return clean_environment(**settings) | {
            "PATH": f"{path}:/bin", "HOME": str(self.directory), "LC_ALL": "C.UTF-8",
        }  # fmt: skip

    def shell(
        self, commands: str, settings: dict[str, str], *, may_fail: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        """Run lines as typed in bash; both outputs come as one text."""
        strict = "" if may_fail else "set -e -o pipefail\n"
        with self.namespace.entered():
            return subprocess.run(
                ["bash", "-u", "-c", strict + commands],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, timeout=COMMAND_TIMEOUT_S, env=self.environment(settings),
                cwd=self.directory,
            )  # fmt: skip

    def _run(
        self,
        command: list[str],
        environment: dict[str, str],
        directory: str,
        ends: list[int],
        asker: socket.socket,
    ) -> int:
        """Run one of our commands to its end, or to that of who asked for it; its exit code."""
        with self.namespace.entered():
            process = subprocess.Popen(
                command, env=environment, cwd=directory,
                stdin=ends[0], stdout=ends[1], stderr=ends[2],
            )  # fmt: skip
        ended = os.pidfd_open(process.pid)
        try:
            select.select([ended, asker], [], [])
            if process.poll() is None:
                process.terminate()
            code = process.wait(STOP_TIMEOUT_S)
        finally:
            os.close(ended)
        return code if code >= 0 else 128 - code

    # -- The stand-ins ---------------------------------------------------------------------

    def _answer(self, program: str, words: list[str]) -> tuple[int, str, str]:
        with self._lock:
            try:
                if program == "journalctl":
                    return self._journalctl(words)
                return self._systemctl(words)
            except _UnknownError as error:
                return error.args[0], "", f"{error.args[1]}\n"
            except Exception as error:  # noqa: BLE001  # the command must have an answer
                return 1, "", f"the stand-in failed: {error!r}\n"

    def _named(self, word: str, code: int) -> str:
        name = word.removesuffix(".service")
        if name not in self.units:
            raise _UnknownError(code, f"Unit {name}.service not found on {self.name}.")
        return name

    def _systemctl(self, words: list[str]) -> tuple[int, str, str]:
        options = [word for word in words if word.startswith("-")]
        verb, *names = [word for word in words if not word.startswith("-")]
        known = ("start", "stop", "restart", "reload", "kill", "status", "is-active",
                 "reset-failed", "enable")  # fmt: skip
        if verb not in known:
            raise _UnknownError(1, f"this stand-in does not know `systemctl {verb}`")
        answers = [self._order(verb, self._named(name, 5), options) for name in names]
        return max((code for code, _, _ in answers), default=0), *(
            "".join(answer[at] for answer in answers) for at in (1, 2)
        )  # type: ignore[return-value]  # two texts: stdout, stderr

    def _order(self, verb: str, name: str, options: list[str]) -> tuple[int, str, str]:
        unit = self.units[name]
        if verb in ("stop", "restart"):
            self.stop(name)
        if verb in ("start", "restart") or (verb == "enable" and "--now" in options):
            if self.start(name):
                return 0, "", ""
            return 1, "", f"Job for {name}.service failed; see journalctl -u {name}\n"
        if verb == "reload":
            self.signal(name, signal.SIGHUP)
        if verb == "kill":
            given = [option.partition("=")[2] for option in options if "=" in option]
            self.signal(name, signal.Signals[given[0] if given else "SIGTERM"])
        if verb == "is-active":
            return (0, "active\n", "") if unit.is_running else (3, "inactive\n", "")
        if verb == "status":
            process = unit.process
            if unit.is_running and process is not None:
                return 0, f"{name}.service\n  Active: active (running)\n", ""
            how = "inactive (dead)" if process is None else f"failed ({process.returncode})"
            return 3, f"{name}.service\n  Active: {how}\n{self._tail(name, 10)}", ""
        return 0, "", ""

    def _journalctl(self, words: list[str]) -> tuple[int, str, str]:
        vacuum = [word for word in words if word.startswith("--vacuum-size=")]
        if vacuum:
            archived = sorted(self.journal.glob("*.archived"))
            freed = sum(path.stat().st_size for path in archived)
            for path in archived:
                path.unlink()
            return 0, f"Vacuuming done, freed {freed / 1e6:.1f}M of archived journals\n", ""
        name = self._named(words[words.index("-u") + 1], 1)
        count = int(words[words.index("-n") + 1]) if "-n" in words else JOURNAL_LINES
        return 0, self._tail(name, count), ""

    def _tail(self, name: str, count: int) -> str:
        lines = self.log(name).splitlines()[-count:] if self.units[name].journal.exists() else []
        return "".join(f"{line}\n" for line in lines)


class _UnknownError(Exception):
    """Exit code and message of a command that cannot be done here."""
