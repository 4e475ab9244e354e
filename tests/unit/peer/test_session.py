"""Sessions over real sockets: a fake gateway and a stub relay that checks every lease."""

import asyncio
import dataclasses
import time

import pytest
from support.peer.peer_world import PeerWorld, eventually
from support.peer.stub_relay import StubRelay

import wavry_peer
from wavry_peer.paths.relay_events import PathLimits
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_peer.protocol.errors import LocalError


async def receive(session: wavry_peer.Session, timeout_s: float = 5.0) -> bytes:
    async with asyncio.timeout(timeout_s):
        return await session.receive()


async def test_datagrams_go_both_ways_and_are_counted(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        await alice.send(b"hello")
        assert await receive(bob) == b"hello"
        await bob.send(b"good day")
        assert await receive(alice) == b"good day"
        counts = alice.statistics()
        assert (alice.remote_username, bob.remote_username) == ("bob", "alice")
        assert alice.session_id == bob.session_id
        assert counts.path == "relay rly-test-1"
        assert (counts.datagrams_sent, counts.datagrams_received) == (1, 1)
        assert (counts.bytes_sent, counts.bytes_received) == (5, 8)
        assert counts.path_round_trip_ms is not None
        assert counts.handshakes == 1
        assert counts.wire_bytes_sent > counts.bytes_sent


async def test_the_ten_lines_of_the_docstring(world: PeerWorld) -> None:
    url, login = world.gateway.url, world.login

    async def called() -> None:
        async with wavry_peer.listen(url, accept={"alice"}, **login("bob")) as calls:
            async for session in calls:
                await session.send(b"hello, " + await session.receive())
                await session.wait_closed()
                break

    task = asyncio.create_task(called())
    await eventually(lambda: "bob" in world.gateway.sockets)
    async with wavry_peer.connect(url, "bob", **login("alice")) as session:
        await session.send(b"alice")
        assert await receive(session) == b"hello, alice"
    async with asyncio.timeout(5):
        await task
    assert wavry_peer.__doc__ is not None
    assert 'await session.send(b"hello, " + await session.receive())' in wavry_peer.__doc__


async def test_the_largest_datagram_passes_and_a_larger_one_is_refused(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        whole = bytes(range(256)) * 6
        whole = whole[: alice.max_datagram_bytes]
        await alice.send(whole)
        assert await receive(bob) == whole
        with pytest.raises(LocalError, match="at most"):
            await alice.send(whole + b"x")
        await alice.send(b"")
        assert await receive(bob) == b""


async def test_the_relay_sees_no_content(world: PeerWorld) -> None:
    secret = b"a secret of considerable length"
    async with world.pair() as (alice, bob):
        await alice.send(secret)
        assert await receive(bob) == secret
    assert world.relay.wire
    assert not any(secret in datagram for datagram in world.relay.wire)


async def test_close_reaches_the_other_side_and_ends_its_iteration(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        for number in range(3):
            await alice.send(b"%d" % number)
        await alice.aclose()
        async with asyncio.timeout(5):
            assert [data async for data in bob] == [b"0", b"1", b"2"]
        with pytest.raises(wavry_peer.SessionClosedError) as caught:
            await bob.receive()
        assert caught.value.by_remote
        with pytest.raises(wavry_peer.SessionClosedError):
            await bob.send(b"too late")
        with pytest.raises(wavry_peer.SessionClosedError) as caught:
            await alice.receive()
        assert not caught.value.by_remote
        await alice.aclose()
        assert world.gateway.calls[alice.session_id].state == "closed"
        # The counters stay, for whoever asks afterwards.
        assert bob.statistics().path == "relay rly-test-1"
        assert bob.statistics().wire_bytes_received > 0


async def test_a_bye_from_the_gateway_ends_the_session_even_without_close(
    world: PeerWorld,
) -> None:
    async with world.pair() as (alice, bob):
        world.relay.silent = True  # CLOSE gets lost.
        await alice.aclose()
        async with asyncio.timeout(5):
            await bob.wait_closed()


async def test_receive_queue_drops_the_oldest_and_counts(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        bob._connection._queue_datagrams = 10
        for number in range(30):
            await alice.send(b"%d" % number)
        await eventually(lambda: bob.statistics().datagrams_received == 30)
        assert bob.statistics().queue_drops == 20
        assert [await receive(bob) for _ in range(10)] == [b"%d" % n for n in range(20, 30)]


async def test_sessions_outlive_their_leases_by_renewal_at_80_percent(world: PeerWorld) -> None:
    world.gateway.ttl_s = 2.0
    async with world.pair() as (alice, bob):
        began = time.monotonic()
        first_lease = world.relay.slots[_id(alice)][c.Role.CLIENT].jti
        number = 0
        while time.monotonic() - began < 4.4:
            await alice.send(b"%d" % number)
            assert await receive(bob, 1.0) == b"%d" % number
            number += 1
            await asyncio.sleep(0.05)
        counts = alice.statistics()
        assert counts.renewals == 2
        assert counts.renewal_failures == 0
        assert counts.handshakes == 1
        assert world.relay.slots[_id(alice)][c.Role.CLIENT].jti != first_lease
        renews = [h for h, _ in world.relay.presents if h.type is c.PacketType.LEASE_RENEW]
        assert len(renews) >= 3
        paths = [path for _, path in world.gateway.requests if path.endswith("/renew")]
        assert len(paths) >= 3


async def test_renewal_goes_on_trying_while_the_gateway_fails(world: PeerWorld) -> None:
    world.gateway.ttl_s = 2.0
    async with world.pair() as (alice, bob):
        world.gateway.fail("renew", 503, "relay_unavailable", times=3)
        began = time.monotonic()
        while time.monotonic() - began < 2.8:
            await alice.send(b"x")
            assert await receive(bob, 1.0) == b"x"
            await asyncio.sleep(0.05)
        failures = alice.statistics().renewal_failures + bob.statistics().renewal_failures
        assert failures >= 3


@pytest.mark.parametrize("refusal", [None, c.RejectReason.NOT_YET_VALID])
async def test_a_renewal_that_the_relay_did_not_take_is_brought_again(
    world: PeerWorld, monkeypatch: pytest.MonkeyPatch, refusal: c.RejectReason | None
) -> None:
    """A wrong clock or a pause of the relay: meanwhile the master gives the same lease again."""
    monkeypatch.setattr("wavry_peer.connection.PathLimits", lambda: _quick(PathLimits()))
    world.gateway.ttl_s = 6.0
    async with world.pair() as (alice, bob):
        first_ends_s = time.monotonic() + 6.0
        world.relay.takes_renewals, world.relay.renewal_refusal = False, refusal
        await eventually(lambda: alice.statistics().renewal_failures > 0, 20)
        world.relay.takes_renewals = True
        await eventually(lambda: alice.statistics().renewals > 0, 20)
        await eventually(lambda: time.monotonic() > first_ends_s, 20)
        await alice.send(b"over the end of the first lease")
        assert await receive(bob) == b"over the end of the first lease"
        assert alice.statistics().handshakes == 1


async def test_without_renewal_the_session_ends_with_its_lease(world: PeerWorld) -> None:
    world.gateway.ttl_s = 1.0
    async with world.pair() as (alice, _bob):
        world.gateway.fail("renew", 503, "relay_unavailable", times=1000)
        began = time.monotonic()
        async with asyncio.timeout(5):
            with pytest.raises(wavry_peer.SessionClosedError, match="lease ended"):
                await alice.receive()
        assert time.monotonic() - began < 2.5


async def test_a_lost_renewal_answer_is_healed_by_a_fresh_pair(world: PeerWorld) -> None:
    world.gateway.ttl_s = 2.0
    async with world.pair() as (alice, bob):
        # The master renewed, the answer was lost: our jti is stale from now on.
        world.gateway.calls[alice.session_id].jtis["alice"] = "another"
        began = time.monotonic()
        while time.monotonic() - began < 2.8:
            await alice.send(b"x")
            assert await receive(bob, 1.0) == b"x"
            await asyncio.sleep(0.05)


async def test_an_idle_session_keeps_the_path_open(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        before = bob.statistics()
        alice._connection._last_sent_ns -= 9 * 10**9
        alice._connection._on_timer()
        alice._connection._last_sent_ns -= 2 * 10**9  # 11 s since anything was sent.
        alice._connection._on_timer()
        await eventually(lambda: bob.statistics().packets_received > before.packets_received)
        assert bob.statistics().packets_received == before.packets_received + 1
        assert bob.statistics().datagrams_received == 0


async def test_a_relay_that_forgot_us_is_presented_to_again(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        before = len(world.relay.presents)
        world.relay.forget()
        for session in (alice, bob):
            for link in session._connection._paths.links:
                link.path._last_heard_ns = 0  # as after 25 s of silence.
            session._connection._on_timer()
        await eventually(lambda: len(world.relay.slots.get(_id(alice), {})) == 2)
        assert len(world.relay.presents) >= before + 2
        await alice.send(b"again")
        assert await receive(bob) == b"again"


async def test_moves_to_another_relay_when_told_of_draining_without_a_new_handshake(
    world: PeerWorld,
) -> None:
    async with world.pair() as (alice, bob):
        code = c.NoticeCode.DRAINING
        world.relay.draining = True
        world.relay.tell_all(lambda session_id: packets.build_notice(session_id, code))
        await eventually(lambda: alice.statistics().path == "relay rly-test-2")
        await eventually(lambda: bob.statistics().path == "relay rly-test-2")
        before = world.relay.forwarded
        await alice.send(b"over the other one")
        assert await receive(bob) == b"over the other one"
        await bob.send(b"and back")
        assert await receive(alice) == b"and back"
        assert world.relay.forwarded == before
        assert alice.statistics().path_changes == 1
        assert alice.statistics().handshakes == 1


async def test_moves_when_the_relay_dies(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        world.relay.silent = True
        for session in (alice, bob):
            link = session._connection._paths.links[0]
            link.path._limits = _quick(link.path._limits)
            link.path._last_heard_ns = 0
            session._connection._on_timer()
        await eventually(lambda: alice.statistics().path == "relay rly-test-2")
        await eventually(lambda: bob.statistics().path == "relay rly-test-2")
        await alice.send(b"alive")
        assert await receive(bob) == b"alive"


async def test_a_draining_relay_at_the_start_is_replaced(world: PeerWorld) -> None:
    world.relay.reject_with = c.RejectReason.DRAINING
    async with world.pair() as (alice, bob):
        assert alice.statistics().path == "relay rly-test-2"
        await alice.send(b"x")
        assert await receive(bob) == b"x"


async def test_a_rebound_address_is_proved_by_the_cookie(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        slot = world.relay.slots[_id(alice)][c.Role.CLIENT]
        true_address = slot.address
        slot.address = ("127.0.0.1", 9)  # the NAT gave us another port, as the relay sees it.
        await alice.send(b"lost on the way")
        await eventually(
            lambda: world.relay.slots[_id(alice)][c.Role.CLIENT].address == true_address
        )
        cookies = [p.proof.cookie for _, p in world.relay.presents if p.proof]
        assert any(cookie != c.NO_COOKIE for cookie in cookies)
        await alice.send(b"arrives")
        assert await receive(bob) == b"arrives"
        assert alice.statistics().path_challenges == 1


async def test_a_relay_under_load_that_wants_cookies_first(world: PeerWorld) -> None:
    world.relay.needs_cookie = True
    async with world.pair() as (alice, bob):
        await alice.send(b"x")
        assert await receive(bob) == b"x"
        assert alice.statistics().lease_packets_sent == 2


async def test_forged_rejects_do_not_end_a_session(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        for reason in c.RejectReason:
            world.relay.tell_all(lambda session_id, r=reason: packets.build_reject(session_id, r))
        await asyncio.sleep(0.2)
        await alice.send(b"still here")
        assert await receive(bob) == b"still here"
        assert alice.statistics().lease_rejects >= len(c.RejectReason)


async def test_heavy_loss_delays_but_does_not_prevent_a_session(world: PeerWorld) -> None:
    world.relay.loss = 0.3
    async with world.pair() as (alice, bob):
        async with asyncio.timeout(5):
            while not bob._connection._queue:
                await alice.send(b"again and again")
                await asyncio.sleep(0.02)
        assert await receive(bob) == b"again and again"


async def test_every_lease_packet_brings_a_proof_with_a_growing_counter(world: PeerWorld) -> None:
    world.relay.loss = 0.3
    async with world.pair():
        counters: dict[c.Role, list[int]] = {role: [] for role in c.Role}
        for _, present in world.relay.presents:
            assert present.proof is not None
            counters[present.role].append(present.proof.counter)
        for seen in counters.values():
            assert seen == sorted(set(seen))
            assert seen[0] > 1_600_000_000_000_000, "begins at unix microseconds"
        assert c.RejectReason.REPLAYED not in world.relay.rejected


async def test_ipv6_relay(world: PeerWorld) -> None:
    relay = await StubRelay("rly-test-6", 6).start("::1")
    world.gateway.relays.insert(0, relay)
    async with world.pair() as (alice, bob):
        await alice.send(b"six")
        assert await receive(bob) == b"six"
        assert alice.statistics().path == "relay rly-test-6"


def _id(session: wavry_peer.Session) -> bytes:
    return bytes.fromhex(session.session_id.replace("-", ""))


def _quick(limits: PathLimits) -> PathLimits:
    return dataclasses.replace(limits, deadline_ns=300_000_000)
