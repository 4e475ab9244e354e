"""A relay as one would write it in an afternoon: uvloop, one dictionary, no lease, no check."""

import asyncio
from typing import Any

import uvloop

Address = tuple[str, int]


class Relay(asyncio.DatagramProtocol):
    """Forwards between the first two addresses that name the same session id."""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport
        self.sessions: dict[bytes, list[Address]] = {}

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Send the datagram to the other side of its session."""
        peers = self.sessions.setdefault(data[4:20], [])
        if addr not in peers:
            peers.append(addr)
        if len(peers) == 2:
            self.transport.sendto(data, peers[addr == peers[0]])


async def _main() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Relay, local_addr=("127.0.0.1", 0))
    transport.get_extra_info("socket").setsockopt(1, 8, 4 << 20)  # SOL_SOCKET, SO_RCVBUF
    print(f'{{"port": {transport.get_extra_info("sockname")[1]}}}', flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main())
