"""The supervisor: owns the sockets, the shared memory and the workers, and never touches a packet.

Start, in this order, so that every refusal comes before anything is disturbed: state directory and
its lock, identity, sockets, shared memory, control block, keys, workers, ops, master.  Stop is the
reverse.  What a killed supervisor leaves behind (its segment) is removed by the next start.

A hot upgrade (takeover.py) is a start that receives sockets, shared memory and lock instead of
making them.  Only the owner of a relay removes the segment's name and says farewell to peers and
master: the old supervisor until the commit, the new one from then on.
"""

import asyncio
import contextlib
import importlib.metadata
import os
import signal
from pathlib import Path
from typing import Final

import structlog

from wavry_peer.protocol import base64url
from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.keyset import relay_id
from wavry_peer.service import logs
from wavry_peer.service.clock import Clock, SystemClock
from wavry_peer.service.settings import SettingsError
from wavry_relay.config import RelayConfig
from wavry_relay.engine import choose_engine
from wavry_relay.identity import StateDirectory
from wavry_relay.master.event_link import EventLink
from wavry_relay.master.key_ring import KeyRing
from wavry_relay.master.link import MasterLink, RelayDescription
from wavry_relay.master.revocations import RelayRevocations
from wavry_relay.ops.server import CONTROL_SOCKET_NAME, ControlSocket, OpsServer
from wavry_relay.ops.status import RelayStatus
from wavry_relay.shm.control import ControlBlock, Drain, EngineKind
from wavry_relay.shm.layout import Geometry
from wavry_relay.shm.revocations import RevocationTable
from wavry_relay.shm.segment import Segment, segment_name, unlink
from wavry_relay.shm.tags import Tags
from wavry_relay.udp.listening import check_guards, open_listening
from wavry_relay.udp.sockets import ReuseportGroup
from wavry_relay.upgrade.handover import Handover
from wavry_relay.upgrade.messages import UpgradeHello, layout_name
from wavry_relay.upgrade.successor import Predecessor
from wavry_relay.worker.placement import Placement

from .announcement import announce, warn_of
from .host import DrainReport, Host, keep_watchdog
from .load_watch import LoadWatch, ShedAt
from .pool import WorkerPool
from .reload import Reloader
from .shutdown_drain import drain_before_the_end

__all__ = ["Supervisor", "relay_version"]

