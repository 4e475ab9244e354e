"""The shipped units on a real systemd, installed by the commands of docs/systemd.md.

One machine for the module; each test leaves all services running.
"""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from support.machines.systemd import PROGRAMS, Machine, not_allowed
from support.needs import need_program
from support.paths import REPOSITORY
from support.waiting import wait_until

from wavry_peer.protocol import stun

GUIDE = (REPOSITORY / "docs" / "systemd.md").read_text()
RELAY, MASTER, GATEWAY, PEER = (
    f"wavry-{role}.service" for role in ("relay", "master", "gateway", "peer")
)
ALL = (MASTER, GATEWAY, RELAY, PEER)
PASSWORD = "correct horse battery"
OPS = "http://127.0.0.1:4501"


def commands(section: str) -> list[str]:
    """Shell blocks of a section of the guide."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## )", GUIDE, re.DOTALL | re.MULTILINE)
    assert text is not None
    return re.findall(r"```sh\n(.*?)```", text[1], re.DOTALL)


def shell(machine: Machine, script: str) -> str:
    return machine.run("sh", "-euc", script)


def change(machine: Machine, path: str, *pairs: tuple[str, str]) -> None:
    file = machine.path(path)
    text = file.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    need_program(*PROGRAMS)
    if reason := not_allowed():
        pytest.skip(reason)
    with Machine(tmp_path_factory.mktemp("machine")) as made:
        install(made)
        yield made
        # A machine that is switched off takes no leave: the relay's shared memory would stay.
        made.run("systemctl", "stop", "wavry-relay.socket", RELAY)


def install(machine: Machine) -> None:
    """As the guide says; the addresses are this machine's, and the watchdogs quick."""
    for unit in (GATEWAY, RELAY):
        directory = machine.path(f"/etc/systemd/system/{unit}.d")
        directory.mkdir(parents=True)
        (directory / "test.conf").write_text("[Service]\nWatchdogSec=4\n")
    (master,) = commands("Master")
    said = shell(machine, master)
    root = re.search(r"WAVRY_RELAY_ROOT_KEY=(\S+)", said)
    assert root is not None
    (gateway,) = commands("Gateway")
    shell(machine, gateway)
    files, start = commands("Relay")
    with machine.path("/etc/wavry/master.env").open("a") as settings:
        settings.write("WAVRY_MASTER_PRIVATE_ENDPOINTS=1\n")
    shell(machine, f"systemctl restart {MASTER}")
    made = machine.run(
        "/opt/wavry/bin/wavryctl",
        *("--master-url", "http://127.0.0.1:8091"),
        *("--admin-token-file", "/etc/wavry/credentials/admin-token"),
        *("relays", "enrol", "--name", "relay-1", "--region", "eu-central"),
    )
    token = re.search(r"wve_\S+", made)
    assert token is not None, made
    files = files.replace("ROOT_PUBLIC_KEY", root[1])
    shell(machine, files.replace("ENROLMENT_TOKEN", token[0]))
    change(
        machine,
        "/etc/wavry/relay.conf",
        ("https://master.example.net", "http://127.0.0.1:8091"),
        ("203.0.113.7:4500,[2001:db8::7]:4500", "127.0.0.1:4500"),
        ("DRAIN_TIMEOUT_S=30", "DRAIN_TIMEOUT_S=3"),
    )
    shell(machine, start)
    (peer,) = commands("Peer")
    machine.path("/etc/wavry/credentials/peer-password").write_text(PASSWORD + "\n")
    machine.path("/etc/wavry/credentials/peer-password").chmod(0o600)
    for name in ("alice", "bob"):
        alice(machine, "register", name)
    files, _, start = peer.partition("systemctl daemon-reload")
    shell(machine, files)
    change(
        machine,
        "/etc/wavry/peer.env",
        ("https://gateway.example.net", "http://127.0.0.1:8090"),
    )
    shell(machine, "systemctl daemon-reload" + start)
    wait_until(lambda: is_ready(machine), what="a relay that is ready")


def alice_words(*words: str) -> tuple[str, ...]:
    return ("wavry-peer", *words, "--password-file", "/etc/wavry/credentials/peer-password")


ALICE = {"WAVRY_GATEWAY_URL": "http://127.0.0.1:8090", "WAVRY_PEER_HOME": "/run/alice"}


def alice(machine: Machine, *words: str) -> str:
    return machine.run(*alice_words(*words), **ALICE)


def answers(machine: Machine, name: str) -> bool:
    """Whether a user answers one ping of alice's."""
    words = alice_words("ping", name, "--as", "alice", "--count", "1", "--json")
    process = machine.start(*words, **ALICE)
    process.communicate(timeout=60)
    return process.returncode == 0


