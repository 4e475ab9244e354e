"""Load: shedding, the cookie gate, strikes and blocks, set bursts, on both engines."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.relay.world import Peer, World, open_world, reject_reason, v4, v6

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import ed25519, packets, stun
from wavry_peer.protocol.constants import RejectReason as R
from wavry_relay.admission.verify_load import HOLD_NS
from wavry_relay.engine.base import Drop, Forward
from wavry_relay.shm.address import Address
from wavry_relay.shm.blocks import Blocks
from wavry_relay.shm.control import EngineKind, Limits, Shedding
from wavry_relay.shm.layout import BLOCK_SLOTS, RATE_BUCKET
from wavry_relay.supervisor.load_watch import LoadWatch, ShedAt

GENEROUS = Limits(
    ip_per_s=10_000, ip_burst=10_000, identity_per_s=10_000, identity_burst=10_000,
    cookie_at_per_s=1_000_000,
)  # fmt: skip


@pytest.fixture
def world(engine_kind: EngineKind) -> Iterator[World]:
    with open_world(kind=engine_kind, limits=GENEROUS, max_sessions=100) as world:
        yield world


def limited(world: World, **changes: int) -> None:
    """Change limits while the relay runs."""
    world.control.limits = replace(world.control.limits, **changes)


def challenge(peer: Peer, source: Address | None = None) -> bytes:
    """Present and expect a PATH_CHALLENGE; its cookie."""
    datagram = peer.datagram()
    where = source or peer.address
    packet = peer.world.answer(datagram, where)
    assert packet is not None
    assert isinstance(packet.body, packets.PathChallenge), packet
    answer = peer.world.raw_answer(datagram, where)
    assert answer is not None
    assert len(answer.datagram) <= len(datagram)
    return packet.body.cookie


def elsewhere(number: int) -> Address:
    """An address in a network of its own."""
    return Address.from_ip(bytes((198, 18 + number // 256, number % 256, 1)), 5000)


# -- Shedding ----------------------------------------------------------------------------------


def watch(world: World, pct: int = 80, max_kbps: int = 0) -> LoadWatch:
    return LoadWatch(world.tables, lambda: ShedAt(pct, max_kbps))


def test_load_shedding_by_sessions_refuses_new_ones_and_serves_the_live(world: World) -> None:
    load = watch(world)
    live = [world.session() for _ in range(78)]
    alone = world.peer()
    alone.accept()
    assert load.step(world.now) == Shedding.NONE
    world.peer().accept()
    assert load.step(world.now) == Shedding.SESSIONS
    assert reject_reason(world.peer().present()) == R.SESSION_FULL
    assert world.count("sessions_shed") == 1
    client, server = live[0]
    client.accept(token=client.new_token(), renew=True)
    server.accept()
    assert client.forward(1) == Forward(server.address)
    world.peer(c.Role.SERVER, sid=alone.sid).accept()


def test_load_shedding_has_hysteresis(world: World) -> None:
    load = watch(world)
    sessions = [world.session() for _ in range(80)]
    assert load.step(world.now) == Shedding.SESSIONS
    for ended in range(9):
        for peer in sessions[ended]:
            peer.world.answer(peer.datagram(renew=True, cookie=c.RELEASE_COOKIE), peer.address)
        expected = Shedding.SESSIONS if ended < 8 else Shedding.NONE
        assert load.step(world.now) == expected, f"{80 - ended - 1} sessions left"
    world.peer().accept()


def test_load_shedding_by_bandwidth_needs_a_limit_and_a_second(world: World) -> None:
    load, unlimited = watch(world, max_kbps=1000), watch(world)
    load.step(world.now)
    world.row.add("forwarded_bytes", 110_000)  # 880 kbit in a second
    world.advance(0.5)
    assert load.step(world.now) == Shedding.NONE, "half a second may be a key frame"
    world.advance(0.5)
    assert load.step(world.now) == Shedding.BANDWIDTH
    assert reject_reason(world.peer().present()) == R.SESSION_FULL
    world.row.add("forwarded_bytes", 95_000)
    world.advance(1)
    assert load.step(world.now) == Shedding.BANDWIDTH, "760 is below 80 %, not below 72 %"
    world.row.add("forwarded_bytes", 85_000)
    world.advance(1)
    assert load.step(world.now) == Shedding.NONE
    assert unlimited.step(world.now) == Shedding.NONE


def test_load_shedding_at_100_per_cent_is_off(world: World) -> None:
    load = watch(world, pct=100, max_kbps=1)
    for number in range(100):
        world.peer(sub=f"user-{number}").accept()
    assert load.step(world.now) == Shedding.NONE
    assert reject_reason(world.peer(sub="one-more").present()) == R.SESSION_FULL
    assert not world.count("sessions_shed")


# -- Bursts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "hard_kbps", "drop"),
    [
        ({"peer_burst_ms": 1}, 1000, "peer_rate"),
        ({"session_burst_ms": 1, "session_kbps": 1000}, 1_000_000, "session_rate"),
        ({"global_burst_ms": 1, "global_kbps": 1000}, 1_000_000, "global_rate"),
        ({"global_burst_ms": 1, "global_pps": 125}, 1_000_000, "global_rate"),
    ],
    ids=["peer", "session", "global-bits", "global-packets"],
)
def test_layer_burst_is_a_setting_and_changes_at_once(
    engine_kind: EngineKind, limits: dict[str, int], hard_kbps: int, drop: str
) -> None:
    """A datagram of 1000 bytes takes 8 ms at 1000 kbit/s: one passes at 1 ms, 13 at 100 ms."""
    with open_world(kind=engine_kind, limits=replace(GENEROUS, **limits)) as world:
        client, server = world.session(hard_kbps=hard_kbps)
        payload = bytes(1000 - 28)

        def burst(first: int) -> int:
            decisions = [client.forward(first + n, payload) for n in range(60)]
            refused = [one for one in decisions if one != Forward(server.address)]
            assert set(refused) <= {Drop(drop)}
            return len(decisions) - len(refused)

        assert burst(1) == 1
        (name,) = (name for name in limits if name.endswith("burst_ms"))
        limited(world, **{name: 100})
        world.advance(1)
        assert burst(100) == 13
        limited(world, **{name: 1})
        world.advance(1)
        assert burst(200) == 1


def test_layer_soft_burst_is_the_peers(engine_kind: EngineKind) -> None:
    with open_world(kind=engine_kind, limits=replace(GENEROUS, peer_burst_ms=1)) as world:
        client, server = world.session(soft_kbps=1000, hard_kbps=1_000_000)
        for number in range(10):
            assert client.forward(number + 1, bytes(972)) == Forward(server.address)
            world.advance(0.001)
        assert world.count("soft_limit_packets") >= 7


# -- Cookie gate ---------------------------------------------------------------------------------


def flood(world: World, leases: int, *, per_s: int) -> None:
    """Bad leases at a rate, each from a network of its own."""
    for number in range(leases):
        world.advance(1 / per_s)
        datagram = packets.build_present(
            uuid.uuid4().bytes,
            c.Role.CLIENT,
            b"v4.public." + b"A" * 200,
            counter=1,
            sign=lambda _message: os.urandom(64),
        )
        world.raw_answer(datagram, elsewhere(number % 500))


def test_cookie_gate_opens_by_load_and_good_peers_get_in(world: World) -> None:
    limited(world, cookie_at_per_s=200)
    flood(world, 50, per_s=100)
    world.peer().accept()
    assert not world.count("cookie_gate_on")
    flood(world, 400, per_s=1000)
    assert world.count("cookie_gate_on") == 1
    checked = world.count("reject_invalid_signature")
    flood(world, 1000, per_s=1000)
    assert world.count("reject_invalid_signature") == checked, "no signature of theirs is checked"
    assert world.count("cookie_demanded") >= 1000
    good = world.peer(address=v4(200))
    good.accept(cookie=challenge(good))


def test_cookie_gate_stays_while_the_flood_does_and_ends_with_hysteresis(world: World) -> None:
    limited(world, cookie_at_per_s=200)
    flood(world, 400, per_s=1000)
    flood(world, 500, per_s=150)
    challenge(world.peer())
    assert world.count("cookie_gate_on") == 1, "150/s is more than half of 200/s"
    flood(world, 300, per_s=50)
    world.peer().accept()
    flood(world, 200, per_s=150)
    assert world.count("cookie_gate_on") == 1, "and less than 200/s"


def test_cookie_gate_opens_at_its_threshold_and_not_below(world: World) -> None:
    limited(world, cookie_at_per_s=200)
    flood(world, 600, per_s=170)
    assert not world.count("cookie_gate_on")
    flood(world, 600, per_s=240)
    assert world.count("cookie_gate_on") == 1


def test_cookie_gate_holds_for_two_seconds_at_least(world: World) -> None:
    limited(world, cookie_at_per_s=200)
    flood(world, 400, per_s=1000)
    world.advance(1.4)
    world.policy.step(world.now)
    assert world.worker_row.cookie_gate == 1, "the flood is over, and may come back at once"
    world.advance(1)
    world.policy.step(world.now)
    assert world.worker_row.cookie_gate == 0


def test_cookie_gate_closes_by_itself_when_nothing_comes(world: World) -> None:
    limited(world, cookie_at_per_s=200)
    flood(world, 400, per_s=1000)
    world.policy.step(world.now)
    assert world.worker_row.cookie_gate == 1
    world.advance(HOLD_NS / 1e9 + 1)
    world.policy.step(world.now)
    assert world.worker_row.cookie_gate == 0


def test_cookie_gate_lets_live_sessions_renew_from_their_address(world: World) -> None:
    client, server = world.session()
    limited(world, cookie_at_per_s=0)
    client.accept(token=client.new_token(), renew=True)
    assert reject_reason(world.peer(address=v4(33)).present(proof=False)) == R.PROOF_REQUIRED
    stranger = world.peer(sid=client.sid, address=v4(66))
    challenge(stranger)
    assert client.forward(1) == Forward(server.address)


def test_cookie_gate_wants_the_cookie_of_this_address_and_session(world: World) -> None:
    limited(world, cookie_at_per_s=0)
    peer, other = world.peer(), world.peer()
    cookie = challenge(peer)
    for thief in (v4(66), v4(1, 666), v6(1)):
        packet = world.answer(peer.datagram(cookie=cookie), thief)
        assert packet is not None
        assert packet.header.type == c.PacketType.PATH_CHALLENGE
    packet = world.answer(other.datagram(cookie=cookie), other.address)
    assert packet is not None
    assert packet.header.type == c.PacketType.PATH_CHALLENGE
    world.advance(61)
    stale = world.answer(peer.datagram(cookie=cookie), peer.address)
    assert stale is not None
    assert stale.header.type == c.PacketType.PATH_CHALLENGE


# -- Strikes and blocks --------------------------------------------------------------------------


def violate(peer: Peer, times: int, *, cookie: bytes) -> None:
    for _ in range(times):
        packet = peer.present(token=b"v4.public." + b"A" * 200, cookie=cookie)
        assert isinstance(packet.body, packets.LeaseReject)


@pytest.fixture
def strict(world: World) -> World:
    """A relay that always asks for cookies and blocks after ten strikes, for 60 s."""
    limited(world, cookie_at_per_s=0, block_after=10, block_s=60)
    return world


@pytest.mark.parametrize("address", [v4, v6], ids=["32", "64"])
def test_block_after_repeated_violations_is_of_one_host_and_ends(
    strict: World, address: Any
) -> None:
    bad = strict.peer(address=address(66))
    cookie = challenge(bad)
    violate(bad, 10, cookie=cookie)
    assert not list(strict.blocks.live(strict.now.wall_ms))
    violate(bad, 1, cookie=cookie)
    (block,) = strict.blocks.live(strict.now.wall_ms)
    assert block.subnet == ("192.0.2.66/32" if address is v4 else "2001:db8::/64")
    assert R(block.reason) == R.INVALID_SIGNATURE
    again = strict.peer(address=address(66, 4999))
    assert reject_reason(again.present(cookie=challenge(again))) == R.BANNED
    near = (
        v4(67)
        if address is v4
        else Address.from_ip(bytes.fromhex("20010db800000001" + "00" * 8), 1)
    )
    neighbour = strict.peer(address=near)
    neighbour.accept(cookie=challenge(neighbour))
    strict.advance(61)
    again.accept(cookie=challenge(again))


@pytest.mark.parametrize("address", [v4, v6], ids=["32", "64"])
def test_no_host_with_a_live_slot_is_blocked(strict: World, address: Any) -> None:
    live = strict.peer(address=address(66, 4001))
    live.accept(cookie=challenge(live))
    bad = strict.peer(address=address(66, 4002))
    violate(bad, 50, cookie=challenge(bad))
    assert not list(strict.blocks.live(strict.now.wall_ms))
    live.token = live.new_token()
    live.accept(renew=True)
    another = strict.peer(address=address(66, 4003))
    another.accept(cookie=challenge(another))
    for peer in (live, another):
        strict.raw_answer(peer.datagram(cookie=c.RELEASE_COOKIE), peer.address)
    strict.sweep(2)  # a worker walks the sessions a hundredth of its time
    violate(bad, 20, cookie=challenge(bad))
    assert list(strict.blocks.live(strict.now.wall_ms))


def test_subnet_block_is_lifted_by_hand(strict: World) -> None:
    for number in (1, 2):
        bad = strict.peer(address=elsewhere(number))
        violate(bad, 11, cookie=challenge(bad))
        strict.advance(1)
    now_ms = strict.now.wall_ms
    assert len(list(strict.blocks.live(now_ms))) == 2
    with pytest.raises(ValueError, match="nonsense"):
        strict.blocks.clear("nonsense", now_ms)
    assert strict.blocks.clear("203.0.113.0/24", now_ms) == 0
    assert strict.blocks.clear("198.18.1.0/24", now_ms) == 1
    good = strict.peer(address=elsewhere(1))
    good.accept(cookie=challenge(good))
    assert strict.blocks.clear(None, now_ms) == 1
    assert not list(strict.blocks.live(now_ms))


def test_pitfall_no_strike_for_a_source_that_has_not_proven_its_path(strict: World) -> None:
    """Neither without a cookie, nor with another's, nor from the address of a live slot."""
    victim = strict.peer(address=v4(77))
    victim.accept(cookie=challenge(victim))
    thief = strict.peer(address=elsewhere(1))
    stolen = challenge(thief)
    for number in range(200):
        junk = victim.datagram(token=b"v4.public." + b"A" * 200, cookie=stolen)
        strict.raw_answer(junk, victim.address)
        strict.raw_answer(victim.datagram(counter=1), victim.address)
        strict.raw_answer(thief.datagram(token=b"v4.public.A", cookie=stolen), v4(78 + number % 9))
    assert not strict.count("block_strikes")
    assert not list(strict.blocks.live(strict.now.wall_ms))
    victim.accept(token=victim.new_token(), renew=True)


