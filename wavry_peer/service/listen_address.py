"""Addresses to listen on, of every role: which ones a socket can have, and why one could not."""

import errno
import ipaddress
import socket
from typing import Any

from .settings import parse_address

__all__ = [
    "bound_to",
    "format_endpoint",
    "is_this_machine",
    "parse_listen_address",
    "socket_address",
    "why_not_bound",
    "why_unfit",
]


def is_this_machine(host: str) -> bool:
    """Return whether an IP address without brackets, or a name, is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def why_unfit(host: str, port: int) -> str:
    """Return why no socket can have this address, with what to write instead; empty if one can.

    Args:
        host: an IP address without brackets; a name is never refused here.
        port: for the message.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return ""
    if address.ipv4_mapped is not None:
        return f"must not have an IPv4 address in IPv6 form; write {address.ipv4_mapped}:{port}"
    if address.is_link_local and not address.scope_id:
        return f"must name the interface of a link-local address, e.g. [{host}%eth0]:{port}"
    if address.scope_id and not address.is_link_local:
        plain = host.partition("%")[0]
        return f"must name an interface for a link-local address only; write [{plain}]:{port}"
    return ""


def parse_listen_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT as `parse_address` does.

    Raises:
        ValueError: another form, or an address that no socket can have.
    """
    host, port = parse_address(text)
    if why := why_unfit(host, port):
        raise ValueError(why)
    return host, port


def socket_address(
    host: str, port: int, kind: socket.SocketKind
) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Return family and socket address, with the interface of a link-local address.

    Raises:
        OSError: this host has no such interface, or the name is that of no IPv4 address.
    """
    is_v6 = ":" in host
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    flags = socket.AI_NUMERICSERV | (socket.AI_NUMERICHOST if is_v6 else 0)
    (found, *_) = socket.getaddrinfo(host, port, family, kind, flags=flags)
    return found[0], found[4]


def bound_to(sock: socket.socket) -> tuple[str, int]:
    """Return host and port of a bound IP socket, the interface (``%eth0``) in the host."""
    address = sock.getsockname()
    host = str(address[0])
    if len(address) == 4 and address[3] and "%" not in host:
        host += f"%{socket.if_indextoname(address[3])}"
    return host, int(address[1])


def format_endpoint(host: str, port: int) -> str:
    """Write an address and a port in one text, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def why_not_bound(error: OSError, host: str, port: int, variable: str) -> str:
    """Return why a socket could not get an address, and what to do.

    Args:
        error: what the system said.
        host: as for `socket_address`.
        port: as for `socket_address`.
        variable: the setting that names the address.
    """
    endpoint = format_endpoint(host, port)
    if isinstance(error, socket.gaierror) or error.errno == errno.ENODEV:
        kind = "an interface that this host has not" if ":" in host else "no IPv4 address"
        return f"{endpoint} names {kind}; set {variable}"
    if error.errno == errno.EADDRINUSE:
        return f"{endpoint} is taken by another process; stop it or set {variable}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{endpoint} is not an address of this host; set {variable}"
    if error.errno == errno.EACCES:
        return f"{endpoint} needs more rights (CAP_NET_BIND_SERVICE) or a port from 1024 on"
    return f"{endpoint} cannot be opened: {error.strerror}; set {variable}"
