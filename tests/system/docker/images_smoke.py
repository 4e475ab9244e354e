"""The images at work, as compose.yml confines them; ``make images-smoke`` runs this file.

master, gateway, relay and two peers run in containers with a read-only root, without capabilities
and without root, in a network namespace in which every address of compose.yml is loopback's.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.machines.containers import (
    ROLES,
    USER,
    compose,
    limit_options,
    podman_options,
    role_of,
    stages,
    volumes_of,
)
from support.machines.namespaces import Namespace
from support.machines.podman import Podman, store_in_use
from support.paths import REPOSITORY
from support.waiting import wait_until

UID = int(USER.partition(":")[0])
OPS_ADDRESS = "10.85.91.5"
FRONT_ADDRESS = "10.85.90.5"
RELAY_ADDRESS = "198.18.0.1"
GATEWAY_URL = "http://127.0.0.1:8090"
FILE_BYTES = 3_000_000


pytestmark = pytest.mark.usefixtures("images")


class Containers:
    """The services of compose.yml, and peers confined in the same way."""

    def __init__(self, podman: Podman, namespace: Namespace, directory: Path) -> None:
        self.podman = podman
        self.namespace = namespace
        self.directory = directory
        sizes = json.loads((REPOSITORY / "build/images.json").read_text())
        self.images = {role: sizes[role]["image"] for role in ROLES}
        self.version = self.images["relay"].rpartition(":")[2]
        self.secrets = directory / "secrets"
        self.secrets.mkdir()
        for name in ("service_token", "admin_token", "password"):
            self._secret(name, secrets.token_urlsafe(32))
        self._secret("enrolment_token", "")
        self.root_key = ""

    def _secret(self, name: str, text: str) -> None:
        path = self.secrets / name
        path.touch(mode=0o600)
        path.write_text(text + "\n")
        os.chown(path, UID, UID)

    def service(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = compose(
            WAVRY_VERSION=self.version,
            WAVRY_RELAY_ADVERTISE=f"{RELAY_ADDRESS}:4500",
            WAVRY_RELAY_ROOT_KEY=self.root_key,
        )["services"][name]
        return found

    def options(self, name: str) -> list[str]:
        options = podman_options(
            self.service(name), secrets=self.secrets, volume_prefix=f"{self.podman.prefix}-"
        )
        # Its addresses are this machine's own.
        private = ["--env", "WAVRY_MASTER_PRIVATE_ENDPOINTS=1"] if name == "master" else []
        return [*options, *private]

    def enrol_relay(self) -> None:
        """As docs/containers.md says, with the master that runs."""
        made = self.podman.run_in(
            "master", "wavryctl", "--master-url", "http://127.0.0.1:8091",
            "--admin-token-file", "/run/secrets/admin_token", "relays", "enrol",
            "--name", "relay-1",
        )  # fmt: skip
        self._secret("enrolment_token", made.stdout.strip())

    def make_keys(self) -> None:
        """The service ``keys`` of compose.yml."""
        service = self.service("keys")
        printed = self.podman.once(
            "keys", self.images["master"], *self.options("keys"), words=tuple(service["command"])
        )
        match = re.search(r"WAVRY_RELAY_ROOT_KEY=(\S+)", printed)
        assert match is not None, printed
        self.root_key = match[1]

    def start(self, name: str) -> None:
        """Start a service, and wait until its own health check is content."""
        role = role_of(self.service(name))
        assert role is not None
        self.podman.start(name, self.images[role], *self.options(name))
        self.wait(name, lambda: self.podman.health(name) == 0, "healthy")

    def wait(self, name: str, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(condition, timeout_s=60, what=f"{name} {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.podman.log(name)}") from error

    def peer_options(self, user: str) -> list[str]:
        """As any service of compose.yml; the relay's, without what is the relay's own."""
        model = {
            key: value
            for key, value in self.service("gateway").items()
            if key not in ("environment", "secrets", "volumes")
        }
        return [
            *podman_options(model),
            "--volume", f"{self.podman.prefix}-{user}:/var/lib/wavry",
            "--volume", f"{self.secrets / 'password'}:/run/secrets/password:ro",
            "--env", f"WAVRY_GATEWAY_URL={GATEWAY_URL}",
        ]  # fmt: skip

    def peer(self, user: str, *words: str, extra: tuple[str, ...] = ()) -> str:
        """One command of a peer, to its good end."""
        return self.podman.once(
            f"{user}-{words[0]}", self.images["peer"], *self.peer_options(user), *extra, words=words
        )

    def get(self, address: str, path: str) -> tuple[int, bytes]:
        """Ask a service from inside the namespace; the source address is that of the target."""
        with self.namespace.entered():
            try:
                with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()

    def relay_health(self) -> dict[str, Any]:
        status, raw = self.get("127.0.0.1:4501", "/health")
        assert status == 200
        body: dict[str, Any] = json.loads(raw)
        return body


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    directory = tmp_path_factory.mktemp("containers")
    directory.chmod(0o755)  # The containers' user must reach the files in it.
    with store_in_use(), Namespace() as namespace, contextlib.ExitStack() as cleanup:
        for address in (OPS_ADDRESS, FRONT_ADDRESS, RELAY_ADDRESS):
            namespace.ip(f"address add {address}/32 dev lo")
        podman = Podman(namespace, f"wavry-test-{os.getpid()}", OPS_ADDRESS)
        cleanup.callback(podman.close)
        containers = Containers(podman, namespace, directory)
        containers.make_keys()
        for name in ("master", "gateway"):
            containers.start(name)
        containers.enrol_relay()
        containers.start("relay")
        containers.wait(
            "relay",
            lambda: podman.run_in("relay", "wavry-relay", "health", "--ready", check=False)
            .returncode == 0,
            "ready",
        )  # fmt: skip
        for user in ("alice", "bob"):
            for word in ("register", "login"):
                containers.peer(user, word, user, "--password-file", "/run/secrets/password")
        yield containers


@pytest.mark.parametrize("name", ["master", "gateway", "relay"])
def test_services_have_no_root_no_capability_and_no_writable_root(
    system: Containers, name: str
) -> None:
    told = system.podman.run_in(name, "cat", "/proc/1/status").stdout
    facts = dict(line.split(":", 1) for line in told.splitlines())
    assert facts["Uid"].split() == [str(UID)] * 4
    assert {facts[f"Cap{kind}"].strip("\t 0") for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {
        ""
    }
    assert facts["NoNewPrivs"].strip() == "1"
    root = system.podman.run_in(name, "sh", "-c", "touch /x /opt/wavry/x /etc/x", check=False)
    assert root.stderr.count("Read-only file system") == 3
    system.podman.run_in(name, "sh", "-c", "touch /var/lib/wavry/.x && rm /var/lib/wavry/.x")


def test_two_peers_send_data_through_the_relay(system: Containers) -> None:
    relay = system.relay_health()
    assert relay["engine"] == {"name": "native", "pure_python": False}
    assert relay["workers"]["running"] == relay["workers"]["wanted"] >= 1

    outbox, inbox = system.directory / "outbox", system.directory / "inbox"
    for path in (outbox, inbox):
        path.mkdir()
        os.chown(path, UID, UID)
    content = secrets.token_bytes(FILE_BYTES)
    (outbox / "photo.bin").write_bytes(content)
    os.chown(outbox / "photo.bin", UID, UID)

    system.podman.start(
        "bob", system.images["peer"], *system.peer_options("bob"), "--volume", f"{inbox}:/inbox",
        words=("receive", "--from", "alice", "--directory", "/inbox", "--keep", "--json"),
    )  # fmt: skip
    system.wait("bob", lambda: '"listening"' in system.podman.log("bob"), "listens")
    assert system.podman.health("bob") == 0
    told = system.peer(
        "alice", "send", "/outbox/photo.bin", "--to", "bob", "--json",
        extra=("--volume", f"{outbox}:/outbox:ro"),
    )  # fmt: skip
    sent = json.loads(told.splitlines()[-1])
    assert sent["event"] == "sent"
    assert sent["statistics"]["path"] == f"relay {relay['relay_id']}"
    arrived = (inbox / "photo.bin").read_bytes()
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(content).digest()
    status, raw = system.get(f"{OPS_ADDRESS}:4501", "/metrics")
    assert status == 200
    forwarded = re.search(r"^wavry_relay_bytes_forwarded_total(?:\{[^}]*\})? (\S+)", raw.decode(),
                          re.MULTILINE)  # fmt: skip
    assert forwarded is not None
    assert float(forwarded[1]) > FILE_BYTES


def test_the_command_of_the_guide_shows_every_service(system: Containers) -> None:
    guide = (REPOSITORY / "docs/containers.md").read_text()
    wanted = r"^docker compose exec master (wavryctl .+ status)$"
    (command,) = re.findall(wanted, guide, re.MULTILINE)
    shown = system.podman.run_in("master", *command.split(), "--json")
    found = json.loads(shown.stdout)
    assert found["ok"] is True
    states = {row["service"]: row["state"] for row in found["services"]}
    assert states == {"gateway": "ready", "master": "ready", "relay": "active"}


def test_metrics_answer_the_inner_network_and_nobody_else(system: Containers) -> None:
    for port in (8090, 8091):
        assert system.get(f"{OPS_ADDRESS}:{port}", "/metrics")[0] == 200
        for address in (FRONT_ADDRESS, RELAY_ADDRESS):
            status, body = system.get(f"{address}:{port}", "/metrics")
            assert status in (401, 403)
            assert b"wavry_" not in body


def test_prometheus_scrapes_every_service(system: Containers) -> None:
    """Debian's own server in a container confined as compose.yml says, for want of its image."""
    service = system.service("prometheus")
    configuration, data = [target for _, target, _ in volumes_of(service)]
    store = system.directory / "prometheus"
    store.mkdir()
    uid, gid = map(int, service["user"].split(":"))
    os.chown(store, uid, gid)
    system.podman.start(
        "prometheus", system.images["peer"],
        *podman_options({**service, "volumes": []}),
        "--volume", f"{REPOSITORY / 'docker/prometheus'}:{configuration}:ro",
        "--volume", f"{store}:{data}",
        "--volume", f"{shutil.which('prometheus')}:/usr/bin/prometheus:ro",
        "--entrypoint", "prometheus",
        words=tuple(service["command"]),
    )  # fmt: skip

    def states() -> dict[str, str]:
        try:
            status, raw = system.get("127.0.0.1:9090", "/api/v1/targets")
        except OSError:
            return {}
        targets = json.loads(raw)["data"]["activeTargets"] if status == 200 else []
        return {target["discoveredLabels"]["__address__"]: target["health"] for target in targets}

    everything_up = {"gateway:8090": "up", "master:8091": "up", "relay:4501": "up"}
    system.wait("prometheus", lambda: states() == everything_up, f"sees {everything_up}")
    _, raw = system.get("127.0.0.1:9090", "/api/v1/rules")
    assert json.loads(raw)["data"]["groups"], "it loaded the alerts"
    system.podman("stop", "--time", "20", system.podman.name("prometheus"))


