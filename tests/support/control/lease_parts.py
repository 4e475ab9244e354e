"""Parts of lease requests and of lease tokens, for tests."""

import json
from typing import Any

from wavry_peer.protocol import base64url

SIGNATURE_BYTES = 64
CNF = base64url.encode(bytes(32))


def jti_of(token: str) -> str:
    """The id of a lease, without checking it, as only a test may."""
    payload = base64url.decode(token.split(".")[2])[:-SIGNATURE_BYTES]
    return str(json.loads(payload)["jti"])


def parties(client: str = "ann", server: str = "bob", **fields: Any) -> dict[str, Any]:
    """Body of ``POST /v1/leases`` for two users, whose keys nobody has."""
    users = {"client": client, "server": server}
    return {**{role: {"sub": sub, "cnf": CNF} for role, sub in users.items()}, **fields}


def renewal(issued: dict[str, Any], role: str = "client") -> dict[str, Any]:
    """Body of ``POST /v1/leases/renew`` for a role of an answer to `parties`."""
    jti = jti_of(issued["leases"][role])
    return {"session_id": issued["session_id"], "role": role, "jti": jti}
