"""Logging of every role: structlog, one JSON object a line on stderr (or text on a terminal).

Events are short stable names; fields carry the cause and the next step.  No secret, no payload
and no full peer address is ever a field: use `mask_address`.
"""

import ipaddress
import logging
import sys
from typing import TextIO

import structlog

from .settings import SettingsError

__all__ = ["configure", "mask_address"]

_LEVELS = ("debug", "info", "warning", "error")


def configure(role: str, *, level: str = "info", stream: TextIO | None = None) -> None:
    """Set up structlog for a process.

    Args:
        role: bound to every line, e.g. ``"relay"``.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        stream: where lines go, stderr by default.

    Raises:
        SettingsError: another level.
    """
    if level.lower() not in _LEVELS:
        raise SettingsError(f"log level must be one of {', '.join(_LEVELS)}")
    out = stream or sys.stderr
    # On a terminal the renderer shows exceptions itself and warns where they come formatted.
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if out.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)


def mask_address(host: str) -> str:
    """The /24 (IPv4) or /48 (IPv6) of an address: enough for an operator, not a person."""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    prefix = 24 if address.version == 4 else 48
    return str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))
