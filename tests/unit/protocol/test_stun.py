"""STUN Binding: the published sample, aioice as a second implementation, hostile bytes."""

import ipaddress
import struct

import aioice.stun
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavry_peer.protocol import stun
from wavry_peer.protocol.errors import LocalError, PacketError

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
# RFC 5769, sections 2.2 and 2.3: sample responses, 192.0.2.1:32853 and
# [2001:db8:1234:5678:11:2233:4455:6677]:32853.  The FINGERPRINT at the end, which aioice checks,
# is a check of these bytes themselves.
RFC_5769_IPV4 = bytes.fromhex(
    "0101003c 2112a442 b7e7a701bc34d686fa87dfae"
    "8022000b 7465737420766563746f7220"
    "00200008 0001a147e112a643"
    "00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004 c07d4c96"
)
RFC_5769_IPV6 = bytes.fromhex(
    "01010048 2112a442 b7e7a701bc34d686fa87dfae"
    "8022000b 7465737420766563746f7220"
    "00200014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014 a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004 c8fb0b4c"
)

quick = settings(deadline=None, max_examples=100)
transactions = st.binary(min_size=12, max_size=12)
addresses = st.ip_addresses()
ports = st.integers(0, 65535)


def binding(kind: aioice.stun.Class, transaction: bytes) -> aioice.stun.Message:
    return aioice.stun.Message(aioice.stun.Method.BINDING, kind, transaction)


@pytest.mark.parametrize(
    ("response", "address"),
    [(RFC_5769_IPV4, "192.0.2.1"), (RFC_5769_IPV6, "2001:db8:1234:5678:11:2233:4455:6677")],
)
def test_published_sample(response: bytes, address: str) -> None:
    assert aioice.stun.parse_message(response).attributes["XOR-MAPPED-ADDRESS"] == (address, 32853)
    packed = ipaddress.ip_address(address).packed
    assert stun.parse_mapped_address(response, TRANSACTION) == (packed, 32853)
    ours = stun.build_binding_response(stun.build_binding_request(TRANSACTION), packed, 32853)
    assert ours is not None
    attribute_bytes = 4 + (8 if len(packed) == 4 else 20)
    assert len(ours) == 20 + attribute_bytes
    assert ours[20:] == response[36 : 36 + attribute_bytes]
    assert ours[4:20] == response[4:20]


@quick
@given(transactions, st.integers(0, 20).map(lambda n: 4 * n))
def test_aioice_reads_our_request(transaction: bytes, padding: int) -> None:
    request = stun.build_binding_request(transaction, padding=padding)
    assert stun.is_stun(request)
    assert len(request) == 20 + (4 + padding if padding else 0)
    message = aioice.stun.parse_message(request)
    assert message.message_method == aioice.stun.Method.BINDING
    assert message.message_class == aioice.stun.Class.REQUEST
    assert message.transaction_id == transaction
    # Attributes under 0x8000 would make a server that does not know them answer 420.
    assert set(message.attributes) == ({"SOFTWARE"} if padding else set())


@quick
@given(transactions, addresses, ports)
def test_aioice_reads_our_response(
    transaction: bytes, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    request = bytes(binding(aioice.stun.Class.REQUEST, transaction))
    assert stun.is_stun(request)
    response = stun.build_binding_response(request, address.packed, port)
    assert response is not None
    message = aioice.stun.parse_message(response)
    assert message.message_class == aioice.stun.Class.RESPONSE
    assert message.transaction_id == transaction
    assert message.attributes == {"XOR-MAPPED-ADDRESS": (str(address), port)}
    assert stun.parse_mapped_address(response, transaction) == (address.packed, port)


@quick
@given(transactions, addresses, ports, st.booleans(), st.text(max_size=9))
def test_we_read_aioice_s_response(
    transaction: bytes,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
    signed: bool,
    software: str,
) -> None:
    message = binding(aioice.stun.Class.RESPONSE, transaction)
    # An attribute of odd length in front: its filler must be stepped over.
    message.attributes["SOFTWARE"] = software
    message.attributes["MAPPED-ADDRESS"] = ("198.51.100.9", 9)
    message.attributes["XOR-MAPPED-ADDRESS"] = (str(address), port)
    if signed:
        message.add_message_integrity(b"key")
    assert stun.parse_mapped_address(bytes(message), transaction) == (address.packed, port)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer(kind: type) -> None:
    request = kind(stun.build_binding_request(TRANSACTION))
    assert stun.is_stun(request)
    response = stun.build_binding_response(request, bytes(4), 1)
    assert response is not None
    assert stun.parse_mapped_address(kind(response), TRANSACTION) == (bytes(4), 1)


REQUEST = stun.build_binding_request(TRANSACTION, padding=0)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        REQUEST[:19],
        REQUEST + b"\0",
        REQUEST + bytes(4),
        REQUEST[:2] + b"\0\4" + REQUEST[4:],
        REQUEST[:2] + b"\0\2" + REQUEST[4:] + b"\0\0",
        REQUEST[:4] + b"\x21\x12\xa4\x43" + REQUEST[8:],
        b"\0\2" + REQUEST[2:],
        b"\0\x11" + REQUEST[2:],
        b"\1\1" + REQUEST[2:],
        b"\1\x11" + REQUEST[2:],
        b"\x80\1" + REQUEST[2:],
        b"\x57\1" + REQUEST[2:],
        REQUEST[:2] + struct.pack("!H", 1484) + REQUEST[4:] + bytes(1484),
    ],
)
def test_what_is_not_a_binding_request_is_never_answered(datagram: bytes) -> None:
    assert stun.is_stun(REQUEST)
    assert not stun.is_stun(datagram)


