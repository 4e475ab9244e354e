"""What the history of relays' states asks of a store; it raises as `RelayStore` does."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = ["HistoryStore", "StateChange"]


class StateChange(NamedTuple):
    """A relay went from one state to another, or is in the same for other causes.

    Attributes:
        relay_id: which.
        at_s: unix seconds.
        before: state that others saw, empty where none is known.
        after: the same, from now on.
        causes: names of why it is so, separated by commas; empty where there is nothing to say.
        text: the same for people.
    """

    relay_id: str
    at_s: int
    before: str
    after: str
    causes: str
    text: str


class HistoryStore(Protocol):
    """Changes of state, the newest of each relay."""

    async def note_changes(self, changes: Sequence[StateChange]) -> None:
        """Write changes, and forget the oldest beyond what is kept of a relay."""
        ...

    async def state_changes(self, relay_id: str, limit: int) -> Sequence[StateChange]:
        """Return the newest changes of a relay, the oldest of these first."""
        ...

    async def changes_after(
        self, after: int | None, limit: int
    ) -> Sequence[tuple[int, StateChange]]:
        """Return changes of all relays with their numbers: the oldest behind `after`, or the last.

        Numbers grow by the order of writing.
        """
        ...

    async def last_changes(self) -> Sequence[StateChange]:
        """Return the newest change of each relay."""
        ...
