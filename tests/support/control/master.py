"""Masters for tests: in this process on a free port, or as a real process; and a relay's side.

Other rooms use `MasterProcess` (sync) and `FakeRelay`; `running_master` is for tests of the master.
"""

import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import aiohttp

from support.paths import REPOSITORY
from wavry_cp.app.http import listening
from wavry_cp.master.app import make_app
from wavry_cp.master.config import MasterConfig
from wavry_cp.master.keys.files import init_keys
from wavry_cp.master.master import open_master
from wavry_peer.protocol import base64url, ed25519, keyset, registration
from wavry_peer.service.clock import Clock

START_TIMEOUT_S = 20.0
_PORTS = itertools.count(20_000)
"""No two relays have the same address."""


def write_token(path: Path) -> str:
    """Write a fresh bearer token into a file with mode 0600."""
    token = secrets.token_urlsafe(32)
    path.write_text(token + "\n")
    path.chmod(0o600)
    return token


@dataclass
class MasterFiles:
    """Keys and tokens of one master under a directory."""

    root: Path
    service_token: str = ""
    admin_token: str = ""
    root_public_key: str = ""

    @classmethod
    def make(cls, root: Path) -> Self:
        root.mkdir(parents=True, exist_ok=True)
        files = cls(root)
        summary = init_keys(
            files.keys_dir, now_s=int(time.time()), random_bytes=secrets.token_bytes
        )
        files.root_public_key = summary.root_public_key
        files.service_token = write_token(files.service_token_file)
        files.admin_token = write_token(files.admin_token_file)
        return files

    @property
    def keys_dir(self) -> Path:
        return self.root / "keys"

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def service_token_file(self) -> Path:
        return self.root / "service.token"

    @property
    def admin_token_file(self) -> Path:
        return self.root / "admin.token"

    def environ(self) -> dict[str, str]:
        return {
            "WAVRY_MASTER_DATA_DIR": str(self.data_dir),
            "WAVRY_MASTER_KEYS_DIR": str(self.keys_dir),
            "WAVRY_MASTER_SERVICE_TOKEN_FILE": str(self.service_token_file),
            "WAVRY_MASTER_ADMIN_TOKEN_FILE": str(self.admin_token_file),
            "WAVRY_MASTER_LISTEN": "127.0.0.1:0",
            "WAVRY_MASTER_PRIVATE_ENDPOINTS": "1",
            # A `FakeRelay` speaks HTTP alone.
            "WAVRY_MASTER_PROBE_INTERVAL_MS": "0",
        }

    def config(self, **settings: Any) -> MasterConfig:
        config = MasterConfig(
            data_dir=self.data_dir,
            keys_dir=self.keys_dir,
            service_token_file=self.service_token_file,
            admin_token_file=self.admin_token_file,
            listen="127.0.0.1:0",
            private_endpoints=True,
            probe_interval_ms=0,
        )
        return replace(config, **settings)


