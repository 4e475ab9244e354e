"""Revocations at the relay: the table, the file, the policy, and cut sessions."""

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.relay.revocation import GivenOrders
from support.relay.world import RELAY_ID, Peer, World, open_world, reject_reason

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import lease, packets
from wavry_peer.protocol.http.relay_events import FOREVER_S, Revocation
from wavry_relay.admission.policy import RelayPolicy
from wavry_relay.admission.revocation_view import RevocationView
from wavry_relay.engine.base import Drop, Forward
from wavry_relay.master.revocations import FILE_NAME, KEEP_S
from wavry_relay.shm.control import ControlBlock, EngineKind, Limits
from wavry_relay.shm.layout import REVOCATION_SLOTS, Geometry
from wavry_relay.shm.leases import LeaseOrigins
from wavry_relay.shm.revocations import RevocationEntry, RevokedKind, TablePosition
from wavry_relay.shm.segment import Segment
from wavry_relay.shm.tables import SegmentTables
from wavry_relay.shm.tags import Tags
from wavry_relay.worker.revocation_scan import CLOSES_PER_STEP, RevocationScan

LOG = "a" * 32
KINDS = ["jti", "session", "sub", "kid"]


@pytest.fixture
def world(engine_kind: EngineKind) -> Iterator[World]:
    with open_world(kind=engine_kind, workers=2, max_sessions=300) as world:
        yield world


@pytest.fixture
def orders(world: World, tmp_path: Path) -> GivenOrders:
    return GivenOrders(world, tmp_path / "state")


def claims(peer: Peer) -> lease.LeaseClaims:
    return lease.open_lease(peer.token, peer.world.mint.trusted())


def value_of(kind: str, peer: Peer) -> str:
    own = claims(peer)
    return {"jti": own.jti, "session": own.sid, "sub": own.sub, "kid": own.kid}[kind]


def session(world: World, name: str) -> tuple[Peer, Peer]:
    client = world.peer(sub=f"{name}-client")
    server = world.peer(c.Role.SERVER, sid=client.sid, sub=f"{name}-server")
    client.accept()
    server.accept()
    return client, server


# -- Live sessions -----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["client", "server"])
@pytest.mark.parametrize("revoked", ["jti", "session", "sub"])
def test_revoked_session_stops_forwarding_at_once_and_both_peers_get_notice(
    world: World, orders: GivenOrders, revoked: str, by: str
) -> None:
    client, server = session(world, "hit")
    other, partner = session(world, "other")
    assert client.forward(1) == Forward(server.address)
    orders.revoke(revoked, value_of(revoked, client if by == "client" else server))
    world.scan()
    assert client.forward(2) == Drop("unknown_session")
    assert server.forward(1) == Drop("unknown_session")
    notice = packets.Notice(c.NoticeCode.REVOKED)
    assert [(packet.body, to) for packet, to in world.notices] == [
        (notice, client.address),
        (notice, server.address),
    ]
    assert world.notices[0][0].header.session_id == client.sid.bytes
    assert world.count("session_closed_revoked") == 1
    # Other sessions are untouched.
    assert other.forward(1) == Forward(partner.address)
    assert partner.forward(1) == Forward(other.address)


@pytest.mark.parametrize("by", ["row", "key set"])
def test_revoked_key_ends_all_its_sessions_and_those_of_other_keys_go_on(
    world: World, orders: GivenOrders, by: str
) -> None:
    peers = [session(world, f"user-{number}") for number in range(100)]
    old_kid = world.mint.kid
    old = dict(world.mint.trusted())
    world.mint.signing = type(world.mint)().signing  # a new signing key
    world.control.write_keys(old | world.mint.trusted(), 2)
    other, partner = session(world, "new")
    if by == "row":
        orders.revoke("kid", old_kid)
    else:
        dead = lease.TrustedKey(old[old_kid].public_key, "revoked")
        world.control.write_keys({old_kid: dead, **world.mint.trusted()}, 3)
    world.scan()
    assert world.count("session_closed_revoked") == len(peers)
    assert not any(world.has(client.sid) for client, _ in peers)
    assert other.forward(1) == Forward(partner.address)


@pytest.mark.parametrize("left", list(c.Role), ids=["client", "server"])
def test_revoked_key_ends_a_session_of_which_only_one_lease_is_its(
    world: World, orders: GivenOrders, left: c.Role
) -> None:
    """In the middle of a rotation one peer has renewed with the new key, the other has not yet."""
    peers = session(world, "half")
    old_kid, old = world.mint.kid, dict(world.mint.trusted())
    world.mint.signing = type(world.mint)().signing
    world.control.write_keys(old | world.mint.trusted(), 2)
    renewed = peers[1 - left]
    renewed.accept(token=renewed.new_token(), renew=True)
    orders.revoke("kid", old_kid)
    world.scan()
    assert not world.has(peers[0].sid)


