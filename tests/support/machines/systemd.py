"""A machine with a real systemd, in namespaces of its own: units run on it as they are shipped.

Strategy: systemd is process 1 of a PID namespace and sees only its own branch of the control
groups, so it cannot touch anything outside.  Its network is a namespace with a loopback.  /run,
/opt, /var/lib and /etc are its own; the rest of the disk is the host's.  The software is put into
/opt/wavry, where the units expect it: the interpreter of these tests, a copy of the
packages, and the installed libraries.  When process 1 is killed the kernel ends all of it.

There is no journal: services write to /run/log.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from support.machines.namespaces import Namespace
from support.paths import REPOSITORY
from support.system.system import clean_environment

SYSTEMD = Path("/lib/systemd/systemd")
PROGRAMS = ("unshare", "nsenter", "mount", "ip", "systemctl", "setpriv", "systemd-sysusers")
_PR_SET_PDEATHSIG = 1
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_TARGETS = ("sysinit", "basic", "sockets", "network-online", "multi-user", "shutdown", "umount")

_BOOT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/units /run/log /run/etc /run/cgroup
mount -t cgroup2 cgroup2 /run/cgroup
umount -R /sys/fs/cgroup
mount --move /run/cgroup /sys/fs/cgroup
cp -a /etc/. /run/etc/
rm -rf /run/etc/systemd/system /run/etc/wavry
mkdir -p /run/etc/systemd/system
mount --bind /run/etc /etc
mount -t tmpfs tmpfs /var/lib
# Mounts that need what a tmpfs would hide are made before it.
mkdir /run/python /run/packages
mount --bind "$BASE" /run/python
mount --bind "$PACKAGES" /run/packages
mkdir -p /run/tree
cp -a --no-preserve=ownership "$REPOSITORY"/wavry_peer "$REPOSITORY"/wavry_relay \
  "$REPOSITORY"/wavry_cp "$REPOSITORY"/systemd-examples /run/tree
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir -p /opt/python /opt/wavry/bin /opt/wavry/tree /opt/wavry/packages \
  "/opt/wavry/lib/$PYTHON/site-packages"
mount --bind /run/python /opt/python
mount --bind /run/packages /opt/wavry/packages
mount --bind /run/tree /opt/wavry/tree
chmod -R go+rX /run/tree
ln -s "/opt/python/bin/$PYTHON" /opt/wavry/bin/python
# An interpreter that is a shared library finds it under the name of its first home only.
mkdir -p /run/ldconfig
[ ! -d /var/cache/ldconfig ] || mount --bind /run/ldconfig /var/cache/ldconfig
echo /opt/python/lib > /etc/ld.so.conf.d/000-wavry.conf
ldconfig -X
printf 'home = /opt/python/bin\ninclude-system-site-packages = false\n' > /opt/wavry/pyvenv.cfg
printf '/opt/wavry/tree\n/opt/wavry/packages\n' > "/opt/wavry/lib/$PYTHON/site-packages/wavry.pth"
script() {
  printf '#!/opt/wavry/bin/python\nfrom %s import %s\n%s()\n' "$2" "$3" "$3" > "/opt/wavry/bin/$1"
  chmod 755 "/opt/wavry/bin/$1"
}
script wavry-relay wavry_relay.launch main
script wavry-master wavry_cp.app.launch master
script wavry-gateway wavry_cp.app.launch gateway
script wavryctl wavry_cp.app.launch wavryctl
script wavry-peer wavry_peer.cli.app main
for target in $TARGETS; do
  printf '[Unit]\nDefaultDependencies=no\n' > "/run/units/$target.target"
done
mkdir /run/units/service.d
printf '[Service]\nStandardOutput=append:/run/log/%%N.log\nStandardError=inherit\n' \
  > /run/units/service.d/log.conf
# As on any machine: credentials reach a service's namespace by propagation.
mount --make-rshared /
export container=wavry SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units
exec "$SYSTEMD" --system --unit=multi-user.target --log-target=console --log-level=info \
  --show-status=no
"""

