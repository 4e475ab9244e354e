"""A whole system on loopback: real processes of every role, one directory, one life.

Every service listens on a free port and says where in a ready file.  The services are bound
to this process: they end when it ends, however it ends.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from rich.console import Console

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.endpoints import DEV_FILE, DevRelay, DevSystemFile
from wavry_cp.admin.output import EXIT_USAGE, CommandError, print_json
from wavry_cp.gateway.config import GatewayConfig
from wavry_cp.master.config import MasterConfig
from wavry_cp.master.keys.files import DOCUMENT_FILE, init_keys, load_keys
from wavry_peer.protocol.http.api import RelayList
from wavry_peer.protocol.http.ops import RelayHealth
from wavry_peer.protocol.relay_terms import RelayState
from wavry_peer.service.settings import SettingsError, describe, read_settings_file

from .enrolment import enrol_relays, token_path, write_private

__all__ = ["DevSystem", "run_dev_system", "say_slow_engine"]

START_TIMEOUT_S: Final = 30.0
"""Imports and migrations take about a second on an idle core; a busy CI machine takes longer."""
STOP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.05
LOOPBACK_KBPS: Final = "1000000"
"""Nobody else pays for loopback: what a lease allows should not be what a person measures."""
DRAIN_TIMEOUT_S: Final = "1"
"""Enough for peers to move to another relay; Ctrl-C ends all of it."""
LOG_TAIL_LINES: Final = 5
_ENGINE_SETTING: Final = "WAVRY_RELAY_ENGINE"
_BRING_NATIVE: Final = (
    "install gcc, libc6-dev and python3-dev, then Wavry again with WAVRY_BUILD_NATIVE=require "
    "(in the repository: `make demo` does all of it, as root on Debian)"
)
_PR_SET_PDEATHSIG: Final = 1


def _end_with_parent() -> None:
    """Ask the kernel, between fork and exec, for SIGTERM when the parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class _Service:
    name: str
    process: asyncio.subprocess.Process
    log: Path
    ready: dict[str, Any]


