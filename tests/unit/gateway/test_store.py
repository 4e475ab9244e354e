import dataclasses
import resource

import pytest

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.store_errors import StoreUnavailableError, StoreVersionError
from wavry_cp.gateway.accounts.store import NewLogin
from wavry_cp.gateway.accounts.tokens import TokenHash
from wavry_cp.gateway.sessions import rules as sessions
from wavry_cp.gateway.sessions.rules import CallLimits, Keys, SessionKey, new_session
from wavry_cp.gateway.store import GatewayStore
from wavry_cp.store.sqlite.database import Database, Migration
from wavry_cp.store.sqlite.gateway import MIGRATIONS, SqliteGatewayStore

NOW = 1_800_000_000
WIDE = CallLimits(100, 100, 100)


@pytest.fixture
async def store(tmp_path):
    opened = await SqliteGatewayStore.open(tmp_path / "gateway.db")
    for name in ("ann", "bob", "eve"):
        assert await opened.add_user(name, "hash", now_s=NOW)
    yield opened
    await opened.close()


def session(number, caller="ann", callee="bob", now_s=NOW):
    key = SessionKey(f"00000000-0000-4000-8000-{number:012}")
    return new_session(key, caller, callee, Keys("i", "n"), now_s=now_s, pending_s=60)


async def test_it_is_the_interface(store):
    checked: GatewayStore = store
    await checked.check()


async def test_ping_tells_a_store_that_still_reads_but_does_not_write(store, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))  # as a full disk would
    try:
        assert await store.user("ann") is not None
        with pytest.raises(StoreUnavailableError):
            await store.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await store.check()


async def test_users(store):
    assert not await store.add_user("ann", "other", now_s=NOW)
    ann = await store.user("ann")
    assert (ann.password_hash, ann.created_at, ann.last_login_at) == ("hash", NOW, None)
    assert await store.user("nobody") is None
    before = (await store.user("ann")).password_hash
    await store.set_password_hash("ann", "late", before="another")
    await store.set_password_hash("ann", "new", before=before)
    assert (await store.user("ann")).password_hash == "new"
    assert [user.username for user in await store.users(after="ann", limit=1)] == ["bob"]
    assert await store.count_users() == 3


async def test_tokens(store):
    async def add(token, username, life_s, *, temporary=False, password_hash="hash"):
        new = NewLogin(TokenHash(token), username, "id", NOW, NOW + life_s, temporary)
        return await store.add_token(new, password_hash=password_hash, max_tokens=3)

    for number in range(5):
        ended = await add(f"t{number}", "ann", 10)
        assert ended == ((f"t{number - 3}",) if number >= 3 else ())
    for number in range(5):  # Runs of programs push out one another, never a person's logins.
        ended = await add(f"r{number}", "ann", 10, temporary=True)
        assert ended == ((f"r{number - 3}",) if number >= 3 else ())
    assert await add("x", "ann", 10, password_hash="of before a change") is None
    assert await add("x", "nobody", 10) is None
    await add("b", "bob", 20)
    owner = await store.token_owner(TokenHash("t4"), now_s=NOW + 9)
    assert (owner.username, owner.expires_at) == ("ann", NOW + 10)
    assert await store.token_owner(TokenHash("t4"), now_s=NOW + 10) is None
    assert await store.token_owner(TokenHash("t0"), now_s=NOW) is None
    assert await store.remove_token(TokenHash("t4"))
    assert not await store.remove_token(TokenHash("t4"))
    assert await store.remove_expired_tokens(now_s=NOW + 10) == 5
    assert (await store.token_owner(TokenHash("b"), now_s=NOW)).username == "bob"


