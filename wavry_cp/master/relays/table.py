"""All relays of one master in memory, found by id, by name, by a piece of the id, by address."""

import itertools
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.health.condition import RelayCondition
from wavry_peer.protocol.http.codes import ErrorCode

from .rules import RelayRecord, RelayReport

__all__ = ["KnownRelay", "RelayTable", "default_names"]

MOST_CANDIDATES: Final = 5
"""Named in the refusal of an ambiguous piece of an id: who sees five knows to write more."""

_DIGITS: Final = re.compile(r"(?:rly-)?([0-9a-f]+)")
_SHORT_DIGITS: Final = 8
_MIN_BARE_DIGITS: Final = 4
"""Of an id without its ``rly-``: a shorter word was hardly meant as one."""


def default_names(relay_id: str) -> Iterator[str]:
    """Give names made of a relay's id, the short one first; for relays that nobody named."""
    digits = relay_id.removeprefix("rly-")
    for length in range(_SHORT_DIGITS, len(digits) + 1):
        yield f"relay-{digits[:length]}"
    for number in itertools.count(2):
        yield f"relay-{digits[:_SHORT_DIGITS]}-{number}"


@dataclass(slots=True)
class KnownRelay:
    """One relay: its durable record, and what this process knows of it."""

    record: RelayRecord
    seen_s: float
    """Monotonic seconds of the last sign of life."""
    condition: RelayCondition
    status: RelayReport | None = None
    presumed: bool = False
    """No sign of life came to this process yet."""
    recent_picks: int = 0
    proven_peak: int = 0
    """The most sessions that it had at once and that both peers renewed."""
    source: str = ""
    """Network that it called from, of a stranger; empty where this process has not seen it."""


class RelayTable:
    """The relays by id, with an index of names and one of addresses."""

    def __init__(self) -> None:
        self._relays: dict[str, KnownRelay] = {}
        self._by_name: dict[str, str] = {}
        self._by_endpoint: dict[str, set[str]] = {}

    def __iter__(self) -> Iterator[KnownRelay]:
        return iter(self._relays.values())

    def __len__(self) -> int:
        return len(self._relays)

    def get(self, relay_id: str) -> KnownRelay | None:
        """Return the relay with this id."""
        return self._relays.get(relay_id)

    def put(self, relay: KnownRelay) -> None:
        """Take a relay in, in place of the one with its id."""
        self.drop(relay.record.relay_id)
        self._relays[relay.record.relay_id] = relay
        self._index(relay.record)

    def change(self, relay: KnownRelay, record: RelayRecord) -> None:
        """Give a relay of this table another record."""
        self._forget_index(relay.record)
        relay.record = record
        self._index(record)

    def drop(self, relay_id: str) -> None:
        """Forget a relay; nothing where it is not here."""
        relay = self._relays.pop(relay_id, None)
        if relay is not None:
            self._forget_index(relay.record)

    def named(self, name: str) -> KnownRelay | None:
        """Return the relay that has this name."""
        relay_id = self._by_name.get(name)
        return None if relay_id is None else self._relays[relay_id]

    def holders(self, endpoint: str) -> list[KnownRelay]:
        """Return the relays that advertise a (canonical) endpoint."""
        return [self._relays[key] for key in sorted(self._by_endpoint.get(endpoint, ()))]

    def find(self, text: str) -> KnownRelay:
        """Return the relay that an operator means: by id, name, or a piece that begins one id.

        Raises:
            RefusedError: ``unknown_relay``, or ``ambiguous_relay``, which names the candidates.
        """
        relay = self._relays.get(text) or self.named(text)
        if relay is not None:
            return relay
        found = self._beginning(text)
        if len(found) == 1:
            return self._relays[found[0]]
        if not found:
            raise RefusedError(
                ErrorCode.UNKNOWN_RELAY, "no relay has this id or name; see `wavryctl relays list`"
            )
        named = ", ".join(f"{key} ({self._relays[key].record.name})" for key in found)
        more = ", …" if len(found) == MOST_CANDIDATES else ""
        raise RefusedError(ErrorCode.AMBIGUOUS_RELAY, f"several relays begin so: {named}{more}")

    def free_name(self, relay_id: str, *, besides: Container[str] = ()) -> str:
        """Return a name made of an id that no relay has, and that is not in `besides` either."""
        return next(
            name
            for name in default_names(relay_id)
            if name not in self._by_name and name not in besides
        )

    def _beginning(self, text: str) -> list[str]:
        match = _DIGITS.fullmatch(text)
        if match is None or (text == match[1] and len(text) < _MIN_BARE_DIGITS):
            return []
        start = f"rly-{match[1]}"
        return sorted(key for key in self._relays if key.startswith(start))[:MOST_CANDIDATES]

    def _index(self, record: RelayRecord) -> None:
        self._by_name[record.name] = record.relay_id
        for endpoint in record.endpoints:
            self._by_endpoint.setdefault(endpoint, set()).add(record.relay_id)

    def _forget_index(self, record: RelayRecord) -> None:
        if self._by_name.get(record.name) == record.relay_id:
            del self._by_name[record.name]
        for endpoint in record.endpoints:
            held = self._by_endpoint.get(endpoint, set())
            held.discard(record.relay_id)
            if not held:
                self._by_endpoint.pop(endpoint, None)
