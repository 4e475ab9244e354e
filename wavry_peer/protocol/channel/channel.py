"""The end-to-end channel between two peers (protocol.md section 4), sans I/O.

Strategy: the client initiates, the server responds.  The initiator's timer repairs every loss::

    initiator                          responder
    MESSAGE_1  ----------------------> (keeps nothing)
               <---------------------- MESSAGE_2
    MESSAGE_3  ----------------------> has keys: HandshakeCompleted
    HandshakeCompleted <-------------- CONFIRM, or any other transport packet

It repeats message 1 until an acceptable message 2 comes, then message 3 until the first authentic
transport packet.  So whoever has seen `HandshakeCompleted` knows that the other side can
decrypt.  A responder without keys knocks now and then: an initiator that still has keys of a
former life of the responder learns from it that a new handshake is due.

Whatever fails to authenticate is counted and dropped, and changes nothing.  A later handshake
replaces the keys only after it authenticated the same static key as the first.

Nothing here knows a path: packets may come and go over any number of them.
"""

import hmac
from collections import deque
from collections.abc import Callable
from typing import Final

from wavry_peer.protocol.constants import SESSION_ID_BYTES, Role
from wavry_peer.protocol.errors import LocalError

from .events import (
    ChannelClosed,
    ChannelFailed,
    ChannelLimits,
    ChannelStatistics,
    DataReceived,
    DropReason,
    Event,
    FailureReason,
    HandshakeCompleted,
    ProbeReceived,
)
from .handshake import (
    Backoff,
    HandshakeIdentity,
    HandshakeResult,
    InitiatorHandshake,
    ResponderHandshake,
)
from .noise import HandshakeError, KeyPair
from .transport import ChannelKeys, Slot, Transport
from .wire import (
    FIRST_SEQUENCE,
    INSTANCE_ID_BYTES,
    MAX_BODY_BYTES,
    MAX_DATAGRAM_BYTES,
    MAX_SEQUENCE,
    PACKET_HEADER,
    TRANSPORT_KINDS,
    ChannelKind,
    ProbeStage,
)

__all__ = ["MAX_DATAGRAM_BYTES", "Channel"]

CLOSE_COPIES: Final = 3
"""Nobody answers a CLOSE; three copies survive a lost packet or two at 90 bytes of cost."""

_DEFAULT_LIMITS: Final = ChannelLimits()