_GET = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
"""


def not_allowed() -> str | None:
    """Why this machine gives no namespaces for it, or None."""
    if os.geteuid() != 0:
        return "needs root: a systemd in namespaces of its own"
    try:
        with _branch("probe") as branch:
            _unshare(branch, ["mount", "-t", "cgroup2", "cgroup2", "/mnt"]).communicate(timeout=30)
    except OSError as error:
        return f"this machine gives no control group or namespace: {error}"
    return None


@contextlib.contextmanager
def _branch(name: str) -> Iterator[Path]:
    """A control group below our own, removed with all in it."""
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    unified = [fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"]
    if not unified:
        raise OSError("no cgroup2 is mounted")
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    own = next(line.removeprefix("0::") for line in groups if line.startswith("0::"))
    beside = Path(unified[0] + own)
    for left in beside.glob("wavry-*-*"):  # of tests that were killed
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            _remove(left)
    path = beside / f"wavry-{name}-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):  # busy until the kernel has reaped the last process
            for group in sorted(path.rglob("*"), reverse=True):
                if group.is_dir():
                    group.rmdir()
            path.rmdir()
            return
        time.sleep(0.05)
    raise AssertionError(f"processes are left in {path}")


def _unshare(branch: Path, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    prctl = ctypes.CDLL(None).prctl

    def enter() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        (branch / "cgroup.procs").write_text("0")

    made = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--cgroup"]
    made += ["--ipc", "--uts", *command]
    return subprocess.Popen(made, preexec_fn=enter, stdin=subprocess.DEVNULL, **options)


class Machine:
    """A booted machine.

    Args:
        directory: where its console is logged.

    Attributes:
        network: its network namespace.
        console: what systemd and the services said, when it is asked for.
    """

    def __init__(self, directory: Path) -> None:
        self.network = Namespace()
        self._log = directory / "console.log"
        self._stack = contextlib.ExitStack()
        self._stack.callback(self.network.close)
        self._init = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _boot(self) -> None:
        branch = self._stack.enter_context(_branch("machine"))
        log = self._stack.enter_context(self._log.open("wb"))
        environment = clean_environment(
            BASE=sys.base_prefix,
            PACKAGES=sysconfig.get_path("purelib"),
            PYTHON=_PYTHON,
            REPOSITORY=str(REPOSITORY),
            SYSTEMD=str(SYSTEMD),
            TARGETS=" ".join(_TARGETS),
        )
        for name in ("NOTIFY_SOCKET", "INVOCATION_ID", "LISTEN_FDS", "LISTEN_PID"):
            environment.pop(name, None)
        with self.network.entered():
            process = _unshare(branch, ["sh", "-c", _BOOT], stdout=log, stderr=log, env=environment)
        self._stack.callback(self._end, process)
        deadline = time.monotonic() + 30
        while not self._is_up(process):
            if time.monotonic() > deadline or process.poll() is not None:
                raise AssertionError(
                    f"systemd does not come up ({process.poll()}):\n{self.console()}"
                )
            time.sleep(0.05)

    def _is_up(self, process: subprocess.Popen[bytes]) -> bool:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if not children:
            return False
        self._init = int(children[0])
        if not Path(f"/proc/{self._init}/root/run/systemd/private").exists():
            return False
        return self.run("systemctl", "is-active", "multi-user.target", check=False) == "active\n"

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init or process.pid, signal.SIGKILL)
        process.wait(30)

    # -- Commands --------------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        """Command line that runs `words` on the machine, from a shell there."""
        enter = ["nsenter", "-t", str(self._init), "-m", "-p", "-n", "-i", "-u", "-C"]
        # It runs below nsenter and must end with it.
        enter += ["setpriv", "--pdeathsig=TERM"]
        return [*enter, "env", "--chdir=/opt/wavry/tree", *words]

    def environment(self, **more: str) -> dict[str, str]:
        """Environment of a command."""
        path = "/opt/wavry/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "HOME": "/run", "LC_ALL": "C.UTF-8", **more}

    def run(self, *words: str, check: bool = True, **environment: str) -> str:
        """Run a command on the machine; what it says on both channels."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Begin a command on the machine; its output is a pipe."""
        return subprocess.Popen(
            self.command(*words),
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def path(self, inside: str) -> Path:
        """A path of the machine, seen from outside."""
        return Path(f"/proc/{self._init}/root{inside}")

    def show(self, unit: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.run("systemctl", "show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def get(self, url: str) -> Any:
        """The JSON that a URL of the machine answers with, or None."""
        with contextlib.suppress(ValueError):
            return json.loads(self.text(url))
        return None

    def text(self, url: str) -> str:
        """What a URL of the machine answers with, or the failure."""
        return self.run("/opt/wavry/bin/python", "-c", _GET, url, check=False)

    def log(self, unit: str) -> str:
        """What a service said."""
        return self.path(f"/run/log/{Path(unit).stem}.log").read_text(errors="replace")

    def console(self) -> str:
        """What systemd said."""
        return self._log.read_text(errors="replace")
