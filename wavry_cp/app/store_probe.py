"""Whether the store works, asked at most once a second.

/ready is open to everyone: it may not become a way to keep the store busy.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from .store_errors import StoreUnavailableError

__all__ = ["PROBE_TIMEOUT_S", "StoreProbe"]

PROBE_TIMEOUT_S: Final = 2.0
KEPT_S: Final = 1.0


class StoreProbe:
    """Remembers what a store answered."""

    def __init__(
        self, check: Callable[[], Awaitable[None]], monotonic_s: Callable[[], float]
    ) -> None:
        """Make it; `check` raises `StoreUnavailableError` where the store cannot be written."""
        self._check = check
        self._monotonic_s = monotonic_s
        self._asked_s = float("-inf")
        self._fault = ""

    async def fault(self) -> str:
        """Return why the store cannot be used, or an empty text."""
        now_s = self._monotonic_s()
        if now_s - self._asked_s >= KEPT_S:
            self._asked_s = now_s
            self._fault = await self._ask()
        return self._fault

    async def _ask(self) -> str:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._check()
        except StoreUnavailableError as error:
            return str(error)
        except TimeoutError:
            return "store does not answer in time"
        return ""
