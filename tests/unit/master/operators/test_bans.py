"""Bans at the master: users get no lease, relays no place, and time lifts them."""

import asyncio
import contextlib
import sqlite3

import pytest
from support.control.lease_parts import parties, renewal
from support.control.master import FakeRelay, MasterFiles, running_master

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.ban_effects import MasterBanEffects
from wavry_cp.operators.bans import Ban, BanKind, BanTable
from wavry_peer.protocol.http.codes import ErrorCode

BANS = "/v1/admin/bans"
LIFT = "/v1/admin/bans/lift"


async def ban(master, kind, value, **fields):
    body = {"kind": kind, "value": value, "reason": "spam", **fields}
    answer = await master.post(BANS, body, token="admin")
    assert answer.status == 200, answer
    return answer.body


async def state_of(master, relay):
    return (await master.get(f"/v1/relays/{relay.relay_id}", token="admin")).body["state"]


async def audit(master):
    entries = (await master.get("/v1/admin/audit?only=acts&after=0", token="admin")).body["entries"]
    return [(entry["who"], entry["action"], entry["target"]) for entry in entries]


async def test_banned_user_gets_no_lease_and_no_renewal(master, clock):
    await FakeRelay(master).join()
    issued = (await master.post("/v1/leases", parties(), token="service")).body
    await ban(master, "user", "ann")
    for body in (parties(), parties("carl", "ann")):
        answer = await master.post("/v1/leases", body, token="service")
        assert (answer.status, answer.body["error"]) == (403, "banned")
    assert (await master.post("/v1/leases", parties("carl"), token="service")).status == 201
    for role, refusal in (("client", (403, "banned")), ("server", (409, "revoked"))):
        answer = await master.post("/v1/leases/renew", renewal(issued, role), token="service")
        said = (answer.status, answer.body["error"])
        assert said == refusal, "the session is over, but its other user is not banned"
    text = (await master.get("/metrics")).body
    assert 'wavry_master_leases_rejected_total{reason="banned"} 3.0' in text
    assert 'wavry_master_bans{kind="user"} 1.0' in text
    lifted = await master.post(LIFT, {"kind": "user", "value": "ann"}, token="admin")
    assert lifted.status == 200
    assert (await master.post("/v1/leases", parties(), token="service")).status == 201
    assert await audit(master) == [
        ("admin", "ban_user", "ann"),
        ("admin", "revoke_sub", "ann"),
        ("admin", "unban_user", "ann"),
        ("admin", "unban", "ann"),
    ]


async def test_ban_of_a_user_ends_at_its_expiry(master, clock):
    await FakeRelay(master).join()
    answer = await ban(master, "user", "ann", life_s=7200)
    assert answer["expires_at"] == clock.clock().now_s() + 7200
    clock.advance(7199)
    # The relay was not heard meanwhile: the ban is what refuses, not the lack of relays.
    answer = await master.post("/v1/leases", parties(), token="service")
    assert answer.body["error"] == "banned"
    clock.advance(1)
    answer = await master.post("/v1/leases", parties(), token="service")
    assert answer.body["error"] == "no_relay_available"
    assert (await master.get(BANS, token="admin")).body["bans"] == []

    async def lifted():
        return ("system", "unban_user", "ann") in await audit(master)

    for _ in range(200):
        if await lifted():
            break
        await asyncio.sleep(0.05)
    assert await lifted(), "the end is written down too"


async def test_ban_that_is_over_hits_no_lease_of_the_same_second(master, clock):
    relay = await FakeRelay(master).join()
    await ban(master, "user", "ann", life_s=7200)
    clock.advance(7200)
    await relay.heartbeat()
    issued = await master.post("/v1/leases", parties(), token="service")
    assert issued.status == 201, "the revocation of the ban ends with it, for relays too"
    assert (
        await master.post("/v1/leases/renew", renewal(issued.body), token="service")
    ).status == 200