def test_strikes_are_forgiven_one_a_second(strict: World) -> None:
    bad = strict.peer(address=v4(66))
    for _ in range(60):
        violate(bad, 1, cookie=challenge(bad))
        strict.advance(1)
    assert strict.count("block_strikes") == 60
    assert not strict.count("hosts_blocked")


@pytest.mark.parametrize(
    "reason", [R.INVALID_SIGNATURE, R.PROOF_REQUIRED, R.REPLAYED, R.RATE_LIMITED]
)
def test_each_violation_is_a_strike(strict: World, reason: R) -> None:
    peer = strict.peer(address=v4(66))
    cookie = challenge(peer)
    repeated = peer.datagram(cookie=cookie)
    if reason in (R.REPLAYED, R.RATE_LIMITED):
        strict.answer(repeated, peer.address)
    if reason is R.RATE_LIMITED:
        limited(strict, identity_per_s=1, identity_burst=1)
    own = peer.key
    for _ in range(5):
        if reason is R.INVALID_SIGNATURE:
            packet = peer.present(token=b"v4.public." + b"A" * 200, cookie=cookie)
        elif reason is R.PROOF_REQUIRED:
            peer.key = ed25519.SigningKey.from_seed(os.urandom(32))
            packet = peer.present(cookie=cookie)
            peer.key = own
        elif reason is R.REPLAYED:
            found = strict.answer(repeated, peer.address)
            assert found is not None
            packet = found
        else:
            packet = peer.present(cookie=cookie)
        assert reject_reason(packet) == reason
    assert strict.count("block_strikes") == 5


