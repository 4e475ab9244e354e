"""The gateway against the real master over real HTTP."""

import time

import msgspec
from support.control.gateway import accepted_call, make_config, running_gateway, write_token
from support.control.master import FakeRelay, MasterFiles
from support.control.master import running_master as running_real_master

from wavry_cp.app import token_files
from wavry_peer.protocol import base64url, keyset, lease
from wavry_peer.protocol.http import signaling as wire
from wavry_peer.protocol.http.api import Credentials


async def test_issue_renew_and_move(tmp_path):
    files = MasterFiles.make(tmp_path / "master")
    async with running_real_master(tmp_path / "master", files=files) as master:
        config = make_config(
            tmp_path / "gateway", master.url, service_token_file=files.service_token_file
        )
        async with running_gateway(config) as running:
            ann, bob = await running.user("ann"), await running.user("bob")
            async with ann.online() as a, bob.online() as b:
                session_id = await accepted_call(ann, a, bob, b)
                await a.send(wire.RequestRelay(target_username="bob"))
                await a.error("no_relay_available")

                relays = [await FakeRelay(master).join() for _ in range(2)]
                raw = msgspec.json.encode((await master.get("/.well-known/wavry-keys.json")).body)
                root = base64url.decode(files.root_public_key)
                keys = keyset.trusted_keys(keyset.decode_keyset(raw, root_public_key=root))

                await a.send(wire.RequestRelay(target_username="bob"))
                own, other = await a.next(), await b.next()
                claims = [lease.open_lease(m.token.encode(), keys) for m in (own, other)]
                assert [c.sub for c in claims] == ["ann", "bob"]
                assert [c.role for c in claims] == ["client", "server"]
                assert [c.cnf for c in claims] == [ann.identity_key, bob.identity_key]
                assert {c.sid for c in claims} == {session_id}
                assert own.expires_at > time.time()

                for user, old in zip((ann, bob), claims, strict=True):
                    renewed = await user.renew(session_id, old.jti)
                    new = lease.open_lease(renewed.token.encode(), keys)
                    assert new.jti != old.jti
                    assert (new.sid, new.sub, new.role) == (old.sid, old.sub, old.role)
                    assert (new.rid, new.cnf) == (old.rid, old.cnf)
                path = f"/v1/sessions/{session_id}"
                unknown = {"jti": "00000000-0000-4000-8000-000000000000"}
                status, body = await ann.call("POST", f"{path}/renew", unknown)
                assert (status, body["error"]) == (409, "stale_jti")

                await b.send(
                    wire.RequestRelay(target_username="ann", exclude_relays=(own.relay_id,))
                )
                moved = await a.next(wire.RelayCredentials)
                assert moved.relay_id == (await b.next()).relay_id != own.relay_id
                assert {relay.relay_id for relay in relays} == {own.relay_id, moved.relay_id}
                status, body = await ann.call("POST", f"{path}/relay", {})
                assert msgspec.convert(body, Credentials).session_id == session_id


async def test_the_id_of_a_request_goes_through_both_services_into_the_lease(tmp_path, caplog):
    files = MasterFiles.make(tmp_path / "master")
    async with running_real_master(tmp_path / "master", files=files, access_log="on") as master:
        config = make_config(
            tmp_path / "gateway", master.url, service_token_file=files.service_token_file
        )
        async with running_gateway(config) as running:
            ann, bob = await running.user("ann"), await running.user("bob")
            async with ann.online() as a, bob.online() as b:
                session_id = await accepted_call(ann, a, bob, b)
                await FakeRelay(master).join()
                request_id = "abcdef0123456789"
                status, body, headers = await running.call(
                    "POST",
                    f"/v1/sessions/{session_id}/relay",
                    {},
                    token=ann.token,
                    headers={"X-Request-ID": request_id},
                )
                assert (status, headers["X-Request-ID"]) == (200, request_id)
                raw = msgspec.json.encode((await master.get("/.well-known/wavry-keys.json")).body)
                root = base64url.decode(files.root_public_key)
                keys = keyset.trusted_keys(keyset.decode_keyset(raw, root_public_key=root))
                claims = lease.open_lease(body["token"].encode(), keys)
                assert claims.req == request_id
                listed = await master.get(f"/v1/admin/leases?lease={claims.jti}", token="admin")
                (found,) = listed.body["sessions"]
                assert {one["request_id"] for one in found["leases"]} == {request_id}

                await a.send(wire.RequestRelay(target_username="carol"))
                error = await a.error("unknown_session")
                opened_as, _, number = error.message.rpartition("(request ")[2].rpartition("-")
                assert len(opened_as) == 16
                assert number.rstrip(")").isdecimal()


async def test_service_token_is_replaced_while_calls_go_on(tmp_path, monkeypatch):
    """Master takes both, then the gateway sends the new one, then the old one goes."""
    monkeypatch.setattr(token_files, "LOOK_EVERY_S", 0.0)
    old, new = "o" * 40, "n" * 40
    files = MasterFiles.make(tmp_path / "master")
    at_master = files.service_token_file
    at_gateway = write_token(tmp_path / "gateway.token", old)
    at_master.write_text(f"{old}\n")
    async with running_real_master(tmp_path / "master", files=files) as master:
        config = make_config(tmp_path / "gateway", master.url, service_token_file=at_gateway)
        async with running_gateway(config) as running:
            ann, bob = await running.user("ann"), await running.user("bob")
            async with ann.online() as a, bob.online() as b:
                await accepted_call(ann, a, bob, b)

                async def is_asked() -> bool:
                    """Whether the master judged our call; else relays cannot be asked for now."""
                    await a.send(wire.RequestRelay(target_username="bob"))
                    return (await a.next(wire.Error)).code == "no_relay_available"

                assert await is_asked()
                at_master.write_text(f"{old}\n{new}\n")
                assert await is_asked()
                at_gateway.write_text(f"{new}\n{old}\n")
                assert await is_asked()
                at_master.write_text(f"{new}\n")
                assert await is_asked()
                at_gateway.write_text("x" * 40 + "\n")
                assert not await is_asked()
