"""When to renew a lease: at 80 % of its life, and again and again until it works or it ends.

Sans I/O.  The first try is a little after 80 % (up to 2 % of the life), so that sessions that
began together do not renew together.  After a failure the wait grows from 1 s to 15 s, but there
are always several more tries before the end.
"""

from collections.abc import Callable
from typing import Final

from wavry_peer.protocol.constants import RENEW_AT_FRACTION

from .own_lease import OwnLease

__all__ = ["RenewalSchedule"]

JITTER_FRACTION: Final = 0.02
_SECOND_NS: Final = 1_000_000_000
_FIRST_WAIT_NS: Final = _SECOND_NS
_MAX_WAIT_NS: Final = 15 * _SECOND_NS
_TRIES_LEFT: Final = 4
"""A wait is at most a quarter of what is left: a gateway that comes back just before the end is
still found."""
_MIN_WAIT_NS: Final = _SECOND_NS // 10


class RenewalSchedule:
    """The schedule of one session's lease.

    Args:
        lease: the one in use.
        random: gives a number from 0 up to 1.

    Attributes:
        lease: the one in use.
        due_ns: when to ask for the next lease, on the clock of `lease.received_ns`.
    """

    def __init__(self, lease: OwnLease, random: Callable[[], float]) -> None:
        self._random = random
        self.lease = lease
        self.due_ns = 0
        self._wait_ns = _FIRST_WAIT_NS
        self.restart(lease)

    @property
    def expires_ns(self) -> int:
        """When the lease in use ends."""
        return self.lease.expires_ns

    def restart(self, lease: OwnLease) -> None:
        """Use another lease from now on."""
        self.lease = lease
        fraction = RENEW_AT_FRACTION + JITTER_FRACTION * self._random()
        self.due_ns = lease.received_ns + int(lease.lifetime_ns * fraction)
        self._wait_ns = _FIRST_WAIT_NS

    def hasten(self, now_ns: int) -> None:
        """Ask now, if not earlier: somebody hinted that the lease is about to end."""
        self.due_ns = min(self.due_ns, now_ns)

    def failed(self, now_ns: int, retry_after_s: float | None = None) -> None:
        """Plan the next try after one that did not work.

        Args:
            now_ns: time now.
            retry_after_s: what the gateway asked us to wait, in seconds, or None.
        """
        wait_ns = int(self._wait_ns * (0.5 + 0.5 * self._random()))
        self._wait_ns = min(self._wait_ns * 2, _MAX_WAIT_NS)
        left_ns = self.expires_ns - now_ns
        wait_ns = max(min(wait_ns, left_ns // _TRIES_LEFT), _MIN_WAIT_NS)
        if retry_after_s is not None:
            # Even when it is longer than the lease: the gateway is protecting itself.
            wait_ns = max(wait_ns, int(retry_after_s * _SECOND_NS))
        self.due_ns = now_ns + wait_ns

    def is_expired(self, now_ns: int) -> bool:
        """Return True once the lease in use has ended."""
        return now_ns >= self.expires_ns
