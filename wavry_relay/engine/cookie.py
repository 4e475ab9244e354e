"""Path cookies: proof that a peer receives at the address it sends from, without any state.

A cookie is a truncated keyed MAC over the session id, the address and a 30 s time slot.  The
current and the previous slot's are good, so one lives for 30 to 60 seconds.  The native engine
checks them too (cookie.c).
"""

import hashlib
import hmac
import struct
from typing import Final

from wavry_peer.protocol.constants import (
    COOKIE_BYTES,
    COOKIE_SLOT_S,
    HEADER_BYTES,
    NO_COOKIE,
    PROOF_BYTES,
    SIGNATURE_BYTES,
    Flag,
)
from wavry_peer.protocol.packets import Buffer
from wavry_relay.shm.address import Address

__all__ = ["COOKIE_FROM_END", "KEY_BYTES", "PERSON", "PathCookies", "cookie_in"]

KEY_BYTES: Final = 32
PERSON: Final = b"path"
COOKIE_FROM_END: Final = COOKIE_BYTES + SIGNATURE_BYTES
"""Where the cookie of a LEASE_PRESENT or LEASE_RENEW with proof begins."""

_INPUT: Final = struct.Struct("=16sQQQQ")
_SLOT_NS: Final = COOKIE_SLOT_S * 1_000_000_000


def cookie_in(datagram: Buffer) -> bytes | None:
    """Return the cookie that a LEASE_PRESENT or LEASE_RENEW brings, None where it has none."""
    if not datagram[3] & Flag.PROOF or len(datagram) < HEADER_BYTES + PROOF_BYTES:
        return None
    at = len(datagram) - COOKIE_FROM_END
    cookie = bytes(datagram[at : at + COOKIE_BYTES])
    return cookie if cookie != NO_COOKIE else None


class PathCookies:
    """Makes and checks cookies under the relay's boot key (32 bytes)."""

    def __init__(self, key: bytes) -> None:
        # Its key already taken in: half the cost of a cookie.
        self._keyed = hashlib.blake2b(digest_size=COOKIE_BYTES, key=key, person=PERSON)

    def make(self, session_id: bytes, address: Address, now_ns: int) -> bytes:
        """8 bytes for PATH_CHALLENGE; `now_ns` is CLOCK_MONOTONIC."""
        return self._mac(session_id, address, now_ns // _SLOT_NS)

    def is_good(self, cookie: bytes, session_id: bytes, address: Address, now_ns: int) -> bool:
        """Return whether a cookie is of this session and address, of this slot or the last."""
        slot = now_ns // _SLOT_NS
        fits = [
            hmac.compare_digest(cookie, self._mac(session_id, address, number))
            for number in (slot, slot - 1)
            if number >= 0
        ]
        return any(fits)

    def _mac(self, session_id: bytes, address: Address, slot: int) -> bytes:
        mac = self._keyed.copy()
        mac.update(_INPUT.pack(session_id, *address, slot))
        return mac.digest()