@dataclass(slots=True)
class DevSystem:
    """Gateway, master and relays as real processes.

    Attributes:
        directory: databases, keys, tokens, logs, ready files and ``dev.json``.
        settings: environment variables for every service, beside those that it gets anyway.
        description: what ``dev.json`` holds; None before `start`.
    """

    directory: Path
    relays: int = 1
    workers: int = 2
    settings: Mapping[str, str] = field(default_factory=dict)
    description: DevSystemFile | None = None
    _services: list[_Service] = field(default_factory=list)
    _lock_fd: int | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls,
        directory: Path,
        *,
        relays: int,
        workers: int,
        settings: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Self]:
        """Start a system for the length of a block; it has ended when the block has.

        Raises:
            CommandError: another system uses the directory, or a service does not start.
        """
        system = cls(directory, relays, workers, settings or {})
        try:
            await system.start()
            yield system
        finally:
            await system.stop()

    async def start(self) -> None:
        """Start every service and wait until the relays are registered.

        Raises:
            CommandError: as for `running`.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        keys_dir = self.directory / "keys"
        if not (keys_dir / DOCUMENT_FILE).exists():
            init_keys(keys_dir, now_s=int(time.time()), random_bytes=secrets.token_bytes)
        root_public_key = load_keys(keys_dir).keyset.root_public_key
        service_token = self._token_file("service.token")
        admin_token = self._token_file("admin.token")

        master = await self._spawn(
            "master",
            ["wavry_cp.master", "run"],
            {
                "WAVRY_MASTER_LISTEN": "127.0.0.1:0",
                "WAVRY_MASTER_DATA_DIR": str(self.directory / "master"),
                "WAVRY_MASTER_KEYS_DIR": str(keys_dir),
                "WAVRY_MASTER_PRIVATE_ENDPOINTS": "1",
                "WAVRY_MASTER_SOFT_LIMIT_KBPS": LOOPBACK_KBPS,
                "WAVRY_MASTER_HARD_LIMIT_KBPS": LOOPBACK_KBPS,
                "WAVRY_MASTER_SERVICE_TOKEN_FILE": str(service_token),
                "WAVRY_MASTER_ADMIN_TOKEN_FILE": str(admin_token),
            },
        )
        master_url = str(master.ready["url"])
        names = tuple(f"relay-{index}" for index in range(self.relays))
        await enrol_relays(self.directory, master_url, admin_token.read_text().strip(), names)
        gateway, *relays = await asyncio.gather(
            self._spawn(
                "gateway",
                ["wavry_cp.gateway", "run"],
                {
                    "WAVRY_GATEWAY_LISTEN": "127.0.0.1:0",
                    "WAVRY_GATEWAY_DATA_DIR": str(self.directory / "gateway"),
                    "WAVRY_GATEWAY_MASTER_URL": master_url,
                    "WAVRY_GATEWAY_SERVICE_TOKEN_FILE": str(service_token),
                    "WAVRY_GATEWAY_ADMIN_TOKEN_FILE": str(admin_token),
                },
            ),
            *(
                self._spawn_relay(index, master_url, root_public_key)
                for index in range(self.relays)
            ),
        )
        self.description = DevSystemFile(
            gateway_url=str(gateway.ready["url"]),
            master_url=master_url,
            service_token_file=str(service_token.resolve()),
            admin_token_file=str(admin_token.resolve()),
            relays=tuple(
                DevRelay(
                    relay_id=relay.ready["relay_id"],
                    udp=relay.ready["udp"][0],
                    ops_url=relay.ready["ops_url"],
                    pid=relay.ready["pid"],
                )
                for relay in relays
            ),
        )
        await self._wait_for_registration(admin_token.read_text().strip())
        self._write_dev_file(self.description)

    async def wait_for_exit(self) -> str:
        """Wait until a service ends by itself; gives a text that names it."""
        waits = [asyncio.create_task(service.process.wait()) for service in self._services]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        ended = [service for service in self._services if service.process.returncode is not None]
        return "; ".join(_obituary(service) for service in ended)

    async def slow_engine(self) -> str | None:
        """Say that the relays run the pure engine and what would bring the native one, or None."""
        if self.description is None or not self.description.relays:
            return None
        ops_url = self.description.relays[0].ops_url
        health = await ask_json("relay", ops_url, "/health", RelayHealth)
        if not health.engine.pure_python:
            return None
        asked_for = self.settings.get(_ENGINE_SETTING) == "reference"
        remedy = f"take {_ENGINE_SETTING}=reference away" if asked_for else _BRING_NATIVE
        return (
            "The native engine is NOT in use: relays forward with the pure one, at about a tenth "
            f"of the speed. To bring it: {remedy}."
        )

    async def stop(self) -> None:
        """End every service, relays first: SIGTERM, then SIGKILL at the deadline."""
        if self._lock_fd is None:
            return  # The directory is another system's: touch nothing.
        (self.directory / DEV_FILE).unlink(missing_ok=True)
        for service in reversed(self._services):
            await _stop_process(service.process)
        self._services.clear()
        os.close(self._lock_fd)
        self._lock_fd = None

    async def _spawn_relay(self, index: int, master_url: str, root_public_key: str) -> _Service:
        return await self._spawn(
            f"relay-{index}",
            ["wavry_relay", "run"],
            {
                "WAVRY_RELAY_LISTEN": "127.0.0.1:0",
                "WAVRY_RELAY_OPS_LISTEN": "127.0.0.1:0",
                "WAVRY_RELAY_WORKERS": str(self.workers),
                "WAVRY_RELAY_MASTER_URL": master_url,
                "WAVRY_RELAY_ROOT_KEY": root_public_key,
                "WAVRY_RELAY_ENROLMENT_TOKEN_FILE": str(
                    token_path(self.directory, f"relay-{index}")
                ),
                "WAVRY_RELAY_STATE_DIR": str(self.directory / f"relay-{index}"),
                "WAVRY_RELAY_DRAIN_TIMEOUT_S": DRAIN_TIMEOUT_S,
            },
        )

    async def launch(
        self, log: Path, command: Sequence[str], environment: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        """Start the process of a service, in a process group of its own; output goes to `log`."""
        with log.open("ab") as log_file:
            return await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                preexec_fn=_end_with_parent,
                start_new_session=True,  # Ctrl-C reaches only us; we end the services in order.
            )

    def _take_lock(self) -> None:
        self._lock_fd = os.open(
            self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            self._lock_fd = None
            raise CommandError(
                f"another system is running in {self.directory}: end it, or name another --data",
                code="already_running",
            ) from None

    def _token_file(self, name: str) -> Path:
        path = self.directory / name
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32))
        return path

    async def _spawn(self, name: str, module: list[str], settings: dict[str, str]) -> _Service:
        run_dir = self.directory / "run"
        logs = self.directory / "logs"
        for directory in (run_dir, logs):
            directory.mkdir(mode=0o700, exist_ok=True)
        ready_file = run_dir / f"{name}.json"
        ready_file.unlink(missing_ok=True)
        log = logs / f"{name}.log"
        # Settings of the caller's shell must not leak into a self-contained system.
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith("WAVRY_")
        }
        process = await self.launch(
            log,
            (sys.executable, "-m", *module, "--ready-file", str(ready_file)),
            inherited | settings | dict(self.settings),
        )
        service = _Service(name, process, log, {})
        self._services.append(service)
        await _until(lambda: ready_file.exists() or process.returncode is not None, service)
        if process.returncode is not None:
            raise CommandError(_obituary(service), code="service_did_not_start")
        service.ready = msgspec.json.decode(ready_file.read_bytes())
        return service

    async def _wait_for_registration(self, admin_token: str) -> None:
        description = self.description
        if description is None:
            return
        wanted = {relay.relay_id for relay in description.relays}
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            answer = await ask_json(
                "master", description.master_url, "/v1/relays", RelayList, token=admin_token
            )
            # A relay that was drained before stays so: it is up all the same.
            up = {
                info.relay_id
                for info in answer.relays
                if info.state in (RelayState.ACTIVE, RelayState.DRAINING)
            }
            if wanted <= up:
                return
            if time.monotonic() > deadline:
                raise CommandError(
                    f"the relays did not register with the master in {START_TIMEOUT_S:.0f} s; see "
                    f"the logs in {self.directory / 'logs'}",
                    code="service_did_not_start",
                )
            await asyncio.sleep(POLL_S)

    def _write_dev_file(self, description: DevSystemFile) -> None:
        path = self.directory / DEV_FILE
        partial = path.with_suffix(".tmp")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(description), indent=2) + b"\n")
        partial.replace(path)


async def _until(condition: Callable[[], bool], service: _Service) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise CommandError(
                f"{service.name} is not ready after {START_TIMEOUT_S:.0f} s; see {service.log}",
                code="service_did_not_start",
            )
        await asyncio.sleep(POLL_S)


def _obituary(service: _Service) -> str:
    lines = service.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    tail = "\n".join(lines)
    status = service.process.returncode
    return f"{service.name} ended with status {status}; end of {service.log}:\n{tail}"


async def _stop_process(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


_KNOWN_SETTINGS: Final = frozenset(
    row.variable for kind in (MasterConfig, GatewayConfig) for row in describe(kind)
)
_RELAY_PREFIX: Final = "WAVRY_RELAY_"
"""The relay knows its own settings; nothing here does."""


async def run_dev_system(
    directory: Path,
    *,
    relays: int,
    workers: int,
    as_json: bool,
    settings_file: Path | None = None,
) -> None:
    """Run ``wavryctl dev up`` until Ctrl-C or SIGTERM.

    Raises:
        CommandError: a service did not start, or ended by itself, or the file does not fit.
    """
    settings: dict[str, str] = {}
    if settings_file is not None:
        try:
            settings = read_settings_file(
                settings_file,
                lambda name: name in _KNOWN_SETTINGS or name.startswith(_RELAY_PREFIX),
            )
        except SettingsError as error:
            raise CommandError(str(error), code="bad_settings", exit_code=EXIT_USAGE) from error
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with DevSystem.running(
        directory, relays=relays, workers=workers, settings=settings
    ) as system:
        _announce(system, as_json=as_json)
        say_slow_engine(await system.slow_engine())
        stopping = asyncio.create_task(stop.wait())
        dying = asyncio.create_task(system.wait_for_exit())
        await asyncio.wait({stopping, dying}, return_when=asyncio.FIRST_COMPLETED)
        died = dying.result() if dying.done() else None
        for task in (stopping, dying):
            task.cancel()
        await asyncio.gather(stopping, dying, return_exceptions=True)
        if died is not None:
            raise CommandError(died, code="service_ended")


def say_slow_engine(remark: str | None) -> None:
    """Print what `DevSystem.slow_engine` says, on standard error."""
    if remark is not None:
        Console(stderr=True).print(
            remark, style="bold yellow", highlight=False, markup=False, soft_wrap=True
        )


def _announce(system: DevSystem, *, as_json: bool) -> None:
    description = system.description
    if description is None:
        return
    if as_json:
        print_json(description)
        sys.stdout.flush()
        return
    lines = [
        f"gateway  {description.gateway_url}",
        f"master   {description.master_url}",
        *(
            f"relay    udp {relay.udp}  ops {relay.ops_url}  {relay.relay_id}"
            for relay in description.relays
        ),
        f"files    {system.directory / DEV_FILE}, logs in {system.directory / 'logs'}",
        "",
        "Try, in a second terminal (a password needs 10 characters or more):",
        f"  export WAVRY_GATEWAY_URL={description.gateway_url} WAVRY_PEER_HOME=/tmp/wavry-bob",
        "  wavry-peer register bob && wavry-peer login bob && wavry-peer host --from alice",
        "and in a third:",
        f"  export WAVRY_GATEWAY_URL={description.gateway_url} WAVRY_PEER_HOME=/tmp/wavry-alice",
        "  wavry-peer register alice && wavry-peer login alice && wavry-peer ping bob",
        f"  wavryctl --dev {system.directory} status",
        "Ctrl-C ends all of it.",
    ]
    Console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
