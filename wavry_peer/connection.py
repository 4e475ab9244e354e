"""What a `Session` runs on: the channel, the relay paths, one timer.

Strategy: the connection joins sans-I/O machines.  `Channel` encrypts and knows no path,
`RelayPaths` carries packets and knows no content.  `_pump` moves packets and events between them
until all are quiet, then arms one timer.
"""

import asyncio
import contextlib
import dataclasses
import hmac
from collections import deque
from typing import Final

from wavry_peer.paths.environment import Environment, LeaseBroker
from wavry_peer.paths.events import BodyReceived, PathChanged, PathsEnded, ProbeDue
from wavry_peer.paths.refusals import ENDED_BY_GATEWAY
from wavry_peer.paths.relay_events import PathLimits
from wavry_peer.paths.relay_paths import RelayPaths
from wavry_peer.paths.remote_presence import GONE_NS, RemotePresence
from wavry_peer.paths.stream_silence import StreamSilence
from wavry_peer.paths.terms import SessionTerms
from wavry_peer.protocol.channel.channel import Channel
from wavry_peer.protocol.channel.events import (
    ChannelClosed,
    ChannelFailed,
    ChannelLimits,
    DataReceived,
    DropReason,
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

__all__ = ["Connection"]

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
"""`send` gives the loop a turn after this many datagrams: a sender that never waits for
anything must not keep its own socket from being read."""

_SECOND_NS: Final = 1_000_000_000
_KEEPALIVE_NS: Final = int(KEEPALIVE_S * _SECOND_NS)
_MAX_SLEEP_S: Final = 5.0


class Connection:
    """Both machines of one session, their timer, and the datagrams that wait to be taken.

    Args:
        terms: what the session is about.
        broker: gives leases; told when the session is over.
        environment: time and randomness.
        channel_limits: times of the channel.
        path_limits: times of each relay path.
        queue_datagrams: how many received datagrams wait; then the oldest is dropped.

    Attributes:
        terms: as given.
    """

    def __init__(
        self,
        terms: SessionTerms,
        broker: LeaseBroker,
        environment: Environment | None = None,
        *,
        channel_limits: ChannelLimits | None = None,
        path_limits: PathLimits | None = None,
        queue_datagrams: int = RECEIVE_QUEUE_DATAGRAMS,
    ) -> None:
        environment = environment or Environment()
        self.terms = terms
        self._broker = broker
        self._clock = environment.clock
        self._channel = Channel(
            role=terms.role,
            session_id=terms.id_bytes,
            static_private=terms.identity.noise.private,
            verify_remote_static=lambda key: hmac.compare_digest(key, terms.remote_noise_key),
            random_bytes=environment.random_bytes,
            limits=channel_limits or ChannelLimits(),
        )
        self._channel_started = False
        self._counts = SessionStatistics(path="none")
        self._loss = LossEstimate()
        self._paths = RelayPaths(
            terms, broker, environment, path_limits or PathLimits(), self._pump
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
        self._remote = RemotePresence()
        self._farewell: asyncio.Task[None] | None = None
        self._since_turn = 0

    @property
    def is_over(self) -> bool:
        """True once the session is over; datagrams received before can still be taken."""
        return self._finished.is_set()

    async def send(self, data: bytes) -> None:
        """Send one datagram; see `Session.send`."""
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
        """Wait for the next datagram; see `Session.receive`."""
        while not self._queue:
            if self._end is not None:
                raise self._end
            self._readable.clear()
            await self._readable.wait()
        return self._queue.popleft()

    async def aclose(self) -> None:
        """End the session and tell the other peer; again it does nothing."""
        if self._end is None:
            now_ns = self._clock()
            self._channel.close(now_ns)
            self._flush(now_ns)
            self._finish(SessionClosedError("this side closed the session", by_remote=False))
            if self._report is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2.0):
                        await asyncio.shield(self._report)
            await self._tell_gateway()
        elif self._farewell is not None:
            await asyncio.gather(self._farewell, return_exceptions=True)
        await self._paths.wait_closed()
        if self._report is not None:
            self._report.cancel()
            await asyncio.gather(self._report, return_exceptions=True)

    async def wait_closed(self) -> None:
        """Wait until the session is over, whichever side ended it."""
        await self._finished.wait()

    def statistics(self) -> SessionStatistics:
        """Return the counters up to now, as a copy that does not change."""
        latest = self._paths.latest
        channel = self._channel.statistics
        duplicates = channel.dropped[DropReason.REPLAYED]
        round_trip_ns = None if latest is None else latest.path.statistics.round_trip_ns
        return dataclasses.replace(
            self._counts,
            path="none" if latest is None else f"relay {latest.relay_id}",
            path_round_trip_ms=None if round_trip_ns is None else round_trip_ns / 1e6,
            packets_sent=channel.packets_sent,
            packets_received=channel.packets_received,
            duplicates=duplicates,
            rejected_packets=sum(channel.dropped.values()) - duplicates,
            lost_estimate=self._loss.lost(channel),
            handshakes=channel.handshakes_completed,
            handshake_retransmits=channel.handshake_retransmits,
            **dataclasses.asdict(self._paths.statistics()),
        )

    async def establish(self, credentials: Credentials, timeout_s: float) -> None:
        """Present the lease and shake hands; a session that fails is closed.

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
        """Take a lease that the gateway sent: the next one, or one on another relay.

        Raises:
            LeaseMismatchError: it is not ours.
            SessionFailedError: there is no route to the relay.
        """
        self._paths.adopt(credentials)

    def end_soon(self, *, by_remote: bool = True) -> None:
        """End the session in a moment: the gateway says that the other side, or it, ended it."""
        if self._end is None and self._bye is None:
            text = "the peer closed the session" if by_remote else ENDED_BY_GATEWAY
            error = SessionClosedError(text, by_remote=by_remote)
            self._bye = self._loop.call_later(BYE_GRACE_S, self._finish, error)

    # -- Packets -----------------------------------------------------------------------

    def _pump(self) -> None:
        if self._end is not None:
            return
        now_ns = self._clock()
        while (event := self._paths.next_event(now_ns)) is not None:
            match event:
                case BodyReceived():
                    self._channel.receive_datagram(event.body, self._clock())
                    stage = self._drain_channel(event.body)
                    if stage is not None:
                        self._paths.heard(event.link, stage, now_ns)
                case ProbeDue():
                    probe = self._channel.make_probe(event.stage, now_ns)
                    if probe is not None:
                        event.link.path.send(probe)
                case PathChanged():
                    self._use_new_path(now_ns)
                case PathsEnded():
                    self._finish(event.error)
        if not self._finished.is_set():
            self._flush(now_ns)
            self._arm(now_ns)

    def _flush(self, now_ns: int) -> None:
        for body in self._channel.datagrams_to_send():
            self._last_sent_ns = now_ns
            self._paths.send(body)
        self._paths.flush()

    def _use_new_path(self, now_ns: int) -> None:
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
                    self._paths.can_probe = True
                    if not self._established.done():
                        self._established.set_result(None)
                        if self.terms.role is Role.CLIENT:  # One report is enough.
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
            await self._broker.report_path(self.terms.session_id, "relay")
        except (GatewayError, GatewayUnreachableError) as error:
            # Only statistics; an older gateway does not ask for it.
            _log.info("path_not_reported", cause=type(error).__name__)

    # -- Time --------------------------------------------------------------------------

    def _arm(self, now_ns: int) -> None:
        times_ns = [self._channel.get_timer(), self._paths.get_timer()]
        if self._channel.is_established:
            times_ns.append(self._last_sent_ns + _KEEPALIVE_NS)
            times_ns.append(self._silence.due_ns(self._last_sent_ns))
            times_ns.append(self._remote.due_ns(self._channel.heard_ns))
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
        if self._remote.is_gone(self._channel.heard_ns, now_ns):
            self._end_without_remote()
        self._pump()

    def _end_without_remote(self) -> None:
        """End the session because the other peer vanished, and let the gateway know."""
        if self._end is not None:
            return
        text = (
            f"{self.terms.remote_username} is gone: nothing came from there for "
            f"{GONE_NS // _SECOND_NS} s on any path; call again"
        )
        self._finish(SessionClosedError(text, by_remote=False))
        self._farewell = self._loop.create_task(self._tell_gateway())

    async def _tell_gateway(self) -> None:
        try:
            async with asyncio.timeout(2.0):
                await self._broker.close_session(self.terms.session_id)
        except (GatewayError, GatewayUnreachableError, TimeoutError) as error:
            # The gateway's row ends with the lease.
            _log.info("close_not_told_to_gateway", cause=type(error).__name__)

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