def test_a_killed_worker_is_replaced_and_leaves_no_zombie(system: Containers) -> None:
    before = system.relay_health()["workers"]
    # Process ids in /health are those of the container: its first process is the supervisor.
    assert system.relay_health()["pid"] == 1
    victim = before["pids"][0]
    system.podman.run_in("relay", "sh", "-c", f"kill -9 {victim}")

    def replaced() -> bool:
        workers = system.relay_health()["workers"]
        return victim not in workers["pids"] and workers["running"] == workers["wanted"]

    system.wait("relay", replaced, "has a new worker")
    states = system.podman.run_in("relay", "sh", "-c", "cat /proc/[0-9]*/stat").stdout
    assert " Z " not in states
    assert f"{victim} (" not in states
    assert system.podman.health("relay") == 0


def test_a_hot_upgrade_of_process_1_is_refused_and_says_why(system: Containers) -> None:
    refused = system.podman.run_in("relay", "wavry-relay", "upgrade", check=False)
    assert refused.returncode == 1
    assert "process 1 of its container" in refused.stderr
    assert system.relay_health()["pid"] == 1


def test_health_commands_tell_what_is_wrong(system: Containers) -> None:
    """Each HEALTHCHECK with nobody at its address."""
    for role in ROLES:
        found = stages((REPOSITORY / "docker/Dockerfile").read_text())[role]
        done = system.podman(
            *system.podman.words(f"nobody-{role}", "--rm", "--entrypoint", found.health[0]),
            *limit_options(1024), "--env", f"WAVRY_{role.upper()}_LISTEN=127.0.0.1:9", "--env",
            "WAVRY_RELAY_OPS_LISTEN=127.0.0.1:9", "--env", "WAVRY_GATEWAY_URL=http://127.0.0.1:9",
            system.images[role], *found.health[1:], check=False,
        )  # fmt: skip
        assert done.returncode == 3, (role, done.stdout, done.stderr)
        assert "127.0.0.1:9" in done.stderr


