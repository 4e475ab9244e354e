"""Sees when a relay's state changes, says so in the log, and keeps the history.

States depend on time as well as on messages, so nobody is told of every change.  This looks at all
relays when something happened that may have changed one, and at least once in each heartbeat
interval.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_peer.protocol.http.api import RelayInfo
from wavry_peer.protocol.relay_terms import RelayState

from .store import HistoryStore, StateChange

__all__ = ["StateWatch"]

MOST_UNSAVED: Final = 1000
_NEXT_STEPS: Final = {
    "workers": "its log names why workers die; it is ACTIVE again when they run",
    "probes": "is its UDP port open from here to there? `wavryctl doctor` asks it",
    "loss": "is its host or network full? see `wavry_relay_packets_dropped_total`",
    "clock": "set the clock of its host: `timedatectl`",
    "disk": "free the disk of its state directory",
}

_log = structlog.get_logger(__name__)


class StateWatch:
    """Compares what relays are with what they were.

    Args:
        store: keeps the changes.
    """

    def __init__(self, store: HistoryStore) -> None:
        self._store = store
        self._seen: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._unsaved: list[StateChange] = []
        self.changed = asyncio.Event()
        """Set by who may have changed the state of a relay."""

    async def load(self) -> None:
        """Go on where the last process ended."""
        for change in await self._store.last_changes():
            causes = tuple(change.causes.split(",")) if change.causes else ()
            self._seen[change.relay_id] = change.after, causes

    async def step(
        self, infos: Iterable[RelayInfo], *, now_s: int, is_known: Callable[[str], object]
    ) -> None:
        """Look at the relays whose state is certain, and forget those that are not known."""
        self._seen = {key: state for key, state in self._seen.items() if is_known(key)}
        for info in infos:
            state = info.state, tuple(fault.cause for fault in info.faults)
            before = self._seen.get(info.relay_id)
            if before != state:
                self._seen[info.relay_id] = state
                self._note(info, "" if before is None else before[0], now_s)
        await self._save()

    def _note(self, info: RelayInfo, before: str, now_s: int) -> None:
        text = "; ".join(fault.text for fault in info.faults)
        causes = ",".join(fault.cause for fault in info.faults)
        self._unsaved.append(StateChange(info.relay_id, now_s, before, info.state, causes, text))
        del self._unsaved[:-MOST_UNSAVED]
        log = _log.bind(relay_id=info.relay_id, name=info.name, before=before, now=info.state)
        if info.state == RelayState.OFFLINE:
            log.warning("relay_state")
        elif info.state == RelayState.DEGRADED:
            log.warning(
                "relay_state",
                cause=text,
                effect="it gets no new session; its sessions renew",
                next_step="; ".join(
                    _NEXT_STEPS[fault.cause] for fault in info.faults if fault.cause in _NEXT_STEPS
                ),
            )
        elif text:
            log.info("relay_state", cause=text)
        else:
            log.info("relay_state")

    async def _save(self) -> None:
        if not self._unsaved:
            return
        unsaved, self._unsaved = self._unsaved, []
        try:
            await self._store.note_changes(unsaved)
        except StoreUnavailableError as error:
            self._unsaved = unsaved + self._unsaved
            _log.error("relay_history_not_saved", cause=str(error), next_step="tried again")
