"""Kill switches: durable, and seen by the next call."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Switch", "SwitchState", "SwitchTable"]


class Switch(StrEnum):
    """What can be switched.

    ``relay-mode`` off: no new leases, renewals go on.  ``lockdown`` on: only admin calls pass.
    """

    RELAY_MODE = "relay-mode"
    LOCKDOWN = "lockdown"


@dataclass(frozen=True, slots=True)
class SwitchState:
    """Where a switch stands, and who put it there, when (unix seconds) and why."""

    switch: Switch
    on: bool
    at_s: int = 0
    who: str = ""
    reason: str = ""


class SwitchTable:
    """The switches of one service, in memory; the store has the same."""

    def __init__(self, states: Iterable[SwitchState] = ()) -> None:
        # A system that nobody touched is open: relays serve, no lockdown.
        self._states = {
            Switch.RELAY_MODE: SwitchState(Switch.RELAY_MODE, on=True),
            Switch.LOCKDOWN: SwitchState(Switch.LOCKDOWN, on=False),
        }
        for state in states:
            self.change(state)

    def state(self, switch: Switch) -> SwitchState:
        """Return where a switch stands."""
        return self._states[switch]

    def change(self, state: SwitchState) -> None:
        """Take over what the store has just written."""
        self._states[state.switch] = state

    @property
    def relay_mode(self) -> bool:
        """True where new leases are given."""
        return self._states[Switch.RELAY_MODE].on

    @property
    def lockdown(self) -> bool:
        """True where only admin calls pass."""
        return self._states[Switch.LOCKDOWN].on
