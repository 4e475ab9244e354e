import asyncio

import pytest
from support.control.gateway import PASSWORD, make_config, running_gateway

from wavry_cp.gateway.accounts.login_delays import FREE_ATTEMPTS


def credentials(name, password=PASSWORD):
    return {"username": name, "password": password}


async def test_register_login_logout(gateway):
    status, body, headers = await gateway.call("POST", "/auth/register", credentials("ann"))
    assert (status, body) == (201, {"username": "ann"})
    assert headers["Cache-Control"] == "no-store"
    status, body, _ = await gateway.call("POST", "/auth/register", credentials("ann", "x" * 12))
    assert (status, body["error"]) == (409, "username_taken")
    status, body, _ = await gateway.call("POST", "/auth/login", credentials("ann"))
    assert (status, body["username"]) == (200, "ann")
    token = body["token"]
    assert len(token) == 43
    assert (await gateway.call("GET", "/v1/sessions", token=token))[:2] == (200, {"sessions": []})
    assert (await gateway.call("POST", "/auth/logout", token=token))[0] == 204
    for method, path in (("GET", "/v1/sessions"), ("POST", "/auth/logout")):
        status, body, headers = await gateway.call(method, path, token=token)
        assert (status, body["error"]) == (401, "invalid_token")
        assert headers["WWW-Authenticate"] == "Bearer"


async def test_registering_again_does_not_change_the_password(gateway):
    await gateway.user("ann")
    await gateway.call("POST", "/auth/register", credentials("ann", "another password"))
    status, _, _ = await gateway.call("POST", "/auth/login", credentials("ann", "another password"))
    assert status == 401
    assert (await gateway.call("POST", "/auth/login", credentials("ann")))[0] == 200


async def test_same_password_in_two_unicode_forms(gateway):
    await gateway.call("POST", "/auth/register", credentials("ann", "crème brûlée"))
    decomposed = "cre\u0300me bru\u0302le\u0301e"
    assert (await gateway.call("POST", "/auth/login", credentials("ann", decomposed)))[0] == 200


