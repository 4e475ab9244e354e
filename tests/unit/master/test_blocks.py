"""Blocks of relays at the master: told by heartbeats, lifted by order, audited."""

import asyncio
import time

import pytest
from support.control.master import FakeClock, FakeRelay, running_master


def block(subnet="192.0.2.77/32", **fields):
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
    await first.heartbeat(blocks=[block(), block("2001:db8::/64", until=1)])
    await second.heartbeat(blocks=[block("198.51.100.9/32")])
    assert [row["subnet"] for row in await listed(master, f"?relay={first.relay_id}")] == [
        "192.0.2.77/32"
    ]
    assert len(await listed(master)) == 2
    await first.heartbeat()
    assert [row["relay_id"] for row in await listed(master)] == [second.relay_id]


async def test_subnet_block_is_cleared_by_an_order_that_is_repeated_until_it_is_done(master):
    relay = await FakeRelay(master).join()
    await relay.heartbeat(blocks=[block()])
    answer = await clear(master, relay, subnet="192.0.2.77")
    assert answer.body == {
        "relay_id": relay.relay_id, "subnet": "192.0.2.77/32", "reported": 1
    }  # fmt: skip
    (row,) = await listed(master)
    assert row["clearing"]
    order = {"type": "clear_blocks", "subnet": "192.0.2.77/32"}
    for _ in range(2):
        assert order in (await relay.heartbeat(blocks=[block()])).body["commands"]
    assert order not in (await relay.heartbeat()).body.get("commands", [])
    await clear(master, relay)
    assert {"type": "clear_blocks"} in (await relay.heartbeat()).body["commands"]
    assert {"type": "clear_blocks"} not in (await relay.heartbeat()).body.get("commands", [])
    entries = (await master.get("/v1/admin/audit?only=acts&after=0", token="admin")).body["entries"]
    acts = [(e["target"], e["reason"]) for e in entries if e["action"] == "clear_blocks"]
    assert acts == [
        (f"{relay.relay_id} 192.0.2.77", "fixed"),
        (f"{relay.relay_id} all", "fixed"),
    ]


async def waiting(master, relay, wait_s=20, **body):
    """Order, and be sure that the order is there before anything else happens."""
    order = asyncio.create_task(clear(master, relay, wait_s=wait_s, **body))
    for _ in range(500):
        if (await master.get("/v1/admin/audit?only=acts", token="admin")).body["entries"]:
            return order
        await asyncio.sleep(0.01)
    raise AssertionError("the order was not written down")


async def test_clear_waits_until_the_relay_confirms(master):
    relay = await FakeRelay(master).join()
    await relay.heartbeat(blocks=[block()])
    order = await waiting(master, relay, subnet="192.0.2.77/32")
    await relay.heartbeat(blocks=[block()])
    await asyncio.sleep(0.05)
    assert not order.done(), "the relay was told, and has not said that it is done"
    await relay.heartbeat()
    assert (await order).body == {
        "relay_id": relay.relay_id, "subnet": "192.0.2.77/32", "reported": 1, "confirmed": True
    }  # fmt: skip


@pytest.mark.parametrize("end", ["silence", "stubborn", "deregistered"])
async def test_clear_that_is_not_confirmed_says_so(master, end):
    relay = await FakeRelay(master).join()
    await relay.heartbeat(blocks=[block()])
    order = await waiting(master, relay, wait_s=0.2 if end == "silence" else 20)
    if end == "stubborn":
        for _ in range(4):
            await relay.heartbeat(blocks=[block()])
    elif end == "deregistered":
        path = f"/v1/relays/{relay.relay_id}"
        assert (await master.call("DELETE", path, token="admin")).status == 200
    async with asyncio.timeout(10):
        assert "confirmed" not in (await order).body


async def test_clear_that_waits_does_not_hold_up_the_end_of_the_master(tmp_path):
    async with running_master(tmp_path, FakeClock().clock()) as master:
        relay = await FakeRelay(master).join()
        order = await waiting(master, relay, wait_s=60)
        began_s = time.monotonic()
    assert time.monotonic() - began_s < 20
    await asyncio.gather(order, return_exceptions=True)


async def test_clear_has_room_for_so_many_orders(master):
    relay = await FakeRelay(master).join()
    for number in range(256):
        assert (await clear(master, relay, subnet=f"10.0.{number}.0")).status == 200
    answer = await clear(master, relay, subnet="10.1.0.0")
    assert (answer.status, answer.body["error"]) == (409, "too_many_orders")
    assert (await clear(master, relay, subnet="10.0.7.0")).status == 200, "it is there already"


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


async def test_clear_of_a_network_is_about_every_block_in_it(master):
    relay = await FakeRelay(master).join()
    blocks = [block("192.0.2.77/32"), block("192.0.2.78/32"), block("192.0.3.1/32")]
    await relay.heartbeat(blocks=blocks)
    order = await waiting(master, relay, subnet="192.0.2.0/24")
    assert [row.get("clearing", False) for row in await listed(master)] == [True, True, False]
    await relay.heartbeat(blocks=blocks[1:])
    await asyncio.sleep(0.05)
    assert not order.done(), "one of them still stands"
    await relay.heartbeat(blocks=blocks[2:])
    answer = (await order).body
    assert (answer["reported"], answer["confirmed"]) == (2, True)
