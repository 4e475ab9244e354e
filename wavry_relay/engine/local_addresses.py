"""The addresses of this host that peers wrote to at a wildcard socket, numbered for `Address`.

A wildcard socket answers from the address that the kernel picks for the route, which is not the one
that was asked where a host has several; NATs and connected sockets then drop the answer.  So each
datagram tells the address it was sent to (IP_PKTINFO), the number of that address is part of the
peer's own, as the number of a listen address is, and what goes to the peer leaves from there.

All processes of a relay share the numbers, because a slot keeps them.  An entry is written once,
under the table lock, its `origin` last, and never changes: a host has few addresses, and reading
needs no lock.
"""

import socket
import struct
from typing import Final, NamedTuple

from wavry_relay.shm.address import FIRST_LOCAL
from wavry_relay.shm.layout import LOCAL_ADDRESS, LOCAL_ADDRESSES
from wavry_relay.shm.locks import LockBusyError, Locks
from wavry_relay.shm.segment import Segment

__all__ = ["LocalAddress", "LocalAddresses", "tell_destinations"]

_WORDS: Final = struct.Struct("=QQ")
_ENTRY_WORDS: Final = LOCAL_ADDRESS.size // 8
_V4_PREFIX: Final = bytes(10) + b"\xff\xff"
IP_PKTINFO: Final = 8
"""bits/in.h; Python's socket module has it from 3.14 on."""
_V4_INFO: Final = struct.Struct("=i4s4s")
_V6_INFO: Final = struct.Struct("=16si")


class LocalAddress(NamedTuple):
    """One of them: the number of its listen address, 16 bytes, and a link-local one's interface."""

    listen: int
    packed: bytes
    scope: int

    def control(self, family: int) -> tuple[int, int, bytes]:
        """Return the control message that lets a socket of a family send from here."""
        if family == socket.AF_INET:
            return socket.IPPROTO_IP, IP_PKTINFO, _V4_INFO.pack(0, self.packed[12:], bytes(4))
        info = _V6_INFO.pack(self.packed, self.scope)
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info


class LocalAddresses:
    """The table of a segment.

    Args:
        segment: shared memory.
        locks: of the engine.
    """

    def __init__(self, segment: Segment, locks: Locks) -> None:
        self._segment = segment
        self._locks = locks
        self._at = segment.geometry.regions["local_addresses"].offset // 8
        self._known: dict[tuple[int, int, int], int] = {}

    def number(self, listen: int, packed: bytes, scope: int) -> int:
        """Return the local number of an address, a new one where it has none.

        Where there is no room, and for what nobody can send from, that of the listen address.

        Args:
            listen: number of the listen address.
            packed: 16 bytes.
            scope: interface of a link-local address.
        """
        high, low = _WORDS.unpack(packed)
        wanted = (high, low, listen + 1 | scope << 32)
        known = self._known.get(wanted)
        if known is not None:
            return known
        if not is_unicast(packed):
            return listen
        place, is_free = self._find(wanted)
        if is_free:
            try:
                with self._locks.table():
                    place, is_free = self._find(wanted)
                    if is_free:
                        words, at = self._segment.u64, self._at + place * _ENTRY_WORDS
                        words[at], words[at + 1], words[at + 2] = wanted
            except LockBusyError:
                return listen
        if place == LOCAL_ADDRESSES:
            return listen
        self._known[wanted] = FIRST_LOCAL + place
        return FIRST_LOCAL + place

    def _find(self, wanted: tuple[int, int, int]) -> tuple[int, bool]:
        """Return the place of an entry, or a free place and that it is free; or the end."""
        words = self._segment.u64
        for place in range(LOCAL_ADDRESSES):
            at = self._at + place * _ENTRY_WORDS
            if not words[at + 2]:
                return place, True
            if (words[at], words[at + 1], words[at + 2]) == wanted:
                return place, False
        return LOCAL_ADDRESSES, False

    def entry(self, number: int) -> LocalAddress | None:
        """Return what a local number stands for; None where it is that of a listen address."""
        place = number - FIRST_LOCAL
        if not 0 <= place < LOCAL_ADDRESSES:
            return None
        at = self._at + place * _ENTRY_WORDS
        high, low, origin = self._segment.u64[at : at + _ENTRY_WORDS].tolist()
        if not origin:
            return None
        return LocalAddress((origin & 0xFFFFFFFF) - 1, _WORDS.pack(high, low), origin >> 32)


def is_unicast(packed: bytes) -> bool:
    """Return whether a host can send from these 16 bytes."""
    if packed.startswith(_V4_PREFIX):
        return 0 < packed[12] < 224
    return packed[0] != 0xFF and any(packed)


def asked_address(control: list[tuple[int, int, bytes]]) -> tuple[bytes, int] | None:
    """Return the 16 bytes and the scope of the address that a datagram was sent to, if it tells."""
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            _, local, header = _V4_INFO.unpack(data)
            # Not filled in for what came before the socket was told to; a broadcast has no other.
            return _V4_PREFIX + (local if any(local) else header), 0
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            packed, interface = _V6_INFO.unpack(data)
            is_link_local = packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
            return packed, interface if is_link_local else 0
    return None


def tell_destinations(sock: socket.socket) -> None:
    """Let each datagram of a bound UDP socket say where it was sent to, if that can differ."""
    host = sock.getsockname()[0]
    if sock.family == socket.AF_INET6 and host == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    elif sock.family == socket.AF_INET and host == "0.0.0.0":
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
