"""Key rotation at the master over HTTP: steps, live swap, offline root, audit, metrics."""

import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.control.lease_parts import parties
from support.control.master import FakeClock, FakeRelay, MasterClient, MasterFiles, running_master

from wavry_cp.master.keys.files import read_seed
from wavry_peer.protocol import base64url, keyset, lease
from wavry_peer.protocol.http.keys import KeysStatus
from wavry_peer.protocol.keyset import KeySet, link_root, sign_keyset


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(now_s=float(int(time.time())))


async def step(master: MasterClient, name: str, *, status: int = 200, **body: Any) -> Any:
    answer = await master.post(f"/v1/admin/keys/{name}", body, token="admin")
    assert answer.status == status, answer
    return answer.body


async def key_status(master: MasterClient) -> KeysStatus:
    answer = await master.get("/v1/admin/keys/status", token="admin")
    assert answer.status == 200, answer
    return msgspec.convert(answer.body, KeysStatus)


async def refresh(master: MasterClient, relay: FakeRelay) -> None:
    """What a relay does on `refresh_keys`: fetch, and report."""
    document = (await master.get("/.well-known/wavry-keys.json")).body
    relay.held_kids = tuple(key["kid"] for key in document["keys"])
    relay.keyset_serial = document["serial"]
    assert (await relay.heartbeat()).status == 200


async def new_session(master: MasterClient) -> dict[str, Any]:
    answer = await master.post("/v1/leases", parties("a", "b"), token="service")
    assert answer.status == 201, answer
    body: dict[str, Any] = answer.body
    return body


async def open_token(master: MasterClient, token: str) -> lease.LeaseClaims:
    document = msgspec.convert((await master.get("/.well-known/wavry-keys.json")).body, KeySet)
    keys = keyset.trusted_keys(document)
    claims = lease.open_lease(token.encode(), keys)
    lease.check_key(claims, keys)
    return claims


async def renew(master: MasterClient, session: dict[str, Any], jti: str) -> Any:
    body = {"session_id": session["session_id"], "role": "client", "jti": jti}
    return await master.post("/v1/leases/renew", body, token="service")


async def test_a_whole_rotation(master: MasterClient, clock: FakeClock) -> None:
    relay = await FakeRelay(master).join()
    session = await new_session(master)
    old = (await key_status(master)).active_kid
    created = (await step(master, "create"))["kid"]
    answer = await relay.heartbeat()
    assert {"type": "refresh_keys"} in answer.body["commands"]
    refused = await step(master, "activate", status=409, kid=created)
    assert refused["error"] == "relays_lack_key"
    assert relay.relay_id in refused["message"]
    await refresh(master, relay)
    await step(master, "activate", kid=created)
    claims = await open_token(master, session["leases"]["client"])
    assert claims.kid == old, "leases of the old key are verified"
    await refresh(master, relay)
    renewed = await renew(master, session, claims.jti)
    assert (await open_token(master, renewed.body["lease"])).kid == created
    refused = await step(master, "remove", status=409, kid=old)
    assert refused["error"] == "leases_running"
    clock.advance(331)
    assert (await relay.heartbeat()).status == 200
    await step(master, "remove", kid=old)
    status = await key_status(master)
    assert [key.kid for key in status.keys] == [created]
    assert status.serial == 4


async def test_the_removal_waits_for_a_lease_that_a_renewal_replaced(
    master: MasterClient, clock: FakeClock
) -> None:
    """The peer may hold the old lease until it presents the new one."""
    relay = await FakeRelay(master).join()
    session = await new_session(master)
    old = (await key_status(master)).active_kid
    created = (await step(master, "create"))["kid"]
    await refresh(master, relay)
    await step(master, "activate", kid=created)
    for role in ("client", "server"):
        claims = await open_token(master, session["leases"][role])
        body = {"session_id": session["session_id"], "role": role, "jti": claims.jti}
        assert (await master.post("/v1/leases/renew", body, token="service")).status == 200
    refused = await step(master, "remove", status=409, kid=old)
    assert refused["error"] == "leases_running"