def test_ended_session_leaves_no_origin_of_its_leases(world: World, orders: GivenOrders) -> None:
    client, _ = session(world, "gone")
    record = world.record(client.sid).number
    origins = LeaseOrigins(world.segment)
    assert all(origins.get(record, role) != (0, 0) for role in c.Role)
    orders.revoke("session", str(client.sid))
    world.scan()
    assert [origins.get(record, role) for role in c.Role] == [(0, 0), (0, 0)]


def test_many_hit_sessions_are_closed_in_portions(world: World, orders: GivenOrders) -> None:
    for number in range(CLOSES_PER_STEP + 20):
        world.peer(sub="same", sid=uuid.UUID(int=number + 1)).accept()
    orders.revoke("sub", "same")
    for scan in world.scans:
        scan.step()
        scan.step()
    # Records are taken in order, so the first worker's run of 150 holds nearly all of them.
    assert world.count("session_closed_revoked") >= CLOSES_PER_STEP
    world.scan()
    assert world.count("session_closed_revoked") == CLOSES_PER_STEP + 20


def test_lease_that_was_issued_after_the_revocation_is_good(
    world: World, orders: GivenOrders
) -> None:
    client, _ = session(world, "kicked")
    orders.revoke("sub", "kicked-client")
    world.scan()
    assert not world.has(client.sid)
    world.advance(1)
    again, partner = session(world, "kicked")
    world.scan()
    # A replacement of a dead worker looks at everything that is in force, and spares it as well.
    scan = RevocationScan(world.tables, RevocationView(world.tables), 0, world.sweeps[0])
    scan.step()
    while scan.is_busy:
        scan.step()
    assert again.forward(1) == Forward(partner.address)


def test_replacement_of_a_dead_worker_cuts_what_was_revoked_meanwhile(
    world: World, orders: GivenOrders
) -> None:
    client, _ = session(world, "hit")
    orders.revoke("session", str(client.sid))
    for number in range(2):
        view = RevocationView(world.tables)
        scan = RevocationScan(world.tables, view, number, world.sweeps[number])
        scan.step()
        while scan.is_busy:
            scan.step()
    assert not world.has(client.sid)


def test_session_that_waits_for_its_second_peer_is_cut_too(
    world: World, orders: GivenOrders
) -> None:
    client = world.peer()
    client.accept()
    orders.revoke("jti", claims(client).jti)
    world.scan()
    assert not world.has(client.sid)


def test_renewed_session_is_not_hit_by_its_old_lease(world: World, orders: GivenOrders) -> None:
    client, server = session(world, "renewed")
    old = claims(client).jti
    client.token = client.new_token(sub="renewed-client")
    client.accept(renew=True)
    orders.revoke("jti", old)
    world.scan()
    assert client.forward(1) == Forward(server.address)
    orders.revoke("jti", claims(client).jti)
    world.scan()
    assert client.forward(2) == Drop("unknown_session")


def test_news_during_a_pass_wait_for_the_next_and_are_not_lost(
    world: World, orders: GivenOrders
) -> None:
    first, _ = session(world, "first")
    second, _ = session(world, "second")
    orders.revoke("session", str(first.sid))
    for scan in world.scans:
        scan.step()
    orders.revoke("session", str(second.sid))
    world.scan()
    assert not world.has(first.sid)
    assert not world.has(second.sid)


# -- The policy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("revoked", KINDS)
def test_revoked_lease_is_refused_at_every_worker_and_after_a_restart(
    world: World, orders: GivenOrders, revoked: str
) -> None:
    peer = world.peer()
    peer.accept()
    orders.revoke(revoked, value_of(revoked, peer))
    world.scan()
    assert not world.has(peer.sid)
    assert reject_reason(peer.present()) == c.RejectReason.REVOKED
    for number in range(2):  # another worker, and one that has just started
        policy = RelayPolicy(RevocationView(world.tables) if number else world.views[1])
        with pytest.raises(lease.LeaseError) as caught:
            policy.check_claims(claims(peer), world.now)
        assert caught.value.reason == c.RejectReason.REVOKED


