"""Logging of every role: structlog, one JSON object a line on stderr (or text on a terminal).

Events are short stable names; fields carry the cause and the next step.  No secret, no payload
and no full peer address is ever a field: use `mask_address`.
"""

import ipaddress
import logging
import sys
from typing import Final, TextIO

import structlog

from . import log_stream
from .request_ids import log_request_id
from .settings import SettingsError

__all__ = ["LEVELS", "configure", "level_number", "mask_address", "set_level"]

LEVELS: Final = ("debug", "info", "warning", "error")
_NUMBERS: Final = {name: logging.getLevelNamesMapping()[name.upper()] for name in LEVELS}


class _Threshold:
    """Drops lines below a level that may change.

    structlog's own filter is fixed in each logger from its first line on.
    """

    def __init__(self) -> None:
        self.level = logging.INFO

    def __call__(
        self, _logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if _NUMBERS.get(method, logging.ERROR) < self.level:
            raise structlog.DropEvent
        return event


_threshold: Final = _Threshold()


def set_level(level: str) -> None:
    """Change the level of every logger of this process.

    Args:
        level: one of `LEVELS`.

    Raises:
        SettingsError: another level.
    """
    _threshold.level = level_number(level)


def level_number(level: str) -> int:
    """Return the number of a level, as in `logging`.

    Raises:
        SettingsError: another level.
    """
    if level.lower() not in LEVELS:
        raise SettingsError(f"log level must be one of {', '.join(LEVELS)}")
    return _NUMBERS[level.lower()]


def configure(role: str, *, level: str = "info", stream: TextIO | None = None) -> None:
    """Set up structlog for a process.

    Args:
        role: bound to every line, e.g. ``"relay"``.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        stream: where lines go; by default stderr, through a `LogStream`: no log call of a service
            blocks or raises.

    Raises:
        SettingsError: another level.
    """
    set_level(level)
    if stream is None:
        log_stream.install(role)
    out = stream or sys.stderr
    # On a terminal the renderer shows exceptions itself and warns where they come formatted.
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if out.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            _threshold,
            structlog.contextvars.merge_contextvars,
            log_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)


def mask_address(host: str) -> str:
    """Return the /24 (IPv4) or /48 (IPv6) of an address: enough for an operator, not a person."""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    prefix = 24 if address.version == 4 else 48
    return str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))
