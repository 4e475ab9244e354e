"""From facts to a layer: what can be seen of a relay, clocks, keys, the pool."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from support.relay.health import RELAY, relay_health

from wavry_cp.admin.doctor.clock_checks import check_clocks, off_by, true_offset
from wavry_cp.admin.doctor.condition_checks import check_rejects
from wavry_cp.admin.doctor.diagnosis import diagnose, exit_code
from wavry_cp.admin.doctor.facts import RelayFacts, ServiceFacts, SystemFacts
from wavry_cp.admin.doctor.finding import Finding
from wavry_cp.admin.doctor.gather import WATCHED, Examination, gather
from wavry_cp.admin.doctor.key_checks import check_keys
from wavry_cp.admin.doctor.pool_checks import check_pool
from wavry_cp.admin.doctor.reach import Asker, HttpAnswer
from wavry_cp.admin.doctor.relay_checks import check_relays
from wavry_cp.admin.doctor.service_checks import check_gateway, check_master, check_master_link
from wavry_cp.admin.doctor.sign_checks import check_capacity, check_errors, check_revocations
from wavry_cp.admin.doctor.udp_probe import UdpAnswer, probe_udp
from wavry_cp.admin.endpoints import DevRelay, ServiceEndpoints
from wavry_peer.protocol.http.admin import AuditPage, AuditRow, BanInfo, BanList
from wavry_peer.protocol.http.api import RelayFault, RelayInfo, RelayList
from wavry_peer.protocol.http.keys import KeysStatus, KeyStatusRow, RelayKeyState
from wavry_peer.protocol.http.ops import GatewayStatus, RelayHealth
from wavry_peer.service.metrics import CATALOGUE, by_name

ENDPOINT = "192.0.2.7:4500"
DOWN = HttpAnswer("refused")


def answer(body: Any, status: int = 200) -> HttpAnswer:
    return HttpAnswer("ok", status, msgspec.json.encode(body), time.time())


def service(name: str, **health: Any) -> ServiceFacts:
    body = {
        "status": "ok", "role": name, "version": "1", "now": int(time.time()), "uptime_s": 60,
        "lockdown": False, "tls": "off", "keyset_serial": 3, "relays": {}, "relay_mode": "on",
        **health,
    }  # fmt: skip
    ready = {"ready": True, "reason": "", "warning": "", "store": "ok", "master": "ok"}
    return ServiceFacts(f"http://{name}", answer(body), answer(ready), ({"errors": 0},) * 2)


def gateway_status(**changes: Any) -> GatewayStatus:
    values: dict[str, Any] = {
        "version": "1", "uptime_s": 60, "users": 2, "online": 2, "websockets": 2, "sessions": {},
        "store": "ok", "master": "ok", "master_url": "http://master", "master_error": "",
        "lockdown": False,
    }  # fmt: skip
    return GatewayStatus(**(values | changes))


def row(**changes: Any) -> RelayInfo:
    values: dict[str, Any] = {
        "relay_id": RELAY, "name": "fra-1", "enrolment": "token", "endpoints": (ENDPOINT,),
        "state": "ACTIVE", "load_pct": 1.0,
        "active_sessions": 1, "max_sessions": 100, "version": "1", "held_kids": ("k",),
        "keyset_serial": 3, "registered_at": 1, "last_heartbeat_at": int(time.time()),
        "reported": "ready",
    }  # fmt: skip
    return RelayInfo(**(values | changes))


def relay(
    info: RelayInfo | None = None,
    health: dict[str, Any] | HttpAnswer | None = None,
    udp: str = "ok",
    **more: Any,
) -> RelayFacts:
    ops = answer(health) if isinstance(health, dict) else health
    return RelayFacts(
        RELAY,
        info,
        "http://relay" if ops else None,
        ops,
        ops.read(RelayHealth) if ops else None,
        (UdpAnswer(ENDPOINT, udp, 1.0),),
        **more,
    )


def keys(held: tuple[str, ...] = ("k",), *, forced: bool = False, serial: int = 3) -> KeysStatus:
    one = KeyStatusRow(
        kid="k", status="active", not_before=0, last_lease_expires_at=0, removable_at=0,
        signable=True, forced=forced, held_by=1, lacking_relays=(),
    )  # fmt: skip
    return KeysStatus(
        now=int(time.time()), serial=3, issued_at=0, active_kid="k", active_age_s=1,
        root_public_key="r", root_key_here=True, root_chain=(), keys=(one,),
        relays=(RelayKeyState(relay_id=RELAY, keyset_serial=serial, held_kids=held),),
    )  # fmt: skip


def facts(one: RelayFacts, **changes: Any) -> SystemFacts:
    rows = () if one.row is None else (one.row,)
    values: dict[str, Any] = {
        "gateway": service("gateway"), "master": service("master", relays={"ACTIVE": 1}),
        "relays": (one,), "listed": RelayList(relays=rows), "keys": keys(),
    }  # fmt: skip
    return SystemFacts(**(values | changes))


def failing(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.layer, one.check) for one in findings if one.verdict == "fail"]


LOST = {"state": "failing", "error": "/v1/relays/heartbeat: TimeoutError", "events": False}
BANNED = {"state": "registering", "error": "/v1/relays/register: 403 banned", "events": False}
LACKING = {"state": "DEGRADED", "workers_wanted": 2, "workers_missing": 1}
GONE = [("relay", "reachable"), ("relay", "udp")]
REFUSED = {"state": "registering", "error": "/v1/relays/register: 400 bad", "events": False}


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (relay(row(), relay_health()), []),
        (relay(row(), None), []),
        # Nothing answers: the relay.
        (relay(row(), DOWN, "closed"), [("relay", "reachable")]),
        (relay(row(state="OFFLINE"), DOWN, "silent"), [("relay", "reachable")]),
        (relay(row(state="OFFLINE"), None, "silent"), [("relay", "reachable")]),
        (relay(None, DOWN, "silent"), [("relay", "reachable")]),
        (relay(row(), HttpAnswer("silent"), "silent"), [("relay", "reachable")]),
        (relay(row(), None, "closed", missed_heartbeat=True), [("relay", "reachable")]),
        # It is alive, but not from here: the network.
        (relay(row(), relay_health(), "silent"), [("network", "udp")]),
        (relay(row(), None, "silent"), [("network", "udp")]),
        (relay(row(), HttpAnswer("no_connection"), "silent"), [("network", "udp")]),
        (relay(row(), DOWN, "ok"), []),
        # Nobody forwards what it advertises.
        (relay(row(), relay_health(), "closed"), [("relay", "udp")]),
        (relay(row(), relay_health(udp=[ENDPOINT]), "closed"), [("network", "udp")]),
        # Between it and the master.
        (relay(row(), relay_health(master=LOST)), [("network", "master link")]),
        (relay(row(state="OFFLINE"), None, "ok"), [("network", "master link")]),
        # A ban is what somebody wanted, unless nobody here knows of it.
        (relay(row(state="BANNED"), relay_health(master=BANNED)), []),
        (relay(row(state="BANNED"), DOWN, "silent"), []),
        (relay(None, relay_health(master=BANNED)), [("master", "master link")]),
        (relay(row(), relay_health(master=REFUSED)), [("relay", "master link")]),
        (relay(None, relay_health()), [("relay", "master link")]),
        # It is not well itself.
        (
            relay(row(), relay_health(workers={"wanted": 2, "running": 1})),
            [("relay", "reachable")],
        ),
        (relay(row(**LACKING), None), [("relay", "reachable")]),
        (relay(row(**(LACKING | {"workers_missing": 2})), None, "silent"), GONE),
        (relay(row(), relay_health(workers={"wanted": 2, "running": 0}), "silent"), GONE),
        (relay(row(), answer({"hello": 1})), [("relay", "reachable")]),
    ],
)  # fmt: skip
def test_what_is_seen_of_a_relay_names_the_layer(
    one: RelayFacts, expected: list[tuple[str, str]]
) -> None:
    found = check_relays(facts(one))
    assert failing(found) == expected
    assert all(finding.next_step for finding in found if finding.verdict != "ok")


def test_relay_that_is_not_enrolled_is_told_how_it_gets_in() -> None:
    error = "/v1/relays/register: 403 relay_not_enrolled: this relay is not enrolled (request 1)"
    refused = relay(row(), relay_health(master={**REFUSED, "error": error}))
    (link,) = [one for one in check_relays(facts(refused)) if one.check == "master link"]
    assert "wavryctl relays enrol" in link.next_step


def test_a_machine_without_ipv6_does_not_blame_a_relay_that_has_it() -> None:
    both = RelayFacts(
        RELAY, row(), udp=(UdpAnswer(ENDPOINT, "ok", 1.0), UdpAnswer("[2001:db8::7]:1", "no_route"))
    )
    assert {one.verdict for one in check_relays(facts(both))} == {"ok"}
    only = RelayFacts(RELAY, row(), udp=(UdpAnswer("[2001:db8::7]:1", "no_route"),))
    (udp,) = [one for one in check_relays(facts(only)) if one.check == "udp"]
    assert udp.verdict == "unknown"


# -- Clocks ------------------------------------------------------------------------------------


def test_the_clock_that_most_others_contradict_is_off() -> None:
    assert true_offset({"this machine": 0, "master": 1, "gateway": 0, "r": 120}) < 5
    assert true_offset({"this machine": 0, "master": 90, "gateway": 91, "r": 90}) >= 90
    assert true_offset({"this machine": 0, "master": 90}) == 90, "of equals the master's"
    assert true_offset({"this machine": 0, "gateway": 90}) == 0, "nobody else stamps leases"


@pytest.mark.parametrize(
    ("shift_s", "verdict"), [(0, "ok"), (3, "ok"), (20, "warn"), (-20, "warn"), (45, "fail")]
)
def test_a_relay_may_be_off_as_far_as_leases_forgive(shift_s: int, verdict: str) -> None:
    one = relay(row(), relay_health(now=int(time.time()) + shift_s))
    (clock,) = [one for one in check_clocks(facts(one)) if one.subject == RELAY]
    assert clock.verdict == verdict
    forgiving = relay(row(), relay_health(now=int(time.time()) + shift_s, not_before_skew_s=60))
    (clock,) = [one for one in check_clocks(facts(forgiving)) if one.subject == RELAY]
    assert clock.verdict != "fail"


def test_our_own_clock_is_a_warning_and_the_date_header_stands_in_for_older_versions() -> None:
    late = {"now": int(time.time()) + 300}
    off = facts(
        relay(row(), relay_health(**late)),
        gateway=service("gateway", **late), master=service("master", **late),
    )  # fmt: skip
    assert {(one.subject, one.verdict) for one in check_clocks(off)} == {
        ("this machine", "warn"), ("gateway", "ok"), ("master", "ok"), (RELAY, "ok"),
    }  # fmt: skip
    assert diagnose(off).broken_layer is None
    dated = HttpAnswer("ok", 200, b"{}", asked_s=1000.0, date_s=1060.0)
    assert off_by(dated, 0) == 60.5
    assert off_by(dated, 1100) == 100.5
    assert off_by(DOWN, 1100) is None


# -- Keys, gateway, pool -------------------------------------------------------------------------


def test_a_relay_that_lacks_the_key_says_why() -> None:
    def evidence(one: RelayFacts, status: KeysStatus) -> str:
        (found,) = check_keys(facts(one, keys=status))
        assert (found.layer, found.verdict) == ("relay", "fail")
        return found.evidence + found.next_step

    other = {"serial": 2, "kids": ["old"], "refused": None, "fetch_error": None}
    assert "forced" in evidence(relay(row(), relay_health(keys=other)), keys(forced=True))
    root = other | {"refused": "signed by another root"}
    assert "WAVRY_RELAY_ROOT_KEY" in evidence(relay(row(), relay_health(keys=root)), keys())
    unfetched = other | {"fetch_error": "503"}
    assert "503" in evidence(relay(row(), relay_health(keys=unfetched)), keys())
    assert "lacks the active key k" in evidence(relay(row()), keys(held=("old",), serial=2))
    assert "old backup" in evidence(relay(row()), keys(serial=9))
    lost = relay(row(), relay_health(keys=other, master=LOST))
    assert check_keys(facts(lost))[0].consequence_of == f"{RELAY}: master link"


def test_a_service_token_that_the_master_refuses_is_the_gateways_fault() -> None:
    told = gateway_status(master_url="http://m", master_error="/v1/leases: status 401, code x")
    (found,) = check_master_link(facts(relay(row()), gateway_status=told))
    assert (found.layer, found.verdict) == ("gateway", "fail")
    assert "SERVICE_TOKEN_FILE" in found.next_step


def drained(who: str = "ann") -> dict[str, Any]:
    act = AuditRow(
        id=1, at=1_700_000_000, who=who, action="drain", target=RELAY, reason="new kernel",
        outcome="done",
    )  # fmt: skip
    return {"audit": AuditPage(entries=(act,))}


@pytest.mark.parametrize(
    ("one", "more", "words"),
    [
        (relay(row(state="DRAINING")), drained(), "drained (by ann, 2023-11-14 22:13:20Z: new k"),
        (relay(row(state="DRAINING")), {}, "is drained"),
        (relay(row(state="DRAINING"), relay_health(draining=["local"])), {}, "on its own host"),
        (relay(row(active_sessions=100)), {}, "is full (100 sessions)"),
        (relay(row(), relay_health(shedding=["bandwidth"])), {}, "sheds load (bandwidth)"),
        (relay(row(state="NEW")), {}, "is NEW"),
        (relay(row(state="PROBATION")), {}, "is in PROBATION"),
        (
            relay(row(state="BANNED")),
            {"bans": BanList(bans=(
                BanInfo(kind="relay", value=RELAY, at=1, who="bob", reason="key was copied"),
            ))},
            "is banned (by bob",
        ),
    ],
)  # fmt: skip
def test_a_pool_without_a_free_relay_says_what_is_in_the_way(
    one: RelayFacts, more: dict[str, Any], words: str
) -> None:
    (found,) = check_pool(facts(one, **more))
    assert (found.layer, found.verdict, found.consequence_of) == ("relay", "fail", "")
    assert words in found.evidence
    assert found.next_step


def test_one_free_relay_is_enough_and_an_empty_pool_is_not() -> None:
    two = facts(relay(row()))
    other = RelayFacts("rly-2", row(relay_id="rly-2", state="DRAINING"))
    both = msgspec.structs.replace(two.listed, relays=(row(), other.row))  # type: ignore[type-var]  # listed is there
    (found,) = check_pool(
        SystemFacts(**{**_fields(two), "relays": (*two.relays, other), "listed": both})
    )
    assert (found.verdict, "1 of 2" in found.evidence) == ("ok", True)
    (none,) = check_pool(facts(RelayFacts(RELAY), listed=RelayList(relays=())))
    assert none.verdict == "fail"


def _fields(value: SystemFacts) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_early_signs_are_warnings_and_rising_errors_are_not() -> None:
    def verdicts(findings: list[Finding]) -> set[str]:
        return {one.verdict for one in findings}

    assert verdicts(check_capacity(facts(relay(row(load_pct=95.0))))) == {"warn"}
    assert verdicts(check_capacity(facts(relay(row(), relay_health(cookie_gates=2))))) == {"warn"}
    unsaved = relay(row(), relay_health(revocations={"saved": False}))
    assert [one.check for one in check_revocations(facts(unsaved)) if one.verdict == "warn"] == [
        "disk"
    ]
    closed = {"state": "registered", "error": None, "events": False}
    (stream,) = check_revocations(facts(relay(row(), relay_health(master=closed))))
    assert (stream.layer, stream.verdict) == ("network", "warn")

    def errors(before: float, after: float) -> set[str]:
        counters = ({"errors": before, "restarts": 0.0}, {"errors": after, "restarts": 0.0})
        one = relay(row(), relay_health(), counters=counters)
        return {found.verdict for found in check_errors(facts(one)) if found.subject == RELAY}

    assert (errors(0, 0), errors(2, 2), errors(2, 3)) == ({"ok"}, {"warn"}, {"fail"})


def test_a_fault_out_there_comes_before_one_of_this_machine() -> None:
    both = diagnose(facts(relay(row(), relay_health(), "silent"), token="it has ended"))
    assert (both.broken_layer, both.summary.startswith("broken: network - ")) == ("network", True)
    assert "(1 more faults below)" in both.summary
    alone = diagnose(facts(relay(row(), relay_health()), token="it has ended"))
    assert alone.broken_layer == "here"
    assert exit_code(alone.findings) == 1


def test_every_counter_that_is_watched_is_in_the_catalogue() -> None:
    for role, watched in WATCHED.items():
        known = by_name(CATALOGUE[role])
        for metric, wanted in watched.values():
            labels = {label.name: label for label in known[metric].labels}
            assert all(labels[name].allows(value) for name, value in wanted.items()), metric


# -- Asking --------------------------------------------------------------------------------------


@asynccontextmanager
async def tcp_server(reply: bytes | None) -> AsyncIterator[str]:
    """Answers every question with these bytes, or never."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())  # type: ignore[arg-type]  # in a task
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            if reply is None:
                await reader.read()
            else:
                writer.write(reply)
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*serving)


