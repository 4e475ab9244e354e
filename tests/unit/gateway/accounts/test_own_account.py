"""What users change of their own accounts, and operators of those of users, over real HTTP."""

import contextlib
import sqlite3
import time

import pytest
from support.control.gateway import ADMIN_TOKEN, PASSWORD, log_in, make_config, running_gateway

from wavry_cp.store.sqlite.database import Database
from wavry_cp.store.sqlite.gateway import MIGRATIONS, SqliteGatewayStore

NEW = "another good password"


async def admin(gateway, method, path, body=None):
    status, answer, _ = await gateway.call(method, f"/v1/admin{path}", body, token=ADMIN_TOKEN)
    return status, answer


async def login(gateway, name, password=PASSWORD, **more):
    body = {"username": name, "password": password, **more}
    return (await gateway.call("POST", "/auth/login", body))[:2]


async def acts(gateway):
    rows = (await admin(gateway, "GET", "/audit?only=acts&limit=1000"))[1]["entries"]
    return [(row["who"], row["action"], row["target"], row["outcome"]) for row in rows]


async def test_a_password_change_needs_the_old_one_and_ends_all_other_logins(gateway):
    ann = await gateway.user("ann")
    other = await log_in(gateway.http, gateway.url, "ann")
    wrong = {"password": "not the password", "new_password": NEW}
    assert (await ann.call("POST", "/auth/password", wrong))[0] == 401
    async with ann.online() as socket:
        ann.token, mine = other, ann.token
        body = {"password": PASSWORD, "new_password": NEW}
        assert await ann.call("POST", "/auth/password", body) == (200, {"ended": 1})
        await socket.error("invalid_token")  # The login that asked was the other one.
        assert (await ann.call("GET", "/auth/logins"))[0] == 200
        ann.token = mine
        assert (await ann.call("GET", "/auth/logins"))[0] == 401
    assert (await login(gateway, "ann"))[0] == 401
    assert (await login(gateway, "ann", NEW))[0] == 200
    assert ("user:ann", "password_change", "ann", "done") in await acts(gateway)


async def test_guesses_at_the_own_password_are_slowed_like_logins(gateway):
    ann = await gateway.user("ann")
    body = {"password": "not the password", "new_password": NEW}
    answers = [await ann.call("POST", "/auth/password", body) for _ in range(6)]
    assert [status for status, _ in answers] == [401] * 5 + [429]
    for path in ("/auth/delete", "/auth/login"):
        sent = {"password": PASSWORD, **({"username": "ann"} if "login" in path else {})}
        assert (await ann.call("POST", path, sent))[0] == 429


async def test_a_reset_is_good_once_and_for_its_user_only(gateway):
    ann, _bob = await gateway.user("ann"), await gateway.user("bob")
    assert (await admin(gateway, "POST", "/users/nobody/reset"))[1]["error"] == "unknown_user"
    status, made = await admin(gateway, "POST", "/users/ann/reset", {"life_s": 600})
    assert (status, made["username"]) == (201, "ann")
    assert abs(made["expires_at"] - time.time() - 600) < 30
    database = b"".join(
        path.read_bytes() for path in gateway.gateway.config.data_dir.glob("gateway.db*")
    )
    assert made["token"].encode() not in database
    assert (await login(gateway, "ann"))[0] == 200  # Nothing has changed yet.

    async def use(name, token):
        body = {"username": name, "token": token, "new_password": NEW}
        return (await gateway.call("POST", "/auth/reset", body))[:2]

    for name, token in (("bob", made["token"]), ("ann", "A" * 43)):
        status, answer = await use(name, token)
        assert (status, answer["error"]) == (401, "invalid_reset")
    assert (await use("ann", made["token"]))[0] == 204
    assert (await use("ann", made["token"]))[0] == 401
    assert (await ann.call("GET", "/auth/logins"))[0] == 401
    assert (await login(gateway, "ann", NEW))[0] == 200
    done = await acts(gateway)
    assert ("admin", "user_reset", "ann", "done") in done
    assert ("admin", "user_reset", "nobody", "unknown_user") in done
    assert ("user:ann", "password_reset", "ann", "done") in done


async def test_a_reset_ends_by_itself_and_by_a_password_change(tmp_path, master):
    async with running_gateway(make_config(tmp_path, master.url)) as gateway:
        ann = await gateway.user("ann")
        made = (await admin(gateway, "POST", "/users/ann/reset", {"life_s": 60}))[1]
        body = {"username": "ann", "token": made["token"], "new_password": NEW}
        store = gateway.gateway.store
        assert await store.remove_expired_tokens(now_s=int(time.time()) + 61) == 0
        assert (await gateway.call("POST", "/auth/reset", body))[0] == 401
        body["token"] = (await admin(gateway, "POST", "/users/ann/reset"))[1]["token"]
        change = {"password": PASSWORD, "new_password": "the third password"}
        assert (await ann.call("POST", "/auth/password", change))[0] == 200
        assert (await gateway.call("POST", "/auth/reset", body))[0] == 401