async def test_a_renewal_for_a_relay_that_lacks_the_key_waits_unless_forced(
    master: MasterClient,
) -> None:
    late, ready = await FakeRelay(master).join(), FakeRelay(master)
    session = await new_session(master)
    await ready.join()
    created = (await step(master, "create"))["kid"]
    await refresh(master, ready)
    await step(master, "activate", kid=created, quorum_pct=50)
    jti = (await open_token(master, session["leases"]["client"])).jti
    answer = await renew(master, session, jti)
    assert (answer.status, answer.body["error"]) == (503, "relay_lacks_key")
    again = parties("a", "b", session_id=session["session_id"])
    moved = await master.post("/v1/leases", again, token="service")
    assert moved.body["relay"]["relay_id"] == ready.relay_id, "it moves to a relay with the key"
    await refresh(master, late)
    jti = (await open_token(master, moved.body["leases"]["client"])).jti
    assert (await renew(master, session, jti)).status == 200


async def test_a_forced_activation_is_audited_and_outlives_a_restart(tmp_path: Path) -> None:
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, files=files) as master:
        late = await FakeRelay(master).join()
        session = await new_session(master)
        created = (await step(master, "create"))["kid"]
        await step(master, "activate", kid=created, force=True, reason="must go on")
        audit = (await master.get("/v1/admin/audit?only=acts", token="admin")).body["entries"]
        assert "forced" in str(audit)
        assert "must go on" in str(audit)
        assert (await late.heartbeat()).status == 200
    async with running_master(tmp_path, files=files) as master:
        late.client = master
        assert (await late.heartbeat()).status == 200
        jti = (await open_token(master, session["leases"]["client"])).jti
        assert (await renew(master, session, jti)).status == 200
        (row,) = [key for key in (await key_status(master)).keys if key.status == "active"]
        assert (row.kid, row.forced, row.lacking_relays) == (created, True, (late.relay_id,))
        text = (await master.get("/metrics")).body
        assert "wavry_master_relays_without_active_key 1.0" in text


async def test_rollback_before_and_after_activation(master: MasterClient) -> None:
    relay = await FakeRelay(master).join()
    first = (await key_status(master)).active_kid
    created = (await step(master, "create"))["kid"]
    assert (await step(master, "rollback"))["kid"] == created
    second = (await step(master, "create"))["kid"]
    assert second != created, "a withdrawn key is gone for good"
    await refresh(master, relay)
    await step(master, "activate", kid=second)
    assert (await step(master, "rollback"))["kid"] == first
    status = await key_status(master)
    assert {key.kid: key.status for key in status.keys} == {first: "active", second: "retiring"}


async def test_emergency_revoke_signs_with_another_key_at_once(master: MasterClient) -> None:
    relay = await FakeRelay(master).join()
    session = await new_session(master)
    old = (await key_status(master)).active_kid
    await step(master, "revoke", kid=old, reason="stolen")
    status = await key_status(master)
    assert {key.status for key in status.keys if key.kid == old} == {"revoked"}
    assert status.active_kid != old
    await refresh(master, relay)
    with pytest.raises(lease.LeaseError, match="revoked"):
        await open_token(master, session["leases"]["client"])
    fresh = await new_session(master)
    assert (await open_token(master, fresh["leases"]["client"])).kid == status.active_kid
    assert not list(master.files.keys_dir.glob(f"signing-{old}.key"))


async def test_a_restart_goes_on_from_any_step(tmp_path: Path) -> None:
    files = MasterFiles.make(tmp_path)
    relay = None
    kid = ""
    for name in ("create", "activate", "rollback"):
        async with running_master(tmp_path, files=files) as master:
            if relay is None:
                relay = await FakeRelay(master).join()
            relay.client = master
            await refresh(master, relay)
            body = {"kid": kid} if name == "activate" else {}
            kid = (await step(master, name, **body))["kid"]
    async with running_master(tmp_path, files=files) as master:
        assert (await key_status(master)).serial == 4


async def test_the_root_rotates_and_old_pins_follow(master: MasterClient) -> None:
    pinned = (await key_status(master)).root_public_key
    await step(master, "root", expected_root=pinned)
    status = await key_status(master)
    assert status.root_public_key != pinned
    raw = msgspec.json.encode((await master.get("/.well-known/wavry-keys.json")).body)
    assert keyset.decode_keyset(raw, root_public_key=base64url.decode(pinned)).serial == 2
    again = await step(master, "root", status=409, expected_root=pinned)
    assert again["error"] == "stale_root", "a repeated call does not rotate twice"
    await step(master, "create")
    raw = msgspec.json.encode((await master.get("/.well-known/wavry-keys.json")).body)
    assert keyset.decode_keyset(raw, root_public_key=base64url.decode(pinned)).serial == 3