def test_sigterm_drains_the_relay_and_ends_everything_with_0(system: Containers) -> None:
    podman = system.podman
    podman.start(
        "carol", system.images["peer"], *system.peer_options("bob"), "--interactive",
        words=("host", "--from", "alice", "--json"),
    )  # fmt: skip
    # bob listens twice: the newer one takes the calls.
    podman("stop", "--time", "20", podman.name("bob"))
    assert podman.facts("bob")["State"]["ExitCode"] == 0
    system.wait("carol", lambda: '"listening"' in podman.log("carol"), "listens")
    call = podman.attached(
        "alice", system.images["peer"], *system.peer_options("alice"),
        words=("connect", "bob", "--json"),
    )  # fmt: skip
    system.wait("carol", lambda: '"connected"' in podman.log("carol"), "is called")
    wait_until(lambda: system.relay_health()["sessions"]["active"] == 1, what="one session")

    podman("kill", "--signal", "TERM", podman.name("relay"))
    wait_until(lambda: system.relay_health()["draining"], what="the relay drains")
    assert podman.facts("relay")["State"]["Running"]
    refused = podman.run_in("relay", "wavry-relay", "health", "--ready", check=False)
    assert refused.returncode == 1
    assert "stopping" in refused.stderr

    try:
        output, errors = call.communicate(timeout=20)  # Closing its input ends the session.
    except subprocess.TimeoutExpired:
        call.kill()
        raise
    assert call.returncode == 0, output + errors
    wait_until(
        lambda: not podman.facts("relay")["State"]["Running"], timeout_s=60, what="the relay ends"
    )
    assert "drain_incomplete" not in podman.log("relay"), "it waited for the end of the session"
    assert podman.facts("relay")["State"]["ExitCode"] == 0, podman.log("relay")

    for name in ("carol", "gateway", "master"):
        podman("stop", "--time", "20", podman.name(name), check=False)
        assert podman.facts(name)["State"]["ExitCode"] == 0, podman.log(name)
    for name in ("master", "gateway", "relay"):
        log = podman.log(name)
        assert "Traceback" not in log
        for secret in system.secrets.iterdir():
            assert secret.read_text().strip() not in log
