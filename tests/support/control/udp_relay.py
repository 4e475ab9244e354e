"""A `SimulatedRelay` on a real UDP port of this event loop, for a master that probes it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from support.control.simulated_relay import SimulatedRelay
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import stun

Address = tuple[Any, ...]


class UdpRelay(asyncio.DatagramProtocol):
    """Gives each datagram to the relay, with the role that its sender presented a lease for.

    Attributes:
        behaviour: what it does; may be exchanged at any time.
        endpoint: where it listens.
    """

    def __init__(self, behaviour: SimulatedRelay | None = None) -> None:
        self.behaviour = behaviour or SimulatedRelay()
        self.endpoint = ""
        self._transport: asyncio.DatagramTransport | None = None
        self._addresses: dict[bytes, dict[c.Role, Address]] = {}

    @classmethod
    @asynccontextmanager
    async def running(
        cls, behaviour: SimulatedRelay | None = None, host: str = "127.0.0.1"
    ) -> AsyncIterator[Self]:
        relay = cls(behaviour)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: relay, local_addr=(host, 0)
        )
        relay._transport = transport
        address, port = transport.get_extra_info("sockname")[:2]
        relay.endpoint = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        try:
            yield relay
        finally:
            transport.close()

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if stun.is_stun(data):
            for _, answer in self.behaviour.answer(c.Role.CLIENT, data):
                self._send(answer, addr)
            return
        known = self._addresses.setdefault(data[4 : c.HEADER_BYTES], {})
        if data[2] in (c.PacketType.LEASE_PRESENT, c.PacketType.LEASE_RENEW):
            known[c.Role(data[c.HEADER_BYTES])] = addr
        role = next((role for role, address in known.items() if address == addr), None)
        if role is None:
            return
        for to, answer in self.behaviour.answer(role, data):
            if to in known:
                self._send(answer, known[to])

    def _send(self, data: bytes, address: Address) -> None:
        if self._transport is not None:
            self._transport.sendto(data, address)
