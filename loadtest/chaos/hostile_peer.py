"""A user who means harm: leases of his own, a socket, and no manners."""

import asyncio
import secrets
import socket
import time
import uuid
from typing import Final

from wavry_cp.admin.client import ask_json
from wavry_peer.home.identity import Identity
from wavry_peer.paths.own_lease import OwnLease, read_own_lease
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_peer.protocol.errors import PacketError
from wavry_peer.protocol.http.api import (
    LeaseParty,
    LeaseRequest,
    LeaseResponse,
    RenewRequest,
    RenewResponse,
)
from wavry_peer.service.settings import parse_address

__all__ = ["HostilePeer", "LeaseSource"]

_ANSWER_S: Final = 0.5
_LEASE_S: Final = 2.0


class HostilePeer:
    """One slot of a session at one relay.

    Args:
        target: of the relay.
        session_id: of the session.
        role: his slot.
        identity: that his lease is bound to.
        host: local address that he sends from.
    """

    def __init__(
        self, target: str, *, session_id: uuid.UUID, role: c.Role, identity: Identity, host: str
    ) -> None:
        self.session_id = session_id
        self.role = role
        self.cookie = c.NO_COOKIE
        self._identity = identity
        self._counter = 0
        self._sequence = 0
        self.lease: OwnLease | None = None
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(0)
        self.socket.bind((host, 0))
        self.socket.connect(parse_address(target))

    def take(self, token: str) -> None:
        """Have a lease from now on."""
        self.lease = read_own_lease(
            token,
            session_id=self.session_id.bytes,
            role=self.role,
            public_key=self._identity.signing.public_key,
            now_ns=time.monotonic_ns(),
        )

    def signed(self, *, renew: bool = False, cookie: bytes | None = None) -> bytes:
        """Return the next LEASE_PRESENT or LEASE_RENEW."""
        if self.lease is None:
            raise ValueError("no lease yet")
        self._counter += 1
        return packets.build_present(
            self.session_id.bytes,
            self.role,
            self.lease.token,
            counter=self._counter,
            cookie=self.cookie if cookie is None else cookie,
            sign=self._identity.signing.sign,
            renew=renew,
        )

    def send(self, datagram: bytes) -> bool:
        """Send one datagram; False where the kernel does not take it."""
        try:
            return bool(self.socket.send(datagram))
        except OSError:
            return False  # Full, or the relay is away and ICMP says so: both are part of the game.

    def forward(self, payload: bytes) -> bool:
        """Send one FORWARD."""
        self._sequence += 1
        body = self._sequence.to_bytes(c.FORWARD_SEQUENCE_BYTES, "big") + payload
        return self.send(packets.build_forward(self.session_id.bytes, body))

    async def present(self, *, renew: bool = False) -> bool:
        """Present the lease and prove the address; whether it was acknowledged."""
        self.send(self.signed(renew=renew))
        acknowledged = False
        while (body := await self._answer()) is not None:
            if isinstance(body, packets.LeaseAck):
                acknowledged = True
                if self.cookie != c.NO_COOKIE:
                    return True
            elif isinstance(body, packets.PathChallenge):
                self.cookie = body.cookie
                self.send(self.signed(renew=renew))
            elif isinstance(body, packets.LeaseReject):
                return False
        return acknowledged

    def release(self) -> None:
        """Give the slot back."""
        self.send(self.signed(cookie=c.RELEASE_COOKIE))

    def received_bytes(self) -> int:
        """Read all that has come, and count it."""
        total = 0
        while True:
            try:
                total += len(self.socket.recv(c.RECEIVE_BUFFER_BYTES))
            except OSError:
                return total

    def close(self) -> None:
        """End it."""
        self.socket.close()

    async def _answer(self) -> packets.Body | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_ANSWER_S):
                datagram = await loop.sock_recv(self.socket, c.RECEIVE_BUFFER_BYTES)
            return packets.parse_packet(datagram).body
        except (TimeoutError, OSError, PacketError):
            return None


class LeaseSource:
    """Leases of a few users who are in it together, straight from the master.

    Args:
        master_url: of the master.
        token: service token.
        users: how many names they have; the first two talk to each other, and so on.
    """

    def __init__(self, master_url: str, token: str, users: int = 2) -> None:
        self._master_url = master_url
        self._token = token
        self._users = [f"mallory-{number}" for number in range(users)]
        self._identities = [Identity.generate() for _ in self._users]

    async def pair(
        self, target: str, *, exclude: tuple[str, ...], host: str = "127.0.0.1"
    ) -> tuple[HostilePeer, HostilePeer]:
        """Return both sides of a new session, with leases, nothing presented.

        Args:
            target: address of the relay.
            exclude: ids of all other relays.
            host: local address of both.

        Raises:
            CommandError: the master does not answer, or gives none.
        """
        at = 2 * secrets.randbelow(len(self._users) // 2)
        parties = [
            LeaseParty(sub=self._users[at + side], cnf=self._identities[at + side].identity_key)
            for side in (0, 1)
        ]
        given = await ask_json(
            "master", self._master_url, "/v1/leases", LeaseResponse,
            method="POST", token=self._token, timeout_s=_LEASE_S,
            body=LeaseRequest(client=parties[0], server=parties[1], exclude_relays=exclude),
        )  # fmt: skip
        sides = []
        for role, token in (
            (c.Role.CLIENT, given.leases.client),
            (c.Role.SERVER, given.leases.server),
        ):
            side = HostilePeer(
                target,
                session_id=uuid.UUID(str(given.session_id)),
                role=role,
                identity=self._identities[at + role],
                host=host,
            )
            side.take(token)
            sides.append(side)
        return sides[0], sides[1]

    async def renew(self, peer: HostilePeer) -> None:
        """Get the next lease of a session.

        Raises:
            CommandError: the master does not answer, or gives none.
        """
        if peer.lease is None:
            raise ValueError("no lease yet")
        given = await ask_json(
            "master", self._master_url, "/v1/leases/renew", RenewResponse,
            method="POST", token=self._token, timeout_s=_LEASE_S,
            body=RenewRequest(
                session_id=str(peer.session_id),
                role="client" if peer.role is c.Role.CLIENT else "server",
                jti=peer.lease.jti,
            ),
        )  # fmt: skip
        peer.take(given.lease)