STOP_GRACE_S: Final = 2.0
"""Workers end within one round (50 ms); what takes longer hangs."""

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
        take_over: start by a hot upgrade of the relay that runs in this state directory.
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
        self._clock = clock or SystemClock()
        self._host = host or Host()
        self._hangup = asyncio.Event()
        self._take_over = take_over
        self._owner = not take_over
        self._link_task: asyncio.Task[None] | None = None
        self._handover: Handover | None = None
        self._successor_pid = 0
        self._stop_signals: asyncio.Queue[signal.Signals | None] = asyncio.Queue()
        """None: a successor has taken over."""
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
        loop.add_signal_handler(signal.SIGUSR2, self._upgrade_signalled)
        async with self._cleanup:
            status, self._handover = await self._start()
            received = await self._stop_signals.get()
            if received is None:
                return
            _log.info("stopping", cause=received.name)
            status.stopping = True
            await self._handover.abort()
            if self._successor_pid:  # Both came at once: whoever stops the relay means that one.
                os.kill(self._successor_pid, received)
                return
            self._host.notifier.stopping(status.summary)
            if self._reloader.config.drain_timeout_s > 0:
                status.set_drain(Drain.SHUTDOWN, drain=True)
                await drain_before_the_end(
                    status,
                    DrainReport(self._host.notifier),
                    self._clock,
                    self._stop_signals,
                    timeout_s=lambda: self._reloader.config.drain_timeout_s,
                )
        _log.info("stopped")

    async def _start(self) -> tuple[RelayStatus, Handover]:
        config = self._config
        root = config.trusted_root()
        kind = choose_engine(config.engine)
        state = StateDirectory(config.state_dir.expanduser())
        if not self._take_over:
            state.lock()
        self._cleanup.callback(state.unlock)
        identity = state.identity()
        own_id = relay_id(identity.public_key)
        structlog.contextvars.bind_contextvars(relay_id=own_id)
        warn_of(self._host.ops_address(config), root, kind)
        own = self._hello(own_id, kind, root)
        old = await self._meet(state, own) if self._take_over else None
        if old is None:
            workers = self._host.activation.worker_count(config.workers, config.worker_count)
            groups = open_listening(config, self._host.activation, workers, self._cleanup)
            segment = self._make_segment(own_id, workers)
        else:
            groups, segment = old.groups, self._adopt(old, own_id)
        control = ControlBlock(segment)
        if old is None:
            control.initialise(own_id, config.limits, kind)
        else:
            control.limits = config.limits  # Boot keys and cookies stay: peers hold them.
        control.log_level = logs.level_number(config.log_level)
        keyring = KeyRing(state, control, root)
        revocations = RelayRevocations(
            state,
            RevocationTable(segment),
            Tags(segment),
            lambda: self._clock.now().wall_ms // 1000,
        )
        if old is None:
            keyring.load_cached()
            revocations.load()
        placement = Placement.choose(config.busy_poll_us, pin=config.pin_workers)
        pool = WorkerPool(segment, groups, config.hang_timeout_s, self._clock, placement)
        status = RelayStatus(
            own_id,
            relay_version(),
            config.max_bitrate_kbps,
            segment,
            groups,
            pool,
            keyring,
            self._clock,
            revocations,
        )
        if config.master_url is not None:
            facts = self._facts(groups, segment.geometry)
            status.link = MasterLink(config.master_url, identity, facts, keyring, status)
            status.events = EventLink(
                status.link,
                revocations,
                lambda drain: status.drain_by_master(drain=drain),
                poll_s=config.event_poll_s,
            )
        self._cleanup.push_async_callback(self._stop_workers, pool)
        if old is None:
            await pool.start()
        else:
            await self._succeed(old, pool)
            keyring.go_on()
            revocations.load(adopt=True)  # The old relay has let go: the table is ours now.
            status.go_on_from(old.counts)
        ops, control_socket = await self._start_ops(status, state, old)
        handover = self._make_handover(status, own, state, ops, control_socket)
        if old is not None:
            self._announce(status, ops.url)
            await old.confirm(pool)
            self._owner = True
            _log.info("taken_over", cause="upgrade", from_version=old.facts.version)
        self._cleanup.push_async_callback(self._stop_link, status)
        self._start_link(status)
        if old is None:
            self._announce(status, ops.url)
        self._follow_host(status)
        return status, handover

    # -- Hot upgrade -----------------------------------------------------------------------------

    def _upgrade_signalled(self) -> None:
        if self._handover is None:
            _log.warning("upgrade_refused", cause="still starting", next_step="signal again")
        else:
            self._handover.begin()

    def _hello(self, own_id: str, kind: EngineKind, root: bytes | None) -> UpgradeHello:
        return UpgradeHello(
            version=relay_version(),
            layout=layout_name(),
            engine=kind.name.lower(),
            relay_id=own_id,
            listen=self._config.listen,
            ops_listen=self._config.ops_listen,
            root_key=base64url.encode(root) if root else "",
            pid=os.getpid(),
        )

    async def _meet(self, state: StateDirectory, own: UpgradeHello) -> Predecessor:
        old = await Predecessor.meet(state.path / CONTROL_SOCKET_NAME, own)
        for group in old.groups:
            self._cleanup.callback(group.close)
        state.adopt_lock(old.lock_fd)
        try:
            check_guards(self._config, [(group.host, group.port) for group in old.groups])
        except SettingsError as error:
            await old.give_up(str(error))
            raise
        return old

    def _adopt(self, old: Predecessor, own_id: str) -> Segment:
        config, geometry = self._config, old.segment.geometry
        self._cleanup.callback(self._forget_segment, old.segment, segment_name(own_id))
        for name, wanted, kept in (
            ("WAVRY_RELAY_WORKERS", config.worker_count, geometry.workers),
            ("WAVRY_RELAY_MAX_SESSIONS", config.max_sessions, geometry.max_sessions),
        ):
            if wanted != kept:
                _log.warning(
                    "setting_kept",
                    setting=name,
                    wanted=wanted,
                    kept=kept,
                    cause="the shared memory of the running relay stays as it is",
                    next_step="drain and restart the relay for another number",
                )
        return old.segment

    async def _succeed(self, old: Predecessor, pool: WorkerPool) -> None:
        try:
            await old.move_workers(pool)
            await old.commit(pool)
        except LocalError as error:
            await pool.stop(grace_s=STOP_GRACE_S, quiet=True)
            await old.give_up(str(error))
            raise

    def _make_handover(
        self,
        status: RelayStatus,
        own: UpgradeHello,
        state: StateDirectory,
        ops: OpsServer,
        control_socket: ControlSocket,
    ) -> Handover:
        async def hold_on() -> None:
            await control_socket.start()
            self._start_link(status)

        control_socket.handover = Handover(
            status,
            own,
            lock_fd=state.lock_fd,
            ops_socket=ops.listening,
            let_go=self._end_link,
            hold_on=hold_on,
            leave=self._handed_over,
            environment=self._host.notifier.environment,
        )
        return control_socket.handover

    def _handed_over(self, successor_pid: int) -> None:
        """The commit is done: from here on this process only ends."""
        self._owner = False
        self._host.notifier.main_pid(successor_pid)
        self._successor_pid = successor_pid
        self._stop_signals.put_nowait(None)

    # -- Parts -----------------------------------------------------------------------------------

    def _follow_host(self, status: RelayStatus) -> None:
        notifier = self._host.notifier
        self._reloader = Reloader(self._config, self._host, status, self._clock)
        status.reload = self._reloader.reload
        notifier.ready(status.summary)
        watch = LoadWatch(status.segment, self._shed_at)
        for task in (
            asyncio.create_task(self._reloader.follow(self._hangup)),
            asyncio.create_task(watch.run(self._clock)),
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

    def _shed_at(self) -> ShedAt:
        config = self._reloader.config
        return ShedAt(config.shed_at_pct, config.max_bitrate_kbps)

    def _make_segment(self, own_id: str, workers: int) -> Segment:
        name = segment_name(own_id)
        geometry = Geometry(workers, self._config.max_sessions)
        segment = Segment.create(name, geometry, now_ns=self._clock.now().mono_ns)
        self._cleanup.callback(self._forget_segment, segment, name)
        return segment

    def _forget_segment(self, segment: Segment, name: str) -> None:
        if self._owner:
            unlink(name)
        segment.close()

    async def _stop_workers(self, pool: WorkerPool) -> None:
        await pool.stop(grace_s=STOP_GRACE_S, quiet=not self._owner)

    def _facts(self, groups: list[ReuseportGroup], geometry: Geometry) -> RelayDescription:
        config = self._config
        return RelayDescription(
            endpoints=config.advertise or tuple(group.endpoint for group in groups),
            region=config.region,
            max_sessions=geometry.max_sessions,
            max_bitrate_kbps=config.max_bitrate_kbps,
            version=relay_version(),
        )

    async def _start_ops(
        self, status: RelayStatus, state: StateDirectory, old: Predecessor | None
    ) -> tuple[OpsServer, ControlSocket]:
        ops = OpsServer(status)
        self._cleanup.push_async_callback(ops.stop)
        if old is None:
            await ops.start(*self._config.ops_address, self._host.activation.ops)
        else:
            await ops.serve(old.ops_socket)
        control = ControlSocket(status, state.path)

        async def stop() -> None:
            await control.stop(keep_path=not self._owner)

        self._cleanup.push_async_callback(stop)
        await control.start()
        return ops, control

    def _start_link(self, status: RelayStatus) -> None:
        if status.link is not None and status.events is not None:
            self._link_task = asyncio.create_task(_follow_master(status.link, status.events))

    async def _end_link(self) -> None:
        if self._link_task is not None:
            self._link_task.cancel()
            await asyncio.wait({self._link_task})
            self._link_task = None

    async def _stop_link(self, status: RelayStatus) -> None:
        await self._end_link()
        if status.link is not None and self._owner:
            await status.link.farewell()

    def _announce(self, status: RelayStatus, ops_url: str) -> None:
        announce(status, ops_url, self._ready_file)


async def _follow_master(link: MasterLink, events: EventLink) -> None:
    """Both run until cancelled, and end together."""
    async with asyncio.TaskGroup() as group:
        group.create_task(link.run())
        group.create_task(events.run())
