"""Two real peers with a session between them, for the integration and fault tests."""

import asyncio
import contextlib
import json
import secrets
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import wavry_peer


def new_user(gateway_url: str, directory: Path, name: str) -> dict[str, Any]:
    """A fresh account: arguments of `connect` and `listen`."""
    username = f"{name}-{secrets.token_hex(4)}"
    password = secrets.token_urlsafe(16)

    body = json.dumps({"username": username, "password": password}).encode()
    request = urllib.request.Request(
        gateway_url + "/auth/register", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status == 201
    return {"credentials": (username, password), "home": directory / username}


@contextlib.asynccontextmanager
async def two_peers(
    gateway_url: str, caller: dict[str, Any], callee: dict[str, Any]
) -> AsyncIterator[tuple[wavry_peer.Session, wavry_peer.Session]]:
    async with wavry_peer.listen(
        gateway_url, accept={caller["credentials"][0]}, **callee
    ) as listener:
        taking = asyncio.create_task(anext(aiter(listener)))
        async with wavry_peer.connect(gateway_url, callee["credentials"][0], **caller) as session:
            async with asyncio.timeout(20):
                taken = await taking
            async with taken:
                yield session, taken


async def echo_one(a: wavry_peer.Session, b: wavry_peer.Session, text: bytes) -> None:
    """One datagram each way; repeated, because a datagram may be lost."""
    for sender, receiver in ((a, b), (b, a)):
        async with asyncio.timeout(15):
            while True:
                await sender.send(text)
                try:
                    async with asyncio.timeout(1):
                        while await receiver.receive() != text:
                            pass
                    break
                except TimeoutError:
                    continue
