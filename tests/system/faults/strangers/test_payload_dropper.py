"""A relay that answers heartbeats, STUN and leases and carries nothing, with real processes."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from support.relay.tap import Tap
from support.system.services import Services
from support.system.system import clean_environment
from support.waiting import wait_until

INTERVAL_MS = 500


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class World:
    """Master, gateway and a relay whose packets pass a tap."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.tap = stack.enter_context(Tap())
        self.tap.relay = ("127.0.0.1", free_port())
        self.services = Services(directory / "services")
        self.services.settings["master"]["WAVRY_MASTER_PROBE_INTERVAL_MS"] = str(INTERVAL_MS)
        self.services.settings["relay"] |= {
            "WAVRY_RELAY_LISTEN": "{}:{}".format(*self.tap.relay),
            "WAVRY_RELAY_ADVERTISE": self.tap.address,
        }
        stack.enter_context(self.services)

    def ctl(self, *arguments: str) -> Any:
        token = self.services.settings["master"]["WAVRY_MASTER_ADMIN_TOKEN_FILE"]
        done = subprocess.run(
            [
                sys.executable, "-m", "wavry_cp.admin",
                "--master-url", self.services.ready["master"]["url"],
                "--gateway-url", self.services.gateway_url,
                "--admin-token-file", token, *arguments, "--json",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            env=clean_environment(),
        )  # fmt: skip
        return json.loads(done.stdout)

    def relay(self) -> dict[str, Any]:
        (relay,) = self.ctl("relays", "list")["relays"]
        return dict(relay)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, tmp_path)


def test_it_is_found_told_and_remembered_and_comes_back(world: World) -> None:
    assert world.relay()["state"] == "ACTIVE"
    assert "faults" not in world.relay()
    world.tap.drops_payload = True
    wait_until(lambda: world.relay()["state"] == "DEGRADED", timeout_s=60, what="DEGRADED")
    (fault,) = world.relay()["faults"]
    assert fault["cause"] == "probes"
    assert f"{world.tap.address} acknowledges leases and forwards nothing" in fault["text"]
    world.tap.drops_payload = False
    wait_until(lambda: world.relay()["state"] == "ACTIVE", timeout_s=60, what="ACTIVE")
    name = world.relay()["name"]
    world.services.kill("master", signal.SIGTERM)
    world.services.start("master")
    changes = world.ctl("relays", "history", name)["changes"]
    states = [state for state, _ in groupby(change["after"] for change in changes)]
    assert states[-3:] == ["ACTIVE", "DEGRADED", "ACTIVE"]
    began = next(change for change in changes if change["after"] == "DEGRADED")
    assert began["causes"] == ["probes"]