async def test_wrong_password_and_unknown_user_do_the_same_work_and_say_the_same(
    gateway, monkeypatch
):
    await gateway.user("ann")
    hasher = gateway.gateway._hasher
    verified = []
    verify = hasher._verify

    def spy(stored, password):
        verified.append(stored.split("$")[:4])
        return verify(stored, password)

    monkeypatch.setattr(hasher, "_verify", spy)
    answers = [
        (await gateway.call("POST", "/auth/login", credentials(name, "not the password")))[:2]
        for name in ("ann", "nobody")
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 401
    assert len(verified) == 2
    assert verified[0] == verified[1], "the decoy must cost what a real hash costs"


async def test_the_decoy_password_opens_nothing(gateway):
    body = credentials("nobody", "decoy of a user who does not exist")
    assert (await gateway.call("POST", "/auth/login", body))[0] == 401


@pytest.mark.parametrize("path", ["/auth/register", "/auth/login"])
async def test_limits_per_address(tmp_path, master, path):
    config = make_config(
        tmp_path,
        master.url,
        register_burst=3,
        register_per_minute=1.0,
        login_burst=3,
        login_per_minute=1.0,
    )
    async with running_gateway(config) as running:
        for number in range(3):
            status, _, _ = await running.call("POST", path, credentials(f"user{number}"))
            assert status in {201, 401}
        status, body, headers = await running.call("POST", path, credentials("user9"))
        assert (status, body["error"]) == (429, "rate_limited")
        assert 50 <= int(headers["Retry-After"]) <= 60
        # Varying what a client can vary changes nothing.
        for extra in ({"X-Forwarded-For": "203.0.113.9"}, {"User-Agent": "other"}):
            status, _, _ = await running.call("POST", path, credentials("user10"), headers=extra)
            assert status == 429


async def test_forwarded_address_counts_only_from_a_trusted_proxy_and_from_the_right(
    tmp_path, master
):
    config = make_config(
        tmp_path,
        master.url,
        login_burst=1,
        login_per_minute=0.1,
        trusted_proxies=("127.0.0.0/8", "10.0.0.0/8"),
    )
    async with running_gateway(config) as running:

        async def login(forwarded):
            headers = {"X-Forwarded-For": forwarded}
            return (await running.call("POST", "/auth/login", credentials("ann"), headers=headers))[
                0
            ]

        assert await login("198.51.100.1") == 401
        assert await login("198.51.100.1") == 429
        assert await login("198.51.100.2, 10.1.2.3") == 401
        # The left part is the client's own invention.
        assert await login("203.0.113.1, 198.51.100.1") == 429
        assert await login("203.0.113.2, 198.51.100.2, 10.9.9.9") == 429
        # One IPv6 customer has a /64.
        assert await login("2001:db8::1") == 401
        assert await login("2001:db8::2") == 429
        assert await login("2001:db8:0:1::1") == 401


async def test_lock_out_grows_for_the_guesser_and_spares_the_owner(tmp_path, master):
    config = make_config(tmp_path, master.url, trusted_proxies=("127.0.0.0/8",))
    async with running_gateway(config) as running:

        async def login(address, password):
            return await running.call(
                "POST",
                "/auth/login",
                credentials("ann", password),
                headers={"X-Forwarded-For": address},
            )

        await running.call("POST", "/auth/register", credentials("ann"))
        for _ in range(FREE_ATTEMPTS):
            assert (await login("198.51.100.1", "wrong password"))[0] == 401
        status, body, headers = await login("198.51.100.1", "wrong password")
        assert (status, body["error"]) == (429, "too_many_attempts")
        assert int(headers["Retry-After"]) >= 1
        # The right password does not help the guesser's address while it waits ...
        assert (await login("198.51.100.1", PASSWORD))[0] == 429
        # ... and the owner is not locked out elsewhere.
        assert (await login("198.51.100.2", PASSWORD))[0] == 200


async def test_parallel_guesses_do_not_share_one_free_try(tmp_path, master):
    async with running_gateway(make_config(tmp_path, master.url)) as running:
        await running.call("POST", "/auth/register", credentials("ann"))
        answers = await asyncio.gather(
            *(
                running.call("POST", "/auth/login", credentials("ann", f"wrong password {n}"))
                for n in range(30)
            )
        )
        assert sum(status == 401 for status, _, _ in answers) == FREE_ATTEMPTS
        assert sum(status == 429 for status, _, _ in answers) == 30 - FREE_ATTEMPTS


async def test_a_full_queue_of_password_checks_is_refused_and_not_held_against_the_user(
    tmp_path, master
):
    config = make_config(
        tmp_path,
        master.url,
        argon2_waiting=1,
        argon2_passes=2,
        argon2_memory_kib=32 * 1024,
    )
    async with running_gateway(config) as running:
        await running.call("POST", "/auth/register", credentials("ann"))
        answers = await asyncio.gather(
            *(running.call("POST", "/auth/login", credentials("ann")) for _ in range(4))
        )
        by_status = {status: (body, headers) for status, body, headers in answers}
        assert set(by_status) == {200, 503}
        body, headers = by_status[503]
        assert (body["error"], headers["Retry-After"]) == ("busy", "1")
        assert (await running.call("POST", "/auth/login", credentials("ann")))[0] == 200


async def test_only_hashes_are_at_rest(tmp_path, master):
    async with running_gateway(make_config(tmp_path, master.url)) as running:
        ann = await running.user("ann")
        stored = await running.gateway.store.user("ann")
        assert stored.password_hash.startswith("$argon2id$v=19$m=8,t=1,")
        files = [path for path in (tmp_path / "data").iterdir() if path.is_file()]
        assert {path.name for path in files} >= {"gateway.db"}
        contents = b"".join(path.read_bytes() for path in files)
        assert b"ann" in contents
        assert ann.token.encode() not in contents
        assert PASSWORD.encode() not in contents
        assert all(path.stat().st_mode & 0o077 == 0 for path in files)
        assert (tmp_path / "data").stat().st_mode & 0o077 == 0


async def test_a_hash_of_another_cost_is_redone_at_login(tmp_path, master):
    async with running_gateway(make_config(tmp_path, master.url)) as running:
        await running.user("ann")
    config = make_config(tmp_path, master.url, argon2_passes=2, argon2_memory_kib=16)
    async with running_gateway(config) as running:
        assert (await running.call("POST", "/auth/login", credentials("ann")))[0] == 200
        stored = await running.gateway.store.user("ann")
        assert stored.password_hash.startswith("$argon2id$v=19$m=16,t=2,")
        assert (await running.call("POST", "/auth/login", credentials("ann")))[0] == 200


def test_default_cost_is_not_below_libsodium_interactive():
    from nacl.pwhash import argon2id

    from wavry_cp.gateway.config import GatewayConfig
    from wavry_peer.service.settings import describe

    rows = {row.variable: row.default for row in describe(GatewayConfig)}
    assert int(rows["WAVRY_GATEWAY_ARGON2_PASSES"]) >= argon2id.OPSLIMIT_INTERACTIVE
    memory = int(rows["WAVRY_GATEWAY_ARGON2_MEMORY_KIB"]) * 1024
    assert memory >= argon2id.MEMLIMIT_INTERACTIVE
