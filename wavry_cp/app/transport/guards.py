"""What a gateway or master refuses to be started with, and what is insecure in production.

Both judge the same few settings, so the rules take values and not a configuration.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from wavry_cp.app.client_address import IpNetwork
from wavry_peer.service.http_client import is_readable_on_the_way
from wavry_peer.service.listen_address import is_this_machine
from wavry_peer.service.settings import parse_address

__all__ = ["is_public", "listen_faults", "plain_origins", "wide_networks"]


def listen_faults(
    role: str,
    listen: str,
    *,
    certificate: Path | None,
    key: Path | None,
    allow_public_bind: bool,
) -> Iterator[str]:
    """Give why a service must not listen so.

    Args:
        role: of the variables, e.g. ``"MASTER"``.
        listen: HOST:PORT of the right form.
        certificate: file of its own TLS certificate.
        key: file of that certificate's key.
        allow_public_bind: the operator knows that other hosts reach it without TLS.
    """
    if (certificate is None) != (key is None):
        yield f"set WAVRY_{role}_TLS_CERTIFICATE_FILE and WAVRY_{role}_TLS_KEY_FILE, or neither"
    elif certificate is None and not allow_public_bind and is_public(listen):
        yield (
            f"WAVRY_{role}_LISTEN has an address that other hosts can reach, and passwords and"
            f" tokens would pass without TLS: set WAVRY_{role}_TLS_CERTIFICATE_FILE and"
            f" WAVRY_{role}_TLS_KEY_FILE, or listen on loopback behind a TLS proxy; where the"
            f" network itself is safe, set WAVRY_{role}_ALLOW_PUBLIC_BIND=1"
        )


def is_public(listen: str) -> bool:
    """Return whether other hosts can reach an address HOST:PORT."""
    return not is_this_machine(parse_address(listen)[0])


def wide_networks(variable: str, networks: Iterable[IpNetwork]) -> Iterator[str]:
    """Give what is insecure in a list of networks that are trusted with something."""
    for network in networks:
        if network.prefixlen == 0:
            yield f"{variable} holds {network}: everybody"


def plain_origins(variable: str, origins: Sequence[str]) -> Iterator[str]:
    """Give what is insecure in a list of web origins."""
    if any(map(is_readable_on_the_way, origins)):
        yield f"{variable} has a page of http://, which anybody on the way can change"