def test_a_request_is_not_a_relay_packet_and_the_other_way_round() -> None:
    assert REQUEST[0] != 0x57
    assert not stun.is_stun(b"\x57\x01\x01\x00" + bytes(16))


def test_only_the_answer_to_this_request_counts() -> None:
    response = stun.build_binding_response(REQUEST, bytes(4), 7)
    assert response is not None
    assert stun.parse_mapped_address(response, TRANSACTION) == (bytes(4), 7)
    bad = [
        (response, b"another12345"),
        (b"\1\x11" + response[2:], TRANSACTION),
        (REQUEST, TRANSACTION),
        (response[:-1], TRANSACTION),
        (response + b"\0", TRANSACTION),
        (response[:4] + bytes(4) + response[8:], TRANSACTION),
    ]
    for datagram, transaction in bad:
        with pytest.raises(PacketError) as caught:
            stun.parse_mapped_address(datagram, transaction)
        assert caught.value.reason == "bad_stun"


def response_with(attributes: bytes) -> bytes:
    return struct.pack("!HHI", 0x0101, len(attributes), 0x2112A442) + TRANSACTION + attributes


@pytest.mark.parametrize(
    "attributes",
    [
        b"",
        bytes.fromhex("00200008 0002a147e112a643"),  # 4 bytes of address, family IPv6
        bytes.fromhex("00200014 0001a1470113a9faa5d3f179bc25f4b5bed2b9d9"),  # and the reverse
        bytes.fromhex("00200008 0003a147e112a643"),
        bytes.fromhex("00200007 0001a147e112a600"),
        bytes.fromhex("00200000"),
        bytes.fromhex("00200014 0001a147e112a643"),  # longer than the datagram
        bytes.fromhex("0020ffff 0001a147e112a643"),
        bytes.fromhex("0001000800010001c0000201"),  # only the plain MAPPED-ADDRESS
        bytes.fromhex("002000"),
    ],
)
def test_no_usable_address(attributes: bytes) -> None:
    with pytest.raises(PacketError) as caught:
        stun.parse_mapped_address(response_with(attributes), TRANSACTION)
    assert caught.value.reason == "bad_stun"


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=100))
def test_garbage_attributes_raise_nothing_but_packet_error(attributes: bytes) -> None:
    try:
        address, port = stun.parse_mapped_address(response_with(attributes), TRANSACTION)
    except PacketError:
        return
    assert len(address) in (4, 16)
    assert 0 <= port <= 65535


@pytest.mark.parametrize(
    ("transaction", "padding"),
    [(b"", 0), (bytes(11), 0), (bytes(13), 0), (bytes(12), 3), (bytes(12), -4)],
)
def test_requests_that_cannot_be_built(transaction: bytes, padding: int) -> None:
    with pytest.raises(LocalError):
        stun.build_binding_request(transaction, padding=padding)


@pytest.mark.parametrize("size", [0, 3, 5, 15, 17])
def test_an_address_has_4_or_16_bytes(size: int) -> None:
    with pytest.raises(LocalError):
        stun.build_binding_response(REQUEST, bytes(size), 1)
