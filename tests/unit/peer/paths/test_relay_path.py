"""The relay path sans I/O: fake clock, hand-made answers, and a lossy fake relay."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.peer.stub_relay import KID, MASTER_KEY, mint_lease

from wavry_peer.errors import LeaseMismatchError
from wavry_peer.home.identity import Identity
from wavry_peer.paths.own_lease import OwnLease, read_own_lease
from wavry_peer.paths.relay import RelayPath
from wavry_peer.paths.relay_events import (
    ForwardReceived,
    LeaseRenewed,
    NoticeReceived,
    PathFailed,
    PathLimits,
    PathReady,
    RenewalFailed,
)
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import lease as leases
from wavry_peer.protocol import packets
from wavry_peer.protocol.errors import LocalError

MS = 1_000_000
SECOND = 1000 * MS
NOW = 5_000 * SECOND
SESSION = "11111111-2222-4333-8444-555555555555"
SESSION_ID = packets.SessionId(bytes.fromhex(SESSION.replace("-", "")))
ME = Identity.generate(random.Random(1).randbytes)
RELAY_ID = "rly-a"


def lease(
    now_ns: int = NOW, *, ttl_s: float = 300.0, issued_s: float = 1_750_000_000.0, **over: object
) -> OwnLease:
    minted = {"session_id": SESSION, "role": c.Role.CLIENT, "relay_id": RELAY_ID}
    token = mint_lease(
        cnf=ME.identity_key,
        ttl_s=ttl_s,
        issued_s=issued_s,
        **(minted | over),  # type: ignore[arg-type]
    )
    return read_own_lease(
        token,
        session_id=SESSION_ID,
        role=c.Role.CLIENT,
        public_key=ME.signing.public_key,
        now_ns=now_ns,
    )


def make_path(own: OwnLease | None = None, limits: PathLimits | None = None) -> RelayPath:
    return RelayPath(
        session_id=SESSION_ID,
        role=c.Role.CLIENT,
        lease=own or lease(),
        sign=ME.signing.sign,
        first_counter=1000,
        limits=limits or PathLimits(),
    )


def ack(own: OwnLease, expires_ms: int | None = None) -> bytes:
    at = own.expires_ms if expires_ms is None else expires_ms
    return packets.build_ack(SESSION_ID, packets.LeaseAck(at, 1, 2))


def events(path: RelayPath) -> list[object]:
    found = []
    while (event := path.next_event()) is not None:
        found.append(event)
    return found


def presents(path: RelayPath) -> list[packets.LeasePresent]:
    found = []
    for datagram in path.datagrams_to_send():
        body = packets.parse_packet(datagram).body
        assert isinstance(body, packets.LeasePresent)
        found.append(body)
    return found


def ready_path() -> RelayPath:
    path = make_path()
    path.start(NOW)
    path.datagrams_to_send()
    path.receive_datagram(ack(path.lease), NOW + 20 * MS)
    assert [type(event) for event in events(path)] == [PathReady]
    return path


def test_presents_with_a_proof_that_the_relay_accepts() -> None:
    path = make_path()
    path.start(NOW)
    (datagram,) = path.datagrams_to_send()
    assert len(datagram) <= 1280 - 48
    present = packets.parse_packet(datagram).body
    assert isinstance(present, packets.LeasePresent)
    keys = {leases.KeyId(KID): leases.TrustedKey(MASTER_KEY.public_key)}
    claims = leases.open_lease(present.token, keys)
    leases.check_proof(claims, present)
    assert present.proof is not None
    assert present.proof.counter == 1000
    assert present.proof.cookie == c.NO_COOKIE


def test_ack_makes_ready_and_measures_the_round_trip() -> None:
    path = make_path()
    path.start(NOW)
    body = packets.LeaseAck(path.lease.expires_ms, 1, 2, (b"\x7f\0\0\1", 4000))
    path.receive_datagram(packets.build_ack(SESSION_ID, body), NOW + 30 * MS)
    assert events(path) == [PathReady(path.lease.expires_ms, (b"\x7f\0\0\1", 4000))]
    assert path.is_ready
    assert path.statistics.round_trip_ns == 30 * MS


def test_an_ack_never_makes_a_lease_longer_than_its_token() -> None:
    path = make_path()
    path.start(NOW)
    path.receive_datagram(ack(path.lease, path.lease.expires_ms + 3_600_000), NOW)
    assert events(path) == [PathReady(path.lease.expires_ms, None)]
    assert path.lease.expires_ns == NOW + 300 * SECOND


def test_repeats_with_growing_waits_and_a_fresh_signature_until_the_deadline() -> None:
    path = make_path()
    path.start(NOW)
    sent = [(NOW, packet) for packet in presents(path)]
    while (timer_ns := path.get_timer()) is not None:
        path.handle_timer(timer_ns - 1)
        assert presents(path) == [], "early timers do nothing"
        path.handle_timer(timer_ns)
        sent += [(timer_ns, packet) for packet in presents(path)]
    assert events(path) == [PathFailed(None)]
    waits = [(b[0] - a[0]) // MS for a, b in itertools.pairwise(sent)]
    assert waits == [250, 500, 1000, 2000, 2000, 2000, 2000]
    counters = [packet.proof.counter for _, packet in sent if packet.proof]
    assert counters == list(range(1000, 1000 + len(sent)))
    assert len({packet.proof.signature for _, packet in sent if packet.proof}) == len(sent)
    path.receive_datagram(ack(path.lease), NOW)
    assert events(path) == [], "what failed stays failed"


def test_a_challenge_is_answered_at_once_with_its_cookie() -> None:
    path = make_path()
    path.start(NOW)
    path.datagrams_to_send()
    path.receive_datagram(packets.build_challenge(SESSION_ID, b"cookie-1"), NOW + MS)
    (present,) = presents(path)
    assert present.proof is not None
    assert present.proof.cookie == b"cookie-1"
    # A flood of them makes no flood of signatures, but the latest cookie is used next.
    for number in range(50):
        path.receive_datagram(packets.build_challenge(SESSION_ID, b"cookie%02d" % number), NOW + MS)
    assert presents(path) == []
    timer_ns = path.get_timer()
    assert timer_ns is not None
    path.handle_timer(timer_ns)
    (present,) = presents(path)
    assert present.proof is not None
    assert present.proof.cookie == b"cookie49"


def test_a_challenge_out_of_the_blue_proves_the_path_again() -> None:
    path = ready_path()
    path.receive_datagram(packets.build_challenge(SESSION_ID, b"rebound!"), NOW + SECOND)
    (present,) = presents(path)
    assert present.proof is not None
    assert present.proof.cookie == b"rebound!"
    path.receive_datagram(ack(path.lease), NOW + SECOND + MS)
    assert events(path) == []
    # What the relay sent before it had the proof comes to nothing.
    for at in range(10):
        late = packets.build_challenge(SESSION_ID, b"rebound!")
        path.receive_datagram(late, NOW + SECOND + (2 + at) * MS)
    assert presents(path) == []
    assert path.statistics.dropped["late_challenge"] == 10


def test_a_nat_that_changes_again_at_once_is_followed() -> None:
    path = ready_path()
    for at, cookie in enumerate((b"first-at", b"second-a", b"first-at")):
        now_ns = NOW + SECOND + at * 200 * MS
        path.receive_datagram(packets.build_challenge(SESSION_ID, cookie), now_ns)
        (present,) = presents(path)
        assert present.proof is not None
        assert present.proof.cookie == cookie
        path.receive_datagram(ack(path.lease), now_ns + 40 * MS)


def test_strangers_challenges_cost_a_few_signatures_and_then_one_a_second() -> None:
    path = ready_path()
    burst = PathLimits().check_burst
    made = 0
    for at in range(10_000):
        now_ns = NOW + SECOND + at * MS
        path.receive_datagram(packets.build_challenge(SESSION_ID, b"%08d" % at), now_ns)
        if new := len(presents(path)):
            made += new
            path.receive_datagram(ack(path.lease), now_ns)
    assert burst + 9 <= made <= burst + 10


@pytest.mark.parametrize("reason", list(c.RejectReason))
def test_one_reject_fails_nothing(reason: c.RejectReason) -> None:
    path = make_path()
    path.start(NOW)
    for _ in range(20):
        path.receive_datagram(packets.build_reject(SESSION_ID, reason), NOW + MS)
    assert events(path) == []
    path.receive_datagram(ack(path.lease), NOW + 2 * MS)
    assert [type(event) for event in events(path)] == [PathReady]


def test_a_refusal_of_three_different_packets_is_believed() -> None:
    path = make_path()
    path.start(NOW)
    reject = packets.build_reject(SESSION_ID, c.RejectReason.DRAINING)
    path.receive_datagram(reject, NOW + MS)
    for at_ms in (250, 750):
        assert events(path) == []
        path.handle_timer(NOW + at_ms * MS)
        path.receive_datagram(reject, NOW + at_ms * MS + MS)
    assert events(path) == [PathFailed(c.RejectReason.DRAINING)]


def test_passing_refusals_are_waited_out() -> None:
    path = make_path()
    path.start(NOW)
    for at_ms in (0, 250, 750, 1750, 3750):
        path.handle_timer(NOW + at_ms * MS)
        path.receive_datagram(
            packets.build_reject(SESSION_ID, c.RejectReason.RATE_LIMITED), NOW + at_ms * MS
        )
    assert events(path) == []
    path.handle_timer(NOW + 10 * SECOND)
    assert events(path) == [PathFailed(c.RejectReason.RATE_LIMITED)]


def test_a_reject_does_not_kill_an_established_path_but_makes_it_ask() -> None:
    path = ready_path()
    at_ns = NOW + 10 * SECOND
    path.receive_datagram(packets.build_reject(SESSION_ID, c.RejectReason.REVOKED), at_ns)
    assert events(path) == []
    assert len(presents(path)) == 1
    path.receive_datagram(ack(path.lease), at_ns + MS)
    assert events(path) == []
    assert path.is_ready


def test_a_relay_that_really_revoked_is_believed_in_the_end() -> None:
    path = ready_path()
    at_ns = NOW + 10 * SECOND
    reject = packets.build_reject(SESSION_ID, c.RejectReason.REVOKED)
    path.receive_datagram(reject, at_ns)
    while path.is_ready:
        path.receive_datagram(reject, at_ns)
        timer_ns = path.get_timer()
        if timer_ns is not None:
            at_ns = timer_ns
            path.handle_timer(at_ns)
    assert events(path) == [PathFailed(c.RejectReason.REVOKED)]


def test_renewal_is_by_new_token_and_extends_only_when_acknowledged() -> None:
    path = ready_path()
    old, new = path.lease, lease(NOW + 240 * SECOND, issued_s=1_750_000_240.0)
    path.renew(new, NOW + 240 * SECOND)
    (datagram,) = path.datagrams_to_send()
    packet = packets.parse_packet(datagram)
    assert packet.header.type is c.PacketType.LEASE_RENEW
    assert isinstance(packet.body, packets.LeasePresent)
    assert packet.body.token == new.token
    path.receive_datagram(ack(old), NOW + 240 * SECOND)
    assert events(path) == [], "a late ACK of the old lease renews nothing"
    assert path.lease is old
    path.receive_datagram(ack(new), NOW + 241 * SECOND)
    assert events(path) == [LeaseRenewed(new.expires_ms)]
    assert path.lease is new


def test_an_unanswered_renewal_is_presented_and_its_failure_keeps_the_path() -> None:
    path = ready_path()
    at_ns = NOW + 240 * SECOND
    path.renew(lease(at_ns, issued_s=1_750_000_240.0), at_ns)
    kinds = []
    while not (found := events(path)):
        kinds += [packets.parse_header(d).type for d in path.datagrams_to_send()]
        timer_ns = path.get_timer()
        assert timer_ns is not None
        path.handle_timer(timer_ns)
    assert found == [RenewalFailed(None)]
    assert kinds[:3] == [
        c.PacketType.LEASE_RENEW,
        c.PacketType.LEASE_RENEW,
        c.PacketType.LEASE_PRESENT,
    ]
    assert path.is_ready


def test_silence_makes_it_ask_whether_the_relay_is_alive() -> None:
    path = ready_path()
    limits = PathLimits()
    path.receive_datagram(packets.build_challenge(SESSION_ID, b"a cookie"), NOW + 30 * MS)
    path.receive_datagram(ack(path.lease), NOW + 40 * MS)
    assert len(presents(path)) == 1
    assert path.get_timer() == NOW + 40 * MS + limits.silence_ns
    path.receive_datagram(packets.build_forward(SESSION_ID, bytes(9)), NOW + 10 * SECOND)
    assert path.get_timer() == NOW + 10 * SECOND + limits.silence_ns
    events(path)
    path.handle_timer(NOW + 36 * SECOND)
    assert len(presents(path)) == 1
    path.handle_timer(NOW + 47 * SECOND)
    assert events(path) == [PathFailed(None)]


def test_challenge_beside_the_first_ack_is_answered_at_once_and_delays_nothing() -> None:
    path = ready_path()
    path.send(bytes(8) + b"hello")
    path.receive_datagram(packets.build_challenge(SESSION_ID, b"a cookie"), NOW + 20 * MS)
    hello, proof = (packets.parse_packet(one).body for one in path.datagrams_to_send())
    assert hello == bytes(8) + b"hello"
    assert isinstance(proof, packets.LeasePresent)
    assert proof.proof is not None
    assert proof.proof.cookie == b"a cookie"
    assert path.is_ready
    assert not path.is_proved
    path.receive_datagram(ack(path.lease), NOW + 40 * MS)
    assert path.is_proved
    path.close()
    assert not path.is_proved


def test_lost_challenge_is_asked_for_again() -> None:
    path = ready_path()
    assert path.get_timer() == NOW + 20 * MS + SECOND
    path.handle_timer(NOW + 20 * MS + SECOND)
    assert len(presents(path)) == 1
    path.receive_datagram(ack(path.lease), NOW + 2 * SECOND)
    assert path.get_timer() == NOW + 2 * SECOND + PathLimits().silence_ns, "and only once"


def test_forward_is_wrapped_and_unwrapped_byte_for_byte() -> None:
    path = ready_path()
    body = (7).to_bytes(8, "big") + b"sealed"
    path.send(body)
    (datagram,) = path.datagrams_to_send()
    assert datagram == packets.build_forward(SESSION_ID, body)
    path.receive_datagram(datagram, NOW + SECOND)
    assert events(path) == [ForwardReceived(body)]


def test_what_does_not_belong_to_the_session_is_dropped_and_counted() -> None:
    path = ready_path()
    other = bytes(15) + b"\x01"
    for datagram, reason in (
        (packets.build_forward(other, bytes(20)), "wrong_session"),
        (packets.build_ack(other, packets.LeaseAck(1, 1, 1)), "wrong_session"),
        (b"", "too_short"),
        (bytes(1501), "too_long"),
        (bytes(100), "bad_magic"),
        (packets.build_forward(SESSION_ID, b"short"), "bad_body"),
        (packets.build_forward(SESSION_ID, b"") + bytes(1500), "bad_body"),
        (ack(path.lease), "unexpected_ack"),
        (packets.build_present(SESSION_ID, c.Role.SERVER, b"token"), "unexpected_type"),
    ):
        before = path.statistics.dropped.get(reason, 0)
        path.receive_datagram(datagram, NOW + SECOND)
        assert path.statistics.dropped[reason] == before + 1
    assert events(path) == []
    assert path.is_ready


def test_notices_are_told_and_change_nothing() -> None:
    path = ready_path()
    for code in c.NoticeCode:
        path.receive_datagram(packets.build_notice(SESSION_ID, code), NOW + SECOND)
    assert events(path) == [NoticeReceived(code) for code in c.NoticeCode]
    assert path.datagrams_to_send() == []
    assert path.is_ready


def test_wrong_use() -> None:
    path = make_path()
    with pytest.raises(LocalError):
        path.renew(lease(), NOW)
    path.send(bytes(9))
    assert path.statistics.dropped == {"not_ready": 1}
    path.start(NOW)
    with pytest.raises(LocalError):
        path.start(NOW)
    path = ready_path()
    with pytest.raises(LocalError, match="another relay"):
        path.renew(lease(relay_id="rly-b"), NOW)
    path.close()
    assert path.get_timer() is None


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ({"session_id": "21111111-2222-4333-8444-555555555555"}, "another session"),
        ({"role": c.Role.SERVER}, "other side"),
        ({"cnf": None}, "not bound"),
        ({"cnf": Identity.generate().identity_key}, "not bound"),
        ({"ttl_s": -1.0}, "ends before"),
    ],
)
def test_only_our_own_key_bound_lease_is_used(over: dict[str, object], text: str) -> None:
    minted: dict[str, object] = {
        "session_id": SESSION,
        "role": c.Role.CLIENT,
        "relay_id": RELAY_ID,
        "cnf": ME.identity_key,
    }
    token = mint_lease(**(minted | over))  # type: ignore[arg-type]
    with pytest.raises(LeaseMismatchError, match=text):
        _read(token)


@pytest.mark.parametrize("token", ["", "x", "v4.public.AAAA", "v4.public." + "A" * 200, "ü"])
def test_what_is_no_lease_is_refused(token: str) -> None:
    with pytest.raises(LeaseMismatchError, match="not a lease"):
        _read(token)


def _read(token: str) -> OwnLease:
    return read_own_lease(
        token,
        session_id=SESSION_ID,
        role=c.Role.CLIENT,
        public_key=ME.signing.public_key,
        now_ns=NOW,
    )


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=1600), st.sampled_from([*range(18), 255]), st.integers(0, 3))
def test_any_datagram_is_taken_without_an_exception(noise: bytes, kind: int, flags: int) -> None:
    path = ready_path()
    for datagram in (noise, bytes((0x57, 1, kind, flags)) + SESSION_ID + noise):
        path.receive_datagram(datagram, NOW + SECOND)
    assert path.is_ready
    assert len(path.datagrams_to_send()) <= 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.05, 0.2, 0.5]))
def test_becomes_ready_and_renews_over_a_lossy_path(seed: int, loss: float) -> None:
    dice = random.Random(seed)
    path = make_path(limits=PathLimits(deadline_ns=300 * SECOND))
    now_ns = NOW
    path.start(now_ns)
    highest = 0
    done: list[object] = []
    while len(done) < 2:
        for datagram in path.datagrams_to_send():
            present = packets.parse_packet(datagram).body
            assert isinstance(present, packets.LeasePresent)
            assert present.proof is not None
            if dice.random() < loss:
                continue
            assert present.proof.counter > highest
            highest = present.proof.counter
            if dice.random() >= loss:
                token = present.token.decode()
                answer = ack(_read(token))
                path.receive_datagram(answer, now_ns + MS)
        for event in events(path):
            done.append(type(event))
            if isinstance(event, PathReady):
                path.renew(lease(now_ns, issued_s=1_750_000_200.0), now_ns)
        timer_ns = path.get_timer()
        assert timer_ns is not None
        now_ns = max(now_ns, timer_ns)
        path.handle_timer(now_ns)
    assert done == [PathReady, LeaseRenewed]
