"""Takes slots on a relay: many leases presented at once over raw sockets.

Each request goes out again with the next counter when no answer came.  A PATH_CHALLENGE is
answered with its cookie.  The sockets are handed to the generator afterwards, so that the relay
sees the same addresses.
"""

import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_peer.protocol.errors import PacketError
from wavry_peer.protocol.packets import SessionId

from .bench_master import BenchMaster, MintedLease
from .sessions import Endpoints, SessionPlan

__all__ = ["AdmissionError", "PresentRequest", "admit", "prepare"]

_WINDOW: Final = 64
"""Requests in flight: keeps a worker busy and stays far below its socket buffer."""
_RETRY_S: Final = 1.0
_MAX_TRIES: Final = 8
_SLEEP_S: Final = 0.05
_PROOF_S: Final = 1.0
"""A relay that has not challenged by then does not want to."""

_UDP_GRO: Final = 104
"""Linux; not in Python's socket module."""

Address = tuple[str, int]


class AdmissionError(RuntimeError):
    """The relay rejected a lease or did not answer; the message has the reason."""


@dataclass(slots=True)
class PresentRequest:
    """One lease on its way: packet, sender socket, and when it was last sent."""

    session_id: SessionId
    role: c.Role
    lease: MintedLease
    socket: socket.socket
    packet: bytes
    counter: int = 1
    cookie: bytes = c.NO_COOKIE
    tries: int = 0
    sent_at_s: float = 0.0

    def rebuild(self) -> None:
        """Sign again with the next counter."""
        self.counter += 1
        self.packet = packets.build_present(
            self.session_id,
            self.role,
            self.lease.token,
            counter=self.counter,
            cookie=self.cookie,
            sign=self.lease.proof_key.sign,
        )


def prepare(
    master: BenchMaster,
    relay_id: str,
    plans: Iterable[SessionPlan],
    endpoints: Endpoints,
) -> Iterator[PresentRequest]:
    """Mint both leases of each session and build their LEASE_PRESENT packets, as they are used."""
    for plan in plans:
        sides = (
            (c.Role.CLIENT, endpoints.clients[plan.client]),
            (c.Role.SERVER, endpoints.servers[plan.server]),
        )
        for role, opened in sides:
            minted = master.mint(plan.session_id, role, relay_id, now_s=int(time.time()))
            packet = packets.build_present(
                plan.session_id,
                role,
                minted.token,
                counter=1,
                sign=minted.proof_key.sign,
            )
            yield PresentRequest(plan.session_id, role, minted, opened, packet)


class _Admission:
    def __init__(self, target: Address, sockets: Sequence[socket.socket], *, proves: bool) -> None:
        self._target = target
        self._poller = select.epoll()
        self._sockets = {opened.fileno(): opened for opened in sockets}
        for fd, opened in self._sockets.items():
            self._poller.register(fd, select.EPOLLIN)
            # The generator may have had it on: ACK and challenge would come as one datagram.
            opened.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 0)
        self.waiting: dict[tuple[bytes, int], PresentRequest] = {}
        self.unproved: dict[tuple[bytes, int], PresentRequest] = {}
        self.proves = proves
        self.is_challenged = False
        self.admitted = 0

    def close(self) -> None:
        self._poller.close()

    def send(self, request: PresentRequest, role_key: int) -> None:
        request.tries += 1
        if request.tries > _MAX_TRIES:
            raise AdmissionError("the relay does not answer LEASE_PRESENT")
        request.sent_at_s = time.monotonic()
        self.waiting[(request.session_id, role_key)] = request
        request.socket.sendto(request.packet, self._target)

    def receive(self, timeout_s: float) -> None:
        for fd, _ in self._poller.poll(timeout_s):
            self._drain(self._sockets[fd])

    def _drain(self, opened: socket.socket) -> None:
        while True:
            try:
                datagram = opened.recv(c.RECEIVE_BUFFER_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            try:
                packet = packets.parse_packet(datagram)
            except PacketError:
                continue  # a FORWARD of an earlier run that was cut; not ours to judge
            self._answer(packet, opened.fileno())

    def _answer(self, packet: packets.Packet, fd: int) -> None:
        key = (packet.header.session_id, fd)
        request = self.waiting.get(key) or self.unproved.get(key)
        if request is None:
            return
        if isinstance(packet.body, packets.LeaseAck):
            self.admitted += self.waiting.pop(key, None) is not None
            if request.cookie == c.NO_COOKIE:
                self.unproved[key] = request
            else:
                self.unproved.pop(key, None)
        elif isinstance(packet.body, packets.PathChallenge):
            self.is_challenged = True
            if self.unproved.get(key) is request and not self.proves:
                del self.unproved[key]
                return
            request.cookie = packet.body.cookie
            request.rebuild()
            if key in self.unproved:
                request.socket.sendto(request.packet, self._target)
            else:
                self.send(request, fd)
        elif isinstance(packet.body, packets.LeaseReject):
            reason = packet.body.reason
            name = reason.name if isinstance(reason, c.RejectReason) else hex(reason)
            raise AdmissionError(f"the relay rejected a lease of the bench: {name}")

    def retry(self) -> None:
        late = time.monotonic() - _RETRY_S
        for (_, fd), request in list(self.waiting.items()):
            if request.sent_at_s < late:
                request.rebuild()
                self.send(request, fd)

    def prove_rest(self) -> None:
        """Wait until every address is proved; present again where a datagram was lost."""
        for _ in range(_MAX_TRIES):
            end = time.monotonic() + _PROOF_S
            while self.unproved and time.monotonic() < end:
                self.receive(_SLEEP_S)
            if not self.unproved or not self.is_challenged:
                return
            for request in self.unproved.values():
                request.rebuild()
                request.socket.sendto(request.packet, self._target)
        raise AdmissionError("an address of the bench could not be proved to the relay")


def admit(
    target: Address,
    requests: Iterable[PresentRequest],
    endpoints: Endpoints,
    *,
    window: int = _WINDOW,
    deadline_s: float = 300.0,
    polling: bool = False,
    proves: bool = True,
) -> int:
    """Present leases until each is acknowledged.

    Args:
        target: IPv4 address of the relay.
        requests: from `prepare`; drawn as the window allows.
        endpoints: sockets of the requests.
        window: requests in flight at most.
        deadline_s: for all of them.
        polling: never sleep: then no answer has to wake this process, which would be counted as
            the relay's work.  Only with a core to spare.
        proves: answer the challenge of each address too, so that it gets all that is sent to it.

    Returns:
        How many were acknowledged.

    Raises:
        AdmissionError: a rejection, no answer after 8 tries, or the deadline.
    """
    admission = _Admission(target, (*endpoints.clients, *endpoints.servers), proves=proves)
    source = iter(requests)
    end = time.monotonic() + deadline_s
    exhausted = False
    next_retry = time.monotonic() + _RETRY_S
    try:
        while not exhausted or admission.waiting:
            while not exhausted and len(admission.waiting) < window:
                request = next(source, None)
                if request is None:
                    exhausted = True
                    break
                admission.send(request, request.socket.fileno())
            admission.receive(0 if polling else _SLEEP_S)
            now = time.monotonic()
            if now > next_retry:
                admission.retry()
                next_retry = now + _RETRY_S
            if now > end:
                raise AdmissionError(
                    f"{admission.admitted} leases were admitted in {deadline_s:g} s, others not"
                )
        admission.prove_rest()
        return admission.admitted
    finally:
        admission.close()
