"""What was seen in a run: incidents, deaths of services, sessions lost, datagrams by the second.

Times are seconds since the run began.
"""

from collections import defaultdict
from typing import Final

import msgspec

__all__ = ["Datagrams", "Death", "Incident", "Journal", "LostSession"]

SETTLED_S: Final = 15.0
"""A datagram that has not come by then is lost: sockets hold what was sent to a process that a
fault froze, and give it out later."""


class Incident(msgspec.Struct):
    """A fault or an attack.

    Attributes:
        kind: its name.
        target: service that it happened to.
        is_attack: by a stranger; else a fault of the host.
        began_s: from when.
        lifted_s: when its cause was gone, or None.
        recovered_s: when every session of the target carried datagrams sent since then and the
            service called itself healthy, or None: not yet, or never.
        note: what it did, for the reader.
    """

    kind: str
    target: str
    is_attack: bool
    began_s: float
    lifted_s: float | None = None
    recovered_s: float | None = None
    note: str = ""


class Death(msgspec.Struct, frozen=True):
    """A service whose process ended; `asked` where the run itself killed it."""

    service: str
    at_s: float
    asked: bool


class LostSession(msgspec.Struct, frozen=True):
    """A session that ended though nobody had ended it.

    Attributes:
        name: of the session.
        at_s: when it was noticed.
        reason: what its peer was told.
        relays: (since when, which relay) of its whole life, the newest last.
    """

    name: str
    at_s: float
    reason: str
    relays: tuple[tuple[float, str], ...]


class Datagrams:
    """Datagrams by the second in which they were sent."""

    def __init__(self) -> None:
        self._sent: defaultdict[int, int] = defaultdict(int)
        self._received: defaultdict[int, int] = defaultdict(int)

    def sent(self, sent_s: float) -> None:
        """Count one that was sent."""
        self._sent[int(sent_s)] += 1

    def received(self, sent_s: float) -> None:
        """Count one that came, for the first time."""
        self._received[int(sent_s)] += 1

    def between(self, since_s: float, until_s: float) -> tuple[int, int]:
        """Return how many were sent in the whole seconds of a time, and how many never came."""
        seconds = range(int(since_s), int(until_s))
        sent = sum(self._sent[second] for second in seconds)
        return sent, sent - sum(self._received[second] for second in seconds)


class Journal:
    """Everything that was seen; who sees something appends it."""

    def __init__(self) -> None:
        self.incidents: list[Incident] = []
        self.deaths: list[Death] = []
        self.lost: list[LostSession] = []
        self.findings: list[str] = []
        self.skipped: dict[str, str] = {}
        self.datagrams = Datagrams()

    def found(self, text: str) -> None:
        """Note something that no fault excuses."""
        self.findings.append(text)