class MasterProcess:
    """``python -m wavry_cp.master run`` with keys, tokens and a database under `root`.

    `start` may be called again after `kill` or `stop`: it is the same master.
    """

    def __init__(self, root: Path, **environ: str) -> None:
        self.files = MasterFiles.make(root)
        self.environ = environ
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "master.log"
        self._ready = root / "master.ready"

    @property
    def service_token(self) -> str:
        return self.files.service_token

    @property
    def admin_token(self) -> str:
        return self.files.admin_token

    def start(self) -> Self:
        """Start and wait until it serves."""
        self._ready.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wavry_cp.master", "run", "--ready-file", str(self._ready)],
                cwd=REPOSITORY,
                env={**os.environ, **self.files.environ(), **self.environ},
                stderr=log,
                stdout=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"master did not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        self.url = json.loads(self._ready.read_text())["url"]
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it cleanly; gives the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """kill -9; nothing where it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.kill()


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    body: Any
    headers: Any


@dataclass
class MasterClient:
    """Calls a master; `token` is "service", "admin", a text or None."""

    url: str
    files: MasterFiles
    http: aiohttp.ClientSession

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        token = {"service": self.files.service_token, "admin": self.files.admin_token}.get(
            token or "", token
        )
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.request(
            method, self.url + path, data=data, headers=sent, allow_redirects=False
        ) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json"
            return Answer(
                response.status, json.loads(raw) if is_json else raw.decode(), response.headers
            )

    async def post(self, path: str, body: Any = None, **kw: Any) -> Answer:
        return await self.call("POST", path, body, **kw)

    async def get(self, path: str, **kw: Any) -> Answer:
        return await self.call("GET", path, **kw)


class _MovedClock(Clock):
    def __init__(self, moved: "FakeClock") -> None:
        self._moved = moved

    def wall_s(self) -> float:
        return self._moved.now_s

    def monotonic_s(self) -> float:
        return self._moved.now_s


@dataclass
class FakeClock:
    """Both clocks of a master, moved by hand."""

    now_s: float = 1_800_000_000.0

    def clock(self) -> Clock:
        return _MovedClock(self)

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class FakeRelay:
    """A relay's side of the master's HTTP, one of a managed pool unless it is told otherwise."""

    client: MasterClient
    key: ed25519.SigningKey = field(
        default_factory=lambda: ed25519.SigningKey.from_seed(secrets.token_bytes(32))
    )
    region: str | None = None
    endpoints: tuple[str, ...] = field(default_factory=lambda: (f"127.0.0.1:{next(_PORTS)}",))
    max_sessions: int = 1000
    max_bitrate_kbps: int = 0
    token: str | None = None
    held_kids: tuple[str, ...] = ()
    keyset_serial: int = 0
    enrolment_token: str | None = None
    """Of the operator; without one it shows the service token."""
    name: str | None = None
    host: str | None = None
    """That a trusted proxy names as its address."""

    async def _post(self, path: str, body: Any, token: str | None = None) -> Answer:
        headers = {"X-Forwarded-For": self.host} if self.host else None
        return await self.client.post(path, body, token=token, headers=headers)

    @property
    def relay_id(self) -> str:
        return keyset.relay_id(self.key.public_key)

    def registration(self) -> dict[str, Any]:
        return {
            "relay_id": self.relay_id,
            "public_key": base64url.encode(self.key.public_key),
            "endpoints": list(self.endpoints),
            "region": self.region,
            "max_sessions": self.max_sessions,
            "max_bitrate_kbps": self.max_bitrate_kbps,
            "features": ["proof"],
            "version": "test",
            **({"name": self.name} if self.name else {}),
            **({"enrolment_token": self.enrolment_token} if self.enrolment_token else {}),
        }

    async def challenge(self, token: str | None = "service") -> Answer:
        """Ask for a challenge; `token` None shows nothing but the relay's own token, if any."""
        if self.enrolment_token is not None:
            token = None
        return await self._post("/v1/relays/register", self.registration(), token)

    async def verify(
        self, challenge: dict[str, Any], key: ed25519.SigningKey | None = None, **signed: Any
    ) -> Answer:
        """Answer a challenge; `signed` is signed in place of the true master_id or endpoints."""
        signature = registration.sign_registration(
            key or self.key,
            base64url.decode(challenge["challenge"]),
            signed.get("master_id", base64url.decode(challenge["master_id"])),
            signed.get("endpoints", self.endpoints),
        )
        answer = await self._post(
            "/v1/relays/register/verify",
            {
                "challenge_id": challenge["challenge_id"],
                "signature": base64url.encode(signature),
            },
        )
        if answer.status == 201:
            self.accepted(answer.body)
        return answer

    def accepted(self, body: dict[str, Any]) -> None:
        self.token = body["relay_token"]
        self.held_kids = tuple(key["kid"] for key in body["keyset"]["keys"])
        self.keyset_serial = body["keyset"]["serial"]

    async def register(self, token: str | None = "service") -> Answer:
        challenge = await self.challenge(token)
        assert challenge.status == 200, challenge
        return await self.verify(challenge.body)

    async def heartbeat(self, *, token: str | None = None, **fields: Any) -> Answer:
        body = {
            "relay_id": self.relay_id,
            "load_pct": 1.0,
            "active_sessions": 0,
            "bandwidth_in_kbps": 0,
            "bandwidth_out_kbps": 0,
            "packet_loss_pct": 0,
            "held_kids": list(self.held_kids),
            "keyset_serial": self.keyset_serial,
            "state": "ready",
            **fields,
        }
        token = self.token if token is None else token
        return await self._post("/v1/relays/heartbeat", body, token)

    def _events_path(self, after: int) -> str:
        return f"/v1/relays/events?relay_id={self.relay_id}&after={after}"

    async def events(self, after: int = 0) -> Answer:
        """One page of the log, as a poll gets it."""
        return await self.client.get(self._events_path(after), token=self.token)

    def stream(self, after: int = 0) -> Any:
        """The event stream, for ``async with``."""
        return self.client.http.ws_connect(
            self.client.url + self._events_path(after),
            headers={"Authorization": f"Bearer {self.token}"},
        )

    async def join(self, token: str | None = "service", **fields: Any) -> Self:
        """Register and report once, so that leases are given for it."""
        assert (await self.register(token)).status == 201
        assert (await self.heartbeat(**fields)).status == 200
        return self


@asynccontextmanager
async def client_for(url: str, files: MasterFiles) -> AsyncIterator[MasterClient]:
    """HTTP client of a master that runs somewhere."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
        yield MasterClient(url, files, http)


@asynccontextmanager
async def running_master(
    root: Path, clock: Clock | None = None, files: MasterFiles | None = None, **settings: Any
) -> AsyncIterator[MasterClient]:
    """A master in this process on a free port, over real HTTP."""
    files = files or MasterFiles.make(root)
    async with (
        open_master(files.config(**settings), clock) as master,
        listening(make_app(master), "127.0.0.1", 0) as url,
        client_for(url, files) as client,
    ):
        yield client
