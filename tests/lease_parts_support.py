"""Looks into a lease token without checking it, as only a test may."""

import json

from wavry_peer.protocol import base64url

SIGNATURE_BYTES = 64


def jti_of(token: str) -> str:
    payload = base64url.decode(token.split(".")[2])[:-SIGNATURE_BYTES]
    return str(json.loads(payload)["jti"])
