"""Blocks of relays at the master: told by heartbeats, lifted by order, audited."""

import pytest
from cp_support import FakeClock, FakeRelay, running_master


@pytest.fixture
async def master(tmp_path):
    async with running_master(tmp_path, FakeClock().clock()) as client:
        yield client


def block(subnet="192.0.2.0/24", **fields):
    return {
        "subnet": subnet, "since": 1, "until": 4_000_000_000, "reason": "invalid_signature",
        **fields,
    }  # fmt: skip


async def clear(master, relay, token="admin", **body):
    path = f"/v1/admin/relays/{relay.relay_id}/blocks/clear"
    return await master.post(path, {"reason": "fixed", **body}, token=token)


async def listed(master, query=""):
    return (await master.get(f"/v1/admin/blocks{query}", token="admin")).body["blocks"]


async def test_subnet_blocks_are_listed_by_relay(master):
    first, second = await FakeRelay(master).join(), await FakeRelay(master).join()
    await first.heartbeat(blocks=[block(), block("2001:db8::/48", until=1)])
    await second.heartbeat(blocks=[block("198.51.100.0/24")])
    assert [row["subnet"] for row in await listed(master, f"?relay={first.relay_id}")] == [
        "192.0.2.0/24"
    ]
    assert len(await listed(master)) == 2
    await first.heartbeat()
    assert [row["relay_id"] for row in await listed(master)] == [second.relay_id]


async def test_subnet_block_is_cleared_by_an_order_that_is_repeated_until_it_is_done(master):
    relay = await FakeRelay(master).join()
    await relay.heartbeat(blocks=[block()])
    answer = await clear(master, relay, subnet="192.0.2.77")
    assert answer.body == {
        "relay_id": relay.relay_id, "subnet": "192.0.2.0/24", "reported": 1
    }  # fmt: skip
    (row,) = await listed(master)
    assert row["clearing"]
    order = {"type": "clear_blocks", "subnet": "192.0.2.0/24"}
    for _ in range(2):
        assert order in (await relay.heartbeat(blocks=[block()])).body["commands"]
    assert order not in (await relay.heartbeat()).body.get("commands", [])
    await clear(master, relay)
    assert {"type": "clear_blocks"} in (await relay.heartbeat()).body["commands"]
    assert {"type": "clear_blocks"} not in (await relay.heartbeat()).body.get("commands", [])
    entries = (await master.get("/v1/admin/audit?after=0", token="admin")).body["entries"]
    acts = [(e["target"], e["reason"]) for e in entries if e["action"] == "clear_blocks"]
    assert acts == [
        (f"{relay.relay_id} 192.0.2.77", "fixed"),
        (f"{relay.relay_id} all", "fixed"),
    ]


async def test_order_that_no_relay_follows_ends(master):
    relay = await FakeRelay(master).join()
    await clear(master, relay)
    sent = [(await relay.heartbeat(blocks=[block()])).body.get("commands", []) for _ in range(9)]
    assert sum({"type": "clear_blocks"} in commands for commands in sent) == 3


async def test_bad_orders_and_bad_blocks_are_refused(master):
    relay = await FakeRelay(master).join()
    assert (await clear(master, relay, subnet="nonsense")).body["error"] == "invalid_subnet"
    assert (await clear(master, relay, reason="")).status == 400
    stranger = FakeRelay(master)
    assert (await clear(master, stranger)).body["error"] == "unknown_relay"
    assert (await clear(master, relay, token="service")).status == 403
    assert (await master.get("/v1/admin/blocks")).status == 401
    for bad in (block("<b>"), block(reason="A b"), block(since=-1)):
        assert (await relay.heartbeat(blocks=[bad])).status == 400
    assert (await relay.heartbeat(blocks=[block()] * 65)).status == 400
    assert (await relay.heartbeat(blocks=[block()] * 64)).status == 200