class Ping:
    """Alice pings bob, a hundred times a second, until she is told to stop."""

    def __init__(self, machine: Machine) -> None:
        # An earlier test may have restarted what bob is connected to; he comes back by himself.
        wait_until(lambda: answers(machine, "bob"), what="bob online")
        words = alice_words("ping", "bob", "--as", "alice", "--count", "100000", "--json")
        self.process = machine.start(*words, "--interval", "0.01", **ALICE)
        self.replies = 0

    def wait_for_more(self, count: int) -> None:
        assert self.process.stdout is not None  # for the type checker
        end = self.replies + count
        while self.replies < end:
            line = self.process.stdout.readline()
            assert line, "ping has ended"
            event = json.loads(line)
            assert event["event"] == "reply", event
            assert event["number"] == self.replies, "a datagram was lost"
            self.replies += 1

    def __enter__(self) -> Self:
        try:
            self.wait_for_more(10)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


def is_ready(machine: Machine) -> bool:
    return machine.get(f"{OPS}/ready") is not None


def relay_runs(machine: Machine) -> bool:
    return machine.show(RELAY)["ActiveState"] == "active" and is_ready(machine)


# -- It runs ---------------------------------------------------------------------------------------


def test_every_service_runs_and_says_what_it_does(machine: Machine) -> None:
    shown = {unit: machine.show(unit) for unit in ALL}
    assert {unit: state["ActiveState"] for unit, state in shown.items()} == dict.fromkeys(
        ALL, "active"
    )
    assert shown[MASTER]["StatusText"] == "Serving http://127.0.0.1:8091"
    assert shown[GATEWAY]["StatusText"] == "Serving http://127.0.0.1:8090"
    assert shown[RELAY]["StatusText"] == "Serving 0.0.0.0:4500, [::]:4500 with 2 workers"
    assert {state["NRestarts"] for state in shown.values()} == {"0"}
    for unit in ALL:
        log = machine.log(unit)
        assert '"level": "error"' not in log
        assert '"level": "warning"' not in log, "also no small buffers, no shared sockets"
        assert "Traceback" not in log


