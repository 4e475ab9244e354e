"""A peer's address as the three 64-bit words that a session record keeps.

Two words hold the 16 bytes of an IPv6 address (IPv4 as ``::ffff:a.b.c.d``) in native byte order,
so that C compares them with `memcmp`.  The third, the endpoint word, is arithmetic: port in
bits 0-15, family (4 or 6) in 16-19, local number in 20-31, IPv6 scope id in 32-63.

The local number belongs to the path: a peer is answered from the address it wrote to.  It is the
number of a listen address, or from `FIRST_LOCAL` on, where that is a wildcard, the place of the
very address in `LocalAddresses`.

An IPv4 peer of a dual-stack IPv6 socket is an IPv4 peer: limits, blocks and what it is told of its
own address must not depend on the socket.
"""

import ipaddress
import socket
import struct
from typing import Final, NamedTuple, Self

__all__ = ["Address", "host_of", "host_text"]

FAMILY_SHIFT: Final = 16
FAMILY_MASK: Final = 0xF
LISTEN_SHIFT: Final = 20
LISTEN_MASK: Final = 0xFFF
SCOPE_SHIFT: Final = 32
FIRST_LOCAL: Final = 256
"""Smaller local numbers are those of listen addresses."""

_WORDS: Final = struct.Struct("=QQ")
_V4_PREFIX: Final = bytes(10) + b"\xff\xff"
_V4_NETWORK: Final = _WORDS.unpack(bytes(12) + b"\xff\xff\xff\0")[1]
_V6_NETWORK: Final = _WORDS.unpack(b"\xff" * 6 + bytes(10))[0]
_V4_HIGH, _V4_PREFIX_WORD = _WORDS.unpack(_V4_PREFIX + bytes(4))
_V4_PREFIX_MASK: Final = _WORDS.unpack(bytes(8) + b"\xff" * 4 + bytes(4))[1]


def host_text(host: int, family: int) -> str:
    """Return the text of a `Address.host_key`, e.g. ``192.0.2.7/32`` or ``2001:db8::/64``."""
    return str(host_of(host, family))


def host_of(host: int, family: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return a `Address.host_key` as a network of one host."""
    if family == 4:
        return ipaddress.IPv4Network((_WORDS.pack(0, host)[12:], 32))
    return ipaddress.IPv6Network((_WORDS.pack(host, 0), 64))


class Address(NamedTuple):
    """Source or destination of a datagram."""

    high: int
    low: int
    endpoint: int

    @classmethod
    def from_ip(cls, packed: bytes, port: int, *, listen: int = 0, scope: int = 0) -> Self:
        """Make an address from 4 or 16 packed bytes; ``::ffff:a.b.c.d`` is IPv4."""
        if len(packed) == 4:
            packed = _V4_PREFIX + packed
        family = 4 if packed.startswith(_V4_PREFIX) else 6
        high, low = _WORDS.unpack(packed)
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
        return self.endpoint >> FAMILY_SHIFT & FAMILY_MASK

    @property
    def listen(self) -> int:
        """Local number: which address of the relay the peer wrote to."""
        return self.endpoint >> LISTEN_SHIFT & LISTEN_MASK

    @property
    def packed(self) -> bytes:
        """4 or 16 bytes."""
        return _WORDS.pack(self.high, self.low)[12 if self.family == 4 else 0 :]

    @property
    def sockaddr_v6(self) -> tuple[str, int, int, int]:
        """What `sendto` of an IPv6 socket takes, for IPv4 too where it is dual-stack."""
        text = socket.inet_ntop(socket.AF_INET6, _WORDS.pack(self.high, self.low))
        return text, self.port, 0, self.endpoint >> SCOPE_SHIFT

    @property
    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """What `sendto` of a socket of its family takes."""
        if self.family == 4:
            return socket.inet_ntoa(self.packed), self.port
        return self.sockaddr_v6

    @property
    def host_key(self) -> tuple[int, int]:
        """What counts as one host for limits and blocks: an IPv4 address or an IPv6 /64.

        Every IPv6 customer has 2^64 addresses or more to vary.

        Returns:
            The word with those bytes, and the family (4 also for IPv4 at an IPv6 socket).
        """
        if self.high == _V4_HIGH and self.low & _V4_PREFIX_MASK == _V4_PREFIX_WORD:
            return self.low, 4
        return self.high, 6

    @property
    def network_key(self) -> tuple[int, int]:
        """The network that the wider limit counts, an IPv4 /24 or an IPv6 /48, as `host_key`."""
        word, family = self.host_key
        return word & (_V4_NETWORK if family == 4 else _V6_NETWORK), family

    def __repr__(self) -> str:
        # Addresses end up in tracebacks and logs; a full one must not.
        return f"Address(family={self.family}, listen={self.listen})"
