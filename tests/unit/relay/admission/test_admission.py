"""Admission: every reason of LEASE_REJECT, every transition, and what may be answered at all."""

import socket
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from support.relay.mint import Mint
from support.relay.world import (
    RELAY_ID,
    START_WALL_MS,
    Peer,
    World,
    open_world,
    reject_reason,
    v4,
    v6,
)

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import ed25519, lease, packets, paseto, stun
from wavry_peer.protocol.constants import RejectReason as R
from wavry_peer.protocol.errors import LeaseError
from wavry_peer.service.clock import Instant
from wavry_relay.admission.policy import OpenPolicy
from wavry_relay.engine.base import Drop, Forward
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import Drain, Limits

GENEROUS = {"ip_per_s": 1000, "ip_burst": 1000, "identity_per_s": 1000, "identity_burst": 1000}
OTHER_KEY = ed25519.SigningKey.from_seed(b"o" * 32)


def instant(seconds: float) -> datetime:
    """`seconds` from the world's start."""
    return datetime.fromtimestamp(START_WALL_MS / 1000, UTC) + timedelta(seconds=seconds)


# -- Reasons that the lease itself gives -------------------------------------------------------


def _tampered(peer: Peer) -> bytes:
    token = bytearray(peer.token)
    token[40] ^= 1
    return bytes(token)


TABLE: list[tuple[str, R, Callable[[Peer], bytes]]] = [
    ("not-a-token", R.INVALID_SIGNATURE, lambda peer: b"hello"),
    ("not-ascii", R.INVALID_SIGNATURE, lambda peer: b"\xff" * 200),
    ("tampered", R.INVALID_SIGNATURE, _tampered),
    ("other-session", R.INVALID_SIGNATURE, lambda peer: peer.new_token(sid=uuid.uuid4())),
    ("kid-differs", R.INVALID_SIGNATURE, lambda peer: _with_foreign_footer(peer)),
    ("other-role", R.INVALID_SIGNATURE, lambda peer: peer.new_token(role=c.Role.SERVER)),
    (
        "horizon",
        R.INVALID_SIGNATURE,
        lambda peer: peer.new_token(exp=instant(3600.001), ttl_s=3600),
    ),
    ("wrong-relay", R.WRONG_RELAY, lambda peer: peer.new_token(rid="rly-another")),
    ("no-relay", R.WRONG_RELAY, lambda peer: _without_rid(peer)),
    ("expired-now", R.EXPIRED, lambda peer: peer.new_token(exp=instant(0))),
    ("expired-1ms", R.EXPIRED, lambda peer: peer.new_token(exp=instant(-0.001))),
    ("too-early", R.NOT_YET_VALID, lambda peer: peer.new_token(nbf=instant(30.001))),
    ("unknown-key", R.UNKNOWN_KEY, lambda peer: _by_stranger(peer)),
    ("other-proof-key", R.PROOF_REQUIRED, lambda peer: peer.new_token(key=OTHER_KEY)),
]


def _without_rid(peer: Peer) -> bytes:
    return peer.new_token(rid=None)


def _with_foreign_footer(peer: Peer) -> bytes:
    """Signed by a good key under a footer that names it, with claims that name another."""
    mint = peer.world.mint
    claims = lease.open_lease(peer.token, mint.trusted())
    payload = msgspec.json.encode(msgspec.structs.replace(claims, kid="another"))
    footer = msgspec.json.encode({"kid": mint.kid})
    return paseto.sign(payload, mint.signing, footer=footer).encode()


