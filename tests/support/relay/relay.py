"""What tests need around a relay: minted leases, relay processes, small peers, a fake master."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec
from aiohttp import web

from support.paths import REPOSITORY
from wavry_peer.protocol import base64url, ed25519, keyset, lease, packets
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http import api
from wavry_peer.protocol.registration import verify_challenge

GENEROUS_KBPS = 4_000_000


def wait_until(
    condition: Callable[[], Any], *, deadline_s: float = 10.0, what: str = "condition"
) -> Any:
    """Poll until `condition` is true; its value."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not become true within {deadline_s} s")
        time.sleep(0.01)


@dataclass
class Mint:
    """The trust of a test: a root key, a signing key, and leases signed by it."""

    root: ed25519.SigningKey = field(
        default_factory=lambda: ed25519.SigningKey.from_seed(os.urandom(32))
    )
    signing: ed25519.SigningKey = field(
        default_factory=lambda: ed25519.SigningKey.from_seed(os.urandom(32))
    )

    @property
    def kid(self) -> lease.KeyId:
        return keyset.key_id(self.signing.public_key)

    @property
    def root_text(self) -> str:
        return base64url.encode(self.root.public_key)

    def keyset(self, *, serial: int = 1, status: str = "active") -> keyset.KeySet:
        key = keyset.PublishedKey(
            kid=self.kid, public_key=base64url.encode(self.signing.public_key), status=status
        )
        return keyset.sign_keyset([key], serial=serial, issued_at=int(time.time()), root=self.root)

    def trusted(self) -> dict[lease.KeyId, lease.TrustedKey]:
        return keyset.trusted_keys(self.keyset())

    def token(
        self,
        sid: uuid.UUID,
        role: c.Role,
        rid: str,
        *,
        sub: str | None = None,
        key: ed25519.SigningKey | None = None,
        now_s: int | None = None,
        ttl_s: int = 300,
        soft_kbps: int = GENEROUS_KBPS,
        hard_kbps: int = GENEROUS_KBPS,
        jti: str | None = None,
        **changes: Any,
    ) -> bytes:
        """A lease token; `key` binds it, `changes` replace claims before signing."""
        claims = lease.make_claims(
            jti=jti or str(uuid.uuid4()),
            sub=sub or f"user-{c.ROLE_NAMES[role]}",
            sid=str(sid),
            role=role,
            rid=rid,
            kid=self.kid,
            now_s=int(time.time()) if now_s is None else now_s,
            ttl_s=ttl_s,
            soft_kbps=soft_kbps,
            hard_kbps=hard_kbps,
            cnf=base64url.encode(key.public_key) if key else None,
        )
        return lease.sign_lease(msgspec.structs.replace(claims, **changes), self.signing).encode()


