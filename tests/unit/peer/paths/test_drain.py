"""Sessions on a draining relay, over real sockets: when they ask, where they go, what they keep."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from support.peer.peer_world import PeerWorld, eventually
from support.peer.stub_relay import StubRelay
from support.system.media import Traffic

import wavry_peer
from wavry_peer.paths import path_switch, relay_paths
from wavry_peer.paths.drain_hints import FIRST_WAIT_NS, DrainHints
from wavry_peer.paths.relay_events import PathLimits
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_peer.protocol.http import signaling as s


def tell(relay: StubRelay, code: c.NoticeCode = c.NoticeCode.DRAINING) -> None:
    relay.tell_all(lambda session_id: packets.build_notice(session_id, code))


def paths(*sessions: wavry_peer.Session) -> set[str]:
    return {session.statistics().path for session in sessions}


def relay_requests(world: PeerWorld) -> int:
    return sum(path.endswith("/relay") for _, path in world.gateway.requests)


@contextlib.asynccontextmanager
async def traffic_between(
    alice: wavry_peer.Session, bob: wavry_peer.Session
) -> AsyncIterator[Traffic]:
    traffic = Traffic([(alice, bob)], every_s=0.005)
    traffic.start()
    await asyncio.sleep(0.2)
    yield traffic
    await asyncio.sleep(0.2)
    await traffic.stop()


async def test_a_drained_session_moves_without_loss_and_gives_its_old_slots_back(
    world: PeerWorld,
) -> None:
    async with world.pair() as (alice, bob):
        async with traffic_between(alice, bob) as traffic:
            world.relay.draining = True
            tell(world.relay)
            await eventually(lambda: paths(alice, bob) == {"relay rly-test-2"})
            await eventually(lambda: sorted(world.relay.released) == sorted(c.Role), 10)
        assert traffic.lost == 0
        for session in (alice, bob):
            assert len(session._connection._paths.links) == 1
            assert session.statistics().handshakes == 1


async def test_a_forged_notice_causes_a_question_and_no_move(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        before = relay_requests(world)
        began_ns = time.monotonic_ns()
        async with traffic_between(alice, bob) as traffic:
            for _ in range(100):
                tell(world.relay)
                await asyncio.sleep(0.02)
        assert traffic.lost == 0
        assert paths(alice, bob) == {"relay rly-test-1"}
        waited = (time.monotonic_ns() - began_ns) // FIRST_WAIT_NS  # 0 but on a stopped machine
        assert 1 <= relay_requests(world) - before <= 1 + waited, "the rest waits for the back-off"
        assert alice.statistics().path_changes == 0


async def test_without_another_relay_the_session_stays_and_renews(world: PeerWorld) -> None:
    world.gateway.ttl_s = 2.0
    async with world.pair() as (alice, bob):
        world.relay.draining = world.spare.draining = True
        home = paths(alice)
        async with traffic_between(alice, bob) as traffic:
            for _ in range(9):
                tell(world.relay)
                tell(world.spare)
                await asyncio.sleep(0.5)
        assert traffic.lost == 0
        assert paths(alice, bob) == home
        assert alice.statistics().renewals >= 1, "it lives longer than its first lease"


async def test_without_renewal_a_session_on_a_draining_relay_ends_with_its_lease(
    world: PeerWorld,
) -> None:
    world.gateway.ttl_s = 1.5
    async with world.pair() as (alice, bob):
        world.relay.draining = True
        world.gateway.fail("renew", 503, "relay_mode_off", times=1000)
        world.gateway.fail("relay", 503, "no_relay_available", times=1000)
        began_s = time.monotonic()
        tell(world.relay)
        await alice.send(b"goes on")
        assert await bob.receive() == b"goes on"
        async with asyncio.timeout(10):
            with pytest.raises(wavry_peer.SessionClosedError, match="lease ended"):
                await alice.receive()
        assert time.monotonic() - began_s > 0.5


async def test_the_called_side_asks_when_the_caller_does_not(
    world: PeerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_paths, "SERVER_PATIENCE_S", 0.3)
    async with world.pair() as (alice, bob):
        world.relay.draining = True
        slots = world.relay.slots[bytes.fromhex(alice.session_id.replace("-", ""))]
        notice = packets.build_notice(
            bytes.fromhex(alice.session_id.replace("-", "")), c.NoticeCode.DRAINING
        )
        async with traffic_between(alice, bob) as traffic:
            world.relay._send(notice, slots[c.Role.SERVER].address)
            await eventually(lambda: paths(alice, bob) == {"relay rly-test-2"}, 10)
        assert traffic.lost == 0


async def test_a_new_relay_that_does_not_answer_is_replaced_and_nothing_is_lost(
    world: PeerWorld,
) -> None:
    third = await StubRelay("rly-test-3", 3).start()
    world.gateway.relays.append(third)
    quick = PathLimits(deadline_ns=600_000_000)
    async with world.pair() as (alice, bob):
        for session in (alice, bob):
            session._connection._paths._limits = quick
        world.relay.draining = True
        world.spare.silent = True
        async with traffic_between(alice, bob) as traffic:
            tell(world.relay)
            await eventually(lambda: paths(alice, bob) == {"relay rly-test-3"}, 15)
        assert traffic.lost == 0
    third.close()


async def test_a_peer_that_never_comes_to_the_new_relay_costs_nothing(
    world: PeerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's message to the called side was lost."""
    monkeypatch.setattr(path_switch, "PATIENCE_NS", 600_000_000)
    third = await StubRelay("rly-test-3", 3).start()
    world.gateway.relays.append(third)
    async with world.pair() as (alice, bob):
        world.relay.draining = True
        world.gateway.lose_messages.add(s.RelayCredentials)
        async with traffic_between(alice, bob) as traffic:
            tell(world.relay)
            await eventually(lambda: alice.statistics().lease_packets_sent >= 2)
            await asyncio.sleep(0.3)
            assert paths(alice, bob) == {"relay rly-test-1"}
            world.gateway.lose_messages.clear()
            await eventually(lambda: paths(alice, bob) == {"relay rly-test-3"}, 15)
        assert traffic.lost == 0
    third.close()


async def test_a_closed_session_gives_its_slots_back(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        await alice.aclose()
        async with asyncio.timeout(5):
            await bob.wait_closed()
        await eventually(lambda: sorted(world.relay.released) == sorted(c.Role))


# -- When a hint is followed ----------------------------------------------------------------

SECOND = 10**9


def test_the_wait_between_two_questions_doubles_up_to_two_minutes() -> None:
    hints, now_ns, waits = DrainHints(), 50 * SECOND, []
    for _ in range(8):
        began_ns = now_ns
        while not hints.is_due(now_ns):
            now_ns += SECOND
        waits.append((now_ns - began_ns) // SECOND)
        hints.followed(now_ns)
    assert waits == [0, 4, 8, 16, 32, 64, 120, 120]


def test_a_hint_is_fresh_for_three_intervals_of_the_relay() -> None:
    hints = DrainHints()
    assert not hints.is_fresh(0)
    hints.heard(100 * SECOND)
    assert hints.is_fresh(100 * SECOND)
    assert hints.is_fresh(115 * SECOND - 1)
    assert not hints.is_fresh(115 * SECOND)
    hints.heard(116 * SECOND)
    assert hints.is_fresh(130 * SECOND)