def test_revoked_comes_behind_expiry_and_before_proof(world: World, orders: GivenOrders) -> None:
    peer = world.peer(sub="hit")
    orders.revoke("sub", "hit")
    assert reject_reason(peer.present(proof=False)) == c.RejectReason.REVOKED
    world.advance(301)
    assert reject_reason(peer.present()) == c.RejectReason.EXPIRED


def test_ban_of_a_user_hits_future_leases_until_it_is_lifted(
    world: World, orders: GivenOrders
) -> None:
    now_s = world.now.wall_ms // 1000
    orders.revoke("sub", "eve", until=now_s + 7200, ttl=10_800)
    world.advance(600)
    assert reject_reason(world.peer(sub="eve").present()) == c.RejectReason.REVOKED
    before = world.peer(sub="eve")
    assert orders.kept.take(orders.row("unban", "eve", until=now_s + 600), "stream")
    assert reject_reason(before.present()) == c.RejectReason.REVOKED
    world.advance(1)
    world.peer(sub="eve").accept()


def test_ban_is_not_shortened_by_a_later_revocation_of_the_same_user(
    world: World, orders: GivenOrders
) -> None:
    """`leases revoke --user` hits the leases of now; what a ban says about later ones stays."""
    now_s = world.now.wall_ms // 1000
    orders.revoke("sub", "eve", until=now_s + 7200, ttl=10_800)
    orders.revoke("sub", "eve", until=now_s, ttl=3600)
    world.advance(3600 + KEEP_S + 1)
    orders.save()
    assert reject_reason(world.peer(sub="eve").present()) == c.RejectReason.REVOKED
    with open_world() as fresh:
        fresh.clock.advance(3600 + KEEP_S + 1)
        again = GivenOrders(fresh, orders.directory)
        assert len(again.kept) == 1, "nor is it forgotten earlier"
        assert reject_reason(fresh.peer(sub="eve").present()) == c.RejectReason.REVOKED


def test_lifted_ban_is_forgotten_when_no_lease_needs_it(world: World, orders: GivenOrders) -> None:
    now_s = world.now.wall_ms // 1000
    orders.revoke("sub", "eve", until=2**53, ttl=2**40)
    assert orders.kept.take(orders.row("unban", "eve", until=now_s, ttl=3600), "stream")
    for hours, left in ((0.9, 1), (0.2, 0)):
        world.advance(3600 * hours)
        orders.save()
        assert len(GivenOrders(world, orders.directory).kept) == left


def test_session_is_not_admitted_past_a_revocation_of_the_same_moment(
    world: World, orders: GivenOrders
) -> None:
    """The row comes between the first look at the revocations and the place in the table."""
    peer = world.peer(sub="eve")

    class Late(RelayPolicy):
        looks = 0

        def check_claims(self, claims: lease.LeaseClaims, now: object) -> None:
            super().check_claims(claims, now)  # type: ignore[arg-type]  # the double
            self.looks += 1
            if self.looks == 1:
                orders.revoke("sub", "eve")

    world.admission._policy = policy = Late(world.views[0])
    assert reject_reason(peer.present()) == c.RejectReason.REVOKED
    assert policy.looks == 1
    assert not world.has(peer.sid)


# -- The file ------------------------------------------------------------------------------------


