"""UDP datagrams in somebody else's address (root only)."""

import contextlib
import socket
import struct
from pathlib import Path
from typing import Final, Self

from wavry_peer.service.settings import parse_address

__all__ = ["Spoofer", "cannot_spoof", "own_udp_ports"]

_HEAD: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP: Final = struct.Struct("!HHHH")


def cannot_spoof() -> str | None:
    """Return why this process cannot, or None."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except PermissionError:
        return "needs root: a raw socket"
    return None


def own_udp_ports() -> list[int]:
    """Return the local IPv4 UDP ports of this process, where its peers are."""
    inodes = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them is gone
            inodes.add(str(fd.readlink()))
    ports = []
    for line in Path("/proc/self/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in inodes:
            ports.append(int(fields[1].rpartition(":")[2], 16))
    return ports


class Spoofer:
    """Sends to one relay in the name of any IPv4 address.

    Args:
        target: of the relay.
    """

    def __init__(self, target: str) -> None:
        self._target = parse_address(target)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._socket.settimeout(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, host: str, port: int, payload: bytes) -> bool:
        """Send one datagram as `host` and `port`; False where the kernel does not take it."""
        to, to_port = self._target
        udp = _UDP.pack(port, to_port, _UDP.size + len(payload), 0)  # 0: no checksum
        size = _HEAD.size + len(udp) + len(payload)
        # Identification, length and checksum of 0 are filled in by the kernel.
        head = _HEAD.pack(
            0x45,
            0,
            size,
            0,
            0,
            64,
            socket.IPPROTO_UDP,
            0,
            socket.inet_aton(host),
            socket.inet_aton(to),
        )
        try:
            return bool(self._socket.sendto(head + udp + payload, (to, 0)))
        except OSError:
            return False
