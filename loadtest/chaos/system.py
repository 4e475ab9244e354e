"""The system that a run spoils: that of `wavryctl dev up`, started so that faults can reach it.

Each service is a process group of its own with a log that can be spoilt and a wall clock that can
be stepped.  Relays run as a user of their own, because the kernel never limits the processes of
root; they keep root's way past file permissions, so that it does not matter where the program lies.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from loadtest.processes import descendants, is_alive
from wavry_cp.admin.dev.system import DevSystem
from wavry_cp.admin.endpoints import DevRelay
from wavry_peer.protocol.http.ops import RelayHealth

from .log_sinks import DiskSink, PipeSink, SinkError
from .stepped_clock import SteppedClock

__all__ = ["ChaosSystem", "ServiceUnderTest", "SystemDiedError"]

RELAY_UID: Final = 64999
"""Nobody's: below the range of systemd's dynamic users, above that of people."""
_HEALTH_TIMEOUT_S: Final = 2.0
_RESTART_S: Final = 30.0
_STOP_S: Final = 15.0
_CAPABILITY: Final = "+dac_override"


class SystemDiedError(Exception):
    """A service that was started again did not come up."""


@dataclass(slots=True)
class ServiceUnderTest:
    """One service.

    Attributes:
        name: ``master``, ``gateway``, ``relay-0`` …
        ready_file: where it says its pid and addresses; an upgraded relay writes it again.
        sink: of its log.
        clock: its wall clock.
        command: that started it.
        environment: that it was started with.
        group: process group, of all that it ever started.
        own_user: it runs as `RELAY_UID`.
    """

    name: str
    ready_file: Path
    sink: PipeSink | DiskSink
    clock: SteppedClock
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    group: int = 0
    own_user: bool = False

    @property
    def is_relay(self) -> bool:
        """Whether it is a relay."""
        return self.name.startswith("relay")

    def facts(self) -> dict[str, Any]:
        """Return what it said when it was ready; empty while a new one starts."""
        try:
            facts: dict[str, Any] = msgspec.json.decode(self.ready_file.read_bytes())
        except (OSError, msgspec.DecodeError):
            return {}
        return facts

    @property
    def pid(self) -> int:
        """The process that owns it now: of a relay, the supervisor; 0 for none."""
        return int(self.facts().get("pid", 0))

    @property
    def url(self) -> str:
        """Where it says how it is."""
        facts = self.facts()
        return str(facts.get("ops_url") or facts.get("url") or "")

    @property
    def is_alive(self) -> bool:
        """Whether its process exists."""
        return is_alive(self.pid)

    def worker_pids(self) -> list[int]:
        """Return the processes that a relay has started."""
        return sorted(descendants(self.pid))

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, number)

    def descriptors(self) -> int:
        """Return how many descriptors its process has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @contextlib.contextmanager
    def limited(self, what: int, soft: int) -> Iterator[None]:
        """Have a lower soft limit (``resource.RLIMIT_…``) for the length of a block."""
        pid = self.pid
        before, _ = resource.prlimit(os.getpid(), what)
        self._set_limit(pid, what, soft)
        try:
            yield
        finally:
            if is_alive(pid):
                self._set_limit(pid, what, before)

    def _set_limit(self, pid: int, what: int, soft: int) -> None:
        """Set it as the user that the process belongs to: root in a container may not."""
        option = {resource.RLIMIT_NOFILE: "nofile", resource.RLIMIT_NPROC: "nproc"}[what]
        text = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        command = ["prlimit", "--pid", str(pid), f"--{option}={text}:"]
        subprocess.run(_as_own_user(command) if self.own_user else command, check=True)  # noqa: S603 - our own command

    async def is_well(self) -> bool:
        """Whether it says that it is, with all its workers."""
        timeout = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as http,
                http.get(f"{self.url}/health") as answer,
            ):
                body = await answer.read()
                if answer.status != 200 or not self.is_relay:
                    return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        workers = msgspec.json.decode(body, type=RelayHealth).workers
        return workers.running == workers.wanted


