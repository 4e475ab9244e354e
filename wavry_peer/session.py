"""A session with one other peer: encrypted datagrams over whatever path works.

Strategy: the session joins sans-I/O machines.  `Channel` encrypts and knows no path,
`RelayPaths` carries packets and knows no content.  `_pump` moves packets and events between them
until all are quiet, then arms one timer.
"""

import asyncio
import contextlib
import hmac
import os
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Self

from wavry_peer.home.identity import Identity
from wavry_peer.paths.lease_broker import LeaseBroker, boottime_ns
from wavry_peer.paths.relay_events import PathLimits
from wavry_peer.paths.relay_paths import RelayPaths
from wavry_peer.paths.stream_silence import StreamSilence
from wavry_peer.protocol.channel.channel import MAX_DATAGRAM_BYTES, Channel
from wavry_peer.protocol.channel.events import (
    ChannelClosed,
    ChannelFailed,
    ChannelLimits,
    DataReceived,
    FailureReason,
    HandshakeCompleted,
    ProbeReceived,
)
from wavry_peer.protocol.channel.wire import ProbeStage
from wavry_peer.protocol.constants import Role
from wavry_peer.protocol.http.api import Credentials

from .errors import (
    GatewayError,
    GatewayUnreachableError,
    PeerError,
    SessionClosedError,
    SessionFailedError,
)
from .event_log import EventLog
from .statistics import LossEstimate, SessionStatistics

__all__ = ["Session"]

_log = EventLog(__name__)

RECEIVE_QUEUE_DATAGRAMS: Final = 2048
"""2.8 MB at most, a fifth of a second of 100 Mbit/s: a receiver that is further behind loses the
oldest datagrams, because for live data the newest are worth more."""

KEEPALIVE_S: Final = 10.0
"""Less than the shortest NAT mapping in common use (30 s) and the relay's idle time (60 s), even if
one or two are lost."""

BYE_GRACE_S: Final = 1.0
"""The gateway's BYE may overtake datagrams that the peer sent before it closed."""

DATAGRAMS_PER_TURN: Final = 32
"""`send` gives the loop a turn after so many datagrams: a sender that never waits for
anything must not keep its own socket from being read."""

_SECOND_NS: Final = 1_000_000_000
_KEEPALIVE_NS: Final = int(KEEPALIVE_S * _SECOND_NS)
_MAX_SLEEP_S: Final = 5.0


