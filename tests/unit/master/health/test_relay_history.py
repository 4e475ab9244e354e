"""The history of relays' states: kept, bounded, gone with the relay; also in an old database."""

import pytest

from wavry_cp.master.health.state_watch import StateWatch
from wavry_cp.master.health.store import StateChange
from wavry_cp.master.relays.rules import RelayRecord
from wavry_cp.store.sqlite.database import Database
from wavry_cp.store.sqlite.master import MIGRATIONS, MasterSqlite
from wavry_cp.store.sqlite.relay_history import KEPT_OF_EACH
from wavry_peer.protocol.http.api import RelayFault, RelayInfo
from wavry_peer.protocol.relay_terms import Enrolment, RelayState

BEFORE_HISTORY = next(m.number for m in MIGRATIONS if "history" in m.name) - 1


def record(relay_id="rly-1", name="fra-1"):
    return RelayRecord(
        relay_id=relay_id, name=name, enrolment=Enrolment.TOKEN, public_key="k", endpoints=(),
        region=None, asn=None, max_sessions=1, max_bitrate_kbps=0, features=(), version="1",
        state=RelayState.ACTIVE, undrain_pending=False, token_hash="h", registered_at_s=1,
    )  # fmt: skip


def info(state="ACTIVE", *faults, relay_id="rly-1"):
    return RelayInfo(
        relay_id=relay_id, name="fra-1", enrolment="token", endpoints=(), state=state,
        load_pct=0.0, active_sessions=0, max_sessions=1, version="1", registered_at=1,
        last_heartbeat_at=1, faults=tuple(RelayFault(cause=one, text=one) for one in faults),
    )  # fmt: skip


@pytest.fixture
async def store(tmp_path):
    store = await MasterSqlite.open(tmp_path / "m.db")
    await store.save_relay(record())
    yield store
    await store.close()


def change(number, relay_id="rly-1"):
    return StateChange(relay_id, number, "ACTIVE", "DEGRADED", "probes", "why")


async def test_the_newest_changes_of_each_relay_are_kept(store):
    await store.save_relay(record("rly-2", "fra-2"))
    await store.history.note_changes([change(n) for n in range(KEPT_OF_EACH + 50)])
    await store.history.note_changes([change(7, "rly-2")])
    kept = await store.history.state_changes("rly-1", 1000)
    assert [row.at_s for row in kept] == list(range(50, KEPT_OF_EACH + 50))
    assert [row.at_s for row in await store.history.state_changes("rly-1", 2)] == [248, 249]
    assert {row.relay_id for row in await store.history.last_changes()} == {"rly-1", "rly-2"}


async def test_a_relay_that_changes_keeps_its_history_and_one_that_is_removed_does_not(store):
    await store.history.note_changes([change(1)])
    await store.save_relay(record(name="renamed"))
    assert await store.history.state_changes("rly-1", 10) == [change(1)]
    await store.remove_relay("rly-1")
    await store.history.note_changes([change(2)])
    assert await store.history.state_changes("rly-1", 10) == []


async def test_a_database_of_before_gets_the_table_and_keeps_its_relays(tmp_path):
    path = tmp_path / "m.db"
    old = await Database.open(path, MIGRATIONS[:BEFORE_HISTORY])
    before = MasterSqlite(old)
    await before.save_relay(record())
    await before.close()
    store = await MasterSqlite.open(path)
    assert [relay.relay_id for relay in await store.relays()] == ["rly-1"]
    await store.history.note_changes([change(1)])
    assert await store.history.state_changes("rly-1", 10) == [change(1)]
    await store.close()


async def test_changes_are_seen_once_with_their_causes_and_go_on_after_a_restart(store):
    def known(relay_id):
        return relay_id == "rly-1"

    watch = StateWatch(store.history)
    await watch.load()
    steps = [info("NEW", "probes"), info(), info(), info("DEGRADED", "clock", "probes")]
    for now_s, seen in enumerate(steps):
        await watch.step([seen], now_s=now_s, is_known=known)
    again = StateWatch(store.history)
    await again.load()
    await again.step([info("DEGRADED", "clock", "probes")], now_s=10, is_known=known)
    await again.step([], now_s=11, is_known=known)  # Nobody is sure of it: nothing is noted.
    await again.step([info()], now_s=12, is_known=known)
    told = await store.history.state_changes("rly-1", 10)
    assert [(row.at_s, row.before, row.after, row.causes) for row in told] == [
        (0, "", "NEW", "probes"),
        (1, "NEW", "ACTIVE", ""),
        (3, "ACTIVE", "DEGRADED", "clock,probes"),
        (12, "DEGRADED", "ACTIVE", ""),
    ]


async def test_what_the_store_did_not_take_is_written_later(store, monkeypatch):
    watch = StateWatch(store.history)
    with monkeypatch.context() as patched:
        patched.setattr(store.history, "_database", Closed())
        await watch.step([info()], now_s=1, is_known=bool)
    await watch.step([info("OFFLINE")], now_s=2, is_known=bool)
    told = await store.history.state_changes("rly-1", 10)
    assert [row.after for row in told] == ["ACTIVE", "OFFLINE"]


class Closed:
    async def run(self, _work):
        from wavry_cp.app.store_errors import StoreUnavailableError

        raise StoreUnavailableError("full")