def _by_stranger(peer: Peer) -> bytes:
    return Mint().token(peer.sid, peer.role, RELAY_ID, key=peer.key, now_s=START_WALL_MS // 1000)


@pytest.mark.parametrize(("reason", "make"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_refused_lease(world: World, reason: R, make: Callable[[Peer], bytes]) -> None:
    peer = world.peer()
    assert reject_reason(peer.present(token=make(peer))) == reason
    assert world.count(f"reject_{reason.name.lower()}") == 1
    assert not world.has(peer.sid)
    peer.accept()  # nothing is left behind that would harm the good lease


def test_edges_of_the_claims_are_accepted(world: World) -> None:
    for claims in ({"exp": instant(0.001)}, {"nbf": instant(30)}, {"exp": instant(3600)}):
        peer = world.peer()
        peer.accept(token=peer.new_token(**claims))


def test_revoked_key(world: World) -> None:
    peer = world.peer()
    trusted = {
        kid: lease.TrustedKey(key.public_key, "revoked")
        for kid, key in world.mint.trusted().items()
    }
    world.control.write_keys(trusted, 2)
    assert reject_reason(peer.present()) == R.REVOKED


def test_revoked_key_is_named_behind_everything_that_is_wrong_with_the_lease(world: World) -> None:
    peer = world.peer()
    forged = peer.token[:-40] + bytes(reversed(peer.token[-40:]))
    other_relay, expired = peer.new_token(rid="rly-2"), peer.new_token(exp=instant(0))
    trusted = {
        kid: lease.TrustedKey(key.public_key, "revoked")
        for kid, key in world.mint.trusted().items()
    }
    world.control.write_keys(trusted, 2)
    assert reject_reason(peer.present(token=forged)) == R.INVALID_SIGNATURE
    assert reject_reason(peer.present(token=other_relay)) == R.WRONG_RELAY
    assert reject_reason(peer.present(token=expired)) == R.EXPIRED
    assert reject_reason(peer.present(proof=False)) == R.REVOKED


def test_key_that_is_removed_no_longer_counts_although_its_token_was_cached(world: World) -> None:
    peer = world.peer()
    peer.accept()
    world.control.write_keys({}, 2)
    assert reject_reason(peer.present()) == R.UNKNOWN_KEY


@pytest.mark.parametrize("status", ["pending", "active", "retiring"])
def test_no_valid_lease_is_refused_in_any_step_of_a_rotation(world: World, status: str) -> None:
    trusted = {
        kid: lease.TrustedKey(key.public_key, status) for kid, key in world.mint.trusted().items()
    }
    world.control.write_keys(trusted, 2)
    world.peer().accept()


def test_verified_token_is_not_verified_again(world: World) -> None:
    peer = world.peer()
    peer.accept()
    peer.accept()
    assert world.count("token_cache_hits") == 1


# -- Replay ------------------------------------------------------------------------------------


def test_replayed_duplicate_of_a_present(world: World) -> None:
    peer = world.peer()
    datagram = peer.datagram()
    assert world.answer(datagram, peer.address) is not None
    assert reject_reason(world.answer(datagram, peer.address)) == R.REPLAYED


def test_lost_ack_signed_again_with_the_next_counter_is_accepted(world: World) -> None:
    peer = world.peer()
    first = peer.accept()
    assert peer.accept() == first
    assert world.count("lease_reproved") == 1
    assert world.count("lease_accepted") == 1


def test_replayed_lower_counter(world: World) -> None:
    peer = world.peer()
    peer.accept(counter=7)
    for counter in (7, 6, 0):
        assert reject_reason(peer.present(counter=counter)) == R.REPLAYED
    peer.accept(counter=8)


def test_pitfall_counter_at_the_edge_of_64_bits(world: World) -> None:
    peer = world.peer()
    top = (1 << 64) - 1
    assert reject_reason(peer.present(counter=top)) == R.PROOF_REQUIRED
    peer.accept(counter=top - 1)
    assert reject_reason(peer.present(counter=top - 1)) == R.REPLAYED
    assert reject_reason(peer.present(counter=top)) == R.PROOF_REQUIRED


def test_lease_without_proof(world: World) -> None:
    peer = world.peer()
    assert reject_reason(peer.present(proof=False)) == R.PROOF_REQUIRED


@pytest.mark.parametrize("proof", [True, False], ids=["signed", "bare"])
@pytest.mark.parametrize("renew", [False, True], ids=["present", "renew"])
def test_lease_without_a_key_is_no_lease(world: World, *, proof: bool, renew: bool) -> None:
    """Whoever signs it, and wherever it is shown: at an empty slot or at its own."""
    live, stranger = world.session()[0], world.peer(address=v4(66))
    before = live.slot.jti
    for peer in (stranger, live):
        unbound = peer.new_token(cnf=None)
        answer = peer.present(token=unbound, proof=proof, renew=renew)
        assert reject_reason(answer) == R.PROOF_REQUIRED
    assert not world.has(stranger.sid)
    assert live.slot.jti == before


def test_lease_of_a_closed_session_needs_a_fresh_proof(world: World) -> None:
    client, _ = world.session()
    old = client.datagram(counter=1)
    world.sweep(61.5)
    assert not world.has(client.sid)
    assert reject_reason(world.answer(old, client.address)) == R.REPLAYED
    client.accept()


# -- Identity lock -----------------------------------------------------------------------------


def test_slot_of_one_identity_never_passes_to_another(world: World) -> None:
    client, server = world.session()
    for claims in ({"sub": "mallory"}, {"key": OTHER_KEY}):
        thief = Peer(world, client.sid, c.Role.CLIENT, client.address, OTHER_KEY, dict(claims))
        assert reject_reason(thief.present()) == R.INVALID_SIGNATURE
    assert server.forward(1) == Forward(client.address)


def test_pitfall_peers_cannot_share_one_token_or_take_either_role(world: World) -> None:
    client = world.peer()
    client.accept()
    other_role = packets.build_present(
        client.sid.bytes, c.Role.SERVER, client.token, counter=5, sign=client.key.sign
    )
    assert reject_reason(world.answer(other_role, v4(2))) == R.INVALID_SIGNATURE


# -- Renewal -----------------------------------------------------------------------------------


def test_renewal_extends_and_keeps_the_window(world: World) -> None:
    client, server = world.session(ttl_s=60)
    client.forward(100)
    world.advance(50)
    old, client.token = client.token, client.new_token()
    ack = client.accept(renew=True)
    assert ack.expires_ms == START_WALL_MS + 110_000
    assert client.forward(100) == Drop("duplicate")
    world.advance(30)
    assert client.forward(101) == Forward(server.address)
    assert reject_reason(client.present(token=old)) in (R.REPLAYED, R.EXPIRED)
    assert world.count("lease_renewed") == 1


def test_old_lease_is_denied_after_its_renewal(world: World) -> None:
    client, _ = world.session()
    old, client.token = client.token, client.new_token()
    client.accept(renew=True)
    assert reject_reason(client.present(token=old, counter=1000)) == R.REPLAYED
    world.sweep(61.5)
    assert reject_reason(client.present(token=old, counter=2000)) == R.REPLAYED
    client.accept(counter=3000)


def test_pitfall_presenting_a_new_lease_extends_the_session(world: World) -> None:
    client, server = world.session(ttl_s=300)
    for minute in range(4, 20, 4):
        world.advance(240)
        client.accept(token=client.new_token())
        assert client.forward(minute) == Forward(server.address)


def test_pitfall_renewal_needs_a_token_and_its_proof(world: World) -> None:
    client, _ = world.session(ttl_s=60)
    expires_ms = client.slot.expires_ms
    keepalive = packets._header(c.PacketType.LEASE_RENEW, client.sid.bytes)
    world.advance(30)
    answer = world.answer(keepalive, client.address)
    assert answer is not None
    assert isinstance(answer.body, packets.LeaseAck)
    assert answer.body.expires_ms == expires_ms
    assert client.slot.expires_ms == expires_ms
    fresh = client.new_token()
    assert reject_reason(client.present(token=fresh, renew=True, proof=False)) == R.PROOF_REQUIRED
    world.advance(30)
    assert client.forward(1) == Drop("lease_expired")
    assert world.answer(keepalive, client.address) is None


def test_keepalive_from_elsewhere_is_dropped_and_counted(world: World) -> None:
    client, _ = world.session()
    keepalive = packets._header(c.PacketType.LEASE_RENEW, client.sid.bytes)
    assert world.answer(keepalive, v4(66)) is None
    stranger = packets._header(c.PacketType.LEASE_RENEW, uuid.uuid4().bytes)
    assert world.answer(stranger, client.address) is None
    assert world.count("drop_keepalive_unknown") == 2


def test_keepalive_keeps_an_idle_session(world: World) -> None:
    client, _ = world.session()
    keepalive = packets._header(c.PacketType.LEASE_RENEW, client.sid.bytes)
    for _ in range(4):
        world.sweep(30)
        assert world.answer(keepalive, client.address) is not None
    assert world.has(client.sid)


@pytest.mark.parametrize("claims", [{"sub": "mallory"}, {"key": OTHER_KEY}], ids=["sub", "cnf"])
def test_renewal_by_another_identity_is_refused(world: World, claims: dict[str, Any]) -> None:
    client, _ = world.session()
    thief = Peer(world, client.sid, c.Role.CLIENT, client.address, OTHER_KEY, claims)
    assert reject_reason(thief.present(renew=True)) == R.INVALID_SIGNATURE


# -- A restarted peer --------------------------------------------------------------------------


def test_pitfall_present_with_proof_starts_the_window_afresh(world: World) -> None:
    client, server = world.session()
    client.forward(5000)
    assert client.forward(1) == Drop("too_old")
    client.accept()
    assert client.forward(1) == Forward(server.address)
    assert server.slot.window_head == 0


def test_presenting_again_does_not_free_a_rate_limited_peer(world: World) -> None:
    client, _ = world.session(hard_kbps=100)
    sequence = 0
    while client.forward(sequence, bytes(1000)) != Drop("peer_rate"):
        sequence += 1
    client.accept()
    assert client.forward(0, bytes(1000)) == Drop("peer_rate")


# -- Paths -------------------------------------------------------------------------------------


def challenge(world: World, datagram: bytes, source: Address) -> bytes:
    answer = world.raw_answer(datagram, source)
    assert answer is not None
    assert len(answer.datagram) <= len(datagram)
    packet = packets.parse_packet(answer.datagram)
    assert isinstance(packet.body, packets.PathChallenge), packet
    return packet.body.cookie


@pytest.mark.parametrize("new", [v4(1, 6000), v4(50), v6(9)], ids=repr)
def test_rebind_takes_one_round_trip(world: World, new: Address) -> None:
    client, server = world.session()
    old = client.address
    client.address = new
    cookie = challenge(world, client.frame(1), new)
    ack = client.accept(cookie=cookie)
    assert ack.reflexive == (new.packed, new.port)
    assert server.forward(1) == Forward(new)
    assert client.forward(1) == Forward(server.address)
    assert world.count("nat_rebind") == 1
    assert world.decide(client.frame(9), old) != Forward(server.address)


def test_pitfall_stolen_lease_and_spoofed_source_do_not_move_a_slot(world: World) -> None:
    client, server = world.session()
    thief = v4(66)
    captured = client.datagram()  # never arrived; the thief sends it first
    cookie = challenge(world, captured, thief)
    assert client.slot.is_at(v4(1))
    # The cookie alone does not help: it must be signed by the lease's key.
    forged = packets.build_present(
        client.sid.bytes, client.role, client.token, counter=50, cookie=cookie,
        sign=OTHER_KEY.sign,
    )  # fmt: skip
    assert reject_reason(world.answer(forged, thief)) == R.PROOF_REQUIRED
    # Nor does a cookie of another address, signed by the right key.
    assert challenge(world, client.datagram(cookie=cookie), v4(67))
    assert server.forward(1) == Forward(client.address)


def test_challenge_consumes_no_counter(world: World) -> None:
    client, _ = world.session()
    client.address = v4(50)
    datagram = client.datagram()
    challenge(world, datagram, client.address)
    challenge(world, datagram, client.address)


def test_stale_cookie_gets_a_new_challenge(world: World) -> None:
    client, _ = world.session()
    client.address = v4(50)
    cookie = challenge(world, client.frame(1), client.address)
    world.advance(60)
    fresh = challenge(world, client.datagram(cookie=cookie), client.address)
    client.accept(cookie=fresh)


def test_challenges_are_limited_per_address_and_apart_from_leases() -> None:
    with open_world(limits=Limits(ip_per_s=1, ip_burst=3)) as world:
        client, _ = world.session()
        new = v4(50)
        answers = [world.answer(client.frame(number), new) for number in range(10)]
        assert sum(answer is not None for answer in answers) == 3
        assert world.count("drop_ip_rate") == world.count("limited_host") == 7
        size = len(client.frame(0))
        assert world.count("dropped_bytes_ip_rate") == world.count("limited_bytes_host") == 7 * size
        assert world.count("limited_bytes_network") == 0
        client.address = new
        cookie = packets.parse_packet(world_answer(answers[0])).body
        assert isinstance(cookie, packets.PathChallenge)
        client.accept(cookie=cookie.cookie)


def test_spoofed_forwards_of_a_peers_own_address_leave_its_challenges_alone() -> None:
    with open_world(limits=Limits(ip_per_s=1, ip_burst=3)) as world:
        client, _ = world.session()
        for port in range(1, 500):
            world.answer(client.frame(port), v4(50, port))
        client.address = v4(50, 40000)
        cookie = challenge(world, client.frame(1), client.address)
        client.accept(cookie=cookie)
        assert world.count("nat_rebind") == 1


def world_answer(packet: packets.Packet | None) -> bytes:
    assert packet is not None
    assert isinstance(packet.body, packets.PathChallenge)
    return packets.build_challenge(packet.header.session_id, packet.body.cookie)


# -- Limits ------------------------------------------------------------------------------------


def is_limited(peer: Peer) -> bool:
    """Whether a lease of the peer is dropped by the limits of its source, without an answer."""
    before = peer.world.count("drop_ip_rate")
    answer = peer.world.answer(peer.datagram(), peer.address)
    assert (answer is None) == (peer.world.count("drop_ip_rate") > before)
    return answer is None


def v6_64(number: int) -> Address:
    """An address of a /64 of its own, all in one /48."""
    return Address.from_ip(socket.inet_pton(socket.AF_INET6, f"2001:db8:0:{number:x}::1"), 5000)


def test_per_ip_limit_drops_before_any_signature() -> None:
    with open_world(limits=Limits(ip_per_s=1, ip_burst=2)) as world:
        peers = [world.peer(address=v4(1, 4000 + number)) for number in range(3)]
        peers[0].accept()
        peers[1].accept()
        assert world.answer(peers[2].datagram(token=b"not a token"), peers[2].address) is None
        assert not world.count("reject_invalid_signature")
        world.peer(address=v4(2)).accept()
        world.advance(1)
        peers[2].accept()


@pytest.mark.parametrize("address", [v4, v6_64], ids=["24", "48"])
def test_layer_network_limits_many_addresses_of_one_network(
    address: Callable[..., Address],
) -> None:
    limits = Limits(**{**GENEROUS, "ip_burst": 5, "network_per_s": 1, "network_burst": 3})
    with open_world(limits=limits) as world:
        for number in range(3):
            world.peer(address=address(number)).accept()
        assert all(is_limited(world.peer(address=address(number))) for number in range(3, 8))
        assert world.count("limited_network") == 5
        assert not world.count("limited_host")
        far = Address.from_ip(bytes((198, 51, 100, 1)), 5000)
        world.peer(address=far).accept()
        world.advance(1.01)
        world.peer(address=address(9)).accept()


def test_layer_host_does_not_use_up_its_networks_allowance() -> None:
    limits = Limits(**{**GENEROUS, "ip_per_s": 1, "ip_burst": 2, "network_burst": 4})
    with open_world(limits=limits) as world:
        for port in range(50):
            is_limited(world.peer(address=v4(1, 4000 + port)))
        assert world.count("limited_host") == 48
        world.peer(address=v4(2)).accept()
        assert not world.count("limited_network")


def test_layer_network_keeps_a_crowd_of_addresses_out_of_the_table() -> None:
    limits = Limits(**{**GENEROUS, "ip_per_s": 1, "network_per_s": 1, "network_burst": 3})
    with open_world(limits=limits) as world:
        for number in range(200):
            is_limited(world.peer(address=v6_64(number)))
        region = world.segment.geometry.regions["ip_rates"]
        words = world.segment.u64[region.offset // 8 : region.end // 8].tolist()
        assert sum(map(bool, words)) == 6, "three addresses: a tag and a time each"


def test_layer_network_without_a_limit_of_its_own_takes_twenty_times_the_hosts() -> None:
    with open_world(limits=Limits(**{**GENEROUS, "ip_per_s": 1, "ip_burst": 1})) as world:
        for number in range(20):
            world.peer(address=v4(number)).accept()
        assert is_limited(world.peer(address=v4(20)))


def test_forwarding_is_not_subject_to_the_per_ip_limit() -> None:
    with open_world(limits=Limits(ip_per_s=1, ip_burst=1)) as world:
        client, server = world.session()
        assert all(client.forward(n) == Forward(server.address) for n in range(200))


def test_per_identity_limit() -> None:
    limits = Limits(**{**GENEROUS, "identity_per_s": 1, "identity_burst": 2})
    with open_world(limits=limits) as world:
        for _ in range(2):
            world.peer(sub="alice").accept()
        assert reject_reason(world.peer(sub="alice").present()) == R.RATE_LIMITED
        world.peer(sub="bob").accept()


def test_replays_do_not_use_up_the_identitys_allowance() -> None:
    limits = Limits(**{**GENEROUS, "identity_per_s": 1, "identity_burst": 2})
    with open_world(limits=limits) as world:
        client = world.peer(sub="alice")
        datagram = client.datagram()
        world.answer(datagram, client.address)
        for _ in range(20):
            assert reject_reason(world.answer(datagram, client.address)) == R.REPLAYED
        world.peer(sub="alice").accept()


def test_session_full(world: World) -> None:
    with open_world(max_sessions=2) as world:
        first = world.peer()
        first.accept()
        world.peer().accept()
        assert reject_reason(world.peer().present()) == R.SESSION_FULL
        world.peer(c.Role.SERVER, sid=first.sid).accept()


def test_draining_takes_no_new_sessions_but_second_peers_and_renewals(world: World) -> None:
    client = world.peer()
    client.accept()
    world.control.drain = Drain.LOCAL
    assert reject_reason(world.peer().present()) == R.DRAINING
    world.peer(c.Role.SERVER, sid=client.sid).accept()
    client.accept(renew=True, token=client.new_token())
    world.control.drain = Drain.NONE
    world.peer().accept()


class _Ban(OpenPolicy):
    """A policy that bans an address and revokes an identity."""

    def check_source(self, source: Address, now: Instant) -> None:
        if source.port == 666:
            raise LeaseError(R.BANNED, "banned")

    def check_claims(self, claims: lease.LeaseClaims, now: Instant) -> None:
        if claims.sub == "revoked":
            raise LeaseError(R.REVOKED, "revoked")


def test_ban_comes_before_the_signature_and_revocation_after_the_claims() -> None:
    with open_world(policy=_Ban()) as world:
        banned = world.peer(address=v4(1, 666))
        assert reject_reason(banned.present(token=b"garbage")) == R.BANNED
        revoked = world.peer(sub="revoked")
        assert reject_reason(revoked.present()) == R.REVOKED
        assert reject_reason(revoked.present(proof=False)) == R.REVOKED
        expired = world.peer(sub="revoked", exp=instant(0))
        assert reject_reason(expired.present()) == R.EXPIRED


class _Load(OpenPolicy):
    """A policy under load."""

    def wants_cookie(self, now: Instant) -> bool:
        return True


def test_pitfall_under_load_no_signature_is_checked_before_the_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_world(policy=_Load()) as world:
        peer = world.peer()
        with monkeypatch.context() as patch:
            patch.setattr(world.admission, "_verifier", None)  # any use of it would fail
            cookie = challenge(world, peer.datagram(), peer.address)
            bare = world.peer().present(proof=False)
            assert reject_reason(bare) == R.PROOF_REQUIRED, "it can carry no cookie"
            assert challenge(world, peer.datagram(cookie=cookie), v4(66)) != cookie
        peer.accept(cookie=cookie)


# -- Answers -----------------------------------------------------------------------------------


def test_ack_says_expiry_limits_and_where_the_peer_is(world: World) -> None:
    for address in (v4(7, 7777), v6(7, 7777)):
        peer = world.peer(address=address, soft_kbps=11, hard_kbps=22)
        ack = peer.accept()
        assert ack == packets.LeaseAck(
            START_WALL_MS + 300_000, 11, 22, (address.packed, address.port)
        )


def test_pitfall_no_answer_is_larger_than_its_cause(world: World) -> None:
    client, _ = world.session()
    stranger = world.peer()
    causes = [
        (client.datagram(), client.address),
        (client.datagram(counter=1), client.address),
        (client.datagram(), v4(66)),
        (client.frame(1), v4(66)),
        (stranger.datagram(token=b"x"), stranger.address),
        (packets.build_present(stranger.sid.bytes, c.Role.CLIENT, b"x"), stranger.address),
        (stun.build_binding_request(bytes(12)), v4(8)),
        (stun.build_binding_request(bytes(12)), v6(8)),
    ]
    for datagram, source in causes:
        answer = world.raw_answer(datagram, source)
        assert answer is not None
        assert len(answer.datagram) <= len(datagram)


def test_pitfall_unknown_session_gets_no_answer(world: World) -> None:
    stranger = world.peer()
    assert world.raw_answer(stranger.frame(1), stranger.address) is None
    assert world.count("drop_unknown_session") == 1


@pytest.mark.parametrize("kind", [0x01, 0x04])
@pytest.mark.parametrize("body", [b"\0", b"\0\0\5abc", b"\2\0\1x", b"\0\0\0", b"\0\xff\xff"])
def test_lease_packet_that_does_not_fit_is_dropped(world: World, kind: int, body: bytes) -> None:
    head = bytes((0x57, 1, kind, 0)) + uuid.uuid4().bytes
    assert world.raw_answer(head + body, v4(1)) is None
    assert world.count("drop_bad_body") == 1


@pytest.mark.parametrize("address", [v4(3, 3478), v6(3, 3478)], ids=repr)
def test_stun_tells_the_mapped_address(world: World, address: Address) -> None:
    transaction = bytes(range(12))
    answer = world.raw_answer(stun.build_binding_request(transaction), address)
    assert answer is not None
    assert stun.parse_mapped_address(answer.datagram, transaction) == (address.packed, 3478)
    assert world.count("stun_answers_larger") == 0
    bare = world.raw_answer(stun.build_binding_request(transaction, padding=0), address)
    assert bare is not None
    assert world.count("stun_answers_larger") == 1


def test_stun_is_under_the_per_ip_limit() -> None:
    with open_world(limits=Limits(ip_per_s=1, ip_burst=2)) as world:
        request = stun.build_binding_request(bytes(12))
        answers = [world.raw_answer(request, v4(3)) for _ in range(5)]
        assert [answer is not None for answer in answers] == [True, True, False, False, False]


def test_renew_of_a_session_that_is_gone_is_taken_as_its_present(world: World) -> None:
    client = world.peer()
    client.accept(renew=True)
    assert world.has(client.sid)
    assert world.count("lease_accepted") == 1
