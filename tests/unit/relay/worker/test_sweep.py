"""What ends a session, and what the sweep repairs."""

from collections.abc import Iterator

import pytest
from support.relay.world import World, open_world, reject_reason

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_relay.engine.base import Forward
from wavry_relay.shm.address import Address
from wavry_relay.shm.sessions import session_words


@pytest.fixture
def world() -> Iterator[World]:
    with open_world(workers=2, max_sessions=200) as world:
        yield world


def test_second_peer_that_does_not_come(world: World) -> None:
    client = world.peer()
    client.accept()
    world.sweep(29.5)
    assert world.has(client.sid)
    client.accept()  # presenting again does not extend the wait
    world.sweep(2)
    assert not world.has(client.sid)
    assert world.count("session_closed_second_peer") == 1
    (notice, address) = world.notices[0]
    assert notice.body == packets.Notice(c.NoticeCode.PEER_GONE)
    assert address == client.address


def test_idle_session(world: World) -> None:
    client, server = world.session()
    world.sweep(50)
    assert client.forward(1) == Forward(server.address)
    world.sweep(59)
    assert world.has(client.sid)
    world.sweep(2.5)
    assert not world.has(client.sid)
    assert world.count("session_closed_idle") == 1


def test_traffic_one_way_keeps_a_session(world: World) -> None:
    client, server = world.session()
    for sequence in range(5):
        world.sweep(30)
        assert client.forward(sequence) == Forward(server.address)


def gone_notices(world: World) -> list[Address]:
    told = packets.Notice(c.NoticeCode.PEER_GONE)
    return [address for notice, address in world.notices if notice.body == told]


@pytest.mark.parametrize("role", list(c.Role))
def test_who_is_left_is_told_that_the_other_is_silent(world: World, role: c.Role) -> None:
    pair = world.session()
    here, gone = pair[role], pair[1 - role]
    for sequence in range(4):
        world.sweep(11)
        here.forward(sequence)
    assert gone_notices(world) == []
    world.sweep(3.2)
    assert gone_notices(world) == [here.address]
    world.sweep(10)
    assert gone_notices(world) == [here.address] * 2, "again, for a notice may be lost"
    here.forward(9)
    gone.forward(1)
    world.sweep(30)
    assert gone_notices(world) == [here.address] * 2, "it is back"
    assert world.has(here.sid)
    assert world.count("session_closed_idle") == 0


@pytest.mark.parametrize("role", list(c.Role))
def test_session_ends_when_one_is_gone_and_the_other_gives_its_slot_back(
    world: World, role: c.Role
) -> None:
    pair = world.session()
    here, gone = pair[role], pair[1 - role]
    captured = gone.datagram()
    gone.accept()
    for sequence in range(5):
        world.sweep(10)
        here.forward(sequence)
    world.answer(here.datagram(cookie=c.RELEASE_COOKIE), here.address)
    assert not world.has(here.sid)
    assert world.count("session_closed_released") == 1
    assert world.used.count == 2
    assert reject_reason(world.answer(captured, gone.address)) == c.RejectReason.REPLAYED
    gone.accept()  # It comes back after all, with a fresh proof.


def test_slot_given_back_beside_one_that_is_there_leaves_it(world: World) -> None:
    client, server = world.session()
    world.sweep(44)
    server.forward(1)
    world.answer(client.datagram(cookie=c.RELEASE_COOKIE), client.address)
    assert world.has(client.sid)
    assert server.slot.jti


def test_session_whose_leases_all_expired(world: World) -> None:
    client = world.peer(ttl_s=60)
    server = world.peer(c.Role.SERVER, sid=client.sid, ttl_s=90)
    client.accept()
    server.accept()
    for sequence in range(8):
        world.sweep(10)
        server.forward(sequence)
    assert world.has(client.sid)  # the server's lease is still good
    world.sweep(12)
    assert not world.has(client.sid)
    assert world.count("session_closed_expired") == 1
    ends = [notice.body for notice, _ in world.notices[-2:]]
    assert ends == [packets.Notice(c.NoticeCode.EXPIRING)] * 2
    assert set(gone_notices(world)) == {server.address}, "the silent client had an older lease"


def test_stamp_from_the_future_is_not_an_idle_session(world: World) -> None:
    """Another worker stamps a record after this one read its clock."""
    client, server = world.session()
    client.slot.received_ms = world.segment.milliseconds(world.now.mono_ns) + 40
    server.slot.received_ms = client.slot.received_ms
    for sweep in world.sweeps:
        for _ in range(25):
            sweep.step(world.now)
    world.sweep(1.1)
    assert world.has(client.sid)


def test_every_worker_sweeps_its_own_share_and_all_is_swept(world: World) -> None:
    for _ in range(150):
        world.peer().accept()
    assert world.table.count_states() == (150, 0)
    world.sweep(33)
    assert world.table.count_states() == (0, 0)
    assert world.count("session_closed_second_peer") == 150


def test_used_leases_are_forgotten_after_they_expired(world: World) -> None:
    world.session(ttl_s=60)
    world.sweep(62)
    assert world.used.count == 2
    world.sweep(65)
    assert world.used.count == 0


def test_record_that_a_killed_worker_only_marked_is_freed(world: World) -> None:
    number = world.table._allocate()
    assert number is not None
    assert [record.number for record in world.table.live()] == [number]
    world.sweep()
    assert list(world.table.live()) == []


def test_record_that_a_killed_worker_claimed_and_did_not_fill_is_freed(world: World) -> None:
    client = world.peer()
    stamp = world.segment.milliseconds(world.now.mono_ns)
    assert world.table.claim(*session_words(client.sid.bytes), stamp) is not None
    world.sweep(31.5)
    assert not world.has(client.sid)
    assert list(world.table.live()) == []


@pytest.mark.parametrize("step", ["_delete", "free_bit"])
def test_record_that_a_killed_worker_released_half_way_is_freed(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    client = world.peer()
    client.accept()
    real = getattr(world.table, step)

    def killed(*arguments: int) -> None:
        if step == "_delete":
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(world.table, step, killed)
    with pytest.raises(KeyboardInterrupt):
        world.table.release(world.record(client.sid))
    monkeypatch.undo()
    assert not world.has(client.sid)
    world.sweep(31.5)
    assert list(world.table.live()) == []
    client.accept(counter=100)


def test_announce_reaches_every_peer(world: World) -> None:
    client, server = world.session()
    for sweep in world.sweeps:
        sweep.announce(c.NoticeCode.SHUTDOWN)
    assert {address for _, address in world.notices} == {client.address, server.address}
