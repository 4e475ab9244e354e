"""Which addresses a relay may advertise."""

import ipaddress
from collections.abc import Sequence
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.settings import parse_address

__all__ = ["check_endpoint", "check_endpoints"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")
_RESERVED: Final = ipaddress.IPv4Network("240.0.0.0/4")
_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")
"""All that IANA has given out for the Internet; NAT64, mapped and compatible forms are outside."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL_V4: Final = (
    ipaddress.IPv4Network("100.64.0.0/10"),  # behind a carrier's NAT
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments; older Pythons call some global
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 anycast
)
_DOCUMENTATION: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
)


def check_endpoints(texts: Sequence[str], *, private: bool, stranger: bool) -> tuple[str, ...]:
    """Return the canonical forms of what a relay advertises, none of them twice.

    Args:
        texts: as the relay names them.
        private: loopback and private addresses may be advertised (WAVRY_MASTER_PRIVATE_ENDPOINTS).
        stranger: the relay is not enrolled: loopback and private addresses are refused in any case,
            as peers would send into their own networks by a stranger's word.

    Raises:
        RefusedError: ``invalid_endpoint``: see `check_endpoint`.
    """
    return tuple(
        dict.fromkeys(check_endpoint(text, private=private, stranger=stranger) for text in texts)
    )


def check_endpoint(text: str, *, private: bool = False, stranger: bool = False) -> str:
    """Return the canonical form of an endpoint that peers can send to.

    Args:
        text: ``203.0.113.7:4500`` or ``[2001:db8::7]:4500``.
        private: as `check_endpoints`.
        stranger: as `check_endpoints`.

    Raises:
        RefusedError: ``invalid_endpoint``: no IP address and port, a wildcard, multicast,
            broadcast, reserved or link-local address, port 0, or one that the Internet does not
            reach where that is needed.
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
    for seen in (address, _embedded(address)):
        if seen is not None:
            _check_address(seen)
            if not _is_public(seen) and (not private or (stranger and not _is_example(seen))):
                raise _refused(
                    "must be a public address: loopback, private and other addresses that the "
                    "Internet does not reach are for relays of one's own network, where the "
                    "master has WAVRY_MASTER_PRIVATE_ENDPOINTS=1"
                )
    if port == 0:
        raise _refused("must have a port")
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _check_address(address: Address) -> None:
    if address.is_unspecified or address in _THIS_NETWORK:
        raise _refused("must not be a wildcard address: advertise what peers can reach")
    if address.is_multicast or address.is_link_local or address in _RESERVED:
        raise _refused("must not be a multicast, broadcast, reserved or link-local address")


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to `address` end at, where it carries one."""
    if address.version == 4:
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour


def _is_public(address: Address) -> bool:
    if address.version == 6:
        return address.is_global and address in _GLOBAL_V6
    return address.is_global and not any(address in network for network in _SPECIAL_V4)


def _is_example(address: Address) -> bool:
    return any(
        address in network for network in _DOCUMENTATION if network.version == address.version
    )


def _refused(why: str) -> RefusedError:
    return RefusedError(ErrorCode.INVALID_ENDPOINT, f"an endpoint {why}")