async def test_sessions_keep_every_field(store):
    first = session(1)
    assert await store.add_session(first, WIDE)
    assert await store.session(first.session_id) == first

    def grant(row):
        row = sessions.accept(row, "bob", Keys("bi", "bn"), now_s=NOW, lifetime_s=100)
        row = sessions.report_path(row, "direct", now_s=NOW)
        return sessions.grant(
            row,
            relay_id="rly",
            relay_addrs=("127.0.0.1:1", "[::1]:1"),
            lease_expires_at=NOW + 300,
            now_s=NOW,
            lifetime_s=100,
        )

    before, after = await store.change_session(first.session_id, grant)
    assert before == first
    assert await store.session(first.session_id) == after == grant(first)
    assert all(
        getattr(after, field.name) is not None
        for field in dataclasses.fields(after)
        if field.name != "closed_at"
    )


async def test_a_rule_that_refuses_changes_nothing(store):
    first = session(1)
    await store.add_session(first, WIDE)
    with pytest.raises(RefusedError):
        await store.change_session(
            first.session_id,
            lambda row: sessions.accept(row, "ann", Keys(), now_s=NOW, lifetime_s=1),
        )
    assert await store.session(first.session_id) == first
    assert await store.change_session(SessionKey("none"), lambda row: row) is None


async def test_limits_of_a_caller(store):
    limits = CallLimits(pending_per_caller=3, pending_per_pair=2, open_per_caller=4)
    assert await store.add_session(session(1), limits)
    assert await store.add_session(session(2), limits)
    assert not await store.add_session(session(3), limits)
    assert await store.add_session(session(4, callee="eve"), limits)
    assert not await store.add_session(session(5, callee="eve"), limits)
    # Another caller is not held back, nor by calls that came in.
    assert await store.add_session(session(6, "bob", "ann"), limits)
    # Accepted ones make room for pending ones, up to the limit of all.
    for number in (1, 2):
        await store.change_session(
            session(number).session_id,
            lambda row: sessions.accept(row, "bob", Keys(), now_s=NOW, lifetime_s=100),
        )
    assert await store.add_session(session(7), limits)
    assert not await store.add_session(session(8), limits)
    # What has expired counts no more, swept or not.
    assert await store.add_session(session(9, now_s=NOW + 1000), limits)


async def test_looking_for_sessions(store):
    for number, pair in enumerate((("ann", "bob"), ("bob", "ann"), ("ann", "eve"))):
        await store.add_session(session(number, *pair), WIDE)

    async def between(one, other, now_s=NOW):
        found = await store.open_sessions_between(one, other, now_s=now_s)
        return [int(row.session_id[-12:]) for row in found]

    assert await between("ann", "bob") == await between("bob", "ann") == [1, 0]
    assert await between("bob", "eve") == []
    assert await between("ann", "bob", NOW + 60) == []
    assert [int(s.session_id[-12:]) for s in await store.sessions_of("ann", limit=2)] == [2, 1]
    assert await store.count_sessions() == {"pending": 3}


async def test_expiry_and_forgetting(store):
    await store.add_session(session(1), WIDE)
    await store.add_session(session(2, now_s=NOW + 30), WIDE)
    assert await store.expire_sessions(now_s=NOW + 59, limit=10) == ()
    (closed,) = await store.expire_sessions(now_s=NOW + 60, limit=10)
    assert (closed.session_id[-1], closed.state, closed.closed_at) == ("1", "closed", NOW + 60)
    assert await store.expire_sessions(now_s=NOW + 60, limit=10) == ()
    assert await store.count_sessions() == {"pending": 1}
    assert await store.forget_sessions(closed_before_s=NOW + 60, limit=10) == 0
    assert await store.forget_sessions(closed_before_s=NOW + 61, limit=10) == 1
    assert await store.session(session(1).session_id) is None
    assert await store.session(session(2).session_id) is not None


async def test_a_database_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "gateway.db"
    newer = (*MIGRATIONS, Migration(len(MIGRATIONS) + 1, "from the future", lambda _db: None))
    await (await Database.open(path, newer)).close()
    with pytest.raises(StoreVersionError):
        await SqliteGatewayStore.open(path)
