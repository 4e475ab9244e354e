"""What a session needs from outside: somebody who gives leases, and a clock."""

import time
from typing import Literal, Protocol

from wavry_peer.protocol.http.api import Credentials

__all__ = ["LeaseBroker", "boottime_ns"]


class LeaseBroker(Protocol):
    """What a session needs of the gateway; `GatewayClient` has it."""

    async def renew(self, session_id: str, jti: str) -> Credentials:
        """The next lease of our side."""

    async def request_relay(self, session_id: str, exclude: tuple[str, ...] = ()) -> Credentials:
        """Leases on another relay."""

    async def report_path(self, session_id: str, path: Literal["direct", "relay"]) -> None:
        """Tells the gateway how the two peers reach each other."""

    async def close_session(self, session_id: str) -> None:
        """Tells the gateway that the session is over."""


def boottime_ns() -> int:
    """Monotonic time that goes on while the machine sleeps: leases do end meanwhile."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
