"""A relay for the peer's tests: real sockets, the real protocol, faults on demand."""

import asyncio
import random
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import keyset, lease, packets
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import LeaseError, PacketError

MASTER_KEY = SigningKey.from_seed(b"\x01" * 32)
KID = str(keyset.key_id(MASTER_KEY.public_key))


def mint_lease(
    *,
    session_id: str,
    role: c.Role,
    relay_id: str,
    cnf: str | None,
    ttl_s: float = 300.0,
    issued_s: float | None = None,
    sub: str = "somebody",
    jti: str | None = None,
) -> str:
    """A lease with fractions of seconds, so that short ones are exact."""
    now_s = time.time() if issued_s is None else issued_s
    claims = lease.make_claims(
        jti=jti or str(uuid.uuid4()),
        sub=sub,
        sid=session_id,
        role=role,
        rid=relay_id,
        kid=KID,
        now_s=int(now_s),
        ttl_s=int(ttl_s) or 1,
        soft_kbps=100_000,
        hard_kbps=200_000,
        cnf=cnf,
    )
    issued = datetime.fromtimestamp(now_s, UTC)
    claims = msgspec.structs.replace(
        claims, iat=issued, nbf=issued, exp=issued + timedelta(seconds=ttl_s)
    )
    return lease.sign_lease(claims, MASTER_KEY)


@dataclass
class Slot:
    address: tuple[Any, ...]
    expires_ms: int
    jti: str
    counter: int


class StubRelay(asyncio.DatagramProtocol):
    """Checks leases as a relay does, and forwards; one session table, no limits."""

    def __init__(self, name: str = "rly-test-1", seed: int = 1) -> None:
        self.relay_id = name
        self.slots: dict[bytes, dict[c.Role, Slot]] = {}
        self.presents: list[tuple[packets.Header, packets.LeasePresent]] = []
        self.rejected: list[c.RejectReason] = []
        self.wire: list[bytes] = []
        self.forwarded = 0
        self.silent = False
        self.draining = False
        """As the master sees it: the gateway gives no new session to this relay."""
        self.released: list[c.Role] = []
        self.needs_cookie = False
        self.reject_with: c.RejectReason | None = None
        self.takes_renewals = True
        self.renewal_refusal: c.RejectReason | None = None
        """What it says to a renewal that it does not take, if anything."""
        self.rejects_sent = 0
        self.loss = 0.0
        self.random = random.Random(seed)
        self.transport: asyncio.DatagramTransport | None = None
        self.jtis: list[str] = []

    async def start(self, host: str = "127.0.0.1") -> "StubRelay":
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((host, 0))
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=sock)
        return self

    @property
    def address(self) -> str:
        assert self.transport is not None
        host, port = self.transport.get_extra_info("sockname")[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def forget(self) -> None:
        """As a relay that was started anew."""
        self.slots.clear()

    def tell_all(self, make: Callable[[bytes], bytes]) -> None:
        for session_id, slots in self.slots.items():
            for slot in slots.values():
                self._send(make(session_id), slot.address)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if self.silent or (self.loss and self.random.random() < self.loss):
            return
        try:
            packet = packets.parse_packet(data)
        except PacketError:
            return
        header, body = packet.header, packet.body
        if isinstance(body, packets.LeasePresent):
            self.presents.append((header, body))
            self._on_present(header, body, addr)
        elif header.type is c.PacketType.FORWARD:
            self._on_forward(header, data, addr)

    def _on_present(
        self, header: packets.Header, present: packets.LeasePresent, addr: tuple[Any, ...]
    ) -> None:
        session_id = header.session_id
        if self.reject_with is not None:
            self.rejects_sent += 1
            self._send(packets.build_reject(session_id, self.reject_with), addr)
            return
        proof = present.proof
        if self.needs_cookie and (proof is None or proof.cookie != self._cookie(addr)):
            self._send(packets.build_challenge(session_id, self._cookie(addr)), addr)
            return
        keys = {lease.KeyId(KID): lease.TrustedKey(MASTER_KEY.public_key)}
        try:
            claims = lease.open_lease(present.token, keys)
            lease.check_claims(
                claims,
                relay_id=lease.RelayId(self.relay_id),
                session_id=session_id,
                role=present.role,
                now_ms=time.time_ns() // 1_000_000,
            )
            lease.check_proof(claims, present)
            counter = 0 if proof is None else proof.counter
            old = self.slots.get(session_id, {}).get(present.role)
            if old is not None and counter <= old.counter:
                raise LeaseError(c.RejectReason.REPLAYED, "counter did not grow")
        except LeaseError as error:
            self.rejected.append(error.reason)
            self._send(packets.build_reject(session_id, error.reason), addr)
            return
        if not self.takes_renewals and old is not None and old.jti != claims.jti:
            if self.renewal_refusal is not None:
                self._send(packets.build_reject(session_id, self.renewal_refusal), addr)
            return
        if proof is not None and proof.cookie == c.RELEASE_COOKIE:
            self.released.append(present.role)
            self.slots.get(session_id, {}).pop(present.role, None)
            return
        self.jtis.append(claims.jti)
        slot = Slot(addr, claims.expires_ms, claims.jti, counter)
        self.slots.setdefault(session_id, {})[present.role] = slot
        reflexive = (socket.inet_pton(_family(addr[0]), addr[0]), addr[1])
        ack = packets.LeaseAck(claims.expires_ms, claims.slimit, claims.hlimit, reflexive)
        self._send(packets.build_ack(session_id, ack), addr)

    def _on_forward(self, header: packets.Header, data: bytes, addr: tuple[Any, ...]) -> None:
        slots = self.slots.get(header.session_id, {})
        if len(slots) < 2:
            return
        sender = next((role for role, slot in slots.items() if slot.address == addr), None)
        if sender is None:
            self._send(packets.build_challenge(header.session_id, self._cookie(addr)), addr)
            return
        if slots[sender].expires_ms <= time.time_ns() // 1_000_000:
            return
        self.wire.append(data)
        del self.wire[:-2000]
        self.forwarded += 1
        other = c.Role.SERVER if sender is c.Role.CLIENT else c.Role.CLIENT
        self._send(data, slots[other].address)

    def _cookie(self, addr: tuple[Any, ...]) -> bytes:
        return random.Random(f"{addr[0]} {addr[1]}").randbytes(8)

    def _send(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.sendto(data, addr)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