@pytest.mark.parametrize("unit", ALL)
def test_a_service_has_no_rights(machine: Machine, unit: str) -> None:
    pid = machine.show(unit)["MainPID"]
    status = machine.run("cat", f"/proc/{pid}/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in facts["Uid"].split()
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(facts[kind], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"


@pytest.mark.parametrize("unit", ALL)
def test_secrets_are_in_no_environment(machine: Machine, unit: str) -> None:
    pid = machine.show(unit)["MainPID"]
    environment = machine.path(f"/proc/{pid}/environ").read_text()
    secrets = [
        path.read_text().strip()
        for path in machine.path("/etc/wavry/credentials").iterdir()
        if path.name != "root-key"
    ]
    assert len(secrets) == 4
    assert not [secret for secret in secrets if secret in environment]


@pytest.mark.parametrize("port", [8090, 8091])
def test_sandbox_does_not_falsify_the_metrics_of_the_process(machine: Machine, port: int) -> None:
    """The client library reads /proc for them, where the sandbox leaves it."""
    text = machine.text(f"http://127.0.0.1:{port}/metrics")
    started = re.search(r"^process_start_time_seconds (\S+)$", text, re.MULTILINE)
    assert started is not None, text
    assert 0 < time.time() - float(started[1]) < 3600


def test_a_call_goes_through_the_relay(machine: Machine) -> None:
    with Ping(machine):
        # The master's own session may be there for a moment, too.
        wait_until(
            lambda: machine.get(f"{OPS}/health")["sessions"]["active"] == 1, what="one session"
        )


# -- Reload, upgrade -------------------------------------------------------------------------------


def test_reload_puts_settings_in_force_and_refuses_wrong_ones(machine: Machine) -> None:
    conf = machine.path("/etc/wavry/relay.conf")
    before, pid = conf.read_text(), machine.show(RELAY)["MainPID"]
    conf.write_text(before + "WAVRY_RELAY_MAX_PPS=1000000\n")
    machine.run("systemctl", "reload", RELAY)
    assert machine.show(RELAY)["StatusText"].endswith("last reload: applied")
    conf.write_text(before + "WAVRY_RELAY_MAX_PPS=many\n")
    said = machine.run("systemctl", "reload", RELAY, check=False)
    assert "failed" in said
    conf.write_text(before)
    machine.run("systemctl", "reload", RELAY)
    shown = machine.show(RELAY)
    assert (shown["ActiveState"], shown["MainPID"], shown["NRestarts"]) == ("active", pid, "0")


def test_hot_upgrade_keeps_the_unit_the_sockets_and_the_session(machine: Machine) -> None:
    before = machine.show(RELAY)
    with Ping(machine) as ping:
        outcome = json.loads(machine.run("wavryctl", "relay", "upgrade", "--json"))
        wait_until(
            lambda: machine.show(RELAY)["MainPID"] != before["MainPID"], what="new main process"
        )
        assert machine.show(RELAY)["MainPID"] == str(outcome["pid"])
        ping.wait_for_more(50)
    after = machine.show(RELAY)
    assert after["ActiveState"] == "active"
    assert (after["NRestarts"], after["InvocationID"]) == ("0", before["InvocationID"])
    # Longer than WatchdogSec=: the successor feeds it, and systemd believes it.
    stamp = after["WatchdogTimestampMonotonic"]
    wait_until(
        lambda: int(machine.show(RELAY)["WatchdogTimestampMonotonic"]) > int(stamp) + 2_500_000,
        what="watchdog fed by the successor",
    )
    assert machine.show(RELAY)["MainPID"] == after["MainPID"]


# -- Trouble ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [RELAY, GATEWAY])
def test_a_service_that_hangs_is_restarted(machine: Machine, unit: str) -> None:
    before = machine.show(unit)
    machine.run("systemctl", "kill", "--kill-who=main", "--signal=STOP", unit)

    def is_back() -> bool:
        shown = machine.show(unit)
        return shown["NRestarts"] > before["NRestarts"] and shown["ActiveState"] == "active"

    wait_until(is_back, what="restart by the watchdog")
    assert machine.show(unit)["MainPID"] != before["MainPID"]
    wait_until(lambda: relay_runs(machine), what="relay")


def test_a_killed_relay_comes_back_on_the_same_sockets(machine: Machine) -> None:
    before = machine.show(RELAY)
    machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", RELAY)
    wait_until(
        lambda: (
            machine.show(RELAY)["MainPID"] not in ("0", before["MainPID"]) and relay_runs(machine)
        ),
        what="restart",
    )
    assert machine.show("wavry-relay.socket")["SubState"] == "running"
    with Ping(machine):
        pass


def test_a_wrong_setting_stops_the_restarts(machine: Machine) -> None:
    conf = machine.path("/etc/wavry/relay.conf")
    before = conf.read_text()
    conf.write_text(before + "WAVRY_RELAY_WORKERS=several\n")
    machine.run("systemctl", "restart", RELAY, check=False)
    shown = machine.show(RELAY)
    assert (shown["ActiveState"], shown["ExecMainStatus"]) == ("failed", "2")
    assert "WAVRY_RELAY_WORKERS must be a whole number" in machine.log(RELAY)
    conf.write_text(before)
    machine.run("systemctl", "start", RELAY)
    wait_until(lambda: relay_runs(machine), what="relay")


# -- Stop, start -----------------------------------------------------------------------------------


def test_a_stop_drains_and_the_next_datagram_starts_the_relay(machine: Machine) -> None:
    with Ping(machine):
        stopping = machine.start("systemctl", "stop", "wavry-relay.socket", RELAY)
        wait_until(
            lambda: machine.show(RELAY)["StatusText"] == "Draining: 1 sessions left",
            what="drain in the status",
        )
        assert machine.show(RELAY)["ActiveState"] == "deactivating"
        said, _ = stopping.communicate(timeout=30)
        assert stopping.returncode == 0, said
    shown = machine.show(RELAY)
    assert (shown["ActiveState"], shown["Result"], shown["ExecMainStatus"]) == (
        "inactive", "success", "0",
    )  # fmt: skip
    # From here on a late datagram of the peers may start it, too.
    machine.run("systemctl", "start", "wavry-relay.socket")
    with machine.network.entered():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(20)
        asking.sendto(stun.build_binding_request(os.urandom(12)), ("127.0.0.1", 4500))
        answer = asking.recv(2048)  # It waited in the socket for the relay.
    assert answer[:2] == b"\x01\x01"
    wait_until(lambda: relay_runs(machine), what="relay")


@pytest.mark.parametrize("unit", [PEER, GATEWAY, MASTER])
def test_a_stop_is_clean(machine: Machine, unit: str) -> None:
    machine.run("systemctl", "stop", unit)
    shown = machine.show(unit)
    assert (shown["ActiveState"], shown["Result"]) == ("inactive", "success")
    machine.run("systemctl", "start", unit)
    assert machine.show(unit)["ActiveState"] == "active"


def test_nothing_of_the_machine_is_seen_outside(machine: Machine) -> None:
    for path in ("/etc/wavry", "/opt/wavry", "/var/lib/wavry-master"):
        assert machine.path(path).exists()
        assert not Path(path).exists()
    assert subprocess.run(["id", "wavry-master"], capture_output=True, check=False).returncode
