"""Key rotation of a whole system: real master, real relay, many sessions under traffic.

The commands are those of an operator.  What a relay rejects is read from its own counters.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import web
from support.system.crowd import Crowd
from support.system.services import Services
from support.system.system import clean_environment, get_json, get_text
from support.waiting import wait_until

SESSIONS = int(os.environ.get("WAVRY_TEST_SESSIONS", "30"))
"""`make test-slow` takes more."""


class KeySystem(Services):
    """Services with a relay that lets one address present for a whole crowd."""

    def __init__(self, directory: Path, heartbeat_ms: int = 1000) -> None:
        super().__init__(directory)
        self.settings["relay"] |= {
            "WAVRY_RELAY_IP_PER_S": "100000",
            "WAVRY_RELAY_IP_BURST": "100000",
        }
        self.settings["master"]["WAVRY_MASTER_HEARTBEAT_INTERVAL_MS"] = str(heartbeat_ms)

    @property
    def master_url(self) -> str:
        return str(self.ready["master"]["url"])

    @property
    def relay_id(self) -> str:
        return str(self.ready["relay"]["relay_id"])

    def environment(self) -> dict[str, str]:
        return clean_environment(
            WAVRY_MASTER_URL=self.master_url,
            WAVRY_GATEWAY_URL=self.gateway_url,
            WAVRY_ADMIN_TOKEN_FILE=str(self.directory / "admin.token"),
        )

    def begin(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "wavry_cp.admin", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment(),
        )  # fmt: skip

    def ctl(self, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json; what it answers."""
        process = self.begin(*arguments, "--json")
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, out + err
        assert "Traceback" not in err
        return json.loads(out)

    def statuses(self) -> dict[str, str]:
        return {key["kid"]: key["status"] for key in self.ctl("keys", "status")["keys"]}

    def rejects(self) -> Counter[str]:
        """Lease rejects of the relay by reason."""
        pattern = r'^wavry_relay_lease_rejects_total\{reason="(\w+)"\} ([0-9.e+]+)$'
        found = re.findall(pattern, get_text(self.ops_url + "/metrics"), re.MULTILINE)
        return Counter({reason: int(float(value)) for reason, value in found})

    def crowd(self, sessions: int) -> Crowd:
        token = (self.directory / "service.token").read_text().strip()
        return Crowd(self.master_url, token, self.ready["relay"]["udp"][0], sessions)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        token = (self.directory / "admin.token").read_text().strip()
        request = urllib.request.Request(
            self.master_url + path, json.dumps(body).encode(), {"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[KeySystem]:
    with KeySystem(tmp_path / "services") as running:
        yield running


@pytest.mark.long
def test_sessions_live_through_two_rotations_and_a_rollback(system: KeySystem) -> None:
    first = next(iter(system.statuses()))
    before = system.rejects()
    with system.crowd(SESSIONS) as crowd:
        everyone = len(crowd.members)
        crowd.wait_for_traffic()
        signing = [first]
        for command in (
            ("keys", "rotate", "--no-wait"),
            ("keys", "rotate", "--no-wait", "--new"),
            ("keys", "rollback", "--reason", "test"),
        ):
            process = system.begin(*command, "--json")
            part = iter(crowd.all())
            while process.poll() is None:  # leases of every step of the rotation
                some = [member for member, _ in zip(part, range(20), strict=False)]
                if some:
                    assert crowd.renew(some) == Counter(ack=len(some))
                else:
                    part = iter(crowd.all())
            out, err = process.communicate()
            assert process.returncode == 0, out + err
            signing.append(json.loads(out)["active_kid"])
            assert crowd.present(crowd.all()) == Counter(ack=everyone), "leases of before"
            assert crowd.renew(crowd.all()) == Counter(ack=everyone)
            assert {member.claims["kid"] for member in crowd.all()} == {signing[-1]}
            crowd.wait_for_traffic()
            listed = system.ctl("relays", "list")["relays"][0]
            assert signing[-1] in listed["held_kids"]
        assert len(set(signing[:3])) == 3
        assert signing[3] == signing[1], "the rollback went back to the key before"
        assert system.rejects() - before == Counter(), "a valid lease was rejected"
        wait_until(  # The master's own session may be there for a moment, too.
            lambda: get_json(system.ops_url + "/health")["sessions"]["active"] == SESSIONS,
            what="all sessions, and no other",
        )
    assert sorted(system.statuses().values()) == ["active", "retiring", "retiring"]


@pytest.mark.long
def test_emergency_revoke_kills_every_lease_of_the_key_within_2_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with KeySystem(tmp_path / "services", heartbeat_ms=10_000) as system:
        old = next(iter(system.statuses()))
        with system.crowd(SESSIONS) as crowd:
            crowd.wait_for_traffic()
            began_s = time.monotonic()
            system.post("/v1/admin/keys/revoke", {"kid": old, "reason": "test"})
            wait_until(
                lambda: time.monotonic() - max(began_s, crowd.last_received_s()) > 3,
                timeout_s=15,
                what="every stream of the revoked key stops",
            )
            dead_after_s = crowd.last_received_s() - began_s
            with capsys.disabled():
                print(f"\nlast packet of a revoked key {dead_after_s * 1000:.0f} ms after the call")
            assert dead_after_s < 2
            results = crowd.present(crowd.all())
            assert results == Counter(REVOKED=len(crowd.members)), results
        system.ctl("keys", "revoke", old, "--emergency", "--reason", "again does no harm")
        with system.crowd(2) as fresh:
            fresh.wait_for_traffic()
            assert old not in {member.claims["kid"] for member in fresh.all()}


def test_after_an_emergency_revoke_its_leases_are_rejected_and_new_ones_are_not(
    system: KeySystem,
) -> None:
    old = next(iter(system.statuses()))
    with system.crowd(5) as crowd:
        refused = system.ctl("keys", "revoke", old, "--reason", "stolen", code=2)
        assert refused["error"] == "not_confirmed"
        result = system.ctl("keys", "revoke", old, "--emergency", "--reason", "stolen")
        assert result["active_kid"] != old
        assert crowd.present(crowd.all()) == Counter(REVOKED=len(crowd.members))
    with system.crowd(5) as crowd:
        crowd.wait_for_traffic()
        assert {member.claims["kid"] for member in crowd.all()} == {result["active_kid"]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_rotation_that_is_interrupted_at_any_step_is_finished_by_the_same_command(
    system: KeySystem, number: signal.Signals
) -> None:
    """Nothing signed with these keys, so the whole procedure ends without a wait."""
    keys = list(system.statuses())
    for progress in ("", "is published", "waiting for", " signs"):
        process = system.begin("keys", "rotate")
        assert process.stderr is not None
        while line := process.stderr.readline():
            if progress in line:
                break
        # Nothing is said about waiting where the relay's heartbeat was faster than the first look.
        assert line or progress == "waiting for", f"it ended before it said {progress!r}"
        process.send_signal(number)
        process.communicate(timeout=60)
        statuses = system.statuses()
        assert list(statuses.values()).count("active") == 1
        finished = system.ctl("keys", "rotate")
        assert finished["retiring"] == []
        assert list(system.statuses()) == [finished["active_kid"]]
        keys.append(finished["active_kid"])
    assert len(set(keys)) == len(keys)


class BlockingProxy:
    """Passes the relay's calls to the master; the key-set document may be held back."""

    def __init__(self, master_url: str) -> None:
        self._master_url = master_url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self.blocked = False
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        app = web.Application()
        async with aiohttp.ClientSession() as http:

            async def passed(request: web.Request) -> web.Response:
                if self.blocked and request.path.startswith("/.well-known"):
                    return web.Response(status=503)
                kept = ("Authorization", "Content-Type")
                headers = {name: request.headers[name] for name in kept if name in request.headers}
                async with http.request(
                    request.method, self._master_url + request.path_qs,
                    data=await request.read(), headers=headers,
                ) as answer:  # fmt: skip
                    return web.Response(
                        status=answer.status, body=await answer.read(),
                        content_type=answer.content_type,
                    )  # fmt: skip

            app.router.add_route("*", "/{path:.*}", passed)
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._started.set()
            await self._stop.wait()
            await runner.cleanup()


def findings(answer: Any, check: str) -> dict[str, str]:
    return {one["subject"]: one["verdict"] for one in answer["findings"] if one["check"] == check}


def test_a_bad_rotation_is_refused_and_when_forced_the_doctor_names_unknown_key(
    system: KeySystem,
) -> None:
    with BlockingProxy(system.master_url) as proxy:
        system.kill("relay", signal.SIGTERM)
        system.settings["relay"]["WAVRY_RELAY_MASTER_URL"] = proxy.url
        system.start("relay")
        system.wait_for_relay()
        doctor = ("doctor", "--relay-ops", system.ops_url, "--watch", "2")
        assert system.ctl(*doctor)["ok"]
        first = next(iter(system.statuses()))
        with system.crowd(5) as crowd:
            proxy.blocked = True
            refused = system.ctl("keys", "rotate", "--timeout", "3", code=1)
            assert refused["error"] == "relays_lack_key"
            assert system.relay_id in refused["message"]
            assert system.statuses()[first] == "active", "nothing changed for anybody"
            assert crowd.renew(crowd.all()) == Counter(ack=len(crowd.members))
            assert not system.rejects()["unknown_key"]

            forced = system.ctl("keys", "rotate", "--timeout", "1", "--force", "--no-wait")
            assert forced["active_kid"] != first
            assert crowd.renew(crowd.all()) == Counter(UNKNOWN_KEY=len(crowd.members))
            assert system.rejects()["unknown_key"] >= len(crowd.members)
            examining = system.begin(*doctor, "--json")
            while examining.poll() is None:
                crowd.present(crowd.all())
            answer = json.loads(examining.communicate()[0])
            assert examining.returncode == 1
            assert findings(answer, "unknown key") == {system.relay_id: "fail"}
            assert findings(answer, "same key set") == {system.relay_id: "fail"}
            (told,) = [one for one in answer["findings"] if one["check"] == "unknown key"]
            assert "UNKNOWN_KEY" in told["evidence"]
            assert "keys rollback" in told["next_step"]
            root = answer["root"]
            assert (answer["broken_layer"], root["check"]) == ("relay", "same key set")
            assert forced["active_kid"] in root["evidence"]
            assert "forced" in root["evidence"]
            assert "503" in root["evidence"], "why the relay cannot fetch it"

            system.ctl("keys", "rollback", "--reason", "the relay lacks the key")
            assert crowd.renew(crowd.all()) == Counter(ack=len(crowd.members))
            proxy.blocked = False
            system.ctl("keys", "rotate", "--new", "--no-wait", "--timeout", "60")
            assert crowd.renew(crowd.all()) == Counter(ack=len(crowd.members))
            wait_until(
                lambda: findings(system.ctl(*doctor), "same key set") == {system.relay_id: "ok"},
                what="the relay has the newest document after its next heartbeat",
            )


def test_the_doctor_says_what_is_unreachable(system: KeySystem) -> None:
    system.kill("gateway", signal.SIGKILL)
    answer = system.ctl("doctor", "--watch", "0.1", code=3)
    assert findings(answer, "reachable")["gateway"] == "fail"
    assert all(one["next_step"] for one in answer["findings"] if one["verdict"] == "fail")


def test_a_root_rotation_reaches_relays_that_start_without_the_master(system: KeySystem) -> None:
    pinned = system.settings["relay"]["WAVRY_RELAY_ROOT_KEY"]
    result = system.ctl("keys", "root", "rotate")
    assert result["root_public_key"] != pinned
    again = system.ctl("keys", "root", "rotate")
    assert again["root_public_key"] == result["root_public_key"], "it was done minutes ago"
    system.ctl("keys", "rotate", "--no-wait")
    with system.crowd(1) as crowd:
        crowd.wait_for_traffic()
        system.kill("master")
        system.kill("relay")
        system.start("relay")
        assert get_json(system.ops_url + "/health")["keys"]["serial"] >= result["serial"]
        assert crowd.present(crowd.all()) == Counter(ack=2), "a relay needs keys, not the master"
        crowd.wait_for_traffic()
    assert "root_key_moved" in system.log("relay")


def test_the_root_key_may_lie_with_the_operator_only(system: KeySystem) -> None:
    keys_dir, away = system.directory / "keys", system.directory / "away"
    away.mkdir(mode=0o700)
    (keys_dir / "root.key").rename(away / "root.key")
    assert system.ctl("keys", "rotate", code=2)["error"] == "no_root_key"
    signed = ("--root-key", str(away / "root.key"))
    before = list(system.statuses())
    rotated = system.ctl("keys", "rotate", *signed)
    assert rotated["active_kid"] not in before
    new_root = ("--new-root-key", str(away / "next.key"))
    moved = system.ctl("keys", "root", "rotate", *signed, *new_root)
    same = system.ctl("keys", "root", "rotate", *signed, *new_root)
    assert same["serial"] == moved["serial"], "the call whose answer got lost is not made twice"
    assert system.ctl("keys", "rotate", *signed, code=1)["error"] == "wrong_root"
    system.ctl("keys", "rotate", "--root-key", str(away / "next.key"))
    assert not (keys_dir / "root.key").exists(), "it never goes to the master"
    assert (away / "next.key").stat().st_mode & 0o777 == 0o600
