"""The load tests as an operator starts them: locust in processes of its own, against real services.

Runs that do not disturb each other go on at the same time, so that the module takes seconds.  Its
objectives are generous about time: these machines are shared, and the point is what is counted.
"""

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.needs import LONG
from support.paths import REPOSITORY
from support.system.system import RunningSystem, clean_environment, get_text, running_system
from support.system.tls import tls_proxy
from support.waiting import wait_until

pytestmark = pytest.mark.xdist_group("loadtest")

LOCUST = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
RELAXED = """
max_error_pct = 0
max_loss_pct = 0
max_reordered_pct = 5
max_send_late_p99_ms = 60000
[p99_ms]
"*" = 60000
"""
TIMEOUT_S = 90
USERS = ("RelayUser", "MasterUser", "GatewayUser", "SessionUser")
SHAPES = ("step", "spike", "soak") if LONG else ("step",)


@dataclass
class Run:
    """One process of locust and what it leaves."""

    directory: Path
    name: str
    process: "subprocess.Popen[str]"
    output: str = ""

    @classmethod
    def start(cls, directory: Path, name: str, *arguments: str, **environment: str) -> "Run":
        """Objectives and the deadline of frames leave time: these machines are crowded."""
        slo = directory / "relaxed.toml"
        slo.write_text(RELAXED)
        process = subprocess.Popen(
            [
                *LOCUST, "--only-summary", "--slo", str(slo), "--frame-deadline", "20",
                "--results", str(directory / f"{name}.json"),
                "--html", str(directory / f"{name}.html"),
                "--json-file", str(directory / f"{name}-locust"),  # adds .json
                *arguments,
            ],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean_environment(**environment),
        )  # fmt: skip
        return cls(directory, name, process)

    def end(self) -> "Run":
        """Wait for the end; what does not end is killed."""
        try:
            self.output = self.process.communicate(timeout=TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.output = self.process.communicate()[0]
            raise
        return self

    @property
    def status(self) -> int | None:
        return self.process.returncode

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / f"{self.name}.json").read_text())
        return found

    @property
    def html(self) -> str:
        return (self.directory / f"{self.name}.html").read_text()

    @property
    def locust_counts(self) -> dict[str, int]:
        """How often locust itself saw each kind of request."""
        rows = json.loads((self.directory / f"{self.name}-locust.json").read_text())
        return {f"{row['method']} {row['name']}": row["num_requests"] for row in rows}

    def broken(self) -> set[str]:
        return {check["name"] for check in self.document["checks"] if not check["ok"]}


@contextlib.contextmanager
def ended(runs: "dict[str, Run]") -> Iterator["dict[str, Run]"]:
    """Wait for several; none outlives the block."""
    try:
        for run in runs.values():
            run.end()
        yield runs
    finally:
        for run in runs.values():
            if run.process.poll() is None:
                run.process.kill()
                run.process.communicate()


def metric(url: str, name: str) -> float:
    """Sum of a metric over its labels."""
    lines = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", get_text(url + "/metrics"), re.MULTILINE)
    assert lines, name
    return sum(float(value) for value in lines)


