"""Mistakes seen in the field that the relay must not make (one test for each)."""

import pytest
from support.relay.world import open_world, reject_reason, v4, v6

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_relay.engine.base import Forward
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import Limits
from wavry_relay.shm.layout import RATE_BUCKET

VICTIM = [v4(77), v6(77)]


@pytest.mark.parametrize("address", VICTIM, ids=["v4", "v6"])
def test_pitfall_no_strike_bans_an_address_that_may_be_spoofed(address: Address) -> None:
    """Who knows session and port slows its lease packets for a second, and never its stream."""
    limits = Limits(ip_per_s=10, ip_burst=20, identity_per_s=1000, identity_burst=1000)
    with open_world(limits=limits) as world:
        client, server = world.session(client=address)
        stranger = world.peer(address=address)
        bad = [
            packets.build_present(client.sid.bytes, c.Role.CLIENT, b"v4.public." + b"A" * 200),
            packets.build_present(stranger.sid.bytes, c.Role.SERVER, b"x"),
            stranger.frame(1),
            b"\0" * 40,
            client.frame(0)[:-1],
        ]
        for number in range(500):
            world.raw_answer(bad[number % len(bad)], address)
            if number % 50 == 0:
                assert client.forward(number + 1) == Forward(server.address)
        assert world.answer(client.datagram(renew=True), address) is None
        world.advance(0.2)
        client.accept(token=client.new_token(), renew=True)
        assert client.forward(1000) == Forward(server.address)


@pytest.mark.parametrize("address", VICTIM, ids=["v4", "v6"])
def test_pitfall_limiter_keeps_neither_addresses_nor_unsalted_hashes(address: Address) -> None:
    tables = []
    for _ in range(2):
        with open_world() as world:
            world.raw_answer(world.peer(address=address).frame(1), address)
            assert reject_reason(world.answer(world.peer().datagram(token=b"x"), address))
            region = world.segment.geometry.regions["ip_rates"]
            end = region.offset + region.count * RATE_BUCKET.size
            words = set(world.segment.u64[region.offset // 8 : end // 8]) - {0}
            word = address.network_key[0].to_bytes(8, "little")
            for plain in (word, word[4:], address.packed[:8]):
                assert int.from_bytes(plain, "little") not in words
                assert int.from_bytes(plain, "big") not in words
            tables.append(words)
    first, second = tables
    assert len(first) >= 2, "a key and its time"
    # The same address at the same time in two relays: only what is no key may be equal.
    assert len(first & second) < len(first)


def test_pitfall_hard_limit_has_no_free_second_and_no_sawtooth() -> None:
    """Every 100 ms of three seconds at twice the limit, the first included, lets half through."""
    kbps, size = 960, 1200  # 100 datagrams a second
    with open_world() as world:
        client, _ = world.session(hard_kbps=kbps, soft_kbps=kbps)
        payload = bytes(size - c.HEADER_BYTES - 8)
        passed = []
        for tenth in range(30):
            count = 0
            for number in range(20):
                count += isinstance(client.forward(tenth * 20 + number, payload), Forward)
                world.advance(0.005)
            passed.append(count)
        burst = 26  # 250 ms and the datagram at its edge
        assert sum(passed[:10]) <= 100 + burst, "the first second is limited too"
        assert all(9 <= count <= 11 for count in passed[5:]), passed
