"""A UDP socket at a relay, driven by gevent around the sans-I/O `RelayPath` of the peer package.

Datagrams are read in the callback of the event loop, not by a greenlet of their own: at 60 frames a
second and many sessions a switch per datagram would be most of the work.  Nothing here blocks but
`present`, `prove` and `renew`, which wait for the relay's answer.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import gevent
import gevent.socket
from gevent.event import Event

from loadtest.run.load_run import LoadFailure, now_ns
from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.paths.relay import RelayPath
from wavry_peer.paths.relay_events import (
    ForwardReceived,
    LeaseRenewed,
    NoticeReceived,
    PathFailed,
    PathReady,
    RenewalFailed,
)
from wavry_peer.protocol.constants import RECEIVE_BUFFER_BYTES, NoticeCode, RejectReason, Role
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.service.settings import parse_address

__all__ = ["RelayChannel"]

_SOCKET_BUFFER_BYTES: Final = 1 << 20
"""Some hundred datagrams: many sessions may burst while this process has something else to do."""
_READS_PER_TURN: Final = 64
_READ: Final = 1
_SECOND_NS: Final = 1_000_000_000
_PROOF_NS: Final = 10 * _SECOND_NS
_PROOF_TURN_S: Final = 0.002


def _reason(reason: RejectReason | int | None) -> str:
    if reason is None:
        return "no answer"
    return f"rejected: {reason.name if isinstance(reason, RejectReason) else hex(reason)}"


class RelayChannel:
    """One peer's place at one relay.

    Args:
        address: of the relay, as a lease names it.
        session_id: 16 bytes.
        role: our slot.
        lease: ours.
        signing: the key that the lease is bound to.
        on_body: called in the event loop with each FORWARD body and the time; must not block.

    Attributes:
        lease: the one in use.
        failure: why the path is of no use any more, or None.
        wants_leave: the relay said that it drains or stops.
        unsent: datagrams that the kernel did not take.
    """

    def __init__(
        self,
        address: str,
        *,
        session_id: bytes,
        role: Role,
        lease: OwnLease,
        signing: SigningKey,
        on_body: Callable[[bytes, int], None],
    ) -> None:
        self.lease = lease
        self.failure: str | None = None
        self.wants_leave = False
        self.unsent = 0
        self._on_body = on_body
        self._path = RelayPath(
            session_id=session_id,
            role=role,
            lease=lease,
            sign=signing.sign,
            first_counter=time.time_ns() // 1000,
        )
        self._answered = Event()
        self._refusal: str | None = None
        host, port = parse_address(address)
        family = gevent.socket.AF_INET6 if ":" in host else gevent.socket.AF_INET
        self._socket = gevent.socket.socket(family, gevent.socket.SOCK_DGRAM)
        try:
            for option in (gevent.socket.SO_RCVBUF, gevent.socket.SO_SNDBUF):
                self._socket.setsockopt(gevent.socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
            self._socket.settimeout(0)
            self._socket.connect((host, port))
        except OSError as error:
            self._socket.close()
            raise LoadFailure(f"no way to the relay: {error.strerror}") from error
        self._watcher: Any = gevent.get_hub().loop.io(self._socket.fileno(), _READ)
        self._watcher.start(self._readable)

    def present(self) -> None:
        """Present the lease and wait until the relay has taken it.

        Raises:
            LoadFailure: it was rejected, or nothing answered.
        """
        self._answered.clear()
        self._path.start(now_ns())
        self._await_answer()

    def prove(self) -> None:
        """Wait until the relay has our answer to its challenge, and so sends us all that is ours.

        Raises:
            LoadFailure: it did not take it.
        """
        deadline_ns = now_ns() + _PROOF_NS
        while not self._path.is_proved:
            if self.failure is not None or now_ns() >= deadline_ns:
                raise LoadFailure(self.failure or "our address is not proved")
            gevent.sleep(_PROOF_TURN_S)
            self.tick()

    def renew(self, lease: OwnLease) -> None:
        """Bring the relay the next lease and wait until it has taken it.

        Raises:
            LoadFailure: it was rejected, or nothing answered; the one before is still in use.
        """
        if not self._path.is_ready:
            raise LoadFailure(self.failure or "the path is gone")
        self._answered.clear()
        self._refusal = None
        self._path.renew(lease, now_ns())
        self._await_answer()
        self.lease = lease

    def send(self, bodies: Iterable[bytes]) -> None:
        """Send FORWARD bodies; what the kernel does not take is counted and lost."""
        for body in bodies:
            self._path.send(body)
        self._flush()

    def tick(self) -> None:
        """Do what is due; to be called at least every 100 ms while nothing else happens."""
        self._path.handle_timer(now_ns())
        self._settle()

    def close(self) -> None:
        """Give the place back and close the socket; again it does nothing."""
        if self._watcher is None:
            return
        self._path.release()
        self._flush()
        self._path.close()
        self._watcher.stop()
        self._watcher.close()
        self._watcher = None
        self._socket.close()

    # -- Inside ------------------------------------------------------------------------

    def _await_answer(self) -> None:
        self._settle()
        while not self._answered.is_set():
            due_ns = self._path.get_timer()
            wait_s = 1.0 if due_ns is None else max(0, due_ns - now_ns()) / _SECOND_NS
            if not self._answered.wait(wait_s):
                self.tick()
        if self._refusal is not None:
            raise LoadFailure(self._refusal)

    def _readable(self) -> None:
        for _ in range(_READS_PER_TURN):
            try:
                datagram = self._socket.recv(RECEIVE_BUFFER_BYTES)
            except BlockingIOError:
                break
            except OSError:
                break  # an ICMP error of a datagram sent before; silence will tell
            self._path.receive_datagram(datagram, now_ns())
        self._settle()

    def _settle(self) -> None:
        """Act on what the path says, and send what it wants sent."""
        while (event := self._path.next_event()) is not None:
            match event:
                case ForwardReceived():
                    self._on_body(event.body, now_ns())
                case PathReady() | LeaseRenewed():
                    self._answered.set()
                case RenewalFailed():
                    self._refuse(event.reason)
                case PathFailed():
                    self.failure = f"path lost, {_reason(event.reason)}"
                    self._refuse(event.reason)
                case NoticeReceived():
                    if event.code in (NoticeCode.DRAINING, NoticeCode.SHUTDOWN):
                        self.wants_leave = True
        self._flush()

    def _refuse(self, reason: RejectReason | int | None) -> None:
        self._refusal = _reason(reason)
        self._answered.set()

    def _flush(self) -> None:
        for datagram in self._path.datagrams_to_send():
            try:
                self._socket.send(datagram)
            except OSError:  # a full buffer, or an ICMP error of a datagram sent before
                self.unsent += 1
