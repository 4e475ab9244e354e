"""A TURN client of the few messages that the coturn row needs (RFC 8656: Allocate, ChannelBind)."""

import ipaddress
import secrets
import socket
import struct
import time
from typing import Final

__all__ = ["TurnError", "allocate", "bind_channel"]

_COOKIE: Final = 0x2112A442
_ALLOCATE: Final = 0x0003
_CHANNEL_BIND: Final = 0x0009
_SUCCESS: Final = 0x0100
_CHANNEL_NUMBER: Final = 0x000C
_XOR_PEER_ADDRESS: Final = 0x0012
_REQUESTED_TRANSPORT: Final = 0x0019
_UDP: Final = 17
_TRIES: Final = 5
_ANSWER_S: Final = 0.5

Address = tuple[str, int]


class TurnError(RuntimeError):
    """The TURN server refused, or did not answer."""


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _request(opened: socket.socket, server: Address, kind: int, attributes: bytes) -> None:
    transaction = secrets.token_bytes(12)
    head = struct.pack("!HHI", kind, len(attributes), _COOKIE)
    for _ in range(_TRIES):
        opened.sendto(head + transaction + attributes, server)
        deadline = time.monotonic() + _ANSWER_S
        while (left := deadline - time.monotonic()) > 0:
            opened.settimeout(left)
            try:
                answer = opened.recv(2048)
            except TimeoutError:
                break
            finally:
                opened.settimeout(None)
            if answer[8:20] != transaction:
                continue  # an answer to another subject that shares the socket
            (answered,) = struct.unpack_from("!H", answer)
            if answered != kind | _SUCCESS:
                raise TurnError(f"TURN request {kind:#06x} was answered with {answered:#06x}")
            return
    raise TurnError(f"TURN request {kind:#06x} was not answered")


def allocate(opened: socket.socket, server: Address) -> None:
    """Ask for a relayed UDP address for the 5-tuple of `opened`.

    Raises:
        TurnError: refused or no answer.
    """
    transport = _attribute(_REQUESTED_TRANSPORT, struct.pack("!B3x", _UDP))
    _request(opened, server, _ALLOCATE, transport)


def bind_channel(opened: socket.socket, server: Address, channel: int, peer: Address) -> None:
    """Bind a channel number (0x4000 on) to an IPv4 peer, or refresh it.

    Raises:
        TurnError: refused or no answer.
    """
    host, port = peer
    packed = int(ipaddress.IPv4Address(host)) ^ _COOKIE
    address = struct.pack("!xBHI", 1, port ^ (_COOKIE >> 16), packed)
    number = struct.pack("!Hxx", channel)
    attributes = _attribute(_CHANNEL_NUMBER, number) + _attribute(_XOR_PEER_ADDRESS, address)
    _request(opened, server, _CHANNEL_BIND, attributes)
