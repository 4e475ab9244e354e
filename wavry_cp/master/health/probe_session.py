"""One session of the master's own through one endpoint of a relay, sans I/O.

The master is both peers, so it needs nobody's help and sees both ends of every datagram.  Each
step is taken only after the one before was answered, so that an address that somebody else
registered gets little: three STUN requests of 48 bytes, as no relay is there to answer them::

    STUN      the endpoint answers, to an identifier that only this address was sent
    client    LEASE_PRESENT until ACK         -> refused, unacknowledged
    server    LEASE_PRESENT until ACK
    proof     both addresses, as the relay challenges them
    payload   small to large, both directions at once; what is missing, once more
    release   both slots, so that the relay is rid of the session at once

The steps with leases are `RelayPath`, the core that real peers use.  Nobody who reads a fault here
can blame a client that differs.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.paths.relay import RelayPath
from wavry_peer.paths.relay_events import ForwardReceived, PathFailed, PathLimits
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import PacketError
from wavry_peer.protocol.relay_terms import ProbeFault
from wavry_peer.protocol.stun import build_binding_request, parse_mapped_address

from .probe_outcome import ProbeOutcome

__all__ = ["ProbePeer", "ProbeSession"]

_MS_NS: Final = 1_000_000
MAX_UNANSWERED: Final = 3
"""Packets to an endpoint that has not answered the step before."""
RETRY_NS: Final = 250 * _MS_NS
"""First wait for an answer, then doubled: longer than most ways round the world."""
STEP_NS: Final = 1500 * _MS_NS
PROOF_NS: Final = 1500 * _MS_NS
PAYLOAD_NS: Final = 500 * _MS_NS
"""How long a round of datagrams may be under way; late ones count as lost, as in a call."""
ROUNDS: Final = 2
SIZES_BYTES: Final = (100, 100, 600, 600, 1200, 1200)
"""Whole datagrams: speech, data, and the largest that every path must carry (RFC 9000 §14)."""
LARGE_BYTES: Final = 1000
LATE_NS: Final = 200 * _MS_NS
"""A timer that fires later says that this process stood still, not that the relay did."""

_LIMITS: Final = PathLimits(
    retransmit_initial_ns=RETRY_NS,
    retransmit_max_ns=2 * RETRY_NS,
    deadline_ns=RETRY_NS + 2 * 2 * RETRY_NS,
    rejects_to_believe=2,
    challenge_wait_ns=2 * RETRY_NS,
)
_SEQUENCE: Final = struct.Struct("!Q")
_ROLES: Final = (c.Role.CLIENT, c.Role.SERVER)
_OTHER: Final = {c.Role.CLIENT: c.Role.SERVER, c.Role.SERVER: c.Role.CLIENT}


@dataclass(frozen=True, slots=True)
class ProbePeer:
    """One of the two peers: its key and the lease that is bound to it."""

    key: SigningKey
    lease: OwnLease


@dataclass(slots=True)
class _Sent:
    number: int
    body: bytes
    at_ns: int


class ProbeSession:
    """A session through one endpoint; `outcome` is None until it has ended.

    The owner sends what `datagrams_to_send` gives after each call of any method, and asks
    `get_timer`.  Times are nanoseconds of one clock that never goes back.

    Args:
        endpoint: of the relay.
        session_id: 16 random bytes, as both leases say.
        peers: client and server.
        stun_id: 12 random bytes.
        filler: random bytes, at least as many as the largest datagram.
        now_ns: the present.
    """

    def __init__(
        self,
        endpoint: str,
        session_id: bytes,
        peers: tuple[ProbePeer, ProbePeer],
        *,
        stun_id: bytes,
        filler: bytes,
        now_ns: int,
    ) -> None:
        self.endpoint = endpoint
        self.session_id = session_id
        self.stun_id = stun_id
        self.outcome: ProbeOutcome | None = None
        self._filler = filler
        self._paths = {
            role: RelayPath(
                session_id=session_id,
                role=role,
                lease=peer.lease,
                sign=peer.key.sign,
                # Of a key and a session that were never used before.
                first_counter=1,
                limits=_LIMITS,
            )
            for role, peer in zip(_ROLES, peers, strict=True)
        }
        self._outgoing: list[tuple[c.Role, bytes]] = []
        self._step: Callable[[int], None] = self._ask_stun
        self._asked = 0
        self._due_ns: int | None = now_ns
        self._proof_until_ns = 0
        self._was_late = False
        self._round = 0
        self._sequence = 0
        self._under_way: dict[c.Role, dict[int, _Sent]] = {role: {} for role in _ROLES}
        self._arrived: dict[c.Role, set[int]] = {role: set() for role in _ROLES}
        self._altered = 0
        self._times_ns: list[int] = []
        self._step(now_ns)

    def datagrams_to_send(self) -> list[tuple[c.Role, bytes]]:
        """Take the queued datagrams, each with the peer that sends it."""
        self._collect()
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def get_timer(self) -> int | None:
        """Return when to call `handle_timer`; None once it has ended."""
        if self.outcome is not None:
            return None
        timers = [path.get_timer() for path in self._paths.values()]
        return min((due for due in (*timers, self._due_ns) if due is not None), default=None)

    def handle_timer(self, now_ns: int) -> None:
        """Do what is due; what waits in the sockets must have been handed over before."""
        due_ns = self.get_timer()
        if due_ns is None or now_ns < due_ns:
            return
        self._was_late = self._was_late or now_ns - due_ns > LATE_NS
        for path in self._paths.values():
            path_due_ns = path.get_timer()
            if path_due_ns is not None and now_ns >= path_due_ns:
                path.handle_timer(now_ns)
        if self._due_ns is not None and now_ns >= self._due_ns:
            self._due_ns = None
            self._step(now_ns)
        self._drain_events(now_ns)

    def receive_datagram(self, role: c.Role, datagram: bytes, now_ns: int) -> None:
        """Take a datagram that came from the endpoint to one of the peers; never raises for it."""
        if self.outcome is not None:
            return
        if self._step == self._ask_stun:
            try:
                parse_mapped_address(datagram, self.stun_id)
            except PacketError:
                return
            self._present(c.Role.CLIENT, now_ns)
            return
        self._paths[role].receive_datagram(datagram, now_ns)
        self._drain_events(now_ns)

    def abandon(self) -> None:
        """End without a conclusion: this host has no route to the endpoint."""
        if self.outcome is None:
            self.outcome = ProbeOutcome(
                self.endpoint,
                None,
                "cannot be checked: the master has no route to it",
                is_conclusive=False,
                has_route=False,
            )

    # -- Steps -----------------------------------------------------------------------------

    def _ask_stun(self, now_ns: int) -> None:
        if self._asked == MAX_UNANSWERED:
            self._end(ProbeFault.SILENT, "does not answer")
            return
        self._outgoing.append((c.Role.CLIENT, build_binding_request(self.stun_id)))
        self._due_ns = now_ns + (RETRY_NS << self._asked)
        self._asked += 1

    def _present(self, role: c.Role, now_ns: int) -> None:
        self._step = self._wait_for_paths
        self._due_ns = None
        self._paths[role].start(now_ns)

    def _wait_for_paths(self, now_ns: int) -> None:
        """Go on as far as the relay's answers allow."""
        client, server = (self._paths[role] for role in _ROLES)
        if not client.is_ready:
            return
        if not server.is_ready:
            if server.get_timer() is None:
                self._present(c.Role.SERVER, now_ns)
            return
        if self._proof_until_ns == 0:
            self._proof_until_ns = self._due_ns = now_ns + PROOF_NS
        proved = client.is_proved and server.is_proved
        # Without the proof a relay forwards little; the payload will show it.
        if proved or now_ns >= self._proof_until_ns:
            self._step = self._send_round
            self._send_round(now_ns)

    def _send_round(self, now_ns: int) -> None:
        missing = [
            (role, number)
            for number in range(len(SIZES_BYTES))
            for role in _ROLES
            if number not in self._arrived[role]
        ]
        if self._round == ROUNDS or not missing:
            self._judge()
            return
        self._round += 1
        self._due_ns = now_ns + PAYLOAD_NS
        for role, number in missing:
            self._sequence += 1
            head = _SEQUENCE.pack(self._sequence)
            body = head + self._filler[: SIZES_BYTES[number] - c.HEADER_BYTES - len(head)]
            self._under_way[role][self._sequence] = _Sent(number, body, now_ns)
            self._paths[role].send(body)

    # -- Answers ---------------------------------------------------------------------------

    def _drain_events(self, now_ns: int) -> None:
        for role, path in self._paths.items():
            while self.outcome is None and (event := path.next_event()) is not None:
                if isinstance(event, PathFailed):
                    self._path_failed(event)
                elif isinstance(event, ForwardReceived):
                    self._take_payload(_OTHER[role], event.body, now_ns)
        if self.outcome is None and self._step == self._wait_for_paths:
            self._wait_for_paths(now_ns)

    def _path_failed(self, event: PathFailed) -> None:
        if event.reason is None:
            text = "answers STUN and leaves a lease unanswered"
            self._end(ProbeFault.UNACKNOWLEDGED, text)
            return
        known = isinstance(event.reason, c.RejectReason)
        name = c.RejectReason(event.reason).name if known else f"reason {event.reason}"
        self._end(ProbeFault.REFUSED, f"refuses a lease of the master: {name}", reason=name)

    def _take_payload(self, sender: c.Role, body: bytes, now_ns: int) -> None:
        sent = self._under_way[sender].pop(_SEQUENCE.unpack_from(body)[0], None)
        if sent is None:
            return
        if sent.body != body:
            self._altered += 1
            return
        self._arrived[sender].add(sent.number)
        self._times_ns.append(now_ns - sent.at_ns)
        if all(len(numbers) == len(SIZES_BYTES) for numbers in self._arrived.values()):
            self._judge()

    # -- The end ---------------------------------------------------------------------------

    def _judge(self) -> None:
        arrived = {
            role: [SIZES_BYTES[number] for number in numbers]
            for role, numbers in self._arrived.items()
        }
        if self._altered:
            self._end(ProbeFault.ALTERED, f"alters payload ({self._altered} datagrams)")
        elif not any(arrived.values()):
            self._end(ProbeFault.NO_PAYLOAD, "acknowledges leases and forwards nothing")
        elif not all(arrived.values()):
            lost = next(role for role, sizes in arrived.items() if not sizes)
            text = f"forwards nothing from {c.ROLE_NAMES[lost]} to {c.ROLE_NAMES[_OTHER[lost]]}"
            self._end(ProbeFault.ONE_WAY, text)
        elif any(max(sizes) < LARGE_BYTES for sizes in arrived.values()):
            self._end(ProbeFault.LARGE_LOST, f"forwards no datagram of {SIZES_BYTES[-1]} bytes")
        else:
            self._end(None, "")

    def _end(self, fault: ProbeFault | None, text: str, *, reason: str = "") -> None:
        if self.outcome is not None:
            return
        late = fault is not None and self._was_late
        times_ns = sorted(self._times_ns)
        self.outcome = ProbeOutcome(
            endpoint=self.endpoint,
            fault=fault,
            text="this master was late itself" if late else text,
            reason=reason,
            sent=self._sequence,
            arrived=len(times_ns),
            rtt_ms=times_ns[len(times_ns) // 2] / _MS_NS if times_ns else None,
            is_conclusive=not late,
        )
        for path in self._paths.values():
            path.release()
        self._collect()
        for path in self._paths.values():
            path.close()

    def _collect(self) -> None:
        for role, path in self._paths.items():
            self._outgoing.extend((role, datagram) for datagram in path.datagrams_to_send())
