"""What happens in floods is told once, and then as a count for each minute and source."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

__all__ = ["Flood", "FloodFold"]

WINDOW_S: Final = 60.0
MOST_SOURCES: Final = 256
"""Told apart at a time; whoever needs more sources than that is told of as `OTHERS`."""
OTHERS: Final = "others"

Subject = TypeVar("Subject")


@dataclass(slots=True)
class Flood(Generic[Subject]):
    """Events of one source and cause that nobody was told of yet.

    Attributes:
        source: e.g. a network.
        cause: e.g. an error code.
        subject: of the last one.
        count: how many.
    """

    source: str
    cause: str
    subject: Subject
    count: int
    until_s: float


class FloodFold(Generic[Subject]):
    """Decides what is told at once; times are monotonic seconds."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, str], Flood[Subject]] = OrderedDict()

    def is_first(self, source: str, cause: str, subject: Subject, now_s: float) -> bool:
        """Count an event; True where it is the first for a minute, which is to be told."""
        key = (source, cause)
        if key not in self._open and len(self._open) >= MOST_SOURCES:
            key = (OTHERS, cause)
        flood = self._open.get(key)
        if flood is None:
            self._open[key] = Flood(*key, subject, 0, now_s + WINDOW_S)
            return True
        flood.subject = subject
        flood.count += 1
        return False

    def ended(self, now_s: float) -> list[Flood[Subject]]:
        """Return what is to be told as counts: the minutes that are over; called now and then."""
        over = [key for key, flood in self._open.items() if flood.until_s <= now_s]
        floods = [self._open.pop(key) for key in over]
        return [flood for flood in floods if flood.count]
