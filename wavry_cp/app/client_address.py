"""Who is asking: the address of the connection, or what a trusted proxy says of it."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

__all__ = ["IpNetwork", "MetricsReaders", "client_address", "is_within", "parse_networks"]

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(texts: Sequence[str]) -> tuple[IpNetwork, ...]:
    """Return the networks from CIDR texts.

    Raises:
        ValueError: names the text that is not a network.
    """
    return tuple(ipaddress.ip_network(text) for text in texts)


def client_address(request: web.Request, trusted_proxies: Sequence[IpNetwork] = ()) -> str:
    """Return the address of the client: of the connection, or what a trusted proxy says of it.

    X-Forwarded-For is read from the right, and only as far as trusted proxies wrote it: the first
    address that is no trusted proxy is the client.  What stands left of it anyone could have sent.
    """
    address = _parse_host(request.remote or "")
    if address is None:
        return "unknown"
    entries = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
    while _is_within(address, trusted_proxies) and entries:
        forwarded = _parse_host(entries.pop().strip())
        if forwarded is None:
            break
        address = forwarded
    return str(address)


def is_within(host: str, networks: Sequence[IpNetwork]) -> bool:
    """Return whether `host` is an address in one of the networks."""
    address = _parse_host(host)
    return address is not None and _is_within(address, networks)


@dataclass(frozen=True, slots=True)
class MetricsReaders:
    """Who reads metrics without a token: clients in the operator's networks."""

    networks: Sequence[IpNetwork]
    trusted_proxies: Sequence[IpNetwork]

    def includes(self, request: web.Request) -> bool:
        """Return whether the request comes from one of the networks."""
        if "X-Forwarded-For" in request.headers and not is_within(
            request.remote or "", self.trusted_proxies
        ):
            return False  # Behind a proxy that nobody declared every client looks like the proxy.
        return is_within(client_address(request, self.trusted_proxies), self.networks)


def _parse_host(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_within(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Sequence[IpNetwork]
) -> bool:
    return any(address in network for network in networks)
