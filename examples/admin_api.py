"""Ask a master, as an operator's own program would: its relays, and who did what.

A token of the role ``viewer`` is enough; `wavryctl tokens create` makes one::

    WAVRY_ADMIN_TOKEN=… python examples/admin_api.py https://master.example

Every answer is JSON.  The bodies are described in `wavry_peer.protocol.http`, for those who want
them typed, as here.
"""

import asyncio
import os
import sys
import time
from typing import TypeVar

import aiohttp
import msgspec

from wavry_peer.protocol.http.admin import AuditPage
from wavry_peer.protocol.http.api import ErrorBody, RelayList

Answer = TypeVar("Answer")


async def main(master_url: str) -> None:
    """Print the relays, then the last ten acts of operators."""
    headers = {"Authorization": f"Bearer {os.environ['WAVRY_ADMIN_TOKEN']}"}
    async with aiohttp.ClientSession(master_url, headers=headers) as http:
        for relay in (await get(http, "/v1/relays", RelayList)).relays:
            print(f"{relay.relay_id} {relay.state} {relay.active_sessions} sessions")
        for act in (await get(http, "/v1/admin/audit?limit=10", AuditPage)).entries:
            when = time.strftime("%F %T", time.gmtime(act.at))
            print(f"{when} {act.who} {act.action} {act.target} {act.outcome}")


async def get(http: aiohttp.ClientSession, path: str, kind: type[Answer]) -> Answer:
    """Return the body of an answer; a refusal ends the program with its code and message."""
    async with http.get(path) as response:
        body = await response.read()
    if response.status >= 400:
        refusal = msgspec.json.decode(body, type=ErrorBody)
        sys.exit(f"{refusal.error}: {refusal.message}")
    return msgspec.json.decode(body, type=kind)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
