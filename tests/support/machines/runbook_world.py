"""The system that runbooks are tried on: its machines, its users, and commands typed there.

    home ── NAT ── (internet) ── operator    who repairs, and the called users
                       ├── control           gateway, master, and a proxy before the master
                       ├── relay-1, relay-2
                       └── relay-3           installed, not started

`home` has the callers.  Everything is a process of its own on a machine of its own
(support/machines/machines.py), with the ports of a real installation.
"""

import contextlib
import json
import re
import secrets
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from support.machines.machines import Machine
from support.machines.namespaces import Internet, Namespace, address_pair
from support.machines.runbook import OPERATOR, Block, Runbook, missing_lines
from support.system.caching_proxy import CachingProxy
from support.system.small_disk import small_disk
from support.waiting import wait_until
from wavry_cp.master.keys.files import init_keys, load_keys

GATEWAY, MASTER, RELAY = "wavry-gateway", "wavry-master", "wavry-relay"
CONTROL = "10.20.0.2"
GATEWAY_URL, MASTER_URL = f"http://{CONTROL}:8090", f"http://{CONTROL}:8091"
PROXY_PORT = 8092
PROGRAMS = ("curl", "findmnt", "mount", "ss")
PROXY_URL = f"http://{CONTROL}:{PROXY_PORT}"
RELAYS = ("relay-1", "relay-2", "relay-3")
UDP_PORT, OPS_PORT = 4500, 4501
OPERATORS = "127.0.0.0/8,198.51.100.0/24"
ROUND_TRIP_S = 0.01
DISK_MEGABYTES = 24
HEARTBEAT_MS = 500
MAX_SESSIONS = 40

GENEROUS_GATEWAY = {
    # One address has all the callers here, and one user makes all the calls.
    "WAVRY_GATEWAY_CONNECTS_BURST": "1000",
    "WAVRY_GATEWAY_LOGIN_BURST": "1000",
    "WAVRY_GATEWAY_REGISTER_BURST": "1000",
    "WAVRY_GATEWAY_REQUESTS_PER_S": "1000",
    "WAVRY_GATEWAY_CALLS_BURST": "1000",
    "WAVRY_GATEWAY_CALLS_PER_MINUTE": "1000",
    "WAVRY_GATEWAY_ARGON2_MEMORY_KIB": "8192",
}


