"""Many sessions under traffic through one real relay, with leases of the real master."""

import contextlib
import http.client
import json
import os
import select
import socket
import threading
import time
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from wavry_peer.protocol import base64url, ed25519, packets, paseto
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import PacketError

ROLES = {"client": c.Role.CLIENT, "server": c.Role.SERVER}
SEND_EVERY_S = 0.4
RETRY_S = 1.0


@dataclass
class Member:
    """One side of one session."""

    sid: uuid.UUID
    role: c.Role
    sock: socket.socket
    key: ed25519.SigningKey
    token: bytes = b""
    counter: int = 0
    sequence: int = 0
    received: int = 0
    last_received_s: float = 0.0
    answer: packets.Packet | None = None
    notices: list[int] = field(default_factory=list)

    @property
    def claims(self) -> dict[str, Any]:
        """Unverified claims of the present lease."""
        parts = paseto.parse(self.token.decode())
        payload: dict[str, Any] = msgspec.json.decode(parts.message)
        return payload

    def datagram(self, *, renew: bool) -> bytes:
        self.counter += 1
        return packets.build_present(
            self.sid.bytes, self.role, self.token, counter=self.counter, sign=self.key.sign,
            renew=renew,
        )  # fmt: skip


class Crowd:
    """Sessions at the relay; both sides send a small packet every `SEND_EVERY_S`.

    Args:
        master_url: of the master.
        service_token: for leases.
        relay: its UDP address.
        sessions: how many.
    """

    def __init__(self, master_url: str, service_token: str, relay: str, sessions: int) -> None:
        place = urllib.parse.urlsplit(master_url)
        self._http = http.client.HTTPConnection(place.hostname or "", place.port, timeout=20)
        self._headers = {"Authorization": f"Bearer {service_token}"}
        host, _, port = relay.rpartition(":")
        self._relay = (host, int(port))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._traffic, daemon=True)
        self._sockets = {role: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for role in c.Role}
        for sock in self._sockets.values():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.connect(self._relay)
        self.members: dict[tuple[bytes, c.Role], Member] = {}
        self.failure: Exception | None = None
        for _ in range(sessions):
            self._add()

    def __enter__(self) -> Self:
        self._thread.start()
        results = self.present(self.all())
        assert results == Counter(ack=len(self.members)), results
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        for sock in self._sockets.values():
            sock.close()
        self._http.close()

    def all(self) -> list[Member]:
        return list(self.members.values())

    def call(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self._http.request("POST", path, json.dumps(body), self._headers)
        response = self._http.getresponse()
        return response.status, json.loads(response.read())

    def _add(self) -> None:
        sid = uuid.uuid4()
        sides = {
            name: Member(
                sid, role, self._sockets[role], ed25519.SigningKey.from_seed(os.urandom(32))
            )
            for name, role in ROLES.items()
        }
        parties = {
            name: {"sub": f"{name}-{sid}", "cnf": base64url.encode(side.key.public_key)}
            for name, side in sides.items()
        }
        status, body = self.call("/v1/leases", {**parties, "session_id": str(sid)})
        assert status == 201, body
        for name, side in sides.items():
            side.token = body["leases"][name].encode()
            self.members[sid.bytes, side.role] = side

    def renew(self, members: Iterable[Member]) -> Counter[str]:
        """Get a new lease for each from the master and present it; results as of `present`."""
        members = list(members)
        for member in members:
            name = c.ROLE_NAMES[member.role]
            status, body = self.call(
                "/v1/leases/renew",
                {"session_id": str(member.sid), "role": name, "jti": member.claims["jti"]},
            )
            assert status == 200, body
            member.token = body["lease"].encode()
        return self.present(members, renew=True)

    def present(
        self, members: Iterable[Member], *, renew: bool = False, timeout_s: float = 40.0
    ) -> Counter[str]:
        """Present each lease until it is answered: how many "ack", and how many of each reason."""
        waiting = list(members)
        total, deadline = len(waiting), time.monotonic() + timeout_s
        results: Counter[str] = Counter()
        for member in waiting:
            member.answer = None
        sent_s = float("-inf")
        while waiting:
            assert self.failure is None, self.failure
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(waiting)} of {total} leases got no answer")
            if time.monotonic() - sent_s > RETRY_S:
                sent_s = time.monotonic()
                for number, member in enumerate(waiting):
                    with contextlib.suppress(ConnectionRefusedError):
                        member.sock.send(member.datagram(renew=renew))
                    if number % 20 == 19:
                        time.sleep(0.005)
            time.sleep(0.01)
            for member in [one for one in waiting if one.answer is not None]:
                waiting.remove(member)
                results[_result(member.answer)] += 1
        return results

    def wait_for_traffic(self, packets_each: int = 2, timeout_s: float = 40.0) -> None:
        """Until every side of every session has received new packets."""
        marks = {key: member.received + packets_each for key, member in self.members.items()}
        deadline = time.monotonic() + timeout_s
        while True:
            assert self.failure is None, self.failure
            starved = [key for key, mark in marks.items() if self.members[key].received < mark]
            if not starved:
                return
            assert time.monotonic() < deadline, f"{len(starved)} streams stand still"
            time.sleep(0.05)

    def last_received_s(self) -> float:
        """Monotonic seconds at which the last packet of any stream arrived."""
        return max(member.last_received_s for member in self.members.values())

    def _traffic(self) -> None:
        try:
            next_s = time.monotonic()
            while not self._stop.is_set():
                now_s = time.monotonic()
                if now_s >= next_s:
                    next_s = now_s + SEND_EVERY_S
                    for member in self.all():
                        member.sequence += 1
                        body = member.sequence.to_bytes(8, "big") + b"traffic"
                        with contextlib.suppress(ConnectionRefusedError):  # relay restarts
                            member.sock.send(packets.build_forward(member.sid.bytes, body))
                        self._receive(0)
                self._receive(0.02)
        except Exception as error:  # noqa: BLE001  # the test's thread asks for it
            self.failure = error

    def _receive(self, timeout_s: float) -> None:
        ready, _, _ = select.select(self._sockets.values(), (), (), timeout_s)
        for sock in ready:
            role = next(role for role, mine in self._sockets.items() if mine is sock)
            while True:
                try:
                    raw = sock.recv(2048, socket.MSG_DONTWAIT)
                except (BlockingIOError, ConnectionRefusedError):
                    break
                self._take(raw, role)

    def _take(self, raw: bytes, role: c.Role) -> None:
        try:
            packet = packets.parse_packet(raw)
        except PacketError:
            return
        member = self.members.get((packet.header.session_id, role))
        if member is None:
            return
        if packet.header.type == c.PacketType.FORWARD:
            member.received += 1
            member.last_received_s = time.monotonic()
        elif packet.header.type == c.PacketType.NOTICE:
            member.notices.append(int.from_bytes(raw[20:22], "big"))
        elif packet.header.type != c.PacketType.PATH_CHALLENGE:
            # What both sides send is small and alike: an address that is not proved gets it all.
            member.answer = packet


def _result(packet: packets.Packet | None) -> str:
    assert packet is not None
    if isinstance(packet.body, packets.LeaseAck):
        return "ack"
    assert isinstance(packet.body, packets.LeaseReject), packet
    return c.RejectReason(packet.body.reason).name
