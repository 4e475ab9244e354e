"""What a session needs from outside: somebody who gives leases, clocks, and randomness."""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from wavry_peer.protocol.http.api import Credentials

__all__ = ["Environment", "LeaseBroker", "boottime_ns"]


class LeaseBroker(Protocol):
    """What a session needs of the gateway; `GatewayClient` has it."""

    async def renew(self, session_id: str, jti: str) -> Credentials:
        """Return the next lease of our side."""

    async def request_relay(self, session_id: str, exclude: tuple[str, ...] = ()) -> Credentials:
        """Return a lease on another relay."""

    async def report_path(self, session_id: str, path: Literal["direct", "relay"]) -> None:
        """Tell the gateway how the two peers reach each other."""

    async def close_session(self, session_id: str) -> None:
        """Tell the gateway that the session is over."""


def boottime_ns() -> int:
    """Return monotonic time that goes on while the machine sleeps: leases do end meanwhile."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True)
class Environment:
    """Time and randomness of a session; tests give their own.

    Attributes:
        clock: monotonic nanoseconds.
        unix_us: wall clock, unix microseconds, for the counter of proofs.
        rng: for jitter only.
        random_bytes: for keys.
    """

    clock: Callable[[], int] = boottime_ns
    unix_us: Callable[[], int] = lambda: time.time_ns() // 1000
    rng: random.Random = field(default_factory=random.Random)
    random_bytes: Callable[[int], bytes] = os.urandom
