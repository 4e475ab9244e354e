"""What counts as one address where connections and requests are counted."""

import ipaddress

__all__ = ["address_key"]


def address_key(host: str) -> str:
    """Return what one holder of addresses can hardly vary: the IPv4 address, or the IPv6 /64."""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((address, 64), strict=False).network_address)
        address = address.ipv4_mapped
    return str(address)
