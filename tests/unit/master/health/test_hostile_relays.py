"""Relays that lie: what the master finds out by itself, how soon, and the share that each gets.

Master, HTTP, probes and sockets are real; the interval of the probes is half a second, so that
what takes up to two minutes of a real one takes four seconds.
"""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.control.master import FakeRelay, MasterClient, MasterFiles, running_master
from support.control.simulated_relay import SimulatedRelay
from support.control.udp_relay import UdpRelay

from wavry_peer.protocol import base64url
from wavry_peer.protocol import constants as c

INTERVAL_MS = 500
PATIENCE_S = 30.0
CNF = base64url.encode(bytes(range(32)))
PARTIES = {"client": {"sub": "ann", "cnf": CNF}, "server": {"sub": "bob", "cnf": CNF}}


@dataclass
class Member:
    """One relay: what it says over HTTP, and what it does on its port."""

    http: FakeRelay
    udp: UdpRelay
    says: dict[str, float]

    async def beat(self) -> None:
        await self.http.heartbeat(**self.says)


class Pool:
    """A master and its relays, which report all the time."""

    def __init__(self, master: MasterClient, stack: contextlib.AsyncExitStack) -> None:
        self.master = master
        self.members: dict[str, Member] = {}
        self._stack = stack

    async def join(
        self,
        name: str,
        behaviour: SimulatedRelay | None = None,
        *,
        endpoints: tuple[str, ...] = (),
        max_sessions: int = 1000,
        **says: float,
    ) -> Member:
        udp = await self._stack.enter_async_context(UdpRelay.running(behaviour))
        http = FakeRelay(
            self.master, endpoints=endpoints or (udp.endpoint,), max_sessions=max_sessions
        )
        await http.register()
        self.members[name] = member = Member(http, udp, says)
        await member.beat()
        return member

    async def row(self, name: str) -> dict:
        await self.members[name].beat()
        path = f"/v1/relays/{self.members[name].http.relay_id}"
        return (await self.master.get(path, token="service")).body

    async def until(self, name: str, condition: Callable[[dict], bool]) -> float:
        """Return the seconds after which a condition of a relay's row holds."""
        began_s = time.monotonic()
        while not condition(row := await self.row(name)):
            assert time.monotonic() - began_s < PATIENCE_S, row
            for member in self.members.values():
                await member.beat()
            await asyncio.sleep(0.05)
        return time.monotonic() - began_s

    async def shares(self, sessions: int) -> Counter[str]:
        """Ask for leases of new sessions; return how many each relay got."""
        names = {member.http.relay_id: name for name, member in self.members.items()}
        got: Counter[str] = Counter()
        for number in range(sessions):
            if number % 8 == 0:
                for member in self.members.values():
                    await member.beat()
            answer = await self.master.post("/v1/leases", PARTIES, token="service")
            key = names[answer.body["relay"]["relay_id"]] if answer.status == 201 else "nobody"
            got[key] += 1
        return got

    async def session_at(self, name: str) -> dict[str, str]:
        """Make sessions until one is at a relay; return what renews its client's lease."""
        while True:
            made = (await self.master.post("/v1/leases", PARTIES, token="service")).body
            if made["relay"]["relay_id"] == self.members[name].http.relay_id:
                claims = base64url.decode(made["leases"]["client"].split(".")[2])[:-64]
                jti = json.loads(claims)["jti"]
                return {"session_id": made["session_id"], "role": "client", "jti": jti}


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    async with (
        contextlib.AsyncExitStack() as stack,
        running_master(tmp_path, probe_interval_ms=INTERVAL_MS) as master,
    ):
        yield Pool(master, stack)


def is_state(state: str) -> Callable[[dict], bool]:
    return lambda row: row["state"] == state


def nothing(_role: c.Role, _data: bytes) -> bool:
    return False


async def test_a_relay_is_active_right_after_its_first_heartbeat_once_a_session_got_through(pool):
    await pool.join("honest")
    waited_s = await pool.until("honest", is_state("ACTIVE"))
    assert waited_s < 5
    row = await pool.row("honest")
    assert row["probe_rtt_ms"] > 0
    assert "faults" not in row
    assert pool.members["honest"].udp.behaviour.released == set(c.Role)