def test_revocations_survive_a_restart_of_the_relay(world: World, tmp_path: Path) -> None:
    first = GivenOrders(world, tmp_path / "state")
    first.kept.agrees(LOG, 5, asked=0)
    first.revoke("sub", "eve")
    first.revoke("session", str(uuid.UUID(int=7)))
    first.save()
    with open_world() as fresh:
        again = GivenOrders(fresh, tmp_path / "state")
        assert (again.kept.log, again.kept.number, len(again.kept)) == (LOG, 2, 2)
        assert again.kept.agrees(LOG, 2, asked=2)
        assert reject_reason(fresh.peer(sub="eve").present()) == c.RejectReason.REVOKED
        seven = fresh.peer(sid=uuid.UUID(int=7))
        assert reject_reason(seven.present()) == c.RejectReason.REVOKED
        fresh.peer(sub="ann").accept()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        b'{"log":"x","number":"1","entries":[]}',
        b'{"log":"x","number":1,"entries":[["sub"]]}',
    ],
)
def test_broken_file_is_reported_and_read_again_from_the_master(
    world: World, tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(damage)
    orders = GivenOrders(world, tmp_path)
    assert (orders.kept.number, len(orders.kept)) == (0, 0)
    orders.revoke("sub", "eve")
    orders.save()
    assert len(GivenOrders(world, tmp_path).kept) == 1


def test_lines_that_nobody_could_have_written_are_left_out(world: World, tmp_path: Path) -> None:
    lines = '["sub","a",1,9999999999],["unban","a",1,1],["session","zz",1,1],["sub","b",-1,1]'
    (tmp_path / FILE_NAME).write_text(f'{{"log":"{LOG}","number":3,"entries":[{lines}]}}')
    assert list(GivenOrders(world, tmp_path).kept._kept) == [("sub", "a")]


def test_another_log_is_read_from_its_beginning_and_what_is_known_stays(
    world: World, orders: GivenOrders
) -> None:
    assert not orders.kept.agrees(LOG, 9, asked=0)
    orders.revoke("sub", "eve")
    assert orders.kept.agrees(LOG, 1, asked=1)
    assert not orders.kept.agrees(LOG, 0, asked=1)  # an older copy of the same database
    orders.revoke("sub", "bob")
    assert not orders.kept.agrees("b" * 32, 9, asked=1)
    assert (orders.kept.number, len(orders.kept)) == (0, 2)
    # The master's numbers may have grown while the question was under way.
    orders.revoke("sub", "cat")
    assert orders.kept.agrees("b" * 32, 0, asked=0)


def test_table_full_gives_up_what_ends_first_and_says_so(world: World, tmp_path: Path) -> None:
    orders = GivenOrders(world, tmp_path, capacity=10)
    for number in range(10):
        orders.revoke("sub", f"user-{number}", ttl=1000 + number)
    assert orders.kept.evicted == 0
    orders.revoke("sub", "late", ttl=1005)
    assert orders.kept.evicted == 1
    world.peer(sub="user-0").accept()
    for name in ("user-1", "user-9", "late"):
        assert reject_reason(world.peer(sub=name).present()) == c.RejectReason.REVOKED
    # Expired ones make room without anybody losing anything.
    world.advance(1004 + KEEP_S)
    for number in range(4):
        orders.revoke("sub", f"new-{number}")
    assert orders.kept.evicted == 1
    assert len(orders.kept) <= 10


def test_flood_of_rows_for_the_same_value_is_rewritten_and_loses_nothing(
    world: World, orders: GivenOrders
) -> None:
    orders.revoke("sub", "first")
    for _ in range(REVOCATION_SLOTS + 100):
        orders.revoke("sub", "again")
    assert orders.kept.evicted == 0
    assert world.tables.revocations.count <= REVOCATION_SLOTS
    for name in ("first", "again"):
        assert reject_reason(world.peer(sub=name).present()) == c.RejectReason.REVOKED


def test_a_number_that_was_taken_is_not_taken_again(world: World, orders: GivenOrders) -> None:
    row = orders.row("sub", "eve")
    assert orders.kept.take(row, "stream")
    assert not orders.kept.take(row, "poll")
    assert dict(orders.kept.received) == {"stream": 1}


# -- The shared log ------------------------------------------------------------------------------


def keyed_segment() -> Segment:
    segment = Segment.anonymous(Geometry(1, 10), now_ns=1)
    ControlBlock(segment).initialise(RELAY_ID, Limits(), EngineKind.REFERENCE)
    return segment


def test_reader_never_sees_half_a_rewrite() -> None:
    """One thread rewrites and appends; a reader sees only states that were written whole."""
    segment = keyed_segment()
    table, reader = SegmentTables(segment).revocations, SegmentTables(segment).revocations
    stop = threading.Event()

    def write() -> None:
        generation = 1
        while not stop.is_set():
            table.rewrite(
                RevocationEntry(RevokedKind.SUB, n, 0, generation, 1) for n in range(1, 30)
            )
            for tag in range(30, 40):
                table.append(RevocationEntry(RevokedKind.SUB, tag, 0, generation, 1))
            generation += 1

    thread = threading.Thread(target=write)
    thread.start()
    position, looks = TablePosition(), 0
    known: dict[int, int] = {}
    end_s = time.monotonic() + 1.0
    try:
        while time.monotonic() < end_s:
            read = reader.read(position)
            if read is None:
                continue
            if read[0].epoch != position.epoch:
                known = {}
            position, entries = read
            known |= {entry.tag: entry.issued_until_s for entry in entries}
            assert len(set(known.values())) <= 1, "two generations at once"
            assert sorted(known) == list(range(1, len(known) + 1))
            looks += 1
    finally:
        stop.set()
        thread.join()
        segment.close()
    assert looks > 10


def test_writer_that_died_half_way_is_mended_by_its_successor() -> None:
    segment = keyed_segment()
    try:
        tables = SegmentTables(segment)
        table = tables.revocations
        table.append(RevocationEntry(RevokedKind.SUB, 1, 0, 5, 5))
        tables.control.revocation_epoch += 1
        assert table.read(TablePosition()) is None
        table.rewrite([RevocationEntry(RevokedKind.SUB, 2, 0, 6, 6)])
        read = table.read(TablePosition())
        assert read is not None
        assert [entry.tag for entry in read[1]] == [2]
    finally:
        segment.close()


# -- Against a model -------------------------------------------------------------------------------

NAMES = ["a", "b", "c"]
ROWS = st.tuples(
    st.sampled_from(["sub", "kid", "unban", "jti", "session"]),
    st.integers(0, 2),
    st.integers(0, 30),
    st.integers(1, 40),
)
STEPS = st.lists(st.one_of(ROWS, st.integers(1, 15), st.just("restart"), st.just("read")))


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_table_answers_as_its_model(steps: list[object]) -> None:
    import tempfile

    ids = [str(uuid.UUID(int=n + 1)) for n in range(3)]
    with tempfile.TemporaryDirectory() as name, open_world() as world:
        start_s = world.now.wall_ms // 1000
        orders = GivenOrders(world, Path(name))
        view = RevocationView(world.tables)
        tags = Tags(world.segment)
        # Issued until (at least, at most), and the end: one that is over may be forgotten or not.
        model: dict[tuple[str, str], tuple[int, int, int]] = {}
        for step in steps:
            now_s = world.now.wall_ms // 1000
            if step == "restart":
                orders.save()
                orders = GivenOrders(world, Path(name))
            elif step == "read":
                view.refresh()
            elif isinstance(step, int):
                world.advance(step)
            else:
                kind, which, until, ttl = step  # type: ignore[misc]  # kinds differ
                value = ids[which] if kind in ("jti", "session") else NAMES[which]
                until_s, expires_s = start_s + until, now_s + ttl
                row = Revocation(
                    number=orders.kept.number + 1, kind=kind, value=value, issued_until=until_s,
                    expires_at=expires_s,
                )  # fmt: skip
                orders.kept.take(row, "stream")
                key = ("sub" if kind == "unban" else kind, value)
                known = model.get(key)
                if kind != "unban":
                    least_s, most_s, end_s = known or (0, 0, 0)
                    if end_s <= now_s:
                        least_s = 0
                    model[key] = (
                        max(least_s, until_s), max(most_s, until_s), max(end_s, expires_s),
                    )  # fmt: skip
                elif known is not None:
                    least_s, most_s, end_s = known
                    model[key] = (
                        min(least_s, until_s), min(most_s, until_s), min(end_s, expires_s),
                    )  # fmt: skip
        now_s = world.now.wall_ms // 1000
        view.refresh()
        for (kind, value), (least_s, most_s, expires_s) in model.items():
            if expires_s <= now_s:
                continue  # May be forgotten, or not yet.
            for issued_s in (least_s - 1, least_s, most_s + 1):
                blank = [0, 0, 0]
                if kind == "session":
                    from wavry_relay.shm.sessions import session_words

                    high, low = session_words(uuid.UUID(value).bytes)
                    hit = view.hits_session(high, low, issued_s)
                else:
                    place = ["jti", "sub", "kid"].index(kind)
                    blank[place] = (
                        tags.key_id(value)
                        if kind == "kid"
                        else tags.tag(kind.encode(), value.encode())
                    )
                    hit = view.hits_slot(*blank, issued_s)
                assert hit == (issued_s <= most_s), (kind, value, issued_s, least_s, most_s)


def test_pass_over_100_000_sessions_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Measured for the reader; asserted only against a hang."""
    with open_world(max_sessions=100_000) as world:
        peer = world.peer(sub="hit")
        peer.accept()
        table = world.tables.revocations
        tags = Tags(world.segment)
        table.append(
            RevocationEntry(RevokedKind.SUB, tags.tag(b"sub", b"hit"), 0, FOREVER_S, FOREVER_S)
        )
        steps = []
        while True:
            began = time.perf_counter()
            world.scans[0].step()
            steps.append(time.perf_counter() - began)
            if not world.scans[0].is_busy:
                break
        with capsys.disabled():
            print(f" [pass {sum(steps) * 1e3:.1f} ms, longest step {max(steps) * 1e3:.1f} ms]")
        assert not world.has(peer.sid)
        assert sum(steps) < 10
