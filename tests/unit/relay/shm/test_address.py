"""Addresses as words."""

import socket

import pytest

from wavry_relay.shm.address import Address


@pytest.mark.parametrize(
    "sockaddr",
    [
        ("192.0.2.1", 1),
        ("255.255.255.255", 65535),
        ("2001:db8::1", 4500, 0, 0),
        ("fe80::1", 9, 0, 7),
    ],
)
def test_there_and_back(sockaddr: tuple[str | int, ...]) -> None:
    address = Address.from_sockaddr(sockaddr, listen=3)
    assert address.sockaddr == sockaddr
    assert address.listen == 3
    assert address.family == (6 if len(sockaddr) == 4 else 4)


def test_ipv4_is_kept_as_mapped_address() -> None:
    address = Address.from_sockaddr(("192.0.2.1", 1))
    assert address.packed == socket.inet_aton("192.0.2.1")
    mapped = address.high.to_bytes(8, "little") + address.low.to_bytes(8, "little")
    assert mapped == socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1")


def test_pitfall_repr_has_no_address() -> None:
    assert "192" not in repr(Address.from_sockaddr(("192.0.2.1", 4711)))
    assert "4711" not in repr(Address.from_sockaddr(("192.0.2.1", 4711)))