@pytest.mark.parametrize("longer", [None, 7200])
async def test_ban_that_is_ordered_again_with_an_earlier_end_is_shorter_for_relays_too(
    master, clock, longer
):
    relay = await FakeRelay(master).join()
    await ban(master, "user", "ann", **({} if longer is None else {"life_s": longer}))
    clock.advance(10)
    await ban(master, "user", "ann", life_s=60)
    page = (await relay.events()).body["revocations"]
    assert [(row["kind"], row["value"]) for row in page] == [
        ("sub", "ann"), ("unban", "ann"), ("sub", "ann"),
    ]  # fmt: skip
    assert page[-1]["issued_until"] == clock.clock().now_s() + 59
    clock.advance(60)
    await relay.heartbeat()
    assert (await master.post("/v1/leases", parties(), token="service")).status == 201


async def test_ban_and_lift_at_once_leave_relays_with_the_one_that_came_last(master):
    """The rows for relays are written in the order of the orders."""
    relay = await FakeRelay(master).join()
    order = {"kind": "user", "value": "ann", "reason": "spam"}
    lift = {"kind": "user", "value": "ann"}
    for _ in range(20):
        banned, lifted = await asyncio.gather(
            master.post(BANS, order, token="admin"), master.post(LIFT, lift, token="admin")
        )
        assert banned.status == 200
        if lifted.status == 404:
            assert (await master.post(LIFT, lift, token="admin")).status == 200
        last = (await relay.events()).body["revocations"][-1]
        assert last["kind"] == "unban"


async def test_ban_of_a_relay_is_told_to_it_as_a_drain_before_its_stream_ends(master):
    relay = await FakeRelay(master).join()
    async with relay.stream() as stream:
        assert (await stream.receive_json(timeout=10))["drain"] is False
        await ban(master, "relay", relay.relay_id)
        # At once: by itself a stream looks at its relay's state every five seconds.
        assert await stream.receive_json(timeout=4) == {"type": "drain", "drain": True}
        assert (await stream.receive(timeout=10)).data == 1008
    answer = await relay.events()
    assert (answer.status, answer.body["error"]) == (403, "banned")
    await master.post(LIFT, {"kind": "relay", "value": relay.relay_id}, token="admin")
    assert (await relay.events()).status == 200
    assert (await relay.heartbeat()).body == {}, "no command"


async def test_banned_relay_is_refused_and_its_sessions_are_moved(master):
    relay, other = await FakeRelay(master).join(), await FakeRelay(master).join()
    body = parties(exclude_relays=[other.relay_id])
    issued = (await master.post("/v1/leases", body, token="service")).body
    assert (await ban(master, "relay", relay.relay_id)).get("known", True)
    assert await state_of(master, relay) == "BANNED"
    answer = await relay.heartbeat()
    assert (answer.status, answer.body["error"]) == (403, "banned")
    for token in (None, "service"):
        answer = await relay.challenge(token)
        assert (answer.status, answer.body["error"]) == (403, "banned")
    answer = await master.post("/v1/leases/renew", renewal(issued), token="service")
    assert (answer.status, answer.body["error"]) == (409, "relay_unavailable")
    moved = parties(session_id=issued["session_id"])
    answer = await master.post("/v1/leases", moved, token="service")
    assert answer.body["relay"]["relay_id"] == other.relay_id


async def test_a_banned_relay_comes_back_by_itself_when_its_time_is_over(master, clock):
    relay = await FakeRelay(master).join()
    await ban(master, "relay", relay.relay_id, life_s=60)
    clock.advance(61)
    deadline = 200
    while (await relay.heartbeat()).status != 200:
        deadline -= 1
        assert deadline, "not lifted"
        await asyncio.sleep(0.05)
    assert await state_of(master, relay) == "ACTIVE"
    assert ("system", "unban_relay", relay.relay_id) in await audit(master)


async def test_a_ban_shakes_off_no_drain(master):
    relay = await FakeRelay(master).join()
    await master.post(f"/v1/admin/relays/{relay.relay_id}/drain", token="admin")
    await ban(master, "relay", relay.relay_id)
    await ban(master, "relay", relay.relay_id, life_s=60)  # ordered again, with an end
    lift = {"kind": "relay", "value": relay.relay_id}
    assert (await master.post(LIFT, lift, token="admin")).status == 200
    assert (await relay.heartbeat()).body == {"commands": [{"type": "drain"}]}
    assert await state_of(master, relay) == "DRAINING"