@pytest.mark.parametrize(
    ("behaviour", "word"),
    [
        (SimulatedRelay(answers_stun=False), "does not answer"),
        (SimulatedRelay(passes=nothing), "forwards nothing"),
    ],
)
async def test_a_relay_that_carries_nothing_stays_new_and_gets_no_session(pool, behaviour, word):
    await pool.join("honest")
    await pool.join("liar", behaviour, max_sessions=10_000_000)
    await pool.until("honest", is_state("ACTIVE"))
    await pool.until("liar", lambda row: word in row.get("faults", [{"text": ""}])[0]["text"])
    row = await pool.row("liar")
    assert (row["state"], row["faults"][0]["cause"]) == ("NEW", "probes")
    assert set(await pool.shares(40)) == {"honest"}


async def test_a_relay_that_begins_to_drop_is_found_gets_nothing_new_and_comes_back(pool):
    """It answers heartbeats, STUN and leases all the while; its sessions renew."""
    await pool.join("honest")
    dropper = await pool.join("dropper")
    for name in ("honest", "dropper"):
        await pool.until(name, is_state("ACTIVE"))
    before = await pool.shares(60)
    assert before["dropper"] > 10
    session = await pool.session_at("dropper")
    dropper.udp.behaviour = SimulatedRelay(passes=nothing)
    # An interval of half a second for one of a minute; rounds and retries keep their length.
    assert await pool.until("dropper", is_state("DEGRADED")) < 20
    (fault,) = (await pool.row("dropper"))["faults"]
    assert fault["cause"] in ("probes", "loss")
    assert set(await pool.shares(40)) == {"honest"}
    renewed = await pool.master.post("/v1/leases/renew", session, token="service")
    assert renewed.status == 200
    # Who asks for a relay, as peers do whose packets do not arrive, is given another one.
    moved = await pool.master.post(
        "/v1/leases", {**PARTIES, "session_id": session["session_id"]}, token="service"
    )
    assert moved.body["relay"]["relay_id"] == pool.members["honest"].http.relay_id
    dropper.udp.behaviour = SimulatedRelay()
    await pool.until("dropper", is_state("ACTIVE"))
    assert (await pool.shares(60))["dropper"] > 10


async def test_each_endpoint_is_reached_by_a_session_of_its_own_ipv6_too(pool):
    async with UdpRelay.running() as four, UdpRelay.running(host="::1") as six:
        six.behaviour = SimulatedRelay(passes=nothing)
        await pool.join("dual", endpoints=(four.endpoint, six.endpoint))
        await pool.until("dual", lambda row: six.endpoint in row["faults"][0]["text"])
        assert (await pool.row("dual"))["state"] == "NEW"
        six.behaviour = SimulatedRelay()
        await pool.until("dual", is_state("ACTIVE"))
        assert four.behaviour.released == six.behaviour.released == set(c.Role)


async def test_lost_datagrams_do_not_make_a_relay_flap(pool):
    lost: list[bytes] = []

    def passes(_role: c.Role, data: bytes) -> bool:
        if len(lost) < 3 and len(data) > 1000:
            lost.append(data)
            return False
        return True

    member = await pool.join("honest")
    await pool.until("honest", is_state("ACTIVE"))
    for _ in range(3):
        lost.clear()
        member.udp.behaviour = SimulatedRelay(passes=passes)
        deadline_s = time.monotonic() + PATIENCE_S
        while len(lost) < 3 and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)
            assert (await pool.row("honest"))["state"] == "ACTIVE"


async def test_where_no_relay_answers_any_more_the_masters_own_network_is_suspected(pool):
    """Nobody can tell it from relays that are gone; sessions go on being given, and it is said."""
    for name in ("one", "two"):
        await pool.join(name)
        await pool.until(name, is_state("ACTIVE"))
    for member in pool.members.values():
        member.udp.behaviour = SimulatedRelay(answers_stun=False)
    for name in ("one", "two"):
        await pool.until(name, is_state("DEGRADED"))
    got = await pool.shares(40)
    assert got["nobody"] == 0
    assert min(got["one"], got["two"]) > 5
    metrics = (await pool.master.get("/metrics")).body
    assert "wavry_master_pool_silent 1.0" in metrics
    assert 'wavry_master_relays_degraded{cause="probes"} 2.0' in metrics
    pool.members["one"].udp.behaviour = SimulatedRelay()
    await pool.until("one", is_state("ACTIVE"))
    assert set(await pool.shares(20)) == {"one"}


