"""Reads several numbered logs of the services on from where each was left, as one list."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from .output import EXIT_UNREACHABLE, CommandError, print_note

__all__ = ["PAGE_ROWS", "AskPage", "NewsFeed", "Page"]

PAGE_ROWS: Final = 1000


class _Line(Protocol):
    @property
    def at(self) -> int: ...


Line = TypeVar("Line", bound=_Line)
Page = tuple[Sequence[Line], str]
"""Lines in their order, and the query that asks for those behind them."""
AskPage = Callable[[str], Awaitable[Page[Line]]]
"""Takes a query, e.g. ``limit=200``."""


class NewsFeed(Generic[Line]):
    """Gives what is new of each log, by time.

    Args:
        asks: of each log, by a name for messages.
        first: query of the first page of each log.
    """

    def __init__(self, asks: dict[str, AskPage[Line]], first: str) -> None:
        self._asks = asks
        self._first = first
        self._next: dict[str, str] = {}
        self._missing: set[str] = set()

    async def next(self, *, patient: bool = False) -> list[Line]:
        """Return what is new.

        Raises:
            CommandError: a service refuses, or (unless `patient`) cannot be reached.
        """
        found = await asyncio.gather(*(self._new(name, patient=patient) for name in self._asks))
        return sorted((line for some in found for line in some), key=lambda line: line.at)

    async def _new(self, name: str, *, patient: bool) -> list[Line]:
        lines: list[Line] = []
        try:
            first = name not in self._next
            while True:
                query = self._first if first else f"limit={PAGE_ROWS}&{self._next[name]}"
                page, self._next[name] = await self._asks[name](query)
                lines += page
                if first or len(page) < PAGE_ROWS:
                    break
            self._missing.discard(name)
        except CommandError as error:
            if not patient or error.exit_code != EXIT_UNREACHABLE:
                raise
            if name not in self._missing:
                self._missing.add(name)
                print_note(f"{error}; waiting for it")
        return lines