async def test_a_relay_can_be_banned_before_it_was_ever_seen(master):
    relay = FakeRelay(master)
    assert (await ban(master, "relay", relay.relay_id))["known"] is False
    answer = await relay.challenge()
    assert (answer.status, answer.body["error"]) == (403, "banned")
    await master.post(LIFT, {"kind": "relay", "value": relay.relay_id}, token="admin")
    assert (await relay.register()).status == 201


async def test_a_relay_banned_between_challenge_and_answer_stays_out(master):
    relay = FakeRelay(master)
    challenge = await relay.challenge()
    await ban(master, "relay", relay.relay_id)
    answer = await relay.verify(challenge.body)
    assert (answer.status, answer.body["error"]) == (403, "banned")


async def test_bans_outlive_a_restart_and_end_while_the_master_is_down(tmp_path, clock):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, clock.clock(), files) as master:
        relay = await FakeRelay(master).join()
        await ban(master, "relay", relay.relay_id, life_s=60)
        await ban(master, "user", "ann")
        before = (await master.get(BANS, token="admin")).body
    async with running_master(tmp_path, clock.clock(), files) as master:
        assert (await master.get(BANS, token="admin")).body == before
        relay.client = master
        assert (await relay.heartbeat()).status == 403
    clock.advance(60)
    async with running_master(tmp_path, clock.clock(), files) as master:
        relay.client = master
        for _ in range(200):
            if (await relay.heartbeat()).status == 200:
                break
            await asyncio.sleep(0.05)
        assert await state_of(master, relay) == "ACTIVE"
        (left,) = (await master.get(BANS, token="admin")).body["bans"]
        assert left["value"] == "ann"


async def test_lifted_ban_does_not_come_back_when_its_lift_is_pruned(tmp_path, clock):
    """The row of the lift is needed for an hour; the one of the ban was for ever."""
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, clock.clock(), files) as master:
        relay = await FakeRelay(master).join()
        await ban(master, "user", "ann")
        await master.post(LIFT, {"kind": "user", "value": "ann"}, token="admin")
    clock.advance(2 * 3600)
    async with running_master(tmp_path, clock.clock(), files) as master:
        for _ in range(200):  # until the upkeep has been there
            with contextlib.closing(sqlite3.connect(files.data_dir / "master.db")) as db:
                kinds = [row[0] for row in db.execute("SELECT kind FROM revocations")]
            if "unban" not in kinds:
                break
            await asyncio.sleep(0.05)
        assert kinds == []
    async with running_master(tmp_path, clock.clock(), files) as master:
        relay.client = master
        await relay.heartbeat()
        assert (await master.post("/v1/leases", parties(), token="service")).status == 201


async def test_ban_that_is_longer_than_a_lease_may_be_is_kept_to_its_end(tmp_path, clock):
    """Else a relay that starts anew would take a lease that names a banned user."""
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, clock.clock(), files) as master:
        relay = await FakeRelay(master).join()
        await ban(master, "user", "ann", life_s=3 * 3600)
        end_s = clock.clock().now_s() + 3 * 3600
    clock.advance(2 * 3600)
    async with running_master(tmp_path, clock.clock(), files) as master:
        relay.client = master
        (row,) = (await relay.events()).body["revocations"]
        assert (row["issued_until"], row["expires_at"]) == (end_s - 1, end_s - 1 + 3600)


