"""Turns kill switches: one change at a time, written with its audit row before it is believed."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from wavry_peer.protocol.http.admin import SwitchInfo, SwitchRequest

from .audit import AuditEntry, attempted
from .store import AdminStore
from .switches import Switch, SwitchState, SwitchTable

__all__ = ["SwitchService", "switch_info"]

_CLOSING: Final = {Switch.RELAY_MODE: False, Switch.LOCKDOWN: True}
"""The position of each switch in which users are turned away."""

_log = structlog.get_logger(__name__)


class SwitchService:
    """Answers ``/v1/admin/switches``."""

    def __init__(
        self,
        store: AdminStore,
        table: SwitchTable,
        *,
        now_s: Callable[[], int],
        turned: Callable[[SwitchState], None] = lambda _state: None,
    ) -> None:
        """Make it; `turned` is called after each change, when it is already in force."""
        self._store = store
        self._table = table
        self._now_s = now_s
        self._turned = turned
        self._changing = asyncio.Lock()

    async def turn(self, switch: Switch, order: SwitchRequest, *, who: str) -> SwitchState:
        """Put a switch where the order wants it; the next call sees it."""
        action = f"{switch.value.replace('-', '_')}_{'on' if order.on else 'off'}"
        audit = AuditEntry(self._now_s(), who, action, switch.value, order.reason)
        async with self._changing, attempted(self._store, audit):
            state = SwitchState(switch, order.on, audit.at_s, who, order.reason)
            await self._store.set_switch(state, audit)
            self._table.change(state)
        level = "warning" if order.on is _CLOSING[switch] else "info"
        getattr(_log, level)(
            "switch_turned", switch=switch.value, on=order.on, by=who, cause=order.reason,
            next_step=f"`wavryctl {switch.value} {'off' if order.on else 'on'}` reverts it",
        )  # fmt: skip
        self._turned(state)
        return state


def switch_info(state: SwitchState) -> SwitchInfo:
    """Return the state as the API tells it."""
    return SwitchInfo(
        switch=state.switch.value,
        on=state.on,
        at=state.at_s,
        who=state.who,
        reason=state.reason,
    )