async def test_a_third_party_whose_address_is_registered_gets_a_few_small_packets(pool):
    async with UdpRelay.running(SimulatedRelay(answers_stun=False)) as victim:
        await pool.join("thief", endpoints=(victim.endpoint,))
        await pool.until("thief", lambda row: "does not" in row["faults"][0]["text"])
        began = len(victim.behaviour.got)
        for _ in range(5):  # It registers anew, with the same address, as fast as it can.
            await pool.members["thief"].http.register()
            await pool.members["thief"].beat()
        await asyncio.sleep(0.3)
        sizes = [len(data) for _, data in victim.behaviour.got]
        assert max(sizes) <= 48
        assert began <= 9
        assert len(sizes) - began <= 3 * 6


async def test_a_master_that_begins_again_gives_relays_at_once_and_probes_them_anew(tmp_path):
    files = MasterFiles.make(tmp_path)
    async with UdpRelay.running() as udp:
        async with running_master(tmp_path, files=files, probe_interval_ms=INTERVAL_MS) as master:
            relay = FakeRelay(master, endpoints=(udp.endpoint,))
            await relay.register()
            await relay.heartbeat()
            path = f"/v1/relays/{relay.relay_id}"
            async with asyncio.timeout(PATIENCE_S):
                while (await master.get(path, token="service")).body["state"] != "ACTIVE":  # noqa: ASYNC110  # over HTTP
                    await asyncio.sleep(0.02)
        udp.behaviour = SimulatedRelay(passes=nothing)
        async with running_master(tmp_path, files=files, probe_interval_ms=INTERVAL_MS) as again:
            relay.client = again
            assert (await again.post("/v1/leases", PARTIES, token="service")).status == 201
            await relay.heartbeat()
            assert (await again.get(path, token="service")).body["state"] == "ACTIVE"
            async with asyncio.timeout(PATIENCE_S):
                while (await again.get(path, token="service")).body["state"] != "DEGRADED":
                    await relay.heartbeat()
                    await asyncio.sleep(0.05)
            history = (await again.get(f"{path}/history", token="service")).body["changes"]
    assert [change["after"] for change in history][-2:] == ["ACTIVE", "DEGRADED"]
    assert "forwards nothing" in history[-1]["text"]


async def test_strangers_that_no_session_gets_through_get_none(tmp_path):
    """25 come in by the open door with addresses that lead nowhere, and say they are idle."""
    async with (
        contextlib.AsyncExitStack() as stack,
        running_master(tmp_path, probe_interval_ms=INTERVAL_MS, open_enrolment=True) as master,
    ):
        pool = Pool(master, stack)
        await pool.join("honest", load_pct=60.0, active_sessions=600)
        admitted = []
        for number in range(25):
            stranger = FakeRelay(
                master, endpoints=(f"192.0.2.{number + 1}:4500",), max_sessions=10_000_000
            )
            challenge = await stranger.challenge(None)
            if challenge.status == 200 and (await stranger.verify(challenge.body)).status == 201:
                await stranger.heartbeat(load_pct=0.0)
                admitted.append(stranger.relay_id)
        await pool.until("honest", is_state("ACTIVE"))
        assert await pool.shares(200) == {"honest": 200}
        rows = (await master.get("/v1/relays", token="service")).body["relays"]
        states = {row["relay_id"]: row["state"] for row in rows}
        assert {states[relay_id] for relay_id in admitted} == {"NEW"}
        assert 1 <= len(admitted) < 25  # Of one network.


async def test_the_share_that_liars_get(pool):
    """Load 0 and ten million places, a dropper, and one with a stranger's address; 120 sessions."""
    for number in range(3):
        await pool.join(f"honest-{number}", load_pct=40.0, active_sessions=400)
    await pool.join("boaster", max_sessions=10_000_000, load_pct=0.0)
    await pool.join("dropper", SimulatedRelay(passes=nothing), max_sessions=10_000_000)
    async with UdpRelay.running(SimulatedRelay(answers_stun=False)) as victim:
        await pool.join("thief", endpoints=(victim.endpoint,), max_sessions=10_000_000)
        for name in ("honest-0", "honest-1", "honest-2", "boaster"):
            await pool.until(name, is_state("ACTIVE"))
        got = await pool.shares(120)
    assert got["dropper"] == got["thief"] == got["nobody"] == 0
    # Nobody has proved anything yet: 1 to 0.6 is all that a word is worth.
    assert got["boaster"] < 60
