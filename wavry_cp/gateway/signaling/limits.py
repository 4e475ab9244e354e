"""Limits that need a count: WebSockets of an address, faults of a connection."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["ConnectionFaults", "ConnectionSlots", "KeyedCounter"]

STRIKE_FORGET_S: Final = 60.0


class KeyedCounter(dict[str, int]):
    """Counts by key that vanish at zero, so that the table never outgrows what is counted."""

    def take(self, key: str) -> None:
        """Count one more."""
        self[key] = self.get(key, 0) + 1

    def give_back(self, key: str) -> None:
        """Count one less."""
        left = self[key] - 1
        if left:
            self[key] = left
        else:
            del self[key]


class ConnectionSlots:
    """WebSockets at once, per address and in all."""

    def __init__(self, *, per_address: int, total: int) -> None:
        self._per_address = per_address
        self._total = total
        self._used = KeyedCounter()
        self._in_use = 0

    def take(self, address: str) -> AbstractContextManager[None]:
        """Take a slot; it comes back at the end of the block, however that ends.

        Raises:
            RefusedError: ``too_many_connections`` or ``busy``.
        """
        if self._in_use >= self._total:
            raise RefusedError(
                ErrorCode.BUSY, "the gateway is full, try again shortly", retry_after_s=5
            )
        if self._used.get(address, 0) >= self._per_address:
            raise RefusedError(
                ErrorCode.TOO_MANY_CONNECTIONS,
                "too many connections from this address; close one first",
                retry_after_s=10,
            )
        return self._held(address)

    @contextmanager
    def _held(self, address: str) -> Iterator[None]:
        self._used.take(address)
        self._in_use += 1
        try:
            yield
        finally:
            self._in_use -= 1
            self._used.give_back(address)

    def used(self, address: str) -> int:
        """Return the slots that an address holds now."""
        return self._used.get(address, 0)

    @property
    def in_use(self) -> int:
        """Slots held in all."""
        return self._in_use


class ConnectionFaults:
    """Forgives a few faults of a connection, and forgets them after a quiet minute."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._count = 0
        self._last_s = 0.0

    def add(self, now_s: float) -> bool:
        """Count a fault; True where it was one too many."""
        if now_s - self._last_s > STRIKE_FORGET_S:
            self._count = 0
        self._count += 1
        self._last_s = now_s
        return self._count > self._allowed