@pytest.fixture(scope="module")
def relay_settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of the relay that a reload puts in force while it runs."""
    path = tmp_path_factory.mktemp("relay") / "relay.env"
    path.write_text("")
    return path


@pytest.fixture(scope="module")
def system(
    tmp_path_factory: pytest.TempPathFactory, relay_settings: Path
) -> Iterator[RunningSystem]:
    directory = tmp_path_factory.mktemp("system")
    settings = directory / "settings.env"
    raised = (REPOSITORY / "loadtest" / "raised-limits.env").read_text()
    settings.write_text(
        raised
        + f"WAVRY_RELAY_SETTINGS_FILE={relay_settings}\n"
        # Hashing passwords is not what is tested here.
        + "WAVRY_GATEWAY_ARGON2_MEMORY_KIB=1024\nWAVRY_GATEWAY_ARGON2_PASSES=1\n"
    )
    with running_system(directory / "dev", settings_file=settings) as running:
        yield running


@pytest.fixture(scope="module")
def user_runs(
    system: RunningSystem, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Run]]:
    directory = tmp_path_factory.mktemp("users")
    arguments = (
        "--wavry-dev", str(system.directory), "--users", "2", "--spawn-rate", "2",
        "--run-time", "5s", "--session-time", "2", "--renew-every", "0.7", "--pause", "0.1",
    )  # fmt: skip
    runs = {name: Run.start(directory, name, name, *arguments) for name in USERS}
    while runs["MasterUser"].process.poll() is None:
        SIMULATED_STATES.update(states_of_other_relays(system))
        time.sleep(0.2)
    with ended(runs):
        yield runs


SIMULATED_STATES: set[str] = set()
"""In which the master saw relays that are not real ones."""


def states_of_other_relays(system: RunningSystem) -> set[str]:
    token = Path(system.description["service_token_file"]).read_text().strip()
    request = urllib.request.Request(
        system.master_url + "/v1/relays", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        relays = json.load(response)["relays"]
    return {row["state"] for row in relays if row["relay_id"] != system.relay["relay_id"]}


REQUIRED = {
    "RelayUser": {
        "POST /v1/leases", "POST /v1/leases/renew", "UDP lease present", "UDP lease renew",
        "UDP frame one-way", "UDP frame round trip", "UDP session end",
    },
    "MasterUser": {
        "POST /v1/leases", "POST /v1/relays/register", "POST /v1/relays/heartbeat",
        "DELETE /v1/relays/{id}",
    },
    "GatewayUser": {
        "POST /auth/register", "POST /auth/login", "POST /auth/logout", "WS connect", "WS BIND",
        "WS OFFER", "WS ANSWER", "WS CANDIDATE", "WS BYE",
    },
    "SessionUser": {
        "POST /auth/register", "POST /auth/login", "WS BIND", "POST /v1/sessions", "WS OFFER",
        "WS ANSWER", "WS RELAY_CREDENTIALS", "UDP lease present", "E2E handshake",
        "E2E session setup", "UDP frame one-way", "UDP frame round trip", "UDP lease renew",
        "POST /v1/sessions/{id}/renew", "DELETE /v1/sessions/{id}", "WS BYE", "UDP session end",
    },
}  # fmt: skip


@pytest.mark.parametrize("user", USERS)
def test_a_user_does_its_work_without_a_failure(user: str, user_runs: dict[str, Run]) -> None:
    run = user_runs[user]
    assert run.status == 0, run.output
    assert "Traceback" not in run.output
    document = run.document
    assert document["ok"] is True
    assert document["load"]["users"] == [user]
    assert REQUIRED[user] <= document["requests"].keys()
    assert {row["failures"] for row in document["requests"].values()} == {0}
    assert document["duration_s"] >= 4
    assert document["machine"]["cores"] >= 1
    assert document["software"]["locust"]
    assert "frame one-way" in run.html or "POST" in run.html


@pytest.mark.parametrize("user", USERS)
def test_our_counts_are_those_of_locust(user: str, user_runs: dict[str, Run]) -> None:
    run = user_runs[user]
    ours = {kind: row["count"] for kind, row in run.document["requests"].items()}
    assert ours == run.locust_counts


@pytest.mark.parametrize("user", ["RelayUser", "SessionUser"])
def test_media_has_its_shape_and_arrives(user: str, user_runs: dict[str, Run]) -> None:
    document = user_runs[user].document
    media, requests = document["media"], document["requests"]
    frames = media["send_late"]["count"]
    assert media["received"] + media["lost"] == media["sent"]
    # Two users, sessions of 2 s with a pause of 0.1 s, 60 fps, in 5 s less set-up.
    assert frames > 100
    assert requests["UDP frame one-way"]["count"] == frames
    assert requests["UDP frame round trip"]["count"] <= frames
    # Each stream begins with a key frame of 16 datagrams, and has one a second; the others have 4.
    assert 4 * frames < media["sent"] <= 4 * frames + 12 * (frames / 60 + media["streams"])
    assert media["lost"] == media["duplicates"] == media["foreign"] == 0
    assert media["streams"] >= 3, "more than one session for a user"
    for row in (media["one_way"], requests["UDP frame round trip"]):
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
    # A frame's round trip goes on where its way ended.
    assert requests["UDP frame round trip"]["p50_ms"] >= requests["UDP frame one-way"]["p50_ms"]


def test_the_traffic_went_through_the_relay(
    system: RunningSystem, user_runs: dict[str, Run]
) -> None:
    forwarded = metric(system.relay["ops_url"], "wavry_relay_packets_forwarded_total")
    counted = sum(
        run.document["media"]["received"]
        + run.document["requests"].get("UDP frame round trip", {}).get("count", 0)
        for run in user_runs.values()
    )
    assert counted > 1000
    assert forwarded >= counted


def test_a_simulated_relay_is_never_given_to_anybody_and_goes_at_the_end(
    system: RunningSystem, user_runs: dict[str, Run]
) -> None:
    """An ACTIVE one would draw users of the system to an address where nothing is."""
    assert user_runs["MasterUser"].status == 0
    assert {"NEW"} == SIMULATED_STATES
    assert states_of_other_relays(system) == set()


def test_no_secret_is_left_in_results_or_output(
    system: RunningSystem, user_runs: dict[str, Run]
) -> None:
    token = Path(system.description["service_token_file"]).read_text().strip()
    for run in user_runs.values():
        for text in (run.output, run.html, json.dumps(run.document)):
            assert token not in text
            assert "v4.public." not in text


# -- What the documents promise ------------------------------------------------------------


def test_every_locust_command_of_the_documents_is_understood() -> None:
    documents = [REPOSITORY / "README.md", REPOSITORY / "docs" / "load-testing.md"]
    lines = [
        line
        for document in documents
        for line in document.read_text().splitlines()
        if line.startswith("locust ")
    ]
    assert len(lines) >= 12
    shown = "".join(
        subprocess.check_output([sys.executable, "-m", *command], cwd=REPOSITORY, text=True)
        for command in (["locust", "--help"], ["loadtest.run.options"])
    )
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown))
    for line in lines:
        words = line.split()
        options = {word for word in words if word.startswith("-")}
        assert options <= known, line
        assert set(words) & {*USERS}, line
    for document in documents:
        named = set(re.findall(r"`(--[a-z][a-z-]*)", document.read_text()))
        assert named <= known | {"--settings-file"}, document


def test_the_script_of_make_load_runs_a_system_and_ends_it(tmp_path: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "loadtest/run-load" in makefile
    output = tmp_path / "out" / "load"
    done = subprocess.run(
        [REPOSITORY / "loadtest" / "run-load"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=clean_environment(
            BIN=str(Path(sys.executable).parent),
            LOAD_USERS="1",
            LOAD_TIME="3s",
            LOAD_OUTPUT=str(output),
            TMPDIR=str(tmp_path),
        ),
    )
    document = json.loads(output.with_suffix(".json").read_text())
    # With the objectives that are shipped, which a crowded machine may break.
    assert done.returncode == (0 if document["ok"] else 1), done.stdout + done.stderr
    assert document["load"]["users"] == ["SessionUser"]
    assert document["requests"]["POST /auth/register"]["count"] == 2
    assert output.with_suffix(".html").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "its directory is gone"


# -- Shapes, several processes, objectives -------------------------------------------------


@pytest.fixture(scope="module")
def shape_runs(
    system: RunningSystem,
    user_runs: dict[str, Run],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Run]]:
    directory = tmp_path_factory.mktemp("shapes")
    strict = directory / "strict.toml"
    strict.write_text(RELAXED.replace('"*" = 60000', '"UDP frame one-way" = 0.001'))
    dev = ("RelayUser", "--wavry-dev", str(system.directory), "--fps", "30")
    runs = {
        shape: Run.start(
            directory, shape, *dev, "--shape", shape, "--users", "3", "--steps", "3", "-t", "6s"
        )
        for shape in SHAPES
    }
    runs["processes"] = Run.start(
        directory, "processes", *dev, "-u", "2", "-r", "2", "-t", "4s", "--processes", "2"
    )
    runs["churn"] = Run.start(
        directory, "churn", *dev, "-u", "10", "-r", "100", "-t", "3s", "--session-time", "0.1",
        "--pause", "0",
    )  # fmt: skip
    runs["breach"] = Run.start(
        directory, "breach", *dev, "-u", "1", "-t", "2s", "--slo", str(strict)
    )
    with ended(runs):
        yield runs


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_runs_to_its_end(shape: str, shape_runs: dict[str, Run]) -> None:
    run = shape_runs[shape]
    assert run.status == 0, run.output
    document = run.document
    assert document["load"]["shape"] == shape
    users = [moment["users"] for moment in document["timeline"]]
    assert max(users) == 3
    assert 5 <= document["duration_s"] < 30
    if shape == "step":
        assert users[0] == 1
        assert users == sorted(users)
        assert set(users) == {1, 2, 3}
    if shape == "spike":
        assert users[0] == users[-1] == 1
    if shape == "soak":
        assert users[-1] == 3
    assert any(moment["frames_per_s"] > 20 for moment in document["timeline"])
    assert document["media"]["lost"] == 0


def test_several_processes_are_one_run(shape_runs: dict[str, Run]) -> None:
    run = shape_runs["processes"]
    assert run.status == 0, run.output
    assert "Traceback" not in run.output
    document = run.document
    assert document["load"]["processes"] == 2
    frames = document["requests"]["UDP frame one-way"]["count"]
    assert document["media"]["send_late"]["count"] == frames
    assert frames > 60
    assert document["media"]["received"] == document["media"]["sent"]
    ours = {kind: row["count"] for kind, row in document["requests"].items()}
    # On a crowded machine locust does not wait for the last report of each process.
    assert ours.keys() == run.locust_counts.keys()
    for kind, count in run.locust_counts.items():
        assert count * 0.8 - 3 <= ours[kind] <= count * 1.25 + 3, (kind, ours, run.locust_counts)


def test_a_run_that_ends_while_sessions_end_leaves_nothing_out(shape_runs: dict[str, Run]) -> None:
    """Sessions of 0.1 s: some are always just closing when locust stops their users."""
    run = shape_runs["churn"]
    assert run.status == 0, run.output
    document = run.document
    media, requests = document["media"], document["requests"]
    assert media["streams"] == requests["UDP session end"]["count"] > 20
    assert media["received"] + media["lost"] == media["sent"] > 100
    assert requests["UDP frame one-way"]["count"] == media["send_late"]["count"]


def test_a_broken_objective_ends_with_status_1_and_is_named(shape_runs: dict[str, Run]) -> None:
    run = shape_runs["breach"]
    assert run.status == 1, run.output
    assert run.document["ok"] is False
    assert run.broken() == {"UDP frame one-way p99"}
    assert "BROKEN: UDP frame one-way p99" in run.output
    assert "limit 0.001 ms" in run.output
    assert run.html


# -- A remote deployment, and how a run can end --------------------------------------------


@pytest.fixture(scope="module")
def other_runs(
    system: RunningSystem,
    shape_runs: dict[str, Run],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Run]]:
    directory = tmp_path_factory.mktemp("others")
    wrong = directory / "wrong.token"
    wrong.touch(mode=0o600)
    wrong.write_text("w" * 40)
    authority = trustme.CA()
    roots = directory / "roots.pem"
    authority.cert_pem.write_to_path(str(roots))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    token = str(system.description["service_token_file"])
    with (
        tls_proxy(context, system.gateway_url) as gateway,
        tls_proxy(context, system.master_url) as master,
    ):
        remote = ("--wavry-gateway-url", gateway, "--wavry-master-url", master)
        short = ("-u", "1", "-t", "4s", "--session-time", "1.5", "--pause", "0.1")
        dev = ("--wavry-dev", str(system.directory))
        runs = {
            "remote": Run.start(
                directory, "remote", "RelayUser", "SessionUser", *remote, *short,
                "--users", "2", "--spawn-rate", "2", "--wavry-relay", system.relay["relay_id"],
                "--wavry-service-token-file", token, SSL_CERT_FILE=str(roots),
            ),
            "variables": Run.start(
                directory, "variables", "MasterUser", *short, SSL_CERT_FILE=str(roots),
                WAVRY_MASTER_URL=master, WAVRY_SERVICE_TOKEN_FILE=token,
            ),
            "unreachable": Run.start(
                directory, "unreachable", "GatewayUser", *short,
                "--wavry-gateway-url", "http://127.0.0.1:9",
            ),
            "usage": Run.start(directory, "usage", *dev, "--fps", "0"),
        }  # fmt: skip
        if LONG:
            runs |= {
                "untrusted": Run.start(directory, "untrusted", "GatewayUser", *remote, *short),
                "forbidden": Run.start(
                    directory, "forbidden", "MasterUser", "--wavry-service-token-file", str(wrong),
                    "--wavry-master-url", system.master_url, *short,
                ),
            }  # fmt: skip
        with ended(runs):
            yield runs


def test_a_remote_deployment_over_tls(other_runs: dict[str, Run], system: RunningSystem) -> None:
    for name in ("remote", "variables"):
        run = other_runs[name]
        assert run.status == 0, run.output
        target = run.document["target"]
        assert target["kind"] == "remote"
        assert target["master_url"].startswith("https://")
    requests = other_runs["remote"].document["requests"]
    assert requests["E2E session setup"]["failures"] == 0
    assert requests["UDP frame one-way"]["count"] > 60
    assert other_runs["remote"].document["target"]["relay"] == system.relay["relay_id"]
    assert other_runs["variables"].document["requests"]["POST /v1/relays/heartbeat"]["count"] > 0


REFUSED = [
    ("unreachable", 3, "Connection refused); check the address"),
    ("usage", 2, "--fps must be"),
]
REFUSED_LONG = [
    ("untrusted", 3, "certificate verify failed"),
    ("forbidden", 4, "does not take the service token"),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "status", "text"), REFUSED + REFUSED_LONG if LONG else REFUSED)
def test_what_cannot_run_says_so_at_once(
    name: str, status: int, text: str, other_runs: dict[str, Run]
) -> None:
    run = other_runs[name]
    assert run.status == status, run.output
    assert text in run.output
    assert "Traceback" not in run.output
    assert not (run.directory / f"{name}.json").exists()


@pytest.mark.parametrize(
    ("shape", "number"), [("soak", signal.SIGTERM), ("constant", signal.SIGINT)]
)
def test_a_run_that_is_stopped_closes_its_sessions_and_gives_its_verdict(
    shape: str,
    number: signal.Signals,
    system: RunningSystem,
    other_runs: dict[str, Run],
    tmp_path: Path,
) -> None:
    ops_url = system.relay["ops_url"]
    before = Places.now(ops_url)
    run = Run.start(
        tmp_path, "stopped", "SessionUser", "--wavry-dev", str(system.directory),
        "--shape", shape, "--users", "2", "--spawn-rate", "2", "--run-time", "60s",
    )  # fmt: skip
    try:
        wait_until(lambda: Places.now(ops_url).taken == before.taken + 2, what="both sessions")
        sent = metric(ops_url, "wavry_relay_packets_forwarded_total")
        wait_until(
            lambda: metric(ops_url, "wavry_relay_packets_forwarded_total") > sent + 300,
            what="media",
        )
        os.kill(run.process.pid, number)
        began_s = time.monotonic()
    finally:
        run.end()
    assert time.monotonic() - began_s < 30, "long before its 60 s were over"
    assert run.status == 0, run.output
    assert run.document["requests"]["UDP session end"]["count"] == 2
    assert run.document["media"]["lost"] == 0
    wait_until(
        lambda: Places.now(ops_url).given_back >= before.given_back + 4,
        what="both places of both sessions are given back",
    )
    gateway = system.gateway_url
    wait_until(lambda: metric(gateway, "wavry_gateway_users_online") == 0, what="all are offline")


@dataclass
class Places:
    """Sessions that a relay has taken, and places in them that peers gave back.

    A peer gives its place back with one datagram.  A worker drops it, and counts that, when another
    one was stopped in the middle of a record, as happens on a crowded machine.
    """

    taken: float
    given_back: float

    @classmethod
    def now(cls, ops_url: str) -> "Places":
        text = get_text(ops_url + "/metrics")
        busy = re.findall(r'wavry_relay_packets_dropped_total{reason="lock_busy"} (\S+)', text)
        assert len(busy) == 1
        released = metric(ops_url, "wavry_relay_leases_released_total")
        return cls(
            metric(ops_url, "wavry_relay_sessions_activated_total"), released + float(busy[0])
        )


# -- Loss that is really there (last: it changes the relay) --------------------------------


def test_a_relay_that_drops_packets_breaks_the_objective_for_loss(
    system: RunningSystem, relay_settings: Path, other_runs: dict[str, Run], tmp_path: Path
) -> None:
    ops_url = system.relay["ops_url"]

    def reload(text: str) -> None:
        before = metric(ops_url, "wavry_relay_reloads_total")
        relay_settings.write_text(text)
        os.kill(system.relay["pid"], signal.SIGHUP)
        wait_until(lambda: metric(ops_url, "wavry_relay_reloads_total") > before, what="the reload")

    reload("WAVRY_RELAY_SESSION_KBPS=1200\n")
    try:
        run = Run.start(
            tmp_path, "lossy", "RelayUser", "--wavry-dev", str(system.directory),
            "-u", "1", "-t", "4s", "--frame-deadline", "1",
        ).end()  # fmt: skip
    finally:
        reload("")
    assert run.status == 1, run.output
    media = run.document["media"]
    # Half of 2218 kbit/s fits, less what the burst lets through.
    assert 15 < media["loss_pct"] < 80
    assert media["received"] + media["lost"] == media["sent"]
    frames = run.document["requests"]["UDP frame one-way"]
    assert frames["failures"] > 10
    assert "frame not whole in time" in frames["reasons"]
    assert {"media loss", "UDP frame one-way errors"} <= run.broken()
    assert "BROKEN: media loss" in run.output
