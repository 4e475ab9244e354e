"""Relays as people name them: by name, by id, or by the start of an id that fits one relay.

The master decides what a word means; nothing here guesses.
"""

import re
from typing import Final
from urllib.parse import quote

from wavry_peer.protocol.http.api import RelayInfo

from .client import ask_json
from .endpoints import ServiceEndpoints

__all__ = ["RELAY_HELP", "relay_id_of", "relay_named", "relay_path"]

RELAY_HELP: Final = "Name, or id (its start is enough), from `wavryctl relays list`."
_WHOLE_ID: Final = re.compile(r"rly-[0-9a-f]{24}")


def relay_path(text: str) -> str:
    """Return a relay's name or id as a part of a path."""
    return quote(text, safe="")


async def relay_named(endpoints: ServiceEndpoints, text: str) -> RelayInfo:
    """Return the relay that is meant.

    Raises:
        CommandError: no relay fits, or several do; their ids are named.
    """
    return await ask_json(
        "master",
        endpoints.need_master(),
        f"/v1/relays/{relay_path(text)}",
        RelayInfo,
        token=endpoints.admin_token(),
    )


async def relay_id_of(endpoints: ServiceEndpoints, text: str) -> str:
    """Return the id of the relay that is meant; a whole id need not be known to the master.

    Raises:
        CommandError: as `relay_named`.
    """
    if _WHOLE_ID.fullmatch(text):
        return text
    return (await relay_named(endpoints, text)).relay_id
