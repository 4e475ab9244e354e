"""Peers of one UDP socket each, and numbered traffic between them."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.waiting import wait_until
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import ed25519, packets


class UdpPeer:
    """A tiny blocking peer: one socket, one slot of a session, one key.

    `local` is the address of this machine that it is at, where that is not the kernel's choice.
    """

    def __init__(
        self,
        mint: Mint,
        relay_id: str,
        relay: str,
        sid: uuid.UUID,
        role: c.Role,
        *,
        timeout_s: float = 3.0,
        local: str = "",
        **claims: Any,
    ) -> None:
        host, port = relay.rsplit(":", 1)
        self.local = local
        self.relay = (host.strip("[]"), int(port))
        self.family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        self.mint, self.relay_id, self.sid, self.role = mint, relay_id, sid, role
        self.key = ed25519.SigningKey.from_seed(os.urandom(32))
        self.claims = claims
        self.counter = 0
        self.sequence = 0
        self.timeout_s = timeout_s
        self.proved = False
        self.challenge: bytes | None = None
        self.sock = self._socket()
        self.token = self.new_token()

    def _socket(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        sock.settimeout(self.timeout_s)
        if self.local:
            sock.bind((self.local, 0))
        # With the scope of a link-local address, which a pair of host and port has no room for.
        sock.connect(socket.getaddrinfo(*self.relay, type=socket.SOCK_DGRAM)[0][4])
        return sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def move(self) -> None:
        """Go on from a new local port, as after a NAT rebind."""
        self.sock.close()
        self.sock = self._socket()
        self.proved = False

    def new_token(self, **claims: Any) -> bytes:
        return self.mint.token(
            self.sid, self.role, self.relay_id, key=self.key, **{**self.claims, **claims}
        )

    def present_datagram(self, *, renew: bool = False, cookie: bytes = c.NO_COOKIE) -> bytes:
        """The next LEASE_PRESENT (or RENEW) with the next counter."""
        self.counter += 1
        return packets.build_present(
            self.sid.bytes,
            self.role,
            self.token,
            counter=self.counter,
            cookie=cookie,
            sign=self.key.sign,
            renew=renew,
        )

    def ask(self, datagram: bytes) -> packets.Packet:
        """Send, and wait for the next packet that is neither FORWARD nor NOTICE."""
        if datagram[-72:-64] not in (c.NO_COOKIE, c.RELEASE_COOKIE) and len(datagram) > 100:
            self.proved = True
        self.sock.send(datagram)
        while True:
            packet = packets.parse_packet(self.sock.recv(2048))
            if packet.header.type not in (c.PacketType.FORWARD, c.PacketType.NOTICE):
                break
        if isinstance(packet.body, packets.LeaseAck) and len(datagram) > c.HEADER_BYTES:
            self.challenge = self._challenge_behind_ack()
        return packet

    def _challenge_behind_ack(self) -> bytes | None:
        """The cookie that a relay sends beside the ACK of a lease at an unproved address."""
        self.sock.settimeout(0.05 if self.proved else self.timeout_s)
        try:
            body = packets.parse_packet(self.sock.recv(2048, socket.MSG_PEEK)).body
        except TimeoutError:
            return None
        finally:
            self.sock.settimeout(self.timeout_s)
        if not isinstance(body, packets.PathChallenge):
            return None
        self.sock.recv(2048)
        return body.cookie

    def present(self, *, renew: bool = False, cookie: bytes = c.NO_COOKIE) -> packets.LeaseAck:
        """Present the lease and expect an ACK; again as peers do, where no answer comes."""
        ack = self._present_once(renew, cookie)
        if self.challenge is not None:
            self.proved = True
            self._present_once(renew, self.challenge)
        return ack

    def _present_once(self, renew: bool, cookie: bytes) -> packets.LeaseAck:
        for _ in range(3):
            with suppress(TimeoutError):
                packet = self.ask(self.present_datagram(renew=renew, cookie=cookie))
                assert isinstance(packet.body, packets.LeaseAck), packet
                return packet.body
        raise AssertionError("the relay did not answer three PRESENTs")

    def forward(self, payload: bytes = b"hello") -> int:
        """Send one FORWARD; its sequence."""
        self.sequence += 1
        body = self.sequence.to_bytes(8, "big") + payload
        self.sock.send(packets.build_forward(self.sid.bytes, body))
        return self.sequence

    def receive(self) -> tuple[int, bytes]:
        """The next FORWARD: sequence and payload."""
        while True:
            packet = packets.parse_packet(self.sock.recv(2048))
            if packet.header.type == c.PacketType.FORWARD:
                assert isinstance(packet.body, bytes)
                return int.from_bytes(packet.body[:8], "big"), packet.body[8:]

    def drain_socket(self) -> None:
        """Throw away what is queued."""
        self.sock.setblocking(False)
        try:
            while True:
                self.sock.recv(2048)
        except BlockingIOError:
            pass
        finally:
            self.sock.settimeout(self.timeout_s)


@contextmanager
def active_session(
    relay: "RelayProcess", mint: Mint, *, udp: str | None = None, **options: Any
) -> Iterator[tuple[UdpPeer, UdpPeer]]:
    """Two accepted peers of a new session, client first."""
    sid = uuid.uuid4()
    where = udp or relay.udp[0]
    with (
        UdpPeer(mint, relay.relay_id, where, sid, c.Role.CLIENT, **options) as client,
        UdpPeer(mint, relay.relay_id, where, sid, c.Role.SERVER, **options) as server,
    ):
        client.present()
        server.present()
        yield client, server


MOST_UNDER_WAY = 200
"""Datagrams of one direction that may be sent and not yet there: the sockets of the peers (277 by
default) and of the relay hold as many, however long nobody reads on a busy machine."""


class NumberedStream:
    """Traffic of a session in both directions, every datagram with its number.

    Where the relay pauses the stream pauses too, once as much is under way as the sockets hold: a
    datagram that the kernel drops from a full one would say nothing about the relay.

    Args:
        peers: client and server of an active session.
        every_s: pause between two datagrams.
    """

    def __init__(self, peers: tuple[UdpPeer, UdpPeer], *, every_s: float = 0.002) -> None:
        self._peers = peers
        self._every_s = every_s
        self.received: tuple[list[int], list[int]] = ([], [])
        """Sequences in the order of their arrival, at the client and at the server."""
        self.others: list[packets.Packet] = []
        """What came and is no FORWARD: notices, challenges."""
        self._sending = threading.Event()
        self._receiving = threading.Event()
        self._sender = threading.Thread(target=self._send)
        self._receivers = [threading.Thread(target=self._receive, args=(at,)) for at in (0, 1)]

    def __enter__(self) -> Self:
        for peer in self._peers:
            peer.sock.settimeout(0.1)
        self._sending.set()
        self._receiving.set()
        for thread in (self._sender, *self._receivers):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sending.clear()
        self._receiving.clear()
        for thread in (self._sender, *self._receivers):
            thread.join()
        for peer in self._peers:
            peer.sock.settimeout(peer.timeout_s)

    def _send(self) -> None:
        while self._sending.is_set():
            for peer, received in zip(self._peers, reversed(self.received), strict=True):
                last_there = received[-1] if received else 0
                if peer.sequence - last_there < MOST_UNDER_WAY:
                    peer.forward(bytes(100))
            time.sleep(self._every_s)

    def _receive(self, at: int) -> None:
        while self._receiving.is_set():
            try:
                packet = packets.parse_packet(self._peers[at].sock.recv(2048))
            except TimeoutError:
                continue
            if packet.header.type == c.PacketType.FORWARD:
                assert isinstance(packet.body, bytes)
                self.received[at].append(int.from_bytes(packet.body[:8], "big"))
            else:
                self.others.append(packet)

    def wait_for_more(self, count: int = 50) -> None:
        goals = [len(one) + count for one in self.received]
        wait_until(
            lambda: all(len(one) >= goal for one, goal in zip(self.received, goals, strict=True)),
            timeout_s=30,
            what="forwarded packets",
        )

    def finish(self, *, lost_at_most: int = 0) -> None:
        """Stop sending; every datagram must have come once, and nothing else.

        `lost_at_most` is for a worker that was killed: what it had in hand is gone with it.
        """
        self._sending.clear()
        self._sender.join()
        sent = [peer.sequence for peer in reversed(self._peers)]

        def is_complete() -> bool:
            pairs = zip(self.received, sent, strict=True)
            return all(len(one) >= last - lost_at_most for one, last in pairs)

        with suppress(AssertionError):  # The comparison below says which are missing.
            wait_until(is_complete, timeout_s=20)
        if lost_at_most:
            time.sleep(0.5)  # What is late would be there by now.
        for one, last in zip(self.received, sent, strict=True):
            missing = set(range(1, last + 1)) - set(one)
            assert len(one) == last - len(missing), "each at most once, and none that was not sent"
            assert len(missing) <= lost_at_most, sorted(missing)
        assert not self.others