async def test_logins_are_listed_ended_one_by_one_and_all_others(gateway):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    others = [await log_in(gateway.http, gateway.url, "ann") for _ in range(3)]
    listed = (await ann.call("GET", "/auth/logins"))[1]["logins"]
    assert [one["current"] for one in listed] == [False, False, False, True]
    newest = listed[0]["login_id"]
    assert (await bob.call("DELETE", f"/auth/logins/{newest}"))[1]["error"] == "unknown_login"
    assert (await ann.call("DELETE", f"/auth/logins/{newest}"))[0] == 204
    assert (await ann.call("DELETE", f"/auth/logins/{newest}"))[0] == 404
    assert (await ann.call("POST", "/auth/logins/end-others")) == (200, {"ended": 2})
    for token in others:
        assert (await gateway.call("GET", "/auth/logins", token=token))[0] == 401
    assert len((await ann.call("GET", "/auth/logins"))[1]["logins"]) == 1
    assert (await admin(gateway, "GET", "/users/ann"))[1]["logins"][0]["current"] is False
    assert await admin(gateway, "POST", "/users/ann/logout") == (200, {"ended": 1})
    assert (await ann.call("GET", "/auth/logins"))[0] == 401
    assert (await bob.call("GET", "/auth/logins"))[0] == 200


async def test_runs_of_programs_never_push_out_a_persons_login(tmp_path, master):
    config = make_config(tmp_path, master.url, tokens_per_user=2)
    async with running_gateway(config) as gateway:
        ann = await gateway.user("ann")
        runs = [(await login(gateway, "ann", temporary=True))[1]["token"] for _ in range(5)]
        listed = (await ann.call("GET", "/auth/logins"))[1]["logins"]
        assert [one["temporary"] for one in listed] == [True, True, False]
        assert (await gateway.call("GET", "/auth/logins", token=runs[0]))[0] == 401


async def test_a_deleted_account_is_gone_and_its_name_is_not_a_strangers(gateway):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with bob.online() as socket:
        status, session = await ann.call("POST", "/v1/sessions", {"target_username": "bob"})
        assert status == 201
        await socket.next()
        assert (await ann.call("POST", "/auth/delete", {"password": "not the password"}))[0] == 401
        assert (await ann.call("POST", "/auth/delete", {"password": PASSWORD}))[0] == 204
        assert (await socket.next()).session_id == session["session_id"]  # BYE
    assert (await ann.call("GET", "/auth/logins"))[0] == 401
    assert (await login(gateway, "ann"))[0] == 401
    taken = {"username": "ann", "password": PASSWORD}
    assert (await gateway.call("POST", "/auth/register", taken))[1]["error"] == "username_taken"
    why = {"reason": "asked for it", "free_name": True}
    assert (await admin(gateway, "POST", "/users/bob/delete", why))[0] == 204
    assert (await admin(gateway, "POST", "/users/bob/delete", why))[0] == 404
    await gateway.user("bob")
    done = await acts(gateway)
    assert ("user:ann", "account_delete", "ann", "done") in done
    assert ("admin", "user_delete", "bob", "done") in done
    with contextlib.closing(sqlite3.connect(gateway.gateway.config.data_dir / "gateway.db")) as db:
        assert db.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM tokens WHERE username = 'ann'").fetchone() == (0,)


async def test_a_name_is_free_again_after_its_time(gateway):
    ann = await gateway.user("ann")
    assert (await ann.call("POST", "/auth/delete", {"password": PASSWORD}))[0] == 204
    assert await gateway.gateway.store.free_names(deleted_before_s=int(time.time()) - 10) == 0
    assert await gateway.gateway.store.free_names(deleted_before_s=int(time.time()) + 10) == 1
    await gateway.user("ann")


async def test_an_export_holds_what_is_kept_and_no_secret(gateway):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with bob.online():
        await ann.call("POST", "/v1/sessions", {"target_username": "bob", **ann.keys})
    status, export = await ann.call("GET", "/auth/export")
    assert (status, export["username"], len(export["logins"])) == (200, "ann", 1)
    session = export["sessions"][0]
    assert (session["with_username"], session["called"]) == ("bob", True)
    assert session["identity_key"] == ann.identity_key
    assert ann.token not in str(export)
    assert "argon2" not in str(export)
    assert ("user:ann", "account_export", "ann", "done") in await acts(gateway)


@pytest.mark.parametrize("order", ["password", "delete"])
async def test_a_login_that_races_a_change_gets_no_token(gateway, order):
    await gateway.user("ann")
    accounts, store = gateway.gateway.accounts, gateway.gateway.store
    stored = await accounts.require_password("ann", PASSWORD, "here")
    token = await log_in(gateway.http, gateway.url, "ann")
    body = {"password": PASSWORD} | ({"new_password": NEW} if order == "password" else {})
    assert (await gateway.call("POST", f"/auth/{order}", body, token=token))[0] < 300
    with pytest.raises(Exception, match="wrong"):
        await accounts._new_token("ann", stored, temporary=False)
    left = await store.logins("ann", now_s=int(time.time()))
    assert len(left) == (1 if order == "password" else 0)


async def test_an_older_database_keeps_its_logins(tmp_path):
    path = tmp_path / "gateway.db"
    old = await Database.open(path, MIGRATIONS[:3])

    def fill(db):
        db.execute("INSERT INTO users VALUES ('ann', 'hash', 1, NULL)")
        db.execute("INSERT INTO tokens VALUES ('t', 'ann', 1, 99, 1), ('u', 'ann', 1, 99, 2)")

    await old.run(fill)
    await old.close()
    store = await SqliteGatewayStore.open(path)
    try:
        logins = await store.logins("ann", now_s=2)
        assert len({login.login_id for login in logins}) == 2
        assert not any(login.temporary for login in logins)
        assert (await store.token_owner("t", now_s=2)).username == "ann"
    finally:
        await store.close()
