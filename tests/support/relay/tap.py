"""A tap between peers and their relay: which kinds of packets went which way, in their order."""

import selectors
import socket
import threading
from contextlib import suppress
from typing import NamedTuple, Self

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.channel.wire import TRANSPORT_KINDS

Endpoint = tuple[str, int]
_COOKIE = slice(-72, -64)


class Passed(NamedTuple):
    """A packet of one peer: PRESENT, PROOF (one with a cookie), HANDSHAKE, DATA, ACK, CHALLENGE."""

    is_outgoing: bool
    kind: str


def kind_of(datagram: bytes) -> str:
    """Tell what a packet is for."""
    if datagram[0] != c.MAGIC:
        return "STUN"
    kind = c.PacketType(datagram[2])
    if kind is c.PacketType.FORWARD:
        is_data = datagram[c.HEADER_BYTES + c.FORWARD_SEQUENCE_BYTES] in TRANSPORT_KINDS
        return "DATA" if is_data else "HANDSHAKE"
    if kind in (c.PacketType.LEASE_PRESENT, c.PacketType.LEASE_RENEW):
        has_cookie = datagram[_COOKIE] not in (c.NO_COOKIE, c.RELEASE_COOKIE)
        return "PROOF" if has_cookie and len(datagram) > 100 else "PRESENT"
    return kind.name.removeprefix("LEASE_").removeprefix("PATH_")


class Tap:
    """Passes packets between peers and a relay, each peer from a socket of its own.

    Attributes:
        address: where peers send to; a relay that advertises it is behind the tap.
        relay: where the relay listens; set before anything comes.
        holds_proofs: keep every PROOF of a peer back until DATA of its session has passed.
        drops_payload: let all pass but what peers say to each other.
        flows: what passed, by peer, in the order of their first packets.
    """

    def __init__(self) -> None:
        self._front = self._socket()
        self._front.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._front.getsockname())
        self.relay: Endpoint = ("", 0)
        self.holds_proofs = False
        self.drops_payload = False
        self.flows: dict[Endpoint, list[Passed]] = {}
        self._behind: dict[Endpoint, socket.socket] = {}
        self._held: dict[Endpoint, list[bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._front, selectors.EVENT_READ)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @staticmethod
    def _socket() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        return sock

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._selector.close()
        for sock in (self._front, *self._behind.values()):
            sock.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            for key, _ in self._selector.select(0.1):
                with suppress(BlockingIOError, ConnectionRefusedError):
                    if key.data is None:
                        self._out(*self._front.recvfrom(2048))
                    else:
                        self._back(self._behind[key.data].recv(2048), key.data)

    def _out(self, datagram: bytes, peer: Endpoint) -> None:
        if peer not in self._behind:
            self._behind[peer] = sock = self._socket()
            sock.connect(self.relay)
            self._selector.register(sock, selectors.EVENT_READ, peer)
            self.flows[peer], self._held[peer] = [], []
        kind = kind_of(datagram)
        if kind == "PROOF" and self.holds_proofs and not self._has_data(peer):
            self._held[peer].append(datagram)
            return
        self._pass(datagram, peer, is_outgoing=True)

    def _back(self, datagram: bytes, peer: Endpoint) -> None:
        self._pass(datagram, peer, is_outgoing=False)

    def _pass(self, datagram: bytes, peer: Endpoint, *, is_outgoing: bool) -> None:
        kind = kind_of(datagram)
        if self.drops_payload and kind in ("DATA", "HANDSHAKE"):
            return
        self.flows[peer].append(Passed(is_outgoing, kind))
        if is_outgoing:
            self._behind[peer].send(datagram)
        else:
            self._front.sendto(datagram, peer)
        if self._held[peer] and self._has_data(peer):
            held, self._held[peer] = self._held[peer], []
            for each in held:
                self._pass(each, peer, is_outgoing=True)

    def _has_data(self, peer: Endpoint) -> bool:
        return any(each.kind == "DATA" for each in self.flows[peer])
