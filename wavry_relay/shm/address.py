"""A peer's address as the three 64-bit words that a session record keeps.

Two words hold the 16 bytes of an IPv6 address (IPv4 as ``::ffff:a.b.c.d``) in native byte order,
so that C compares them with `memcmp`.  The third, the endpoint word, is arithmetic: port in
bits 0-15, family (4 or 6) in 16-23, number of the listen address in 24-31, IPv6 scope id in
32-63.  The listen number belongs to the path: a peer is answered from the address it wrote to.
"""

import socket
import struct
from typing import Final, NamedTuple, Self

__all__ = ["Address", "network_text"]

FAMILY_SHIFT: Final = 16
LISTEN_SHIFT: Final = 24
SCOPE_SHIFT: Final = 32

_WORDS: Final = struct.Struct("=QQ")
_V4_PREFIX: Final = bytes(10) + b"\xff\xff"
_V4_NETWORK: Final = _WORDS.unpack(bytes(12) + b"\xff\xff\xff\0")[1]
_V6_NETWORK: Final = _WORDS.unpack(b"\xff" * 6 + bytes(10))[0]


def network_text(network: int, family: int) -> str:
    """Return the text of a `Address.network_key`, e.g. ``192.0.2.0/24`` or ``2001:db8::/48``."""
    if family == 4:
        return f"{socket.inet_ntoa(_WORDS.pack(0, network)[12:])}/24"
    return f"{socket.inet_ntop(socket.AF_INET6, _WORDS.pack(network, 0))}/48"


class Address(NamedTuple):
    """Source or destination of a datagram."""

    high: int
    low: int
    endpoint: int

    @classmethod
    def from_ip(cls, packed: bytes, port: int, *, listen: int = 0, scope: int = 0) -> Self:
        """Make an address from 4 or 16 packed bytes."""
        family = 4 if len(packed) == 4 else 6
        high, low = _WORDS.unpack(_V4_PREFIX + packed if family == 4 else packed)
        return cls(
            high, low, port | family << FAMILY_SHIFT | listen << LISTEN_SHIFT | scope << SCOPE_SHIFT
        )

    @classmethod
    def from_sockaddr(cls, sockaddr: tuple[str | int, ...], *, listen: int = 0) -> Self:
        """Make an address from what `recvfrom` gave; IPv6 where it has four parts."""
        host, port = str(sockaddr[0]), int(sockaddr[1])
        if len(sockaddr) == 4:
            packed = socket.inet_pton(socket.AF_INET6, host.split("%")[0])
            return cls.from_ip(packed, port, listen=listen, scope=int(sockaddr[3]))
        return cls.from_ip(socket.inet_aton(host), port, listen=listen)

    @property
    def port(self) -> int:
        """UDP port."""
        return self.endpoint & 0xFFFF

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.endpoint >> FAMILY_SHIFT & 0xFF

    @property
    def listen(self) -> int:
        """Number of the relay's listen address."""
        return self.endpoint >> LISTEN_SHIFT & 0xFF

    @property
    def packed(self) -> bytes:
        """4 or 16 bytes."""
        return _WORDS.pack(self.high, self.low)[12 if self.family == 4 else 0 :]

    @property
    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """What `sendto` takes."""
        if self.family == 4:
            return socket.inet_ntoa(self.packed), self.port
        return (
            socket.inet_ntop(socket.AF_INET6, self.packed),
            self.port,
            0,
            self.endpoint >> SCOPE_SHIFT,
        )

    @property
    def network_key(self) -> tuple[int, int]:
        """The network that the wider limit and blocks count: an IPv4 /24 or an IPv6 /48.

        Every IPv6 customer has 2^64 addresses or more to vary, so limits of single ones are not
        enough.

        Returns:
            The word with those bytes, and the family.
        """
        family = self.endpoint >> FAMILY_SHIFT & 0xFF
        if family == 4:
            return self.low & _V4_NETWORK, family
        return self.high & _V6_NETWORK, family

    def __repr__(self) -> str:
        # Addresses end up in tracebacks and logs; a full one must not.
        return f"Address(family={self.family}, listen={self.listen})"
