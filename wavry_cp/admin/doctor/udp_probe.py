"""Is a relay's UDP port reachable from here?  A STUN Binding request, which relays answer."""

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from typing import Final

from wavry_peer.protocol.errors import PacketError
from wavry_peer.protocol.stun import build_binding_request, parse_mapped_address
from wavry_peer.service.settings import parse_address

__all__ = ["UdpAnswer", "probe_udp"]

TRIES: Final = 4
WAIT_S: Final = 0.4
"""Of each try: longer than any round trip that is good for media; four of them outlast loss."""

_TEXTS: Final = {
    "closed": "the host says that the port is closed",
    "silent": f"no answer to {TRIES} STUN requests",
    "no_route": "this machine has no route to this address",
    "bad_address": "this is no address",
}


@dataclass(frozen=True, slots=True)
class UdpAnswer:
    """What came of a probe.

    Attributes:
        endpoint: ``HOST:PORT``.
        reach: ``ok``, ``closed`` (ICMP port unreachable), ``silent``, ``no_route`` or
            ``bad_address``.
        ms: round trip, 0.0 without an answer.
    """

    endpoint: str
    reach: str
    ms: float = 0.0

    @property
    def text(self) -> str:
        """For people."""
        return _TEXTS.get(self.reach, f"answers in {self.ms:.1f} ms")


class _Stun(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.transaction_id = os.urandom(12)
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002
        with contextlib.suppress(PacketError):
            parse_mapped_address(data, self.transaction_id)
            self._end("ok")

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, ConnectionRefusedError):
            self._end("closed")

    def _end(self, outcome: str) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


async def probe_udp(endpoint: str) -> UdpAnswer:
    """Ask one endpoint; takes at most two seconds."""
    try:
        address = parse_address(endpoint)
    except ValueError:
        return UdpAnswer(endpoint, "bad_address")
    loop = asyncio.get_running_loop()
    try:
        transport, stun = await loop.create_datagram_endpoint(_Stun, remote_addr=address)
    except OSError:
        return UdpAnswer(endpoint, "no_route")
    try:
        for _ in range(TRIES):
            began_s = time.monotonic()
            transport.sendto(build_binding_request(stun.transaction_id))
            done, _ = await asyncio.wait({stun.outcome}, timeout=WAIT_S)
            if done:
                reach = stun.outcome.result()
                ms = 1000 * (time.monotonic() - began_s) if reach == "ok" else 0.0
                return UdpAnswer(endpoint, reach, ms)
        return UdpAnswer(endpoint, "silent")
    finally:
        transport.close()
