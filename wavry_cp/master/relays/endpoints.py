"""Which addresses a relay may advertise."""

import ipaddress
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.settings import parse_address

__all__ = ["check_endpoint"]

_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")
_RESERVED: Final = ipaddress.IPv4Network("240.0.0.0/4")


def check_endpoint(text: str) -> str:
    """Return the canonical form of an endpoint that peers can send to.

    Loopback and private addresses are allowed: a relay on one host or in one network is a good
    relay for that host or network.

    Args:
        text: ``203.0.113.7:4500`` or ``[2001:db8::7]:4500``.

    Raises:
        RefusedError: ``invalid_endpoint``: no IP address and port, a wildcard, multicast,
            broadcast, reserved or link-local address, or port 0.
    """
    try:
        host, port = parse_address(text)
        address = ipaddress.ip_address(host)
    except ValueError:
        raise _refused("must be an IP address and a port") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise _refused("must not have a zone: it means nothing to a peer")
        address = address.ipv4_mapped or address
    if address.is_unspecified or address in _THIS_NETWORK:
        raise _refused("must not be a wildcard address: advertise what peers can reach")
    if address.is_multicast or address.is_link_local or address in _RESERVED:
        raise _refused("must not be a multicast, broadcast, reserved or link-local address")
    if port == 0:
        raise _refused("must have a port")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _refused(why: str) -> RefusedError:
    return RefusedError(ErrorCode.INVALID_ENDPOINT, f"an endpoint {why}")