async def test_how_a_call_fails_names_its_cause(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr("wavry_cp.admin.doctor.reach.ANSWER_TIMEOUT_S", 0.5)
    async with (
        tcp_server(None) as silent,
        tcp_server(b"nonsense\r\n\r\n") as broken,
        Asker() as ask,
    ):
        assert (await ask.get(silent, "/health")).reach == "silent"
        assert (await ask.get(broken, "/health")).reach == "broken"
        secure = broken.replace("http://", "https://")
        plain = await ask.get(secure, "/health")
        assert plain.reach == "tls"
        assert "does it want http://?" in plain.text, "not one cause for every fault of TLS"
        closed = await ask.get(f"http://127.0.0.1:{unused_tcp_port}", "/health")
        assert (closed.reach, closed.is_reached) == ("refused", False)
        assert (await ask.get("http://nobody.invalid", "/health")).reach == "no_name"
        for text in ("not a url", "ftp://127.0.0.1", "http://[::1"):
            assert (await ask.get(text, "/health")).reach == "bad_url", text
        assert "refused" in closed.text


async def test_a_udp_port_is_closed_silent_or_no_address() -> None:
    assert (await probe_udp("127.0.0.1:9")).reach == "closed"
    assert (await probe_udp("nonsense")).reach == "bad_address"
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    endpoint = "127.0.0.1:{}".format(transport.get_extra_info("sockname")[1])
    try:
        assert (await probe_udp(endpoint)).reach == "silent"
    finally:
        transport.close()


async def test_a_system_that_is_not_there_at_all_is_told_without_a_crash() -> None:
    endpoints = ServiceEndpoints(
        gateway_url="http://127.0.0.1:9", master_url="http://127.0.0.1:9", admin_token_file=None,
        admin_token_text="x" * 43,
        relays=(DevRelay(RELAY, "127.0.0.1:9", "http://127.0.0.1:9", 1),),
    )  # fmt: skip
    told = diagnose(await gather(Examination(endpoints, watch_s=0.1)))
    assert (told.broken_layer, told.root and told.root.subject) == ("master", "master")
    assert exit_code(told.findings) == 3


@pytest.mark.parametrize("renamed", ["lockdown", "now"])
def test_a_key_that_was_renamed_does_not_read_as_fine(renamed: str) -> None:
    """It is said that the answer is not understood; no default stands in for it."""
    seen = facts(relay(row(), relay_health()))
    health = msgspec.json.decode(seen.gateway.health.raw)
    health[renamed + "_"] = health.pop(renamed)
    broken = replace(seen, gateway=replace(seen.gateway, health=answer(health)))
    assert failing(check_gateway(broken)) == [("gateway", "reachable")]
    assert not failing(check_gateway(seen))


@pytest.mark.parametrize("name", ["gateway", "master"])
def test_a_certificate_that_could_not_be_replaced_is_a_warning(name: str) -> None:
    check = {"gateway": check_gateway, "master": check_master}[name]
    for state, verdict in (("stale", "warn"), ("ok", "ok"), ("off", "ok")):
        (found,) = check(facts(relay(row()), **{name: service(name, tls=state)}))
        assert found.verdict == verdict
        assert ("tls_files_refused" in found.next_step) == (verdict == "warn")


# -- What heartbeats and probes told the master ------------------------------------------------


def fault(cause: str, text: str = "why") -> RelayFault:
    return RelayFault(cause=cause, text=text)


@pytest.mark.parametrize(
    ("cause", "layer"),
    [("probes", "network"), ("loss", "network"), ("clock", "relay"), ("disk", "relay")],
)
def test_why_a_relay_is_degraded_is_told_without_its_ops_url(cause: str, layer: str) -> None:
    one = relay(row(state="DEGRADED", faults=(fault(cause, "its text"),)))
    diagnosis = diagnose(facts(one, master=service("master", relays={"DEGRADED": 1})))
    assert (diagnosis.broken_layer, diagnosis.root and diagnosis.root.check) == (layer, "condition")
    assert "its text" in diagnosis.summary


def test_a_blocked_port_explains_that_probes_fail() -> None:
    one = relay(row(state="DEGRADED", faults=(fault("probes"),)), udp="silent")
    root = diagnose(facts(one)).root
    assert root is not None
    assert root.check == "udp"


def test_a_skewed_clock_is_found_by_heartbeats_alone() -> None:
    one = relay(row(clock_ahead_s=-42.0))
    found = {check.subject: check for check in check_clocks(facts(one))}
    assert found[RELAY].verdict == "fail"
    assert "42 s behind" in found[RELAY].evidence
    well = {check.subject: check for check in check_clocks(facts(relay(row(clock_ahead_s=0.2))))}
    assert well[RELAY].verdict == "ok"


def test_rejects_are_told_by_heartbeats_alone() -> None:
    told = row(clock_ahead_s=0.0, rejects_last_minute={"expired": 40, "rate_limited": 2})
    (finding,) = check_rejects(facts(relay(told)))
    assert finding.verdict == "warn"
    assert "40 EXPIRED, 2 RATE_LIMITED" in finding.evidence
    (finding,) = check_rejects(facts(relay(row(clock_ahead_s=0.0))))
    assert finding.verdict == "ok"


def test_nothing_is_broken_is_said_only_where_everything_was_looked_at() -> None:
    whole = diagnose(facts(relay(row(), relay_health()), gateway_status=gateway_status()))
    partial = diagnose(facts(relay(row()), gateway_status=gateway_status()))
    assert partial.ok
    assert "nothing is broken" not in partial.summary
    assert f"not looked at: the ops port of {RELAY} (--relay-ops)" in partial.summary
    if not any(one.verdict == "unknown" for one in whole.findings):
        assert whole.summary.startswith("nothing is broken")
    bare = diagnose(facts(relay(row()), token="none", listed=None, keys=None))
    assert any("admin token" in text for text in bare.not_looked_at)
