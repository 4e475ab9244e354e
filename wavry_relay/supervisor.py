"""The supervisor: owns the sockets, the shared memory and the workers, and never touches a packet.

Start, in this order, so that every refusal comes before anything is disturbed: state directory and
its lock, identity, sockets, shared memory, control block, keys, workers, ops, master.  Stop is the
reverse.  What a killed supervisor leaves behind (its segment) is removed by the next start.
"""

import asyncio
import contextlib
import importlib.metadata
import os
import signal
from pathlib import Path
from typing import Final

import msgspec
import structlog

from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.keyset import relay_id

from .clock import Clock, SystemClock
from .config import ListenAddress, RelayConfig
from .engine import choose_engine
from .host import DrainReport, Host, keep_watchdog
from .identity import StateDirectory
from .keyring import KeyRing
from .listening import open_listening
from .master_link import MasterLink, RelayFacts
from .ops import ControlSocket, OpsServer
from .placement import Placement
from .reload import Reloader
from .shm.control import ControlBlock, Drain, EngineKind
from .shm.layout import Geometry
from .shm.segment import Segment, segment_name, unlink
from .sockets import ReuseportGroup
from .status import RelayStatus
from .worker_pool import WorkerPool

__all__ = ["Supervisor", "relay_version"]

STOP_GRACE_S: Final = 2.0
"""Workers end within one round (50 ms); what takes longer hangs."""
_DRAIN_POLL_S: Final = 0.1

_log = structlog.get_logger(__name__)


def relay_version() -> str:
    """Version of the installed distribution."""
    try:
        return importlib.metadata.version("wavry")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


