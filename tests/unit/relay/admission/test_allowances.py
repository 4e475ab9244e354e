"""Allowances are apart: what a stranger can spoof never uses up what somebody proved.

Both engines decide, the rules in Python answer.
"""

import socket
from collections.abc import Iterator

import pytest
from support.needs import lack
from support.relay.world import Peer, World, open_world, v4, v6

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_relay.engine import EngineUnavailableError, choose_engine
from wavry_relay.engine.base import ControlPacket, Drop, SenderClass
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import Limits
from wavry_relay.shm.layout import RATE_BUCKET

TIGHT = Limits(ip_per_s=1, ip_burst=5, identity_per_s=1000, identity_burst=1000)
STUN = stun.build_binding_request(bytes(12))
JUNK = b"v4.public." + b"A" * 200
OVER = Drop("ip_rate")


def mapped(number: int, port: int = 5000) -> Address:
    """An IPv4 address as a dual-stack socket shows it."""
    text = f"::ffff:192.0.2.{number}"
    return Address.from_sockaddr((text, port, 0, 0))


@pytest.fixture(params=["reference", "native"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    try:
        kind = choose_engine(request.param)
    except EngineUnavailableError as error:
        lack(str(error))
    with open_world(kind=kind, limits=TIGHT) as made:
        yield made


def spoof_everything(world: World, address: Address, peer: Peer) -> None:
    """What anybody can send in the name of an address: from each of its ports."""
    for number in range(100):
        source = Address(
            address.high, address.low, address.endpoint ^ (number + 1 if number % 2 else 0)
        )
        world.raw_answer(STUN, source)
        world.raw_answer(packets.build_present(bytes(range(16)), c.Role.CLIENT, JUNK), source)
        world.raw_answer(bytes((0x57, 1, 4, 0)) + bytes(range(16)), source)
        junk = packets.build_present(
            bytes(range(16)), c.Role.CLIENT, JUNK,
            counter=number, cookie=b"spoofed!", sign=lambda _: bytes(64),
        )  # fmt: skip
        world.raw_answer(junk, source)
    assert world.decide(STUN, address) == OVER
    stranger = packets.build_present(bytes(range(16)), c.Role.CLIENT, JUNK)
    assert world.decide(stranger, address) == OVER


@pytest.mark.parametrize("address", [v4(77), v6(77), mapped(77)], ids=["v4", "v6", "mapped"])
def test_spoofed_packets_leave_a_live_slot_its_renewals(world: World, address: Address) -> None:
    client, _ = world.session(client=address)
    spoof_everything(world, address, client)
    for _ in range(3):
        client.accept(token=client.new_token(), renew=True)
    keepalive = bytes((0x57, 1, 4, 0)) + client.sid.bytes
    assert world.answer(keepalive, client.address) is not None


@pytest.mark.parametrize("address", [v4(77), v6(77)], ids=["v4", "v6"])
def test_spoofed_packets_leave_who_proved_his_address_a_new_session(
    world: World, address: Address
) -> None:
    client, _ = world.session(client=v4(50))
    answer = world.answer(client.frame(1), address)
    assert answer is not None
    assert isinstance(answer.body, packets.PathChallenge)
    spoof_everything(world, address, client)
    client.address = address
    client.accept(cookie=answer.body.cookie)
    assert world.count("nat_rebind") == 1


def test_live_slots_behind_one_address_have_an_allowance_each(world: World) -> None:
    greedy, _ = world.session(client=v4(1, 4001))
    world.advance(10)
    neighbour, _ = world.session(client=v4(1, 4002))
    keepalive = bytes((0x57, 1, 4, 0))
    for _ in range(50):
        world.raw_answer(keepalive + greedy.sid.bytes, greedy.address)
    assert world.count("limited_slot") == 45
    assert world.count("limited_bytes_slot") == 45 * 20
    assert world.decide(keepalive + greedy.sid.bytes, greedy.address) == OVER
    assert world.answer(keepalive + neighbour.sid.bytes, neighbour.address) is not None


def test_a_stranger_without_the_port_of_a_slot_is_a_stranger(world: World) -> None:
    client, _ = world.session(client=v4(1, 4001))
    world.advance(10)
    keepalive = bytes((0x57, 1, 4, 0)) + client.sid.bytes
    senders = []
    for address in (client.address, v4(1, 4002), v4(2, 4001)):
        decision = world.decide(keepalive, address)
        assert isinstance(decision, ControlPacket)
        senders.append(decision.sender)
    assert senders == [SenderClass.SLOT, SenderClass.STRANGER, SenderClass.STRANGER]


def test_ipv6_hosts_are_a_64(world: World) -> None:
    for number in range(20):
        text = f"2001:db8:0:1::{number:x}"
        world.decide(STUN, Address.from_ip(socket.inet_pton(socket.AF_INET6, text), 1))
    assert world.count("limited_host") == 15
    other = Address.from_ip(socket.inet_pton(socket.AF_INET6, "2001:db8:0:2::1"), 1)
    assert isinstance(world.decide(STUN, other), ControlPacket)


def test_ipv4_at_an_ipv6_socket_is_no_network_of_its_own(world: World) -> None:
    """All of IPv4 would be one /64 and one /48."""
    assert mapped(7).host_key == v4(7).host_key
    for number in range(30):
        assert isinstance(world.decide(STUN, mapped(number)), ControlPacket)
    assert mapped(1).network_key == v4(2).network_key


def test_full_tables_let_new_addresses_in_and_do_not_grow(world: World) -> None:
    words = world.segment.u64
    far_ns = world.now.mono_ns + 2_000_000_000
    for name in ("ip_rates", "network_rates"):
        region = world.segment.geometry.regions[name]
        for bucket in range(region.count):
            base = (region.offset + bucket * RATE_BUCKET.size) // 8
            for way in range(3):
                words[base + way], words[base + 3 + way] = 7 + way, far_ns
    for number in range(20):
        world.peer(address=v4(number)).accept()


def test_over_a_limit_nothing_reaches_python(world: World) -> None:
    decisions = [world.decide(STUN, v4(9)) for _ in range(50)]
    assert sum(isinstance(decision, ControlPacket) for decision in decisions) == 5
    assert decisions[5:] == [OVER] * 45
    assert world.count("drop_ip_rate") == world.count("limited_host") == 45
    assert world.count("dropped_bytes_ip_rate") == 45 * len(STUN)
    assert world.count("limited_bytes_host") == 45 * len(STUN)
