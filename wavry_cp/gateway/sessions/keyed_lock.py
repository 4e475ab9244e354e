"""A lock per key that exists only while somebody holds or wants it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

__all__ = ["KeyedLock"]

Key = TypeVar("Key")


class KeyedLock(Generic[Key]):
    """Serializes work on one key and lets other keys pass."""

    def __init__(self) -> None:
        self._locks: dict[Key, asyncio.Lock] = {}
        self._users: dict[Key, int] = {}

    @asynccontextmanager
    async def hold(self, key: Key, *, timeout_s: float) -> AsyncIterator[None]:
        """Hold the lock of `key`.

        Raises:
            TimeoutError: it was not free within `timeout_s`.
        """
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] = self._users.get(key, 0) + 1
        try:
            async with asyncio.timeout(timeout_s):
                await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]

    def __len__(self) -> int:
        return len(self._locks)