class Supervisor:
    """One relay.

    Args:
        config: settings.
        ready_file: written when the relay serves.
        clock: time.
        host: service manager, passed sockets and source of the settings.
    """

    def __init__(
        self,
        config: RelayConfig,
        *,
        ready_file: Path | None = None,
        clock: Clock | None = None,
        host: Host | None = None,
    ) -> None:
        self._config = config
        self._ready_file = ready_file
        self._clock = clock or SystemClock()
        self._host = host or Host()
        self._hangup = asyncio.Event()
        self._stop_signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._cleanup = contextlib.AsyncExitStack()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            LocalError: the relay cannot start; the message says what to do.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_signals.put_nowait, number)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        async with self._cleanup:
            status = await self._start()
            received = await self._stop_signals.get()
            _log.info("stopping", cause=received.name)
            status.stopping = True
            self._host.notifier.stopping(status.summary)
            status.set_drain(Drain.SHUTDOWN, drain=True)
            await self._drain(status)
        _log.info("stopped")

    async def _start(self) -> RelayStatus:
        config = self._config
        root = config.trusted_root()
        kind = choose_engine(config.engine)
        state = StateDirectory(config.state_dir.expanduser())
        state.lock()
        self._cleanup.callback(state.unlock)
        identity = state.identity()
        own_id = relay_id(identity.public_key)
        structlog.contextvars.bind_contextvars(relay_id=own_id)
        _warn_of(self._host.ops_address(config), root, kind)
        workers = self._host.activation.worker_count(config.workers, config.worker_count)
        groups = open_listening(config, self._host.activation, workers, self._cleanup)
        segment = self._make_segment(own_id, workers)
        control = ControlBlock(segment)
        control.initialise(own_id, config.limits, kind)
        keyring = KeyRing(state, control, root)
        keyring.load_cached()
        placement = Placement.choose(config.busy_poll_us, pin=config.pin_workers)
        pool = WorkerPool(segment, groups, config.hang_timeout_s, self._clock, placement)
        await pool.start()
        self._cleanup.push_async_callback(pool.stop, grace_s=STOP_GRACE_S)
        status = RelayStatus(
            own_id,
            relay_version(),
            config.max_bitrate_kbps,
            segment,
            groups,
            pool,
            keyring,
            self._clock,
        )
        ops = await self._start_ops(status, state)
        if config.master_url is not None:
            facts = self._facts(groups)
            status.link = MasterLink(config.master_url, identity, facts, keyring, status)
            await self._start_link(status.link)
        self._announce(status, ops.url)
        self._follow_host(status)
        return status

    def _follow_host(self, status: RelayStatus) -> None:
        notifier = self._host.notifier
        self._reloader = Reloader(self._config, self._host, status, self._clock)
        status.reload = self._reloader.reload
        notifier.ready(status.summary)
        for task in (
            asyncio.create_task(self._reloader.follow(self._hangup)),
            asyncio.create_task(
                keep_watchdog(
                    notifier,
                    status.segment,
                    self._clock,
                    lambda: self._reloader.config.hang_timeout_s,
                )
            ),
        ):
            self._cleanup.callback(task.cancel)

    def _make_segment(self, own_id: str, workers: int) -> Segment:
        name = segment_name(own_id)
        geometry = Geometry(workers, self._config.max_sessions)
        segment = Segment.create(name, geometry, now_ns=self._clock.now().mono_ns)
        self._cleanup.callback(segment.close)
        self._cleanup.callback(unlink, name)
        return segment

    def _facts(self, groups: list[ReuseportGroup]) -> RelayFacts:
        config = self._config
        return RelayFacts(
            endpoints=config.advertise or tuple(group.endpoint for group in groups),
            region=config.region,
            max_sessions=config.max_sessions,
            max_bitrate_kbps=config.max_bitrate_kbps,
            version=relay_version(),
        )

    async def _start_ops(self, status: RelayStatus, state: StateDirectory) -> OpsServer:
        ops = OpsServer(status)
        self._cleanup.push_async_callback(ops.stop)
        await ops.start(*self._config.ops_address, self._host.activation.ops)
        control = ControlSocket(status, state.path)
        self._cleanup.push_async_callback(control.stop)
        await control.start()
        return ops

    async def _start_link(self, link: MasterLink) -> None:
        task = asyncio.create_task(link.run())

        async def stop() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await link.farewell()

        self._cleanup.push_async_callback(stop)

    def _announce(self, status: RelayStatus, ops_url: str) -> None:
        facts = {
            "relay_id": status.relay_id,
            "udp": [group.endpoint for group in status.groups],
            "ops_url": ops_url,
            "pid": os.getpid(),
            "worker_pids": status.pool.pids(),
        }
        _log.info("serving", engine=status.engine_name, **facts)
        if self._ready_file is not None:
            temporary = self._ready_file.with_name(f".{self._ready_file.name}.new")
            try:
                temporary.write_bytes(msgspec.json.encode(facts))
                temporary.replace(self._ready_file)
            except OSError as error:
                raise LocalError(f"ready file cannot be written: {error.strerror}") from error

    async def _drain(self, status: RelayStatus) -> None:
        """Wait for live sessions to end, as long as the settings say; a second signal ends it."""
        began_ns = self._clock.now().mono_ns
        report = DrainReport(self._host.notifier)
        while sessions := status.session_count:
            now_ns = self._clock.now().mono_ns
            if now_ns - began_ns >= self._reloader.config.drain_timeout_s * 1e9:
                return
            report.tell(sessions, now_ns)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_signals.get(), _DRAIN_POLL_S)
                _log.warning("drain_cut_short", sessions=status.session_count)
                return


def _warn_of(ops: ListenAddress, root: bytes | None, kind: EngineKind) -> None:
    if root is None:
        _log.warning(
            "insecure_dev_mode",
            cause="no root key is pinned: whoever answers for the master can sign leases",
            next_step="set WAVRY_RELAY_ROOT_KEY; never run this on a network",
        )
    if kind is EngineKind.REFERENCE:
        _log.warning(
            "reference_engine",
            cause="packets are handled in pure Python",
            next_step="build the native engine (WAVRY_BUILD_NATIVE=require) for full speed",
        )
    if not ops.is_loopback:
        _log.warning(
            "ops_open",
            cause="/metrics and /health are reachable from other hosts",
            next_step="set WAVRY_RELAY_OPS_LISTEN to a loopback address or firewall the port",
        )