async def test_lift_shortens_the_rows_of_that_user_alone_also_after_a_restart(tmp_path, clock):
    """A relay that reads the log from its beginning comes to the same as one that saw it grow."""
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, clock.clock(), files) as master:
        relay = await FakeRelay(master).join()
        for name in ("ann", "bob"):
            await ban(master, "user", name)
        clock.advance(5)
        await master.post(LIFT, {"kind": "user", "value": "ann"}, token="admin")
    lifted_s = clock.clock().now_s()
    async with running_master(tmp_path, clock.clock(), files) as master:
        relay.client = master
        rows = (await relay.events()).body["revocations"]
        until = {(row["kind"], row["value"]): row["issued_until"] for row in rows}
        assert until == {
            ("sub", "ann"): lifted_s - 1, ("sub", "bob"): 2**53, ("unban", "ann"): lifted_s - 1,
        }  # fmt: skip
        await relay.heartbeat()
        assert (
            await master.post("/v1/leases", parties("ann", "cat"), token="service")
        ).status == 201
        assert (
            await master.post("/v1/leases", parties("bob", "cat"), token="service")
        ).status == 403


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (BANS, {"kind": "user", "value": "ann"}, 400, "invalid_body"),
        (BANS, {"kind": "user", "value": "ann", "reason": ""}, 400, "invalid_body"),
        (BANS, {"kind": "user", "value": "", "reason": "x"}, 400, "invalid_body"),
        (BANS, {"kind": "address", "value": "a", "reason": "x"}, 400, "invalid_body"),
        (BANS, {"kind": "user", "value": "a", "reason": "x", "life_s": 0}, 400, "invalid_body"),
        (BANS, {"kind": "user", "value": "No Body", "reason": "x"}, 400, "invalid_body"),
        (BANS, {"kind": "user", "value": "x" * 33, "reason": "x"}, 400, "invalid_body"),
        (BANS, {"kind": "relay", "value": "fra-1", "reason": "x"}, 400, "invalid_body"),
        (LIFT, {"kind": "user", "value": "nobody"}, 404, "unknown_ban"),
    ],
)
async def test_ban_orders_that_do_not_fit(master, path, body, status, code):
    answer = await master.post(path, body, token="admin")
    assert (answer.status, answer.body["error"]) == (status, code)


async def test_bans_are_the_operators(master):
    tokens = {}
    for role in ("viewer", "operator"):
        body = {"name": f"the-{role}", "role": role}
        tokens[role] = (await master.post("/v1/admin/tokens", body, token="admin")).body["token"]
    order = {"kind": "user", "value": "ann", "reason": "spam"}
    assert (await master.post(BANS, order, token=tokens["viewer"])).status == 403
    assert (await master.post(BANS, order, token="service")).status == 403
    assert (await master.post(BANS, order, token=tokens["operator"])).status == 200
    (row,) = (await master.get(BANS, token=tokens["viewer"])).body["bans"]
    assert (row["who"], row["reason"]) == ("the-operator", "spam")


class _Relays:
    """Hears what relays would be told."""

    def __init__(self, fault=None):
        self.told = []
        self.fault = fault

    async def revoke(self, kind, value, *, now_s, who, reason, until_s=None):
        if self.fault is not None:
            raise self.fault
        self.told.append((kind, value, until_s))

    async def unban(self, sub, *, now_s, who, reason):
        self.told.append(("unban", sub))


async def test_a_ban_of_a_user_is_told_to_the_relays_with_its_end():
    relays = _Relays()
    effects = MasterBanEffects(None, None, relays)
    short = Ban(BanKind.USER, "ann", 100, 200, "op", "spam")
    await effects.banned(short)
    await effects.banned(Ban(BanKind.USER, "bob", 100, None, "op", "spam"))
    await effects.banned(Ban(BanKind.RELAY, "rly-1", 100, None, "op", "spam"))
    await effects.lifted(short, who="op", now_s=150, reason="")
    assert relays.told == [("sub", "ann", 199), ("sub", "bob", 2**53), ("unban", "ann")]
    # The ban holds, whatever the relays can be told.
    full = MasterBanEffects(
        None, None, _Relays(RefusedError(ErrorCode.TOO_MANY_REVOCATIONS, "full"))
    )
    await full.banned(short)


def test_a_ban_holds_before_its_end_and_not_at_it():
    table = BanTable([Ban(BanKind.USER, "ann", 1, 10, "op", "x")])
    held = [table.is_banned(BanKind.USER, "ann", now_s) for now_s in (1, 9, 10, 11)]
    assert held == [True, True, False, False]
    assert not table.is_banned(BanKind.RELAY, "ann", 5), "kinds do not mix"
    assert [ban.value for ban in table.over(10)] == ["ann"]
