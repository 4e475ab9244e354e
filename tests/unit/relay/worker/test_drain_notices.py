"""A draining relay tells its peers to leave; peers that left give their slots back."""

from collections.abc import Iterator

import pytest
from support.relay.world import World, open_world, reject_reason, v4

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_relay.engine.base import Drop, Forward
from wavry_relay.shm.control import Drain
from wavry_relay.worker.drain_notices import DrainNotices


@pytest.fixture
def world() -> Iterator[World]:
    with open_world(workers=2, max_sessions=400) as world:
        yield world


def notices_of(world: World) -> list[DrainNotices]:
    return [DrainNotices(world.tables, world.row, number, world._notice) for number in range(2)]


def steps(world: World, parts: list[DrainNotices], seconds: float) -> None:
    for _ in range(round(seconds / 0.05)):
        for part in parts:
            part.step(world.now)
        world.advance(0.05)


def test_both_peers_of_every_session_are_told_at_once(world: World) -> None:
    parts = notices_of(world)
    client, server = world.session()
    steps(world, parts, 1)
    assert not world.notices, "no drain, no notice"
    world.control.drain = int(Drain.MASTER)
    steps(world, parts, 0.05)
    assert {address for _, address in world.notices} == {client.address, server.address}
    assert {p.body for p, _ in world.notices} == {packets.Notice(c.NoticeCode.DRAINING)}
    assert world.count("sent_notices") == 2


def test_notices_are_repeated_every_few_seconds_while_the_drain_lasts(world: World) -> None:
    parts = notices_of(world)
    world.session()
    world.control.drain = int(Drain.LOCAL)
    steps(world, parts, 4.9)
    assert len(world.notices) == 2
    steps(world, parts, 5.1)
    assert len(world.notices) == 4
    world.control.drain = 0
    steps(world, parts, 20)
    assert len(world.notices) == 4
    world.control.drain = int(Drain.LOCAL)
    steps(world, parts, 0.05)
    assert len(world.notices) == 6, "a new drain is told at once"


def test_notices_are_paced_and_reach_every_session_of_every_worker(world: World) -> None:
    for _ in range(300):
        world.session()
    parts = notices_of(world)
    world.control.drain = int(Drain.SHUTDOWN)
    most = 0
    for _ in range(8):
        for part in parts:
            before = len(world.notices)
            for _ in range(50):  # a busy packet loop asks far more often than every 50 ms
                part.step(world.now)
            most = max(most, len(world.notices) - before)
        world.advance(0.05)
    assert most == 128
    assert len({packet.header.session_id for packet, _ in world.notices}) == 300
    assert len(world.notices) == 600


def test_a_draining_relay_renews_and_takes_the_second_peer(world: World) -> None:
    client, server = world.session()
    waiting = world.peer(address=v4(9))
    waiting.accept()
    world.control.drain = int(Drain.MASTER)
    late = world.peer(address=v4(10))
    assert reject_reason(late.present()) == c.RejectReason.DRAINING
    client.accept(token=client.new_token(), renew=True)
    world.peer(c.Role.SERVER, sid=waiting.sid, address=v4(11)).accept()
    assert client.forward(1) == Forward(server.address)


def test_slots_that_were_given_back_free_the_session(world: World) -> None:
    client, server = world.session()
    assert client.world.answer(client.datagram(cookie=c.RELEASE_COOKIE), client.address) is None
    assert world.table.count_states() == (1, 0)
    assert server.forward(1) == Drop("not_active")
    world.answer(server.datagram(cookie=c.RELEASE_COOKIE, renew=True), server.address)
    assert not world.has(client.sid)
    assert world.table.count_states() == (0, 0)
    assert world.count("lease_released") == 2
    assert world.count("session_closed_released") == 1
    assert reject_reason(client.present()) == c.RejectReason.REPLAYED, "the old lease is spent"


def test_the_other_peer_of_a_released_slot_waits_as_for_a_second_peer(world: World) -> None:
    client, server = world.session()
    world.sweep(40)
    client.forward(1)
    world.answer(client.datagram(cookie=c.RELEASE_COOKIE), client.address)
    world.sweep(29)
    assert world.has(server.sid)
    world.sweep(3.5)
    assert not world.has(server.sid)
    assert world.count("session_closed_second_peer") == 1


def test_only_the_peer_itself_gives_its_slot_back(world: World) -> None:
    client, server = world.session()
    copied = client.datagram(cookie=c.RELEASE_COOKIE)
    client.accept()  # its counter is past the copy's
    assert reject_reason(world.answer(copied, v4(66))) == c.RejectReason.REPLAYED
    thief = world.peer(c.Role.CLIENT, sid=client.sid, address=v4(66))
    thief.token = client.token
    answer = thief.present(cookie=c.RELEASE_COOKIE)
    assert reject_reason(answer) == c.RejectReason.PROOF_REQUIRED
    other = world.peer(c.Role.CLIENT, sid=client.sid, address=v4(66))
    assert world.answer(other.datagram(cookie=c.RELEASE_COOKIE), v4(66)) is None
    assert client.forward(7) == Forward(server.address)
    assert world.count("lease_released") == 0


def test_a_release_of_an_unknown_session_makes_none(world: World) -> None:
    client = world.peer()
    assert world.answer(client.datagram(cookie=c.RELEASE_COOKIE), client.address) is None
    assert not world.has(client.sid)