@pytest.mark.parametrize("reason", [R.EXPIRED, R.WRONG_RELAY, R.UNKNOWN_KEY])
def test_what_is_the_systems_own_fault_is_no_strike(strict: World, reason: R) -> None:
    peer = strict.peer(address=v4(66))
    cookie = challenge(peer)
    token = {
        R.EXPIRED: lambda: peer.new_token(now_s=strict.now.wall_ms // 1000 - 3600),
        R.WRONG_RELAY: lambda: peer.new_token(rid="rly-other"),
        R.UNKNOWN_KEY: lambda: peer.token,
    }[reason]()
    if reason is R.UNKNOWN_KEY:
        strict.control.write_keys({}, 2)
    for _ in range(30):
        assert reject_reason(peer.present(token=token, cookie=cookie)) == reason
    assert not strict.count("block_strikes")


def test_blocked_source_gets_banned_or_nothing_and_live_sessions_go_on(strict: World) -> None:
    client = strict.peer(address=v4(77))
    server = strict.peer(c.Role.SERVER, sid=client.sid, address=elsewhere(1))
    for peer in (client, server):
        peer.accept(cookie=challenge(peer))
    bad = strict.peer(address=v4(66))
    violate(bad, 11, cookie=challenge(bad))
    request = stun.build_binding_request(bytes(12), padding=0)
    before = strict.count("drop_blocked")
    assert strict.raw_answer(request, v4(66, 5)) is None
    assert strict.raw_answer(client.frame(9), v4(66, 5)) is None
    assert strict.count("drop_blocked") == before + 2
    answer = strict.raw_answer(bad.datagram(cookie=challenge(bad)), v4(66))
    assert answer is not None
    assert client.forward(1) == Forward(server.address)
    keepalive = b"W\x01\x04\0" + client.sid.bytes
    assert strict.answer(keepalive, client.address) is not None


def test_block_table_is_bounded_and_nobody_is_pushed_out(strict: World) -> None:
    blocks, now_ms = strict.blocks, strict.now.wall_ms
    first = elsewhere(0)
    assert blocks.add(first, now_ms, now_ms + 60_000, R.INVALID_SIGNATURE)
    entered = sum(
        blocks.add(
            Address.from_ip(bytes((10 + n // 65536, n // 256 % 256, n % 256, 1)), 1),
            now_ms, now_ms + 60_000, R.INVALID_SIGNATURE,
        )
        for n in range(3 * BLOCK_SLOTS)
    )  # fmt: skip
    assert entered < BLOCK_SLOTS
    assert blocks.has(first, now_ms)
    assert len(list(blocks.live(now_ms))) == entered + 1
    later = now_ms + 60_001
    assert not blocks.has(first, later)
    assert Blocks(strict.segment).add(first, later, later + 1, R.INVALID_SIGNATURE)


def test_strike_of_one_network_is_never_anothers(strict: World) -> None:
    """Where a bucket of strikes is full, further networks are not struck: nobody is blocked for
    what others did."""
    region = strict.segment.geometry.regions["strike_rates"]
    words = strict.segment.u64
    far_ns = strict.now.mono_ns + 5_000_000_000
    for bucket in range(region.count):
        base = (region.offset + bucket * RATE_BUCKET.size) // 8
        for way in range(3):
            words[base + way], words[base + 3 + way] = 7 + way, far_ns
        words[base + 6] = far_ns + 10**12
    bad = strict.peer(address=v4(66))
    violate(bad, 50, cookie=challenge(bad))
    assert not strict.count("hosts_blocked")


def test_blocking_can_be_switched_off(strict: World) -> None:
    limited(strict, block_after=0)
    bad = strict.peer(address=v4(66))
    violate(bad, 50, cookie=challenge(bad))
    assert not strict.count("block_strikes")