async def test_the_root_key_may_stay_with_the_operator(master: MasterClient) -> None:
    path = master.files.keys_dir / "root.key"
    root = read_seed(path)
    path.unlink()
    answer = await step(master, "create")
    assert answer["result"] == "needs_signature"
    assert (await key_status(master)).serial == 1, "nothing is published yet"
    plan = answer["plan"]
    keys = msgspec.convert(plan["keys"], tuple[keyset.PublishedKey, ...])

    def signed(by: Any, serial: int = plan["serial"], **changes: Any) -> dict[str, Any]:
        wanted = tuple(msgspec.structs.replace(key, **changes) for key in keys)
        document = sign_keyset(wanted, serial=serial, issued_at=plan["issued_at"], root=by)
        return dict(msgspec.to_builtins(document))

    stranger = type(root).from_seed(b"x" * 32)
    bad = await step(master, "create", status=400, signed=signed(stranger))
    assert bad["error"] == "invalid_document"
    for document in (signed(root, serial=9), signed(root, not_after=5)):
        bad = await step(master, "create", status=409, signed=document)
        assert bad["error"] == "plan_changed"
    await step(master, "create", signed=signed(root))
    assert (await key_status(master)).serial == 2
    bad = await step(master, "create", status=409, signed=signed(root))
    assert bad["error"] == "pending_exists"


async def test_a_new_root_of_the_operator_needs_the_link_of_the_old_one(
    master: MasterClient,
) -> None:
    path = master.files.keys_dir / "root.key"
    root = read_seed(path)
    path.unlink()
    pinned = base64url.encode(root.public_key)
    plan = (await step(master, "root", expected_root=pinned))["plan"]
    keys = msgspec.convert(plan["keys"], tuple[keyset.PublishedKey, ...])
    following = type(root).from_seed(b"n" * 32)

    def signed(*links: keyset.RootLink) -> dict[str, Any]:
        document = sign_keyset(
            keys, serial=2, issued_at=plan["issued_at"], root=following, root_chain=links
        )
        return dict(msgspec.to_builtins(document))

    bad = await step(master, "root", status=400, expected_root=pinned, signed=signed())
    assert bad["error"] == "invalid_document"
    link = link_root(root, following.public_key, issued_at=7)
    await step(master, "root", expected_root=pinned, signed=signed(link))
    assert (await key_status(master)).root_public_key == base64url.encode(following.public_key)


async def test_only_the_admin_token_may_touch_keys(master: MasterClient) -> None:
    for token, status in ((None, 401), ("service", 403)):
        for name in ("create", "activate", "rollback", "remove", "revoke", "root"):
            answer = await master.post(f"/v1/admin/keys/{name}", {}, token=token)
            assert answer.status == status
        assert (await master.get("/v1/admin/keys/status", token=token)).status == status


async def test_metrics_tell_serial_statuses_and_age(master: MasterClient, clock: FakeClock) -> None:
    await step(master, "create")
    clock.advance(100)
    text = (await master.get("/metrics")).body
    for line in (
        "wavry_master_keyset_serial 2.0",
        'wavry_master_keys{status="pending"} 1.0',
        'wavry_master_keys{status="active"} 1.0',
        'wavry_master_keys{status="revoked"} 0.0',
        'wavry_master_key_steps_total{step="create"} 1.0',
    ):
        assert line in text
    (age,) = [
        float(line.split()[1])
        for line in text.splitlines()
        if line.startswith("wavry_master_active_key_age_seconds ")
    ]
    assert 95 <= age <= 130


async def test_unwritable_key_files_leave_everything_as_it_was(
    master: MasterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wavry_cp.master.keys import files as keys

    def refuse(*_: object) -> None:
        raise keys.KeyFileError("disk is full")

    monkeypatch.setattr(keys, "write_private", refuse)
    answer = await step(master, "create", status=503)
    assert answer["error"] == "keys_not_written"
    assert (await key_status(master)).serial == 1


async def test_unknown_keys_and_garbage_are_refused(master: MasterClient) -> None:
    for name in ("activate", "remove", "revoke"):
        answer = await step(master, name, status=404, kid=str(uuid.uuid4()))
        assert answer["error"] == "unknown_key"
        assert (await step(master, name, status=404))["error"] == "unknown_key"
    await step(master, "create", status=400, kid=5)
    await step(master, "create", status=400, signed={"serial": 2})