class UdpPeer:
    """A tiny blocking peer: one socket, one slot of a session.

    Without `bearer` it has a key of its own and proves it.
    """

    def __init__(
        self,
        mint: Mint,
        relay_id: str,
        relay: str,
        sid: uuid.UUID,
        role: c.Role,
        *,
        bearer: bool = False,
        timeout_s: float = 3.0,
        **claims: Any,
    ) -> None:
        host, port = relay.rsplit(":", 1)
        self.relay = (host.strip("[]"), int(port))
        self.family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        self.mint, self.relay_id, self.sid, self.role = mint, relay_id, sid, role
        self.key = None if bearer else ed25519.SigningKey.from_seed(os.urandom(32))
        self.claims = claims
        self.counter = 0
        self.sequence = 0
        self.timeout_s = timeout_s
        self.sock = self._socket()
        self.token = self.new_token()

    def _socket(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        sock.settimeout(self.timeout_s)
        sock.connect(self.relay)
        return sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def move(self) -> None:
        """Go on from a new local port, as after a NAT rebind."""
        self.sock.close()
        self.sock = self._socket()

    def new_token(self, **claims: Any) -> bytes:
        return self.mint.token(
            self.sid, self.role, self.relay_id, key=self.key, **{**self.claims, **claims}
        )

    def present_datagram(self, *, renew: bool = False, cookie: bytes = c.NO_COOKIE) -> bytes:
        """The next LEASE_PRESENT (or RENEW) with the next counter."""
        self.counter += 1
        return packets.build_present(
            self.sid.bytes,
            self.role,
            self.token,
            counter=self.counter,
            cookie=cookie,
            sign=self.key.sign if self.key else None,
            renew=renew,
        )

    def ask(self, datagram: bytes) -> packets.Packet:
        """Send, and wait for the next packet that is not FORWARD."""
        self.sock.send(datagram)
        while True:
            packet = packets.parse_packet(self.sock.recv(2048))
            if packet.header.type != c.PacketType.FORWARD:
                return packet

    def present(self, *, renew: bool = False, cookie: bytes = c.NO_COOKIE) -> packets.LeaseAck:
        """Present the lease and expect an ACK; again as peers do, where no answer comes."""
        try:
            packet = self.ask(self.present_datagram(renew=renew, cookie=cookie))
        except TimeoutError:
            packet = self.ask(self.present_datagram(renew=renew, cookie=cookie))
        assert isinstance(packet.body, packets.LeaseAck), packet
        return packet.body

    def forward(self, payload: bytes = b"hello") -> int:
        """Send one FORWARD; its sequence."""
        self.sequence += 1
        body = self.sequence.to_bytes(8, "big") + payload
        self.sock.send(packets.build_forward(self.sid.bytes, body))
        return self.sequence

    def receive(self) -> tuple[int, bytes]:
        """The next FORWARD: sequence and payload."""
        while True:
            packet = packets.parse_packet(self.sock.recv(2048))
            if packet.header.type == c.PacketType.FORWARD:
                assert isinstance(packet.body, bytes)
                return int.from_bytes(packet.body[:8], "big"), packet.body[8:]

    def drain_socket(self) -> None:
        """Throw away what is queued."""
        self.sock.setblocking(False)
        try:
            while True:
                self.sock.recv(2048)
        except BlockingIOError:
            pass
        finally:
            self.sock.settimeout(self.timeout_s)


@contextmanager
def active_session(
    relay: "RelayProcess", mint: Mint, *, udp: str | None = None, **options: Any
) -> Iterator[tuple[UdpPeer, UdpPeer]]:
    """Two accepted peers of a new session, client first."""
    sid = uuid.uuid4()
    where = udp or relay.udp[0]
    with (
        UdpPeer(mint, relay.relay_id, where, sid, c.Role.CLIENT, **options) as client,
        UdpPeer(mint, relay.relay_id, where, sid, c.Role.SERVER, **options) as server,
    ):
        client.present()
        server.present()
        yield client, server


class Orphan:
    """A process that is not our child, as far as `subprocess.Popen` is used here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """0 where it has ended: nobody but its parent knows the exit code."""
        return None if is_alive(self.pid) else 0

    def wait(self, timeout_s: float) -> int:
        wait_until(lambda: not is_alive(self.pid), deadline_s=timeout_s, what="end of the relay")
        return 0

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


class NumberedStream:
    """Traffic of a session in both directions, every datagram with its number.

    Args:
        peers: client and server of an active session.
        every_s: pause between two datagrams.
    """

    def __init__(self, peers: tuple[UdpPeer, UdpPeer], *, every_s: float = 0.002) -> None:
        self._peers = peers
        self._every_s = every_s
        self.received: tuple[list[int], list[int]] = ([], [])
        """Sequences in the order of their arrival, at the client and at the server."""
        self.others: list[packets.Packet] = []
        """What came and is no FORWARD: notices, challenges."""
        self._sending = threading.Event()
        self._receiving = threading.Event()
        self._sender = threading.Thread(target=self._send)
        self._receivers = [threading.Thread(target=self._receive, args=(at,)) for at in (0, 1)]

    def __enter__(self) -> Self:
        for peer in self._peers:
            peer.sock.settimeout(0.1)
        self._sending.set()
        self._receiving.set()
        for thread in (self._sender, *self._receivers):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sending.clear()
        self._receiving.clear()
        for thread in (self._sender, *self._receivers):
            thread.join()
        for peer in self._peers:
            peer.sock.settimeout(peer.timeout_s)

    def _send(self) -> None:
        while self._sending.is_set():
            for peer in self._peers:
                peer.forward(bytes(100))
            time.sleep(self._every_s)

    def _receive(self, at: int) -> None:
        while self._receiving.is_set():
            try:
                packet = packets.parse_packet(self._peers[at].sock.recv(2048))
            except TimeoutError:
                continue
            if packet.header.type == c.PacketType.FORWARD:
                assert isinstance(packet.body, bytes)
                self.received[at].append(int.from_bytes(packet.body[:8], "big"))
            else:
                self.others.append(packet)

    def wait_for_more(self, count: int = 50) -> None:
        goals = [len(one) + count for one in self.received]
        wait_until(
            lambda: all(len(one) >= goal for one, goal in zip(self.received, goals, strict=True)),
            deadline_s=30,
            what="forwarded packets",
        )

    def finish(self, *, lost_at_most: int = 0) -> None:
        """Stop sending; every datagram must have come once, and nothing else.

        `lost_at_most` is for a worker that was killed: what it had in hand is gone with it.
        """
        self._sending.clear()
        self._sender.join()
        sent = [peer.sequence for peer in reversed(self._peers)]

        def is_complete() -> bool:
            pairs = zip(self.received, sent, strict=True)
            return all(len(one) >= last - lost_at_most for one, last in pairs)

        with suppress(AssertionError):  # The comparison below says which are missing.
            wait_until(is_complete, deadline_s=20)
        if lost_at_most:
            time.sleep(0.5)  # What is late would be there by now.
        for one, last in zip(self.received, sent, strict=True):
            missing = set(range(1, last + 1)) - set(one)
            assert len(one) == last - len(missing), "each at most once, and none that was not sent"
            assert len(missing) <= lost_at_most, sorted(missing)
        assert not self.others


class RelayProcess:
    """A real relay: ``python -m wavry_relay run`` on free ports.

    Attributes:
        root: where the packages are taken from.

    Args:
        directory: state, ready file and log.
        mint: its root is pinned; its key set is put into the state directory.
        launcher: a Python program to start instead of ``-m wavry_relay``: what "the installed
            version" is for a test that upgrades to another one.
        environ: further settings.
    """

    root = REPOSITORY

    def __init__(
        self,
        directory: Path,
        mint: Mint,
        *,
        workers: int = 2,
        keyset_cached: bool = True,
        launcher: Path | None = None,
        **environ: str,
    ) -> None:
        self.directory = directory
        self._program = ["-m", "wavry_relay"] if launcher is None else [str(launcher)]
        self.state_dir = directory / "state"
        self.ready_file = directory / "ready.json"
        self.log_path = directory / "relay.log"
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if keyset_cached:
            document = keyset.encode_keyset(mint.keyset())
            (self.state_dir / "keyset.json").write_bytes(document)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WAVRY_")}
        self.environ = {
            **inherited,
            "WAVRY_RELAY_LISTEN": "127.0.0.1:0",
            "WAVRY_RELAY_OPS_LISTEN": "127.0.0.1:0",
            "WAVRY_RELAY_STATE_DIR": str(self.state_dir),
            "WAVRY_RELAY_DRAIN_TIMEOUT_S": "0",
            "WAVRY_RELAY_WORKERS": str(workers),
            "WAVRY_RELAY_ROOT_KEY": mint.root_text,
            "WAVRY_RELAY_MAX_SESSIONS": "100",
            "WAVRY_RELAY_IP_PER_S": "100000",
            "WAVRY_RELAY_IP_BURST": "100000",
            "WAVRY_RELAY_COOKIE_AT_VERIFIES_PER_S": "1000000",
            "WAVRY_RELAY_SHED_AT_PCT": "100",
            "WAVRY_RELAY_IDENTITY_PER_S": "100000",
            "WAVRY_RELAY_IDENTITY_BURST": "100000",
            "WAVRY_RELAY_SOCKET_BUFFER_BYTES": "1000000",
            **environ,
        }
        self.environ = {name: text for name, text in self.environ.items() if text}
        self.process: subprocess.Popen[bytes] | Orphan | None = None
        self.facts: dict[str, Any] = {}

    def start(self) -> Self:
        """Start and wait until it serves."""
        self.launch()
        wait_until(
            lambda: self.ready_file.exists() or self.exited,
            deadline_s=20,
            what=f"relay start (log: {self.log_path})",
        )
        if not self.ready_file.exists():
            raise AssertionError(f"relay ended at its start:\n{self.log()}")
        self.facts = json.loads(self.ready_file.read_bytes())
        return self

    def launch(self) -> None:
        """Start without waiting."""
        self.ready_file.unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("--ready-file", str(self.ready_file)),
                cwd=self.root,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def command(self, *options: str) -> list[str]:
        """Command line of ``run``."""
        return [sys.executable, *self._program, "run", *options]

    def follow(self) -> Self:
        """Wait until a successor has taken over and the old process has ended; then be that one."""
        old = self.process
        assert old is not None
        assert old.wait(30) == 0, self.log()
        self.adopt()
        assert self.facts["pid"] != old.pid
        return self

    def adopt(self) -> None:
        """Be the process that the ready file names."""
        self.facts = json.loads(self.ready_file.read_bytes())
        self.process = Orphan(self.facts["pid"])

    @property
    def exited(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    @property
    def relay_id(self) -> str:
        return str(self.facts["relay_id"])

    @property
    def udp(self) -> list[str]:
        return list(self.facts["udp"])

    @property
    def shm_path(self) -> Path:
        return Path("/dev/shm") / f"wavry-{self.relay_id}"

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines with an event name."""
        lines = (line for line in self.log().splitlines() if line.startswith("{"))
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def get(self, path: str) -> tuple[int, bytes]:
        """GET from the ops server."""
        try:
            with urllib.request.urlopen(self.facts["ops_url"] + path, timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def health(self) -> dict[str, Any]:
        return json.loads(self.get("/health")[1])

    def worker_pids(self) -> list[int]:
        return list(self.health()["workers"]["pids"])

    def metric(self, name: str, **labels: str) -> float:
        """Value of a metric, 0 where it has none."""
        text = ",".join(f'{key}="{value}"' for key, value in labels.items())
        start = f"{name}{{{text}}} " if labels else f"{name} "
        for line in self.get("/metrics")[1].decode().splitlines():
            if line.startswith(start):
                return float(line.removeprefix(start))
        return 0.0

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 10) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        if not self.exited:
            self.send_signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            self.wait()
            raise

    def close(self) -> None:
        """Stop it, and remove what a killed one left behind."""
        if self.process is not None:
            self.stop()
        if self.facts:
            self.shm_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


class FakeMaster:
    """A master in a thread: registration by challenge, heartbeats, key set, deregistration."""

    def __init__(self, mint: Mint, *, heartbeat_ms: int = 100) -> None:
        self.mint = mint
        self.heartbeat_ms = heartbeat_ms
        self.serial = 1
        self.registered: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.deregistered: list[str] = []
        self.commands: list[str] = []
        """Sent with every heartbeat answer."""
        self.heartbeat_status = 200
        self.register_status = 200
        self.refusal_code = ""
        """Error code of both, if set."""
        self.keys_status = 200
        self.challenge_text: str | None = None
        """Sent instead of a challenge, if set."""
        self._challenges: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._tokens: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()

    async def _run(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/relays/register", self._register)
        app.router.add_post("/v1/relays/register/verify", self._verify)
        app.router.add_post("/v1/relays/heartbeat", self._heartbeat)
        app.router.add_delete("/v1/relays/{id}", self._deregister)
        app.router.add_get("/.well-known/wavry-keys.json", self._keys)
        self.add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}".format(*runner.addresses[0][:2])
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    def add_routes(self, app: web.Application) -> None:
        """Further routes of a subclass."""

    async def _register(self, request: web.Request) -> web.Response:
        if self.register_status != 200:
            code = self.refusal_code or "refused"
            return _json({"error": code, "message": "as told"}, self.register_status)
        facts = msgspec.to_builtins(api.decode_body(api.RegisterRequest, await request.read()))
        challenge_id, challenge = str(uuid.uuid4()), os.urandom(32)
        self._challenges[challenge_id] = facts, challenge
        text = self.challenge_text or base64url.encode(challenge)
        return _json({"challenge_id": challenge_id, "challenge": text})

    async def _verify(self, request: web.Request) -> web.Response:
        body = api.decode_body(api.VerifyRequest, await request.read())
        facts, challenge = self._challenges.pop(body.challenge_id)
        public_key = base64url.decode(facts["public_key"])
        if not verify_challenge(public_key, challenge, base64url.decode(body.signature)):
            return _json({"error": "invalid_signature", "message": "no"}, 403)
        assert keyset.relay_id(public_key) == facts["relay_id"]
        token = base64url.encode(os.urandom(32))
        self._tokens.add(token)
        self.registered.append(facts)
        answer = api.VerifyResponse(
            relay_token=token,
            heartbeat_interval_ms=self.heartbeat_ms,
            keyset=self.mint.keyset(serial=self.serial),
            master_public_key=base64url.encode(self.mint.signing.public_key),
            master_key_id=self.mint.kid,
        )
        return _json(answer, 201)

    def _is_authorized(self, request: web.Request) -> bool:
        return request.headers.get("Authorization", "").removeprefix("Bearer ") in self._tokens

    async def _heartbeat(self, request: web.Request) -> web.Response:
        if not self._is_authorized(request) or self.heartbeat_status != 200:
            status = self.heartbeat_status if self.heartbeat_status != 200 else 401
            code = self.refusal_code or "unknown_relay"
            return _json({"error": code, "message": "register"}, status)
        body = api.decode_body(api.HeartbeatRequest, await request.read())
        self.heartbeats.append(msgspec.to_builtins(body))
        return _json({"commands": [{"type": name} for name in self.commands]})

    async def _deregister(self, request: web.Request) -> web.Response:
        if not self._is_authorized(request):
            return _json({"error": "unauthorized", "message": "no"}, 401)
        self.deregistered.append(request.match_info["id"])
        return web.Response(status=204)

    async def _keys(self, _request: web.Request) -> web.Response:
        if self.keys_status != 200:
            return _json({"error": "refused", "message": "as told"}, self.keys_status)
        return _json(self.mint.keyset(serial=self.serial))


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )
