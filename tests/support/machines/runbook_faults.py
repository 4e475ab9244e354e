"""Faults for runbooks, made in the world of runbook_world.py, and what shows them."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from support.machines.machines import Machine
from support.machines.runbook_world import RELAY, RELAYS, UDP_PORT, World
from support.system.live_sessions import Live
from wavry_peer.protocol import base64url, ed25519, packets, paseto
from wavry_peer.protocol import constants as c


@contextlib.contextmanager
def churning(world: World, every_s: float) -> Iterator[None]:
    """The NAT of `home` forgets its mappings again and again."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.wait(every_s):
            world.net.change_mapping(address=False)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def rises(output: str) -> dict[str, float]:
    """How much each metric rose from the first look to the second."""
    values: dict[str, list[float]] = {}
    for name, value in re.findall(r"^wavry_relay_(\S+) ([0-9.e+]+)$", output, re.MULTILINE):
        values.setdefault(name, []).append(float(value))
    return {name: looks[-1] - looks[0] for name, looks in values.items()}


def relay_path(world: World, name: str) -> str:
    return f"relay {world.relay_id(name)}"


def kill_a_worker(machine: Machine) -> None:
    children = Path(f"/proc/{machine.pid(RELAY)}/task/{machine.pid(RELAY)}/children").read_text()
    # What the tests fork its workers from leads a session of its own.
    worker = next(pid for pid in map(int, children.split()) if os.getsid(pid) != pid)
    os.kill(worker, signal.SIGKILL)


def reload_settings(machine: Machine, text: str) -> None:
    """A new settings file of a relay, in force."""
    (machine.directory / "relay.conf").write_text(text + "\n")
    done = machine.shell(
        "wavry-relay reload", {"WAVRY_RELAY_STATE_DIR": str(machine.directory / "state")}
    )
    assert done.returncode == 0, done.stdout


def lift_blocks(machine: Machine) -> None:
    """Every block of a relay, whether there is one or not."""
    done = machine.shell(
        "wavry-relay blocks clear --all",
        {"WAVRY_RELAY_STATE_DIR": str(machine.directory / "state")},
    )
    assert done.returncode == 0, done.stdout


class Holder:
    """A client with a lease at a relay, who presents and renews it whenever he likes."""

    def __init__(self, world: World, at: str = "relay-1") -> None:
        self._world, self._at = world, at
        self._key = ed25519.SigningKey.from_seed(os.urandom(32))
        self._counter = 0
        self._socket = relay_socket(world, "operator", at)
        cnf = base64url.encode(self._key.public_key)
        client, server = {"sub": "holder", "cnf": cnf}, {"sub": "nobody", "cnf": cnf}
        others = [world.relay_id(name) for name in RELAYS if name != at]
        answer = world.order(
            "/v1/leases", {"client": client, "server": server, "exclude_relays": others}
        )
        self._sid = answer["session_id"]
        self._take(answer["leases"]["client"])

    def _take(self, token: str) -> None:
        self._token = token
        claims = json.loads(paseto.parse(token).message)
        assert claims["rid"] == self._world.relay_id(self._at)
        self._jti = claims["jti"]

    def present(self, *, renew: bool = False) -> str:
        """``ack``, or the reason of the relay's refusal."""
        self._counter += 1
        self._socket.send(
            packets.build_present(
                uuid.UUID(self._sid).bytes, c.Role.CLIENT, self._token.encode(),
                counter=self._counter, sign=self._key.sign, renew=renew,
            )
        )  # fmt: skip
        body = packets.parse_packet(self._socket.recv(2048)).body
        while isinstance(body, packets.PathChallenge):  # came beside the ACK before
            body = packets.parse_packet(self._socket.recv(2048)).body
        if isinstance(body, packets.LeaseReject):
            return c.RejectReason(body.reason).name
        assert isinstance(body, packets.LeaseAck)
        return "ack"

    def renew(self) -> str:
        """The same, with a new lease of the master."""
        body = {"session_id": self._sid, "role": "client", "jti": self._jti}
        self._take(self._world.order("/v1/leases/renew", body)["lease"])
        return self.present(renew=True)

    def close(self) -> None:
        self._socket.close()


BAD_TOKEN = b"v4.public." + b"A" * 300


def relay_socket(world: World, place: str, at: str = "relay-1") -> socket.socket:
    namespace = world.net.stranger if place == "stranger" else world.operator.namespace
    sock = namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.connect((world.address(at), UDP_PORT))
    return sock


def violate(world: World) -> int:
    """A stranger presents a bad token over a proven path; the relay's reason."""
    sid, cookie = uuid.uuid4().bytes, c.NO_COOKIE
    with relay_socket(world, "stranger") as sock:
        for counter in (1, 2):
            sock.send(
                packets.build_present(
                    sid, c.Role.CLIENT, BAD_TOKEN, counter=counter, cookie=cookie,
                    sign=lambda _message: bytes(64),
                )
            )  # fmt: skip
            body = packets.parse_packet(sock.recv(2048)).body
            if isinstance(body, packets.PathChallenge):
                cookie = body.cookie
    assert isinstance(body, packets.LeaseReject)
    return int(body.reason)


def spoof(world: World, live: Live, stop: threading.Event) -> None:
    """A stranger who knows the id of a session writes packets of it, and answers nothing."""
    sid = uuid.UUID(live.ends[0].session.session_id).bytes
    while not stop.wait(0.02):
        with relay_socket(world, "stranger") as sock:
            sock.send(packets.build_forward(sid, (1).to_bytes(8, "big") + b"spoofed"))


@contextlib.contextmanager
def firewall(machine: Machine, rule: str) -> Iterator[None]:
    """A rule in the usual place of Debian's nftables.conf; all of it goes at the end."""
    machine.namespace.nft(
        "table inet filter {\nchain input {\ntype filter hook input priority 0; policy accept\n"
        f"{rule}\n}}\n}}\n"
    )
    try:
        yield
    finally:
        machine.namespace.nft("delete table inet filter")
