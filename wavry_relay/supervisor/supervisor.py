"""The supervisor: owns the sockets, the shared memory and the workers, and never touches a packet.

A relay starts in one of two ways.  `start_fresh` makes everything, in this order, so that every
refusal comes before anything is disturbed: state directory and its lock, identity, sockets, shared
memory, control block, keys, workers, ops, master.  `start_from` is the other half of a hot upgrade
(see `wavry_relay.upgrade`): it receives sockets, shared memory and lock from a predecessor instead.
Stop is the reverse.  What a killed supervisor leaves behind (its segment) is removed by the next
start.

Only the owner of a relay removes the segment's name and says farewell to peers and master: the old
supervisor until the commit, the new one from then on.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from wavry_peer.protocol import base64url
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.keyset import relay_id
from wavry_peer.service import logs
from wavry_peer.service.clock import Clock
from wavry_peer.service.settings import SettingsError
from wavry_peer.service.version import software_version
from wavry_relay.config import RelayConfig
from wavry_relay.engine import choose_engine
from wavry_relay.identity import StateDirectory
from wavry_relay.master.connection import MasterConnection
from wavry_relay.ops.control_socket import CONTROL_SOCKET_NAME, ControlSocket
from wavry_relay.ops.http_server import OpsServer, open_ops_socket
from wavry_relay.ops.samples import RelaySamples
from wavry_relay.shm.control import ControlBlock, Drain
from wavry_relay.shm.layout import Geometry
from wavry_relay.shm.segment import Segment, segment_names
from wavry_relay.shm.tables import SegmentTables
from wavry_relay.udp.listening import check_guards, open_listening
from wavry_relay.udp.sockets import ReuseportGroup
from wavry_relay.upgrade.descriptors import RelayDescriptors
from wavry_relay.upgrade.handover import Handover
from wavry_relay.upgrade.messages import UpgradeHello, layout_name
from wavry_relay.upgrade.successor import Predecessor

from .announcement import announce, warn_of, warn_of_kept_settings
from .assembly import Assembler, RelayParts
from .host import DrainReport, Host, any_worker_serves
from .load_watch import LoadWatch, ShedAt, watch_workers
from .pool import WorkerPool
from .reload import Reloader
from .shutdown_drain import drain_before_the_end

__all__ = ["Supervisor"]

STOP_GRACE_S: Final = 2.0
"""Workers end within one round (50 ms); what takes longer hangs."""

_log = structlog.get_logger(__name__)


class Supervisor:
    """One relay.

    Args:
        config: settings.
        ready_file: written when the relay serves.
        clock: time.
        host: service manager, passed sockets and source of the settings.
        take_over: start by a hot upgrade of the relay that runs in this state directory.

    Raises:
        LocalError: the settings or the state directory cannot be used.
    """

    def __init__(
        self,
        config: RelayConfig,
        *,
        ready_file: Path | None = None,
        clock: Clock | None = None,
        host: Host | None = None,
        take_over: bool = False,
    ) -> None:
        self._config = config
        self._ready_file = ready_file
        self._clock = clock or Clock()
        self._host = host or Host()
        self._take_over = take_over
        self._owner = not take_over
        root = config.trusted_root()
        self._engine = choose_engine(config.engine)
        state = StateDirectory(config.state_dir.expanduser())
        self._assembler = Assembler(config, state, root, software_version(), self._clock)
        self._hangup = asyncio.Event()
        self._handover: Handover | None = None
        self._successor_pid = 0
        self._stop_signals: asyncio.Queue[signal.Signals | None] = asyncio.Queue()
        """None: a successor has taken over."""
        self._cleanup = contextlib.AsyncExitStack()
        self._stopping = False

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            LocalError: the relay cannot start; the message says what to do.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_signals.put_nowait, number)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        loop.add_signal_handler(signal.SIGUSR2, self._upgrade_signalled)
        async with contextlib.AsyncExitStack() as feeding, self._cleanup:
            self._cleanup.callback(self._assembler.state.unlock)
            if self._take_over:
                parts = await self.start_from(await self._meet())
            else:
                parts = await self.start_fresh()
            reloader = self._follow_host(parts)
            # The clean-up takes its time too: the watchdog is fed until all of it is done.
            feeding.callback(asyncio.create_task(self._feed_watchdog(parts, reloader)).cancel)
            received = await self._stop_signals.get()
            self._stopping = True
            if received is not None:
                await self._drain(parts, reloader, received)
        if not self._successor_pid:
            _log.info("stopped")

    # -- Start -----------------------------------------------------------------------------------

    async def start_fresh(self) -> RelayParts:
        """Make everything that a relay needs, and serve.

        Raises:
            LocalError: the relay cannot start.
        """
        config, activation = self._config, self._host.activation
        self._assembler.state.lock()
        identity = self._identify()
        workers = activation.worker_count(config.workers, config.worker_count)
        groups = open_listening(config, activation, workers, self._cleanup)
        segment = self._make_segment(identity, workers)
        control = ControlBlock(segment)  # Before the tables: their tags take its keys.
        control.initialise(relay_id(identity.public_key), config.limits, self._engine)
        tables = SegmentTables(segment)
        parts = self._assemble(identity, tables, groups)
        parts.relay.master.keyring.load_cached()
        parts.relay.master.revocations.load()
        await parts.pool.start()
        ops = await self._open_ops(parts, activation.ops or open_ops_socket(*config.ops_address))
        self._begin_master(parts)
        announce(parts, ops.url, self._ready_file)
        return parts

    async def start_from(self, predecessor: Predecessor) -> RelayParts:
        """Take over from a relay that runs, and serve.

        Raises:
            LocalError: the relay cannot be taken over; it goes on.
        """
        config, received = self._config, predecessor.descriptors
        identity = self._assembler.state.identity()
        self._cleanup.callback(self._forget_segment, received.segment)
        warn_of_kept_settings(config, received.segment.geometry)
        tables = SegmentTables(received.segment)
        # Boot keys and cookies stay: peers hold them.
        tables.control.limits = config.limits
        parts = self._assemble(identity, tables, received.groups)
        await self._move_in(predecessor, parts.pool)
        parts.relay.master.keyring.go_on()
        # The old relay has let go: the table is ours now.
        parts.relay.master.revocations.load(adopt=True)
        parts.relay.go_on_from(predecessor.counts)
        ops = await self._open_ops(parts, received.ops_socket)
        announce(parts, ops.url, self._ready_file)
        await predecessor.confirm(parts.pool)
        self._owner = True
        _log.info("taken_over", cause="upgrade", from_version=predecessor.facts.version)
        self._begin_master(parts)
        return parts

    def _identify(self) -> SigningKey:
        """Read the relay's key and begin to log under its id."""
        identity = self._assembler.state.identity()
        structlog.contextvars.bind_contextvars(relay_id=relay_id(identity.public_key))
        ops_address = self._host.ops_address(self._config)
        warn_of(ops_address, self._assembler.root, self._engine)
        return identity

    def _make_segment(self, identity: SigningKey, workers: int) -> Segment:
        names = segment_names(relay_id(identity.public_key), identity.seed)
        geometry = Geometry(workers, self._config.max_sessions)
        segment = Segment.create(names, geometry, now_ns=self._clock.now().mono_ns)
        self._cleanup.callback(self._forget_segment, segment)
        return segment

    def _forget_segment(self, segment: Segment) -> None:
        if self._owner:
            segment.unlink()
        segment.close()

    def _assemble(
        self, identity: SigningKey, tables: SegmentTables, groups: list[ReuseportGroup]
    ) -> RelayParts:
        tables.control.log_level = logs.level_number(self._config.log_level)
        parts = self._assembler.assemble(identity, tables, groups)
        self._cleanup.push_async_callback(self._stop_workers, parts.pool)
        return parts

    async def _stop_workers(self, pool: WorkerPool) -> None:
        await pool.stop(grace_s=STOP_GRACE_S, quiet=not self._owner)

    async def _open_ops(self, parts: RelayParts, listening: socket.socket) -> OpsServer:
        ops = OpsServer(parts.figures, RelaySamples(parts.relay, parts.figures))
        self._cleanup.push_async_callback(ops.stop)
        await ops.serve(listening)
        state = self._assembler.state
        control_socket = ControlSocket(parts.figures, parts.orders, state.path)
        self._cleanup.push_async_callback(self._stop_control_socket, control_socket)
        await control_socket.start()
        relay = parts.relay
        self._handover = control_socket.handover = Handover(
            relay,
            self._hello(relay.relay_id),
            RelayDescriptors(relay.tables.segment, state.lock_fd, listening, relay.groups),
            parts.pool,
            _Owner(relay.master, control_socket, self._handed_over),
            self._host.notifier.environment,
        )
        self._control_socket = control_socket
        return ops

    async def _stop_control_socket(self, control_socket: ControlSocket) -> None:
        await control_socket.stop(keep_path=not self._owner)

    def _begin_master(self, parts: RelayParts) -> None:
        self._cleanup.push_async_callback(self._end_master, parts.relay.master)
        parts.relay.master.begin()

    async def _end_master(self, master: MasterConnection) -> None:
        await master.end()
        if self._owner:
            await master.farewell()

    def _follow_host(self, parts: RelayParts) -> Reloader:
        notifier, tables = self._host.notifier, parts.relay.tables
        reloader = Reloader(self._config, self._host, parts, self._clock)
        self._control_socket.reload = reloader.reload
        notifier.ready(parts.figures.summary)
        watch = LoadWatch(tables, lambda: _shed_at(reloader.config))
        for work in (
            reloader.follow(self._hangup),
            watch.run(self._clock),
            watch_workers(parts.pool, parts.orders.report_due),
        ):
            self._cleanup.callback(asyncio.create_task(work).cancel)
        return reloader

    async def _feed_watchdog(self, parts: RelayParts, reloader: Reloader) -> None:
        """Feed the service manager's watchdog while a worker serves, and in the stop without one.

        It runs in the supervisor's loop, so a supervisor that hangs starves it as well.
        """
        segment = parts.relay.tables.segment

        def is_well() -> bool:
            now_ns, hang_timeout_s = self._clock.now().mono_ns, reloader.config.hang_timeout_s
            return self._stopping or any_worker_serves(segment, now_ns, hang_timeout_s)

        await self._host.notifier.keep_watchdog(is_well)

    # -- Hot upgrade -----------------------------------------------------------------------------

    def _upgrade_signalled(self) -> None:
        if self._handover is None:
            _log.warning("upgrade_refused", cause="still starting", next_step="signal again")
        else:
            self._handover.begin()

    def _hello(self, own_id: str) -> UpgradeHello:
        root = self._assembler.root
        return UpgradeHello(
            version=self._assembler.version,
            layout=layout_name(),
            engine=self._engine.name.lower(),
            relay_id=own_id,
            listen=self._config.listen,
            ops_listen=self._config.ops_listen,
            root_key=base64url.encode(root) if root else "",
            pid=os.getpid(),
        )

    async def _meet(self) -> Predecessor:
        """Connect to the relay that is to be taken over, and receive what it hands over."""
        state, identity = self._assembler.state, self._identify()
        hello = self._hello(relay_id(identity.public_key))
        old = await Predecessor.meet(state.path / CONTROL_SOCKET_NAME, hello)
        groups = old.descriptors.groups
        for group in groups:
            self._cleanup.callback(group.close)
        state.adopt_lock(old.descriptors.lock_fd)
        try:
            check_guards(self._config, [(group.host, group.port) for group in groups])
        except SettingsError as error:
            await old.give_up(str(error))
            raise
        return old

    async def _move_in(self, old: Predecessor, pool: WorkerPool) -> None:
        """Replace the old relay's workers by the pool's; after the commit this relay serves."""
        try:
            await old.move_workers(pool)
            await old.commit(pool)
        except LocalError as error:
            await pool.stop(grace_s=STOP_GRACE_S, quiet=True)
            await old.give_up(str(error))
            raise

    def _handed_over(self, successor_pid: int) -> None:
        """Give the relay up after the commit: from here on this process only ends."""
        self._owner = False
        self._host.notifier.main_pid(successor_pid)
        self._successor_pid = successor_pid
        self._stop_signals.put_nowait(None)

    # -- Stop ------------------------------------------------------------------------------------

    async def _drain(self, parts: RelayParts, reloader: Reloader, received: signal.Signals) -> None:
        """Wait for the sessions to move, if the settings say so."""
        _log.info("stopping", cause=received.name)
        parts.relay.stopping = True
        if self._handover is not None:
            await self._handover.abort()
        if self._successor_pid:  # Both came at once: whoever stops the relay means that one.
            os.kill(self._successor_pid, received)
            return
        self._host.notifier.stopping(parts.figures.summary)
        if reloader.config.drain_timeout_s > 0:
            parts.orders.set_drain(Drain.SHUTDOWN, drain=True)
            await drain_before_the_end(
                parts.figures,
                DrainReport(self._host.notifier),
                self._clock,
                self._stop_signals,
                timeout_s=lambda: reloader.config.drain_timeout_s,
            )


def _shed_at(config: RelayConfig) -> ShedAt:
    return ShedAt(config.shed_at_pct, config.max_bitrate_kbps)


@dataclass(frozen=True, slots=True)
class _Owner:
    """Lets go of a relay for a hand-over; a `RelayOwner`."""

    master: MasterConnection
    control_socket: ControlSocket
    handed_over: Callable[[int], None]

    async def let_go(self) -> None:
        await self.master.end()

    async def hold_on(self) -> None:
        await self.control_socket.start()
        self.master.begin()

    def leave(self, successor_pid: int) -> None:
        self.handed_over(successor_pid)
