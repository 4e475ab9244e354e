"""A path through a relay (protocol.md sections 1 and 3, the peer's side), sans I/O.

Strategy: every lease packet is an *exchange*: it is signed anew (with the next counter) for each
transmission, repeated with a doubling wait, and ends by an ACK, by a refusal that was
repeated, or by its deadline.  There is at most one exchange at a time::

    start      -> exchange(PRESENT)                 ACK -> PathReady     fails -> PathFailed
    renew      -> exchange(RENEW, then PRESENT)     ACK -> LeaseRenewed  fails -> RenewalFailed
    silence, REJECT or PATH_CHALLENGE out of the blue
               -> exchange(PRESENT), a check        ACK -> (nothing)     fails -> PathFailed

All answers of a relay are unauthenticated.  So a REJECT alone ends nothing: it makes us ask
again, and only refusals of several different packets, with no ACK between, are believed.  An
ACK never makes a lease longer than its own token says.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import LocalError, PacketError
from wavry_peer.protocol.packets import (
    LeaseAck,
    LeaseReject,
    Notice,
    PathChallenge,
    build_forward,
    build_present,
    parse_packet,
)

from .own_lease import OwnLease
from .relay_events import (
    ForwardReceived,
    LeaseRenewed,
    NoticeReceived,
    PathEvent,
    PathFailed,
    PathLimits,
    PathReady,
    PathStatistics,
    RenewalFailed,
)

__all__ = ["RelayPath"]

FINAL_REASONS: Final = frozenset(
    {
        c.RejectReason.EXPIRED,
        c.RejectReason.INVALID_SIGNATURE,
        c.RejectReason.WRONG_RELAY,
        c.RejectReason.SESSION_FULL,
        c.RejectReason.BANNED,
        c.RejectReason.REVOKED,
        c.RejectReason.DRAINING,
    }
)
"""Asking the same relay again will not help.  The others pass by themselves: a limit, a key set
on its way, clocks that differ, a counter that must grow."""

_DEFAULT_LIMITS: Final = PathLimits()
_MIN_FORWARD_BYTES: Final = c.HEADER_BYTES + c.FORWARD_SEQUENCE_BYTES


@dataclass(slots=True)
class _Exchange:
    lease: OwnLease
    is_renewal: bool
    cookie: bytes
    wait_ns: int
    deadline_ns: int
    due_ns: int = 0
    sent: int = 0
    last_sent_ns: int = 0
    rejects: int = 0
    reason: c.RejectReason | int | None = None


class RelayPath:
    """One peer's way through one relay.

    The owner feeds `receive_datagram` and `handle_timer`, and after each call of any method
    sends what `datagrams_to_send` gives, drains `next_event`, and asks `get_timer`.  Times are
    nanoseconds of any clock that never goes back.

    Attributes:
        lease: the one in use; for reading only.
        statistics: counters, for reading only.
    """

    def __init__(
        self,
        *,
        session_id: bytes,
        role: c.Role,
        lease: OwnLease,
        sign: Callable[[bytes], bytes],
        first_counter: int,
        limits: PathLimits = _DEFAULT_LIMITS,
    ) -> None:
        """Make a path that does nothing before `start`.

        Args:
            session_id: 16 bytes.
            role: our slot.
            lease: ours, from `read_own_lease`.
            sign: makes the 64 bytes of Ed25519 signature by the key the lease is bound to.
            first_counter: of the first proof.  Unix microseconds, so that a restarted peer
                begins higher than it ended.
            limits: times and counts.
        """
        self.lease = lease
        self.statistics = PathStatistics()
        self._session_id = session_id
        self._role = role
        self._sign = sign
        self._counter = first_counter
        self._limits = limits
        self._forward_header = build_forward(session_id, b"")
        self._exchange: _Exchange | None = None
        self._is_ready = False
        self._ended = False
        self._last_heard_ns = 0
        self._checks_until_ns: int | None = None
        self._proved_cookie = c.NO_COOKIE
        self._proved_ns = 0
        self._prove_at_ns: int | None = None
        self._outgoing: list[bytes] = []
        self._events: deque[PathEvent] = deque()

    @property
    def is_ready(self) -> bool:
        """True once the relay has acknowledged a lease, until the path failed or was closed."""
        return self._is_ready and not self._ended

    @property
    def is_proved(self) -> bool:
        """True once the relay took a packet of ours that carried its cookie.

        Until then it sends us at most three times the bytes that we sent (protocol.md section 1).
        """
        return self.is_ready and self._proved_cookie != c.NO_COOKIE

    def knows(self, lease: OwnLease) -> bool:
        """Whether the relay has acknowledged a lease, or is being asked to."""
        exchange = self._exchange
        asked = exchange is not None and exchange.lease.token == lease.token
        return asked or self.lease.token == lease.token

    def start(self, now_ns: int) -> None:
        """Present the lease.

        Raises:
            LocalError: it was started or closed before.
        """
        if self._ended or self._exchange is not None or self._is_ready:
            raise LocalError("a path is started once: make a new one")
        self._begin(self.lease, now_ns, is_renewal=False)

    def renew(self, lease: OwnLease, now_ns: int) -> None:
        """Bring the relay a new lease of the same session.

        Raises:
            LocalError: the path is not ready, or the lease is for another relay.
        """
        if not self.is_ready:
            raise LocalError("the path is not ready")
        if lease.relay_id != self.lease.relay_id:
            raise LocalError("the lease is for another relay: make a new path")
        self._begin(lease, now_ns, is_renewal=True)

    def send(self, body: bytes) -> None:
        """Queue a FORWARD around a channel packet; dropped and counted while not ready."""
        if not self.is_ready:
            self._drop("not_ready")
            return
        self.statistics.forwards_sent += 1
        self._outgoing.append(self._forward_header + body)

    def release(self) -> None:
        """Tell the relay that its slot is free, as the last word before `close`.

        Sent once and not answered: if it is lost, the slot ends when it was idle long enough.
        """
        if self.is_ready:
            self._outgoing.append(
                build_present(
                    self._session_id,
                    self._role,
                    self.lease.token,
                    counter=self._counter,
                    cookie=c.RELEASE_COOKIE,
                    sign=self._sign,
                    renew=True,
                )
            )
            self._counter += 1

    def close(self) -> None:
        """Stop; nothing is sent or told any more."""
        self._ended = True
        self._exchange = None

    def datagrams_to_send(self) -> list[bytes]:
        """Take the queued datagrams, in order."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_event(self) -> PathEvent | None:
        """Take the oldest event, or None."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> int | None:
        """Return when to call `handle_timer`, in ns of the caller's clock; None for never."""
        if self._exchange is not None:
            return min(self._exchange.due_ns, self._exchange.deadline_ns)
        if not self.is_ready:
            return None
        silent_ns = self._last_heard_ns + self._limits.silence_ns
        return silent_ns if self._prove_at_ns is None else min(silent_ns, self._prove_at_ns)

    def handle_timer(self, now_ns: int) -> None:
        """Do what is due; calling it early does no harm."""
        exchange = self._exchange
        if exchange is None:
            due_ns = self.get_timer()
            if due_ns is not None and now_ns >= due_ns:
                self._prove_at_ns = None
                self._begin_check(now_ns)
        elif now_ns >= exchange.deadline_ns:
            self._fail(exchange)
        elif now_ns >= exchange.due_ns:
            exchange.wait_ns = min(exchange.wait_ns * 2, self._limits.retransmit_max_ns)
            self._transmit(exchange, now_ns)

    def receive_datagram(self, datagram: bytes, now_ns: int) -> None:
        """Take a datagram from the relay's address, whatever it is; never raises for it."""
        if self._ended:
            self._drop("closed")
            return
        # Nearly every packet is a FORWARD of this session: one comparison checks magic,
        # version, type, flags and session id.
        if datagram.startswith(self._forward_header):
            if not _MIN_FORWARD_BYTES <= len(datagram) <= c.MAX_DATAGRAM_BYTES:
                self._drop("bad_body")
                return
            self._last_heard_ns = now_ns
            self.statistics.forwards_received += 1
            self._events.append(ForwardReceived(datagram[c.HEADER_BYTES :]))
            return
        try:
            packet = parse_packet(datagram)
        except PacketError as error:
            self._drop(error.reason)
            return
        if packet.header.session_id != self._session_id:
            self._drop("wrong_session")
            return
        match packet.body:
            case LeaseAck():
                self._on_ack(packet.body, now_ns)
            case LeaseReject():
                self._on_reject(packet.body, now_ns)
            case PathChallenge():
                self._on_challenge(packet.body, now_ns)
            case Notice():
                self.statistics.notices += 1
                self._events.append(NoticeReceived(packet.body.code))
            case _:
                self._drop("unexpected_type")

    # -- Answers of the relay ----------------------------------------------------------

    def _on_ack(self, ack: LeaseAck, now_ns: int) -> None:
        exchange = self._exchange
        if exchange is None:
            self._drop("unexpected_ack")
            return
        if exchange.is_renewal and ack.expires_ms < exchange.lease.expires_ms:
            # A late answer about the lease before; the new one is not in use yet.
            self._drop("stale_ack")
            return
        self.statistics.acks += 1
        self._last_heard_ns = now_ns
        if exchange.sent == 1:
            self.statistics.round_trip_ns = now_ns - exchange.last_sent_ns
        self._exchange = None
        self._proved_cookie, self._proved_ns = exchange.cookie, now_ns
        self.lease = exchange.lease
        expires_ms = min(ack.expires_ms, exchange.lease.expires_ms)
        if not self._is_ready:
            self._is_ready = True
            if exchange.cookie == c.NO_COOKIE:
                self._prove_at_ns = now_ns + self._limits.challenge_wait_ns
            self._events.append(PathReady(expires_ms, ack.reflexive))
        elif exchange.is_renewal:
            self._events.append(LeaseRenewed(expires_ms))

    def _on_reject(self, reject: LeaseReject, now_ns: int) -> None:
        self.statistics.rejects += 1
        exchange = self._exchange
        if exchange is None:
            self._begin_check(now_ns)
            return
        # At most one for each packet of ours: a burst of forged ones counts once.
        if exchange.rejects < exchange.sent:
            exchange.rejects += 1
            exchange.reason = reject.reason
        is_final = reject.reason in FINAL_REASONS
        if is_final and exchange.rejects >= self._limits.rejects_to_believe:
            self._fail(exchange)

    def _on_challenge(self, challenge: PathChallenge, now_ns: int) -> None:
        self.statistics.challenges += 1
        self._prove_at_ns = None
        exchange, limits = self._exchange, self._limits
        if exchange is None:
            since_ns = now_ns - self._proved_ns
            if challenge.cookie == self._proved_cookie and since_ns < limits.check_interval_ns:
                # A cookie stands for an address: this one was proved, and the challenge was
                # on its way meanwhile.
                self._drop("late_challenge")
                return
            self._begin_check(now_ns, challenge.cookie)
            return
        is_first = exchange.cookie == c.NO_COOKIE
        exchange.cookie = challenge.cookie
        since_ns = now_ns - exchange.last_sent_ns
        if is_first or since_ns >= limits.challenge_interval_ns:
            self._transmit(exchange, now_ns)

    # -- Exchanges ---------------------------------------------------------------------

    def _begin_check(self, now_ns: int, cookie: bytes = c.NO_COOKIE) -> None:
        interval_ns = self._limits.check_interval_ns
        until_ns = max(now_ns, self._checks_until_ns or now_ns)
        if not self.is_ready or until_ns - now_ns > (self._limits.check_burst - 1) * interval_ns:
            self._drop("check_limited")
            return
        self._checks_until_ns = until_ns + interval_ns
        self._begin(self.lease, now_ns, is_renewal=False, cookie=cookie)

    def _begin(
        self, lease: OwnLease, now_ns: int, *, is_renewal: bool, cookie: bytes = c.NO_COOKIE
    ) -> None:
        self._exchange = _Exchange(
            lease,
            is_renewal,
            cookie,
            wait_ns=self._limits.retransmit_initial_ns,
            deadline_ns=now_ns + self._limits.deadline_ns,
        )
        self._transmit(self._exchange, now_ns)

    def _transmit(self, exchange: _Exchange, now_ns: int) -> None:
        self._outgoing.append(
            build_present(
                self._session_id,
                self._role,
                exchange.lease.token,
                counter=self._counter,
                cookie=exchange.cookie,
                sign=self._sign,
                renew=exchange.is_renewal and exchange.sent < self._limits.renews_before_present,
            )
        )
        self._counter += 1
        self.statistics.presents_sent += 1
        exchange.sent += 1
        exchange.last_sent_ns = now_ns
        exchange.due_ns = now_ns + exchange.wait_ns

    def _fail(self, exchange: _Exchange) -> None:
        self._exchange = None
        if exchange.is_renewal:
            self._events.append(RenewalFailed(exchange.reason))
        else:
            self._ended = True
            self._events.append(PathFailed(exchange.reason))

    def _drop(self, reason: str) -> None:
        self.statistics.dropped[reason] = self.statistics.dropped.get(reason, 0) + 1
