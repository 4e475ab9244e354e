"""The table of lease states: one test for each step, and nothing outside of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.paths import REPOSITORY
from support.relay.revocation import GivenOrders
from support.relay.world import Peer, World, reject_reason

from wavry_peer.protocol import constants as c
from wavry_peer.service import logs
from wavry_relay.admission import transitions as lease_transitions
from wavry_relay.admission.transitions import IllegalTransitionError, LeaseTransitions
from wavry_relay.shm.counters import totals
from wavry_relay.shm.lease_states import TRANSITIONS, LeaseState, counter_name, table_rows

S = LeaseState
Step = tuple[LeaseState, LeaseState]


def steps(world: World) -> dict[Step, int]:
    """Steps that were taken, by pair."""
    counts = totals(world.segment)
    found = {pair: counts[counter_name(*pair)] for pair in TRANSITIONS}
    return {pair: count for pair, count in found.items() if count}


def release(peer: Peer) -> None:
    assert world_answer(peer) is None


def world_answer(peer: Peer) -> object:
    datagram = peer.datagram(renew=True, cookie=c.RELEASE_COOKIE)
    return peer.world.answer(datagram, peer.address)


def waiting(world: World) -> Peer:
    peer = world.peer()
    peer.accept()
    return peer


def presented(world: World, _orders: GivenOrders) -> None:
    waiting(world)


def activated(world: World, _orders: GivenOrders) -> None:
    world.session()


def partner_left(world: World, _orders: GivenOrders) -> None:
    _, server = world.session()
    release(server)


def renewed_waiting(world: World, _orders: GivenOrders) -> None:
    peer = waiting(world)
    peer.accept(token=peer.new_token(), renew=True)


def renewed_active(world: World, _orders: GivenOrders) -> None:
    client, _ = world.session()
    client.accept(token=client.new_token(), renew=True)


def expired_waiting(world: World, _orders: GivenOrders) -> None:
    peer = world.peer(ttl_s=60)
    peer.accept()
    world.advance(61)
    world.sweep(2.2)


def expired_active(world: World, _orders: GivenOrders) -> None:
    world.session(ttl_s=60)
    world.advance(61)
    world.sweep(2.2)


def revoked_waiting(world: World, orders: GivenOrders) -> None:
    waiting(world)
    orders.revoke("sub", "user-client")
    world.scan()


def revoked_active(world: World, orders: GivenOrders) -> None:
    world.session()
    orders.revoke("sub", "user-client")
    world.scan()


def second_peer_timeout(world: World, _orders: GivenOrders) -> None:
    waiting(world)
    world.sweep(33)


def idle(world: World, _orders: GivenOrders) -> None:
    world.session()
    world.sweep(63)


CASES: list[tuple[Step, Callable[[World, GivenOrders], None], int]] = [
    ((S.ISSUED, S.PRESENTED), presented, 1),
    ((S.PRESENTED, S.ACCEPTED), presented, 1),
    ((S.ACCEPTED, S.ACTIVE), activated, 2),
    ((S.ACTIVE, S.ACCEPTED), partner_left, 1),
    ((S.ACCEPTED, S.RENEWED), renewed_waiting, 1),
    ((S.RENEWED, S.ACCEPTED), renewed_waiting, 1),
    ((S.ACTIVE, S.RENEWED), renewed_active, 1),
    ((S.RENEWED, S.ACTIVE), renewed_active, 1),
    ((S.ACCEPTED, S.EXPIRED), expired_waiting, 1),
    ((S.ACTIVE, S.EXPIRED), expired_active, 2),
    ((S.ACCEPTED, S.REVOKED), revoked_waiting, 1),
    ((S.ACTIVE, S.REVOKED), revoked_active, 2),
    ((S.ACCEPTED, S.CLOSED), second_peer_timeout, 1),
    ((S.ACTIVE, S.CLOSED), idle, 2),
]


def test_every_step_of_the_table_has_its_test() -> None:
    assert {step for step, _, _ in CASES} == set(TRANSITIONS)


@pytest.mark.parametrize(
    ("step", "drive", "times"), CASES, ids=[f"{a}-{b}" for (a, b), _, _ in CASES]
)
def test_transition(
    world: World,
    tmp_path: Path,
    step: Step,
    drive: Callable[[World, GivenOrders], None],
    times: int,
) -> None:
    assert not steps(world)
    drive(world, GivenOrders(world, tmp_path / "state"))
    assert steps(world)[step] == times
    # What holds a slot came in and has not gone out: the counters always say how many there are.
    found = steps(world)
    slots = sum(slot.jti != 0 for record in world.table.live() for slot in record.slots())
    ends = sum(n for (_, after), n in found.items() if after in (S.EXPIRED, S.REVOKED, S.CLOSED))
    assert found[S.PRESENTED, S.ACCEPTED] - ends == slots


def test_transition_of_a_session_that_ends_is_expired_where_the_lease_is_over(world: World) -> None:
    """One lease of an idle session ran out before: that slot expired, the other was closed."""
    client = world.peer(ttl_s=60)
    server = world.peer(c.Role.SERVER, sid=client.sid, ttl_s=300)
    client.accept()
    server.accept()
    world.sweep(63)
    assert steps(world)[S.ACTIVE, S.EXPIRED] == 1
    assert steps(world)[S.ACTIVE, S.CLOSED] == 1


def test_refused_leases_take_no_step(world: World) -> None:
    client, _ = world.session()
    before = steps(world)
    assert reject_reason(client.present(counter=1)) == c.RejectReason.REPLAYED
    assert reject_reason(client.present(token=b"x")) == c.RejectReason.INVALID_SIGNATURE
    client.accept()
    assert steps(world) == before, "nor does a lease that is proven again"


@pytest.mark.parametrize("before", list(S))
@pytest.mark.parametrize("after", list(S))
def test_illegal_transitions_raise(world: World, before: LeaseState, after: LeaseState) -> None:
    if (before, after) in TRANSITIONS:
        world.transitions.take(before, after, (1, 2), world.now, role=0)
        assert steps(world) == {(before, after): 1}
        return
    with pytest.raises(IllegalTransitionError):
        world.transitions.take(before, after, (1, 2), world.now, role=0)
    lenient = LeaseTransitions(world.tables, world.row)
    lenient.take(before, after, (1, 2), world.now, role=0)
    assert world.count("internal_errors") == 1, "a running relay counts it and goes on"


def lines(text: str) -> list[dict[str, object]]:
    found = (json.loads(line) for line in text.splitlines() if line.startswith("{"))
    return [line for line in found if line["event"] == "lease_transition"]


def test_each_step_is_one_log_event(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.control.log_level = logs.level_number("debug")
    client, _ = world.session()
    world.sweep(63)
    text = capsys.readouterr().err
    found = lines(text)
    assert len(found) == sum(steps(world).values())
    assert [(line["before"], line["after"]) for line in found[:2]] == [
        ("issued", "presented"),
        ("presented", "accepted"),
    ]
    assert {line["level"] for line in found if line["after"] == "closed"} == {"info"}
    assert {line["level"] for line in found if line["after"] != "closed"} == {"debug"}
    assert {line["cause"] for line in found if line["after"] == "closed"} == {"idle"}
    assert len({line["session"] for line in found}) == 1
    for secret in (str(client.sid), client.sid.hex, "192.0.2", "user-client"):
        assert secret not in text


def test_log_of_ordinary_steps_is_off_at_info_and_of_all_at_error(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.session()
    assert not lines(capsys.readouterr().err)
    world.control.log_level = logs.level_number("error")
    world.sweep(63)
    assert not lines(capsys.readouterr().err)


def test_log_is_bounded_when_a_whole_relay_ends_at_once(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    end = (S.ACTIVE, S.REVOKED, (1, 2), world.now)
    for _ in range(1000):
        world.transitions.take(*end, role=0, cause="revoked")
    found = lines(capsys.readouterr().err)
    assert len(found) <= lease_transitions.LINES_PER_S + 1
    world.advance(2)
    world.transitions.take(S.ACTIVE, S.CLOSED, (1, 2), world.now, role=0)
    (last,) = lines(capsys.readouterr().err)
    assert last["lines_left_out"] == 1000 - len(found)


def test_protocol_page_has_the_table() -> None:
    page = (REPOSITORY / "docs" / "protocol.md").read_text()
    rows = [row for row in page.splitlines() if row in table_rows()]
    assert rows == table_rows()


def test_release_by_another_lease_than_the_one_in_the_slot_frees_nothing(world: World) -> None:
    client, _ = world.session()
    before = steps(world)
    datagram = client.datagram(renew=True, cookie=c.RELEASE_COOKIE, token=client.new_token())
    assert world.answer(datagram, client.address) is None
    assert steps(world) == before
