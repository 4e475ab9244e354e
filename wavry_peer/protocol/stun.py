"""STUN Binding on the relay port: one request, one answer (RFC 8489).

Only what a relay answers and a peer asks: no authentication, no other attribute.
"""

import struct

from . import constants as c
from .errors import LocalError, PacketError
from .packets import Buffer

__all__ = ["build_binding_request", "build_binding_response", "is_stun", "parse_mapped_address"]

_HEAD = struct.Struct("!HHI12s")
_FAMILY_BY_VALUE_BYTES = {8: b"\x01", 20: b"\x02"}


def is_stun(datagram: Buffer) -> bool:
    """Return True for a STUN *Binding request* with the magic cookie and a fitting length."""
    if len(datagram) < c.STUN_HEADER_BYTES or len(datagram) > c.MAX_DATAGRAM_BYTES:
        return False
    kind, length, cookie, _ = _HEAD.unpack_from(datagram)
    return bool(
        kind == c.STUN_BINDING_REQUEST
        and cookie == c.STUN_COOKIE
        and length == len(datagram) - c.STUN_HEADER_BYTES
        and length % 4 == 0
    )


def build_binding_request(transaction_id: bytes, *, padding: int = 24) -> bytes:
    """Build a Binding request.

    Args:
        transaction_id: 12 random bytes.
        padding: bytes of the SOFTWARE attribute, multiple of 4 (0 = none); the relay never
            answers with more bytes than it got, so a request must leave room for the answer.
            (Not PADDING of RFC 5780: a server that does not know it must answer 420.)

    Raises:
        LocalError: another size.
    """
    if len(transaction_id) != 12 or padding < 0 or padding % 4:
        raise LocalError("transaction id must have 12 bytes, padding a multiple of 4")
    name = b"wavry".ljust(padding)[:padding]
    body = struct.pack("!HH", c.STUN_SOFTWARE, padding) + name if padding else b""
    return _HEAD.pack(c.STUN_BINDING_REQUEST, len(body), c.STUN_COOKIE, transaction_id) + body


def build_binding_response(request: Buffer, address: bytes, port: int) -> bytes | None:
    """Answer a Binding request with XOR-MAPPED-ADDRESS.

    Args:
        request: datagram for which `is_stun` is true.
        address: 4 or 16 bytes, the request's source.
        port: source port.

    Returns:
        The answer.  It may be 12 bytes (IPv4) or 24 bytes (IPv6) larger than a bare
        20-byte request; the caller decides whether that may be sent.

    Raises:
        LocalError: the address has another size.
    """
    if len(address) not in (4, 16):
        raise LocalError("address must have 4 or 16 bytes")
    _, _, _, transaction_id = _HEAD.unpack_from(request)
    mask = struct.pack("!I", c.STUN_COOKIE) + transaction_id
    family = 1 if len(address) == 4 else 2
    xored = bytes(a ^ b for a, b in zip(address, mask, strict=False))
    value = struct.pack("!BBH", 0, family, port ^ (c.STUN_COOKIE >> 16)) + xored
    attribute = struct.pack("!HH", c.STUN_XOR_MAPPED_ADDRESS, len(value)) + value
    head = _HEAD.pack(c.STUN_BINDING_RESPONSE, len(attribute), c.STUN_COOKIE, transaction_id)
    return head + attribute


def parse_mapped_address(response: Buffer, transaction_id: bytes) -> tuple[bytes, int]:
    """Read XOR-MAPPED-ADDRESS of a Binding response.

    Raises:
        PacketError: ``bad_stun``: not the answer to this request, or no usable address.
    """
    if len(response) < c.STUN_HEADER_BYTES:
        raise PacketError("bad_stun")
    kind, length, cookie, echoed = _HEAD.unpack_from(response)
    if (kind, cookie, echoed) != (c.STUN_BINDING_RESPONSE, c.STUN_COOKIE, transaction_id):
        raise PacketError("bad_stun")
    if length != len(response) - c.STUN_HEADER_BYTES:
        raise PacketError("bad_stun")
    mask = struct.pack("!I", c.STUN_COOKIE) + transaction_id
    at = c.STUN_HEADER_BYTES
    while at + 4 <= len(response):
        name, size = struct.unpack_from("!HH", response, at)
        value = bytes(response[at + 4 : at + 4 + size])
        family = _FAMILY_BY_VALUE_BYTES.get(len(value))
        if name == c.STUN_XOR_MAPPED_ADDRESS and len(value) == size and value[1:2] == family:
            port = struct.unpack_from("!H", value, 2)[0] ^ (c.STUN_COOKIE >> 16)
            return bytes(a ^ b for a, b in zip(value[4:], mask, strict=False)), port
        at += 4 + size + (-size % 4)
    raise PacketError("bad_stun")