class ChaosSystem(DevSystem):
    """Gateway, master and relays, each a `ServiceUnderTest`.

    Args:
        directory: of its own; must not exist.
        relays: how many.
        workers: of each.
        settings: for every service.

    Attributes:
        services: by name, in the order of their start.
        no_disk: why there is no disk to fill, or None.
        no_user: why the processes of a relay cannot be limited, or None.
    """

    def __init__(
        self, directory: Path, *, relays: int, workers: int, settings: Mapping[str, str]
    ) -> None:
        super().__init__(directory, relays, workers, settings)
        self.services: dict[str, ServiceUnderTest] = {}
        self.no_disk: str | None = None
        self.no_user: str | None = None
        if os.geteuid() == 0 and shutil.which("setpriv") is None:
            self.no_user = "setpriv (util-linux) is not there to give a relay a user of its own"

    @property
    def relays_by_name(self) -> dict[str, DevRelay]:
        """Relays as `dev.json` says them; they keep ids and addresses when they start again."""
        known = self.description.relays if self.description is not None else ()
        return {f"relay-{index}": relay for index, relay in enumerate(known)}

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        """Run it for the length of a block; nothing of it is left afterwards."""
        try:
            await self.start()
            yield
        finally:
            await self._end()

    async def launch(
        self, log: Path, command: Sequence[str], environment: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        """Start the process of a service and remember how."""
        name = log.stem
        log.touch()
        sink = self._sink(name, log)
        clock = SteppedClock(self.directory / f"{name}.clock")
        service = ServiceUnderTest(name, self.directory / "run" / f"{name}.json", sink, clock)
        self.services[name] = service
        if service.is_relay and os.geteuid() == 0 and self.no_user is None:
            service.own_user, command = True, _as_own_user(command)
        service.command, service.environment = tuple(command), {**environment, **clock.environment}
        return await self._exec(service)

    async def start_again(self, service: ServiceUnderTest) -> None:
        """Start a service that has died, at the addresses that it had.

        Raises:
            SystemDiedError: it did not come up.
        """
        facts = service.facts()
        service.signal_group(signal.SIGKILL)
        service.ready_file.unlink(missing_ok=True)
        listen = {"WAVRY_RELAY_LISTEN": facts["udp"][0]} if service.is_relay else {}
        url = urlsplit(facts.get("ops_url") or facts["url"])
        role = "RELAY_OPS" if service.is_relay else service.name.upper()
        listen[f"WAVRY_{role}_LISTEN"] = f"{url.hostname}:{url.port}"
        service.environment = dict(service.environment) | listen
        await self._exec(service)
        deadline = time.monotonic() + _RESTART_S
        while not service.facts():
            if time.monotonic() > deadline:
                raise SystemDiedError(f"{service.name} did not start again in {_RESTART_S:g} s")
            await asyncio.sleep(0.05)

    def trim_logs(self) -> None:
        """Keep the disks of the logs from filling by themselves."""
        for service in self.services.values():
            if isinstance(service.sink, DiskSink):
                service.sink.trim()

    def _sink(self, name: str, log: Path) -> PipeSink | DiskSink:
        """Give every other service a disk, where there can be one, and a pipe to the others."""
        if len(self.services) % 2 == 0 and self.no_disk is None:
            try:
                return DiskSink(self.directory / f"{name}.disk", log)
            except SinkError as error:
                self.no_disk = str(error)
        return PipeSink(self.directory / f"{name}.pipe", log)

    def _lives(self) -> bool:
        return any(service.is_alive for service in self.services.values())

    async def _exec(self, service: ServiceUnderTest) -> asyncio.subprocess.Process:
        fd = service.sink.open_writer()
        try:
            process = await asyncio.create_subprocess_exec(
                *service.command,
                env=service.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                start_new_session=True,
            )
        finally:
            os.close(fd)
        service.group = process.pid
        return process

    async def _end(self) -> None:
        for service in reversed(self.services.values()):
            service.signal_group(signal.SIGCONT)
            with contextlib.suppress(ProcessLookupError):
                os.kill(service.pid or service.group, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while time.monotonic() < deadline and self._lives():  # noqa: ASYNC110 - others
            await asyncio.sleep(0.05)
        for service in self.services.values():
            service.signal_group(signal.SIGKILL)
        await self.stop()
        for service in self.services.values():
            service.sink.close()
            service.clock.close()


def _as_own_user(command: Sequence[str]) -> tuple[str, ...]:
    return (
        "setpriv", f"--reuid={RELAY_UID}", f"--regid={RELAY_UID}", "--clear-groups",
        f"--inh-caps={_CAPABILITY}", f"--ambient-caps={_CAPABILITY}", *command,
    )  # fmt: skip