class Channel:
    """One end of an encrypted datagram channel.

    The owner feeds `receive_datagram` and `handle_timer`, and after each call of any method
    sends what `datagrams_to_send` gives, drains `next_event`, and asks `get_timer`.  Times are
    nanoseconds of any clock that never goes back.

    Attributes:
        statistics: counters, for reading only.
        heard_ns: when the last authentic packet came; None before the first.
    """

    def __init__(
        self,
        *,
        role: Role,
        session_id: bytes,
        static_private: bytes,
        verify_remote_static: Callable[[bytes], bool],
        random_bytes: Callable[[int], bytes],
        limits: ChannelLimits = _DEFAULT_LIMITS,
    ) -> None:
        """Make a channel that does nothing before `start`.

        Args:
            role: `Role.CLIENT` initiates, `Role.SERVER` responds.
            session_id: 16 bytes, equal on both sides.
            static_private: own X25519 identity key, 32 bytes.
            verify_remote_static: whether an authenticated 32-byte public key is the one
                that signaling named (or that is pinned).  Asked for the first handshake;
                later ones must bring the same key.
            random_bytes: such as `os.urandom`.
            limits: times and counts.

        Raises:
            LocalError: a key or the session id has the wrong size.
        """
        if len(session_id) != SESSION_ID_BYTES:
            raise LocalError(f"a session id has {SESSION_ID_BYTES} bytes")
        self.statistics = ChannelStatistics()
        self.heard_ns: int | None = None
        self._role = role
        self._limits = limits
        self._verify_remote_static = verify_remote_static
        self._identity = HandshakeIdentity(
            static=KeyPair.from_private(static_private),
            session_id=session_id,
            instance_id=random_bytes(INSTANCE_ID_BYTES),
            random_bytes=random_bytes,
        )
        self._started = False
        self._ended = False
        self._remote_static: bytes | None = None
        self._remote_instance_id: bytes | None = None
        self._keys = ChannelKeys(limits)
        self._next_sequence = FIRST_SEQUENCE
        self._outgoing: list[bytes] = []
        self._events: deque[Event] = deque()
        self._deadline_ns: int | None = None
        self._backoff: Backoff | None = None
        self._initiator: InitiatorHandshake | None = None
        self._candidate_result: HandshakeResult | None = None
        self._last_message_1_ns = 0
        self._attempt_began_ns = 0
        self._responder: ResponderHandshake | None = None
        self._peer_was_restarted = False

    @property
    def is_established(self) -> bool:
        """True while `send` is allowed."""
        return self._keys.current is not None

    @property
    def remote_static(self) -> bytes | None:
        """The peer's authenticated public key; None before the first handshake."""
        return self._remote_static

    def start(self, now_ns: int) -> None:
        """Begin the handshake, or waiting for it; the deadline counts from here.

        Raises:
            LocalError: it was started or closed before.
        """
        if self._started or self._ended:
            raise LocalError("a channel is started once: make a new one")
        self._started = True
        if self._role is Role.CLIENT:
            self._begin_attempt(now_ns)
        else:
            self._deadline_ns = now_ns + self._limits.handshake_deadline_ns
            self._backoff = Backoff(self._limits, now_ns)
            self._responder = ResponderHandshake(self._identity)
            self._emit(ChannelKind.KNOCK)

    def send(self, data: bytes, now_ns: int) -> None:
        """Queue one datagram; it may be lost, and is never delivered twice.

        Raises:
            LocalError: not established (wait for `HandshakeCompleted`), ended, or `data` is
                longer than `MAX_DATAGRAM_BYTES`.
        """
        if len(data) > MAX_DATAGRAM_BYTES:
            raise LocalError(
                f"a datagram has at most {MAX_DATAGRAM_BYTES} bytes, this one has {len(data)}"
            )
        self._emit_sealed(ChannelKind.DATA, data, now_ns)
        self.statistics.datagrams_sent += 1

    def send_keepalive(self, now_ns: int) -> None:
        """Queue an empty transport packet, which makes no event at the peer.

        Raises:
            LocalError: not established.
        """
        self._emit_sealed(ChannelKind.CONFIRM, b"", now_ns)

    def make_probe(self, stage: ProbeStage, now_ns: int) -> bytes | None:
        """Make a packet that probes one path; it is not queued, because the caller knows the path.

        Args:
            stage: how far this side is with moving to that path.
            now_ns: time now.

        Returns:
            A FORWARD body, or None while there are no keys.
        """
        transport = self._keys.current
        return (
            None
            if transport is None
            else self._seal(transport, ChannelKind.CONFIRM, bytes((stage,)), now_ns)
        )

    def close(self, now_ns: int = 0) -> None:
        """End the channel and tell the peer if there are keys; again it does nothing.

        Args:
            now_ns: time now; 0 is good enough, it can only delay a rekey that is due.
        """
        if self._ended:
            return
        if self.is_established:
            for _ in range(CLOSE_COPIES):
                self._emit_sealed(ChannelKind.CLOSE, b"", now_ns)
        self._end(ChannelClosed(by_remote=False))

    def datagrams_to_send(self) -> list[bytes]:
        """Take the queued FORWARD bodies, sequence included, in order."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_event(self) -> Event | None:
        """Take the oldest event, or None."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> int | None:
        """Return when to call `handle_timer`, in ns of the caller's clock; None for never."""
        times_ns = [self._keys.get_timer(), self._deadline_ns]
        if self._backoff is not None:
            times_ns.append(self._backoff.due_ns)
        return min((time_ns for time_ns in times_ns if time_ns is not None), default=None)

    def handle_timer(self, now_ns: int) -> None:
        """Do what is due; calling it early does no harm."""
        self._keys.forget_expired(now_ns)
        if self._deadline_ns is not None and now_ns >= self._deadline_ns:
            self._give_up()
        elif self._backoff is not None and now_ns >= self._backoff.due_ns:
            self._backoff.advance(now_ns)
            self._retransmit(now_ns)

    def receive_datagram(self, payload: bytes, now_ns: int) -> None:
        """Take a FORWARD body from the network, whatever it is; never raises for its content."""
        self.statistics.packets_received += 1
        reason = self._dispatch(payload, now_ns)
        if reason is not None:
            self.statistics.dropped[reason] += 1

    # -- Receiving -------------------------------------------------------------------

    def _dispatch(self, body: bytes, now_ns: int) -> DropReason | None:
        if self._ended or not self._started:
            return DropReason.CLOSED
        if not PACKET_HEADER.size <= len(body) <= MAX_BODY_BYTES:
            return DropReason.MALFORMED
        kind = body[PACKET_HEADER.size - 1]
        if kind in TRANSPORT_KINDS:
            return self._on_transport(ChannelKind(kind), body, now_ns)
        rest = body[PACKET_HEADER.size :]
        try:
            if self._role is Role.SERVER and kind == ChannelKind.MESSAGE_1:
                return self._on_message_1(rest)
            if self._role is Role.CLIENT and kind == ChannelKind.MESSAGE_2:
                return self._on_message_2(rest, now_ns)
            if self._role is Role.SERVER and kind == ChannelKind.MESSAGE_3:
                return self._on_message_3(rest, now_ns)
            if self._role is Role.CLIENT and kind == ChannelKind.KNOCK:
                return self._on_knock(now_ns)
        except HandshakeError:
            return DropReason.BAD_HANDSHAKE
        known = kind in (
            ChannelKind.MESSAGE_1,
            ChannelKind.MESSAGE_2,
            ChannelKind.MESSAGE_3,
            ChannelKind.KNOCK,
        )
        return DropReason.UNEXPECTED if known else DropReason.MALFORMED

    def _on_transport(self, kind: ChannelKind, body: bytes, now_ns: int) -> DropReason | None:
        before = self._keys.current.receive_epoch if self._keys.current else 0
        opened = self._keys.open(body, now_ns)
        if isinstance(opened, DropReason):
            return opened
        self.heard_ns = now_ns
        slot, data = opened
        if slot is Slot.CANDIDATE and self._candidate_result is not None:
            self._complete(self._candidate_result)
            self._stop_attempt()
        elif slot is Slot.CURRENT and self._keys.current is not None:
            self.statistics.rekeys_received += self._keys.current.receive_epoch - before
        if kind is ChannelKind.DATA:
            self.statistics.datagrams_received += 1
            self._events.append(DataReceived(data))
        elif kind is ChannelKind.CONFIRM:
            # Empty ones are keepalives; a longer or unknown content is of a later version.
            if len(data) == 1 and data[0] < len(ProbeStage):
                self._events.append(ProbeReceived(ProbeStage(data[0])))
        elif kind is ChannelKind.CLOSE:
            if slot is Slot.PREVIOUS and self._peer_was_restarted:
                return DropReason.SUPERSEDED
            self._end(ChannelClosed(by_remote=True))
        return None

    def _on_message_1(self, message_1: bytes) -> DropReason | None:
        if self._responder is not None:
            self._emit(ChannelKind.MESSAGE_2, self._responder.answer_message_1(message_1))
        return None

    def _on_message_2(self, message_2: bytes, now_ns: int) -> DropReason | None:
        attempt = self._initiator
        if attempt is None:
            return DropReason.UNEXPECTED
        if attempt.message_3 is not None and attempt.is_accepted(message_2):
            self.statistics.handshake_retransmits += 1
            self._emit(ChannelKind.MESSAGE_3, attempt.message_3)
            return None
        result = attempt.read_message_2(message_2, self._is_right_peer)
        if result is None or attempt.message_3 is None:
            return DropReason.WRONG_IDENTITY
        self._candidate_result = result
        self._keys.candidate = Transport(result.keys, now_ns, self._limits)
        self._backoff = Backoff(self._limits, now_ns)
        self._emit(ChannelKind.MESSAGE_3, attempt.message_3)
        return None

    def _on_message_3(self, message_3: bytes, now_ns: int) -> DropReason | None:
        if self._responder is None:
            return DropReason.UNEXPECTED
        if self._responder.is_settled(message_3):
            self._emit_sealed(ChannelKind.CONFIRM, b"", now_ns)
            return None
        result = self._responder.read_message_3(message_3)
        if not self._is_right_peer(result.remote_static):
            return DropReason.WRONG_IDENTITY
        self._responder.settle(message_3)
        self._deadline_ns = self._backoff = None
        self._keys.install(Transport(result.keys, now_ns, self._limits))
        self._complete(result)
        self._emit_sealed(ChannelKind.CONFIRM, b"", now_ns)
        return None

    def _on_knock(self, now_ns: int) -> DropReason | None:
        if self._initiator is None:
            if now_ns - self._attempt_began_ns < self._limits.restart_interval_ns:
                return DropReason.UNEXPECTED
            self._begin_attempt(now_ns)
        elif now_ns - self._last_message_1_ns >= self._limits.retransmit_initial_ns:
            self.statistics.handshake_retransmits += 1
            self._emit_message_1(self._initiator, now_ns)
        return None

    def _is_right_peer(self, remote_static: bytes) -> bool:
        if self._remote_static is not None:
            return hmac.compare_digest(remote_static, self._remote_static)
        return self._verify_remote_static(remote_static)

    # -- Handshake -------------------------------------------------------------------

    def _begin_attempt(self, now_ns: int) -> None:
        self._initiator = InitiatorHandshake(self._identity)
        self._attempt_began_ns = now_ns
        self._deadline_ns = now_ns + self._limits.handshake_deadline_ns
        self._backoff = Backoff(self._limits, now_ns)
        self._emit_message_1(self._initiator, now_ns)

    def _stop_attempt(self) -> None:
        self._initiator = None
        self._deadline_ns = self._backoff = None

    def _retransmit(self, now_ns: int) -> None:
        self.statistics.handshake_retransmits += 1
        if self._initiator is None:
            self._emit(ChannelKind.KNOCK)
        elif self._initiator.message_3 is None:
            self._emit_message_1(self._initiator, now_ns)
        else:
            self._emit(ChannelKind.MESSAGE_3, self._initiator.message_3)

    def _complete(self, result: HandshakeResult) -> None:
        self.statistics.handshakes_completed += 1
        is_first = self._remote_static is None
        is_restart = not is_first and result.remote_instance_id != self._remote_instance_id
        self._remote_static = result.remote_static
        self._remote_instance_id = result.remote_instance_id
        self._candidate_result = None
        self._peer_was_restarted = is_restart
        if is_first or is_restart:
            self._events.append(HandshakeCompleted(result.remote_static, is_restart))

    def _give_up(self) -> None:
        if self.is_established:
            # The candidate stays: the peer may hold its keys, and may answer when the
            # path heals.
            self._stop_attempt()
        elif self.statistics.dropped[DropReason.WRONG_IDENTITY]:
            self._end(ChannelFailed(FailureReason.WRONG_IDENTITY))
        else:
            self._end(ChannelFailed(FailureReason.HANDSHAKE_TIMEOUT))

    def _end(self, event: ChannelClosed | ChannelFailed) -> None:
        self._ended = True
        self._keys.clear()
        self._stop_attempt()
        self._responder = None
        self._candidate_result = None
        self._events.append(event)

    # -- Sending ---------------------------------------------------------------------

    def _emit(self, kind: ChannelKind, rest: bytes = b"") -> None:
        self._outgoing.append(PACKET_HEADER.pack(self._take_sequence(), kind) + rest)
        self.statistics.packets_sent += 1

    def _emit_message_1(self, attempt: InitiatorHandshake, now_ns: int) -> None:
        self._last_message_1_ns = now_ns
        self._emit(ChannelKind.MESSAGE_1, attempt.message_1)

    def _emit_sealed(self, kind: ChannelKind, data: bytes, now_ns: int) -> None:
        transport = self._keys.current
        if transport is None:
            raise LocalError("the channel is not established: wait for HandshakeCompleted")
        self._outgoing.append(self._seal(transport, kind, data, now_ns))

    def _seal(self, transport: Transport, kind: ChannelKind, data: bytes, now_ns: int) -> bytes:
        before = transport.send_epoch
        body = transport.seal(kind, self._take_sequence(), data, now_ns)
        self.statistics.packets_sent += 1
        self.statistics.rekeys_sent += transport.send_epoch - before
        return body

    def _take_sequence(self) -> int:
        sequence = self._next_sequence
        if sequence > MAX_SEQUENCE:
            raise LocalError("sequences are used up: open a new session")
        self._next_sequence = sequence + 1
        return sequence