class World:
    """Machines, started; `operator` sees them all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = contextlib.ExitStack()
        self.machines: dict[str, Machine] = {}
        self._relay_ids: dict[str, str] = {}
        with self._stack:
            self.net = self._stack.enter_context(Internet(round_trip_s=ROUND_TRIP_S))
            # The NAT is one of UDP; what callers say to the gateway passes it as it is.
            self.net.core.ip("route add 192.168.7.0/24 dev access")
            keys = directory / "keys"
            init_keys(keys, now_s=int(time.time()), random_bytes=secrets.token_bytes)
            self._root_key = load_keys(keys).keyset.root_public_key
            self.tokens = {name: self._token(name) for name in ("service", "admin")}
            self._machine("operator", self.net.beside)
            self._control(self._host("control", 0), keys)
            self.proxy = CachingProxy(self.control.namespace, PROXY_PORT, MASTER_URL)
            self._stack.callback(self.proxy.close)
            for number, name in enumerate(RELAYS, 1):
                self._relay(self._host(name, number), self.address(name))
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        try:
            self.control.start(MASTER)
            self.control.start(GATEWAY)
            for name in RELAYS[:2]:
                self.machines[name].start(RELAY)
            self.wait_for_states(relay_1="ACTIVE", relay_2="ACTIVE")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- Building --------------------------------------------------------------------------

    def _token(self, name: str) -> Path:
        path = self.directory / f"{name}.token"
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32))
        return path

    def _machine(self, name: str, namespace: Namespace) -> Machine:
        machine = Machine(name, namespace, self.directory / name)
        self.machines[name] = self._stack.enter_context(machine)
        return machine

    def _host(self, name: str, number: int) -> Machine:
        namespace = self._stack.enter_context(Namespace())
        link = f"host{number}"
        namespace.join("uplink", self.net.core, link)
        address_pair(namespace, self.net.core, link, f"10.20.{number}", f"fd00:20:{number}:")
        return self._machine(name, namespace)

    def _control(self, machine: Machine, keys: Path) -> None:
        # What the gateway writes, its journal included, is on a disk that can be filled.
        self._stack.enter_context(small_disk(machine.journal, DISK_MEGABYTES))
        machine.add(
            MASTER, "wavry_cp.master", notifies=False,
            WAVRY_MASTER_LISTEN="0.0.0.0:8091",
            WAVRY_MASTER_ALLOW_PUBLIC_BIND="1",
            WAVRY_MASTER_DATA_DIR=str(machine.directory / "master"),
            WAVRY_MASTER_KEYS_DIR=str(keys),
            WAVRY_MASTER_HEARTBEAT_INTERVAL_MS=str(HEARTBEAT_MS),
            WAVRY_MASTER_SERVICE_TOKEN_FILE=str(self.tokens["service"]),
            WAVRY_MASTER_ADMIN_TOKEN_FILE=str(self.tokens["admin"]),
            WAVRY_MASTER_METRICS_NETWORKS=OPERATORS,
            WAVRY_MASTER_PRIVATE_ENDPOINTS="1",
        )  # fmt: skip
        machine.add(
            GATEWAY, "wavry_cp.gateway", notifies=False,
            WAVRY_GATEWAY_LISTEN="0.0.0.0:8090",
            WAVRY_GATEWAY_ALLOW_PUBLIC_BIND="1",
            WAVRY_GATEWAY_DATA_DIR=str(self.gateway_data),
            WAVRY_GATEWAY_MASTER_URL=MASTER_URL,
            WAVRY_GATEWAY_ALLOW_HTTP="1",
            WAVRY_GATEWAY_SERVICE_TOKEN_FILE=str(self.tokens["service"]),
            WAVRY_GATEWAY_ADMIN_TOKEN_FILE=str(self.tokens["admin"]),
            WAVRY_GATEWAY_METRICS_NETWORKS=OPERATORS,
            **GENEROUS_GATEWAY,
        )  # fmt: skip

    def _relay(self, machine: Machine, address: str) -> None:
        settings = machine.directory / "relay.conf"
        settings.touch()
        machine.add(
            RELAY, "wavry_relay", notifies=True,
            WAVRY_RELAY_LISTEN=f"{address}:{UDP_PORT}",
            WAVRY_RELAY_ALLOW_PUBLIC_BIND="1",
            WAVRY_RELAY_OPS_LISTEN=f"0.0.0.0:{OPS_PORT}",
            WAVRY_RELAY_WORKERS="2",
            WAVRY_RELAY_MAX_SESSIONS=str(MAX_SESSIONS),
            WAVRY_RELAY_STATE_DIR=str(machine.directory / "state"),
            WAVRY_RELAY_DRAIN_TIMEOUT_S="2",
            WAVRY_RELAY_SETTINGS_FILE=str(settings),
            WAVRY_RELAY_ROOT_KEY=self._root_key,
            WAVRY_RELAY_ENROLMENT_TOKEN_FILE=str(self.tokens["service"]),
            WAVRY_RELAY_MASTER_URL=PROXY_URL,
            WAVRY_RELAY_ALLOW_HTTP="1",
        )  # fmt: skip

    # -- Places and values -----------------------------------------------------------------

    @property
    def operator(self) -> Machine:
        return self.machines["operator"]

    @property
    def control(self) -> Machine:
        return self.machines["control"]

    @property
    def gateway_data(self) -> Path:
        return self.directory / "control" / "journal" / "gateway"

    def place(self, name: str) -> Machine:
        """The machine that a runbook means: "the relay" is relay-1, "the new relay" is relay-3."""
        return self.machines[
            {OPERATOR: "operator", "gateway": "control", "master": "control", "relay": "relay-1",
             "new relay": "relay-3"}[name]
        ]  # fmt: skip

    def relay_id(self, name: str) -> str:
        if name not in self._relay_ids:
            state = self.machines[name].directory / "state"
            said = self.typed(f"wavry-relay identity --state-dir {state}")
            self._relay_ids[name] = re.findall(r"rly-[0-9a-f]+", said)[0]
        return self._relay_ids[name]

    def address(self, name: str) -> str:
        return f"10.20.{RELAYS.index(name) + 1}.2"

    def ops_url(self, name: str) -> str:
        return f"http://{self.address(name)}:{OPS_PORT}"

    def settings(self) -> dict[str, str]:
        """What an operator would set for this system, under the names that runbooks use."""
        return self._access() | {
            "RELAY": self.relay_id("relay-1"),
            "RELAY_OPS": self.ops_url("relay-1"),
            "RELAY_SETTINGS": str(self.machines["relay-1"].directory / "relay.conf"),
            "WAVRY_RELAY_STATE_DIR": str(self.machines["relay-1"].directory / "state"),
            "RELAY_MASTER_URL": PROXY_URL,
            "GATEWAY_DATA": str(self.gateway_data),
            "NEW_RELAY_OPS": self.ops_url("relay-3"),
        }

    def _access(self) -> dict[str, str]:
        return {
            "WAVRY_GATEWAY_URL": GATEWAY_URL,
            "WAVRY_MASTER_URL": MASTER_URL,
            "WAVRY_ALLOW_HTTP": "1",
            "WAVRY_ADMIN_TOKEN_FILE": str(self.tokens["admin"]),
        }

    # -- Typing ----------------------------------------------------------------------------

    def typed(self, commands: str, *, at: str = "operator", may_fail: bool = False) -> str:
        """What commands at a machine print; they must succeed."""
        machine = self.machines[at]
        done = machine.shell(commands, self._access(), may_fail=may_fail)
        assert may_fail or done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

    def follow(
        self, runbook: Runbook, case: str = "", *, sections: tuple[str, ...] = ()
    ) -> "list[tuple[Block, str]]":
        """Type every block of a runbook (of some of its sections) in order.

        Returns:
            Each block with what it printed.
        """
        known = self.settings()
        # The pages are for https; the services of this world have no certificates.
        settings = {"WAVRY_ALLOW_HTTP": "1"} | {name: known[name] for name in runbook.settings}
        results = []
        for block in runbook.of_case(case):
            if sections and block.section not in sections:
                continue
            done = self.place(block.place).shell(block.commands, settings, may_fail=block.may_fail)
            said = f"{block.where} at {block.place}: {block.commands}\n{done.stdout}"
            assert block.may_fail or done.returncode == 0, said
            assert "command not found" not in done.stdout, said
            missing = missing_lines(block.expected, done.stdout)
            assert not missing, f"{said}\ndid not say: {missing}"
            results.append((block, done.stdout))
        return results

    def heal(self) -> None:
        """Undo what a test may have left, so that the next one has its own failure."""
        for path in self.control.journal.glob("*.archived"):
            path.unlink()
        units = [(self.control, MASTER), (self.control, GATEWAY)]
        units += [(self.machines[name], RELAY) for name in RELAYS[:2]]
        for machine, unit in units:
            if machine.units[unit].is_running:
                machine.signal(unit, signal.SIGCONT)
            else:
                machine.start(unit)
        for name in RELAYS[:2]:
            if self.relay_states_or_none().get(name, ("ACTIVE",))[0] == "DRAINING":
                self.typed(f"wavryctl relays undrain {self.relay_id(name)}")
        self.wait_for_states(relay_1="ACTIVE", relay_2="ACTIVE")

    # -- Looking ---------------------------------------------------------------------------

    def ask(
        self, url: str, body: bytes | None = None, *, who: str = "admin", timeout_s: float = 5
    ) -> str:
        """Body of an answer, asked from the operator's machine with a token."""
        token = self.tokens[who].read_text()
        request = urllib.request.Request(url, body, {"Authorization": f"Bearer {token}"})
        with (
            self.operator.namespace.entered(),
            urllib.request.urlopen(request, timeout=timeout_s) as answer,
        ):
            return str(answer.read().decode())

    def answers(self, url: str) -> bool:
        """Whether a service says anything within a second."""
        try:
            self.ask(url + "/health", timeout_s=1)
        except OSError:
            return False
        return True

    def order(self, path: str, body: dict[str, Any]) -> Any:
        """What the master answers to a gateway."""
        return json.loads(self.ask(MASTER_URL + path, json.dumps(body).encode(), who="service"))

    def relay_states(self) -> dict[str, tuple[str, str]]:
        """State and what the relay reported, by machine, as far as the master knows it."""
        rows = self.relay_rows().items()
        return {name: (row["state"], row.get("reported", "")) for name, row in rows}

    def relay_rows(self) -> dict[str, dict[str, Any]]:
        """What the master says of its relays, by machine."""
        names = {self.relay_id(name): name for name in RELAYS}
        listed = json.loads(self.ask(f"{MASTER_URL}/v1/relays"))["relays"]
        return {names[row["relay_id"]]: row for row in listed}

    def relay_states_or_none(self) -> dict[str, tuple[str, str]]:
        """The same; empty where the master does not answer."""
        try:
            return self.relay_states()
        except OSError:
            return {}

    def wait_for_states(self, timeout_s: float = 30, **wanted: str) -> None:
        """Until the master says so: ``relay_1="ACTIVE"``."""
        for name in wanted:
            self.relay_id(name.replace("_", "-"))

        def said() -> bool:
            states = self.relay_states_or_none()
            return all(
                states.get(name.replace("_", "-"), ("",))[0] == state
                for name, state in wanted.items()
            )

        wait_until(said, timeout_s=timeout_s, what=f"relays are {wanted}")

    def metric(self, name: str, at: str = "relay-1") -> float:
        """Sum of a metric's values; with labels in braces, of just that one."""
        text = self.ask(self.ops_url(at) + "/metrics")
        pattern = rf"^{re.escape(name)}{'' if '{' in name else r'(?:{[^}]*})?'} ([0-9.e+-]+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))
