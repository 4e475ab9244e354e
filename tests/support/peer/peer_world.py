"""A gateway, two relays and the homes of users, for the peer's tests."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import wavry_peer
from support.peer.fake_gateway import FakeGateway
from support.peer.stub_relay import StubRelay
from wavry_peer.protocol import base64url


async def eventually(condition: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """Polls until the condition gives something true."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.005)
    return value


class PeerWorld:
    """A gateway, two relays, and the homes of users."""

    def __init__(self, gateway: FakeGateway, directory: Path) -> None:
        self.gateway = gateway
        self.directory = directory

    @property
    def relay(self) -> StubRelay:
        return self.gateway.relays[0]

    @property
    def spare(self) -> StubRelay:
        return self.gateway.relays[1]

    def login(self, username: str) -> dict[str, Any]:
        return {"token": self.gateway.token(username), "home": self.directory / username}

    def connect(self, caller: str, callee: str, **extra: Any) -> Any:
        return wavry_peer.connect(self.gateway.url, callee, **(self.login(caller) | extra))

    def listen(self, username: str, **extra: Any) -> Any:
        options = {"accept": "all"} | self.login(username) | extra
        return wavry_peer.listen(self.gateway.url, **options)

    @contextlib.asynccontextmanager
    async def pair(
        self, **extra: Any
    ) -> AsyncIterator[tuple[wavry_peer.Session, wavry_peer.Session]]:
        """Alice called Bob."""
        async with self.listen("bob") as listener, self.connect("alice", "bob", **extra) as alice:
            async with asyncio.timeout(5):
                bob = await listener.accept()
            async with bob:
                yield alice, bob


@contextlib.asynccontextmanager
async def peer_world(directory: Path) -> AsyncIterator[PeerWorld]:
    relays = [await StubRelay("rly-test-1", 1).start(), await StubRelay("rly-test-2", 2).start()]
    gateway = await FakeGateway(relays).start()
    try:
        yield PeerWorld(gateway, directory)
    finally:
        await gateway.close()
        for relay in relays:
            relay.close()


def noise_key_text(public: bytes) -> str:
    return base64url.encode(public)