class Session:
    """An end-to-end encrypted datagram session.

    Datagrams may be lost or arrive out of order, as with UDP; none arrives twice, altered, or
    from anybody else.  Up to 2048 received datagrams wait to be taken; then the oldest is dropped
    and counted.  Made by `connect` or `listen`, not directly.

    Attributes:
        session_id: UUID, the same on both sides.
        remote_username: the other peer, as the gateway names it.
        max_datagram_bytes: the largest datagram that `send` takes.
    """

    max_datagram_bytes: Final = MAX_DATAGRAM_BYTES

    def __init__(
        self,
        *,
        session_id: str,
        role: Role,
        identity: Identity,
        remote_username: str,
        remote_noise_key: bytes,
        broker: LeaseBroker,
        clock: Callable[[], int] = boottime_ns,
        unix_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        rng: random.Random | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        channel_limits: ChannelLimits | None = None,
        path_limits: PathLimits | None = None,
        queue_datagrams: int = RECEIVE_QUEUE_DATAGRAMS,
    ) -> None:
        self.session_id = session_id
        self.remote_username = remote_username
        self._role = role
        self._broker = broker
        self._clock = clock
        self._channel = Channel(
            role=role,
            session_id=bytes.fromhex(session_id.replace("-", "")),
            static_private=identity.noise.private,
            verify_remote_static=lambda key: hmac.compare_digest(key, remote_noise_key),
            random_bytes=random_bytes,
            limits=channel_limits or ChannelLimits(),
        )
        self._channel_started = False
        self._counts = SessionStatistics(path="none")
        self._loss = LossEstimate()
        self._paths = RelayPaths(
            session_id=session_id,
            role=role,
            identity=identity,
            broker=broker,
            clock=clock,
            unix_us=unix_us,
            rng=rng or random.Random(),
            limits=path_limits or PathLimits(),
            counts=self._counts,
            on_body=self._on_body,
            can_probe=lambda: self._channel.is_established,
            make_probe=self._channel.make_probe,
            on_ready=self._on_path_ready,
            on_activity=self._pump,
            on_end=self._finish,
        )
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._queue_datagrams = queue_datagrams
        self._readable = asyncio.Event()
        self._established: asyncio.Future[None] = self._loop.create_future()
        self._finished = asyncio.Event()
        self._end: PeerError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._bye: asyncio.TimerHandle | None = None
        self._report: asyncio.Task[None] | None = None
        self._last_sent_ns = 0
        self._silence = StreamSilence()
        self._since_turn = 0
        self._cleanups: list[Callable[[], Awaitable[None]]] = []

    def __repr__(self) -> str:
        return f"<Session with {self.remote_username}{' (closed)' if self._end else ''}>"

    # -- For the application -----------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.receive()
        except SessionClosedError:
            raise StopAsyncIteration from None

    @property
    def is_closed(self) -> bool:
        """True once the session is over; datagrams received before can still be taken."""
        return self._finished.is_set()

    async def send(self, data: bytes) -> None:
        """Sends one datagram; it never waits for the network and may be lost.

        Args:
            data: at most `max_datagram_bytes`.

        Raises:
            LocalError: `data` is too long.
            SessionClosedError: the session is over.
        """
        if self._end is not None:
            raise self._end
        now_ns = self._clock()
        self._channel.send(data, now_ns)
        self._counts.datagrams_sent += 1
        self._counts.bytes_sent += len(data)
        self._flush(now_ns)
        self._since_turn += 1
        if self._since_turn >= DATAGRAMS_PER_TURN:
            self._since_turn = 0
            await asyncio.sleep(0)

    async def receive(self) -> bytes:
        """Waits for the next datagram.

        Raises:
            SessionClosedError: the session is over and every datagram was taken.
        """
        while not self._queue:
            if self._end is not None:
                raise self._end
            self._readable.clear()
            await self._readable.wait()
        return self._queue.popleft()

    async def aclose(self) -> None:
        """Ends the session and tells the other peer; again it does nothing."""
        if self._end is None:
            now_ns = self._clock()
            self._channel.close(now_ns)
            self._flush(now_ns)
            self._finish(SessionClosedError("this side closed the session", by_remote=False))
            try:
                async with asyncio.timeout(2.0):
                    if self._report is not None:
                        await asyncio.shield(self._report)
                    await self._broker.close_session(self.session_id)
            except (GatewayError, GatewayUnreachableError, TimeoutError) as error:
                # The peer has our CLOSE; the gateway's row ends with the lease.
                _log.info("close_not_told_to_gateway", cause=type(error).__name__)
        await self._paths.wait_closed()
        if self._report is not None:
            self._report.cancel()
            await asyncio.gather(self._report, return_exceptions=True)
        cleanups, self._cleanups = self._cleanups, []
        for cleanup in cleanups:
            await cleanup()

    async def wait_closed(self) -> None:
        """Waits until the session is over, whoever ended it."""
        await self._finished.wait()

    def statistics(self) -> SessionStatistics:
        """Counters up to now, as a copy that does not change."""
        latest = self._paths.latest
        links = self._paths.links
        return self._counts.with_totals(
            path="none" if latest is None else f"relay {latest.relay_id}",
            channel=self._channel.statistics,
            paths=[link.path.statistics for link in links],
            sockets=[link.socket_statistics for link in links],
            path_round_trip_ns=None if latest is None else latest.path.statistics.round_trip_ns,
            lost_estimate=self._loss.lost(self._channel.statistics),
        )

    # -- For the peer that makes sessions ----------------------------------------------

    async def establish(self, credentials: Credentials, timeout_s: float) -> None:
        """Presents the lease and shakes hands; a session that fails is closed.

        Args:
            credentials: of our own side.
            timeout_s: for all of it.

        Raises:
            LeaseMismatchError: the lease is not ours.
            SessionFailedError: no relay took us, or the other peer did not show up.
            SessionClosedError: the other peer gave up.
        """
        failure: PeerError = SessionFailedError("interrupted before it was set up")
        try:
            self._paths.adopt(credentials)
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._established)
        except TimeoutError as error:
            if self._paths.active is None and self._paths.failure:
                text = f"no relay took the session in time; the relay {self._paths.failure}"
            else:
                who = "the relay" if self._paths.active is None else "the other peer"
                text = f"{who} did not answer in time; try again"
            failure = SessionFailedError(text)
            raise failure from error
        except PeerError as error:
            failure = error
            raise
        finally:
            if not self._channel.is_established:
                self._finish(failure)
                await self._paths.wait_closed()

    def adopt(self, credentials: Credentials) -> None:
        """Takes a lease that the gateway sent: the next one, or one on another relay.

        Raises:
            LeaseMismatchError: it is not ours.
            SessionFailedError: there is no route to the relay.
        """
        self._paths.adopt(credentials)

    def add_cleanup(self, cleanup: Callable[[], Awaitable[None]]) -> None:
        """Something to close after the session, by `aclose`."""
        self._cleanups.append(cleanup)

    def told_bye(self) -> None:
        """The gateway says that the other side ended the session."""
        if self._end is None and self._bye is None:
            error = SessionClosedError("the peer closed the session", by_remote=True)
            self._bye = self._loop.call_later(BYE_GRACE_S, self._finish, error)

    # -- Packets -----------------------------------------------------------------------

    def _pump(self) -> None:
        if self._end is not None:
            return
        now_ns = self._clock()
        self._paths.drain(now_ns)
        if not self._finished.is_set():
            self._flush(now_ns)
            self._arm(now_ns)

    def _flush(self, now_ns: int) -> None:
        for body in self._channel.datagrams_to_send():
            self._last_sent_ns = now_ns
            self._paths.send(body)
        self._paths.flush()

    def _on_body(self, body: bytes) -> ProbeStage | None:
        self._channel.receive_datagram(body, self._clock())
        return self._drain_channel(body)

    def _on_path_ready(self) -> None:
        now_ns = self._clock()
        if not self._channel_started:
            self._channel_started = True
            self._channel.start(now_ns)
        elif self._channel.is_established:
            # The new relay, and the NAT on the way, learn of us at once.
            self._channel.send_keepalive(now_ns)

    def _drain_channel(self, body: bytes = b"") -> ProbeStage | None:
        stage: ProbeStage | None = None
        while (event := self._channel.next_event()) is not None:
            match event:
                case DataReceived():
                    self._loss.saw(body, self._channel.statistics)
                    self._deliver(event.data)
                    stage = ProbeStage.SETTLED
                case ProbeReceived():
                    stage = event.stage
                case HandshakeCompleted():
                    self._loss.restart(self._channel.statistics)
                    if not self._established.done():
                        self._established.set_result(None)
                        if self._role is Role.CLIENT:  # One report is enough.
                            self._report = self._loop.create_task(self._report_path())
                case ChannelClosed():
                    if event.by_remote:
                        text = "the peer closed the session"
                        self._finish(SessionClosedError(text, by_remote=True))
                case ChannelFailed():
                    self._finish(_handshake_failure(event.reason))
        return stage

    def _deliver(self, data: bytes) -> None:
        self._counts.datagrams_received += 1
        self._counts.bytes_received += len(data)
        self._silence.received(self._clock())
        if len(self._queue) >= self._queue_datagrams:
            self._queue.popleft()
            self._counts.queue_drops += 1
        self._queue.append(data)
        self._readable.set()

    async def _report_path(self) -> None:
        try:
            await self._broker.report_path(self.session_id, "relay")
        except (GatewayError, GatewayUnreachableError) as error:
            # Only statistics; an older gateway does not ask for it.
            _log.info("path_not_reported", cause=type(error).__name__)

    # -- Time --------------------------------------------------------------------------

    def _arm(self, now_ns: int) -> None:
        times_ns = [self._channel.get_timer(), self._paths.get_timer()]
        if self._channel.is_established:
            times_ns.append(self._last_sent_ns + _KEEPALIVE_NS)
            times_ns.append(self._silence.due_ns(self._last_sent_ns))
        due_ns = min((t for t in times_ns if t is not None), default=None)
        if due_ns is None:
            return
        if self._timer is not None:
            if self._timer_ns <= due_ns:
                return  # it fires earlier and arms itself again: cheaper than a timer a packet.
            self._timer.cancel()
        self._timer_ns = due_ns
        delay_s = min(max(due_ns - now_ns, 0) / _SECOND_NS, _MAX_SLEEP_S)
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_ns = self._clock()
        self._channel.handle_timer(now_ns)
        self._paths.handle_timer(now_ns)
        if self._channel.is_established:
            show_ns = self._silence.due_ns(self._last_sent_ns)
            if show_ns is not None and now_ns >= show_ns:
                self._silence.shown()
                self._channel.send_keepalive(now_ns)
            elif now_ns >= self._last_sent_ns + _KEEPALIVE_NS:
                self._channel.send_keepalive(now_ns)
        self._drain_channel()
        self._pump()

    # -- End ---------------------------------------------------------------------------

    def _finish(self, error: PeerError) -> None:
        if self._end is not None:
            return
        if isinstance(error, SessionClosedError):
            self._end = error
        else:
            self._end = SessionClosedError(f"the session failed: {error}", by_remote=False)
        if not self._established.done():
            self._established.set_exception(error)
            with contextlib.suppress(PeerError):
                self._established.result()  # marked as read: nobody may be waiting for it.
        for timer in (self._timer, self._bye):
            if timer is not None:
                timer.cancel()
        self._paths.close()
        self._finished.set()
        self._readable.set()


def _handshake_failure(reason: FailureReason) -> SessionFailedError:
    if reason is FailureReason.WRONG_IDENTITY:
        return SessionFailedError(
            "somebody with another key than the gateway named answered the handshake; "
            "no data was sent"
        )
    return SessionFailedError("the other peer did not complete the handshake; try again")
