"""What strangers and users were refused, told to the operator: log lines, rows of the audit log.

Strategy: a flood must neither hide what happens nor fill the disk.  The first refusal of a kind
from an address is told at once; what follows is counted, and told once a minute for as long as it
goes on.  Only a few addresses of each kind have rows of their own at a time, all others share one.
An address is named by a keyed hash whose key is new each day and kept nowhere: rows of one day can
be put together, and nobody can find out later whose they were.
"""

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
from aiohttp import web

from wavry_cp.app.client_address import IpNetwork, client_address
from wavry_cp.app.http import bearer_token, route_template
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.address_key import address_key
from wavry_peer.service.clock import Clock

from .audit import ADDRESS_PREFIX, AuditEntry

__all__ = ["LIMITED", "MAX_ADDRESSES", "Folder", "Refusals"]

FOLD_S: Final = 60.0
MAX_ADDRESSES: Final = 16
"""Of one kind at a time, with a row each: at most 17 rows a minute for each of ten kinds."""
MAX_WAITING: Final = 1000
DAY_S: Final = 86_400
HASH_BYTES: Final = 6
OTHERS: Final = "others"
LIMITED: Final = "rate_limited"

_ACTIONS: Final = {
    ErrorCode.INVALID_CREDENTIALS: "login_failed",
    ErrorCode.TOO_MANY_ATTEMPTS: "login_limited",
    ErrorCode.INVALID_RESET: "reset_failed",
    ErrorCode.RATE_LIMITED: LIMITED,
    ErrorCode.TOO_MANY_CONNECTIONS: LIMITED,
    ErrorCode.FORBIDDEN: "call_forbidden",
    ErrorCode.BANNED: "banned_refused",
    ErrorCode.INVALID_RELAY_TOKEN: "relay_refused",
    ErrorCode.INVALID_SIGNATURE: "relay_refused",
    ErrorCode.UNAUTHORIZED: "token_refused",
    ErrorCode.INVALID_TOKEN: "token_refused",
}
_ABOUT_TOKENS: Final = frozenset({"token_refused", "call_forbidden"})
_ADMIN: Final = "/v1/admin/"
_REGISTER: Final = "/v1/relays/register"

_log = structlog.get_logger(__name__)


class _Log(Protocol):
    async def record_acts(self, entries: Sequence[AuditEntry]) -> None: ...


@dataclass(slots=True)
class _Window:
    """A kind of refusal from an address, told within the last minute."""

    entry: AuditEntry
    until_s: float
    more: int = 0


@dataclass(slots=True)
class Folder:
    """Folds refusals; rules only.

    Attributes:
        random_bytes: source of the daily keys.
    """

    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    _windows: dict[tuple[str, str, str], _Window] = field(default_factory=dict)
    _key: bytes = b""
    _day: int = -1

    def note(
        self, action: str, address: str, target: str, outcome: str, *, now_s: float, wall_s: int
    ) -> AuditEntry | None:
        """Take one refusal.

        Args:
            action: its kind.
            address: of the client, as limits count it; never kept beyond the minute.
            target: what it was about.
            outcome: error code.
            now_s: monotonic seconds.
            wall_s: unix seconds.

        Returns:
            The row to write at once, or None where it was counted.
        """
        # Which limit took hold is worth a row; which account was tried is the guesser's choice.
        part = target if action == LIMITED else ""
        window = self._windows.get((action, address, part))
        if window is None and sum(name[0] == action for name in self._windows) >= MAX_ADDRESSES:
            address, part = OTHERS, ""
            window = self._windows.get((action, address, part))
        if window is not None:
            window.more += 1
            return None
        who = OTHERS if address == OTHERS else self._hash(address, wall_s)
        entry = AuditEntry(wall_s, ADDRESS_PREFIX + who, action, target, "", outcome)
        self._windows[action, address, part] = _Window(entry, now_s + FOLD_S)
        return entry

    def due(self, *, now_s: float, wall_s: int, ending: bool = False) -> list[AuditEntry]:
        """Return the counts of the minutes that are over; all of them where the service ends."""
        rows = []
        for name, window in list(self._windows.items()):
            if window.until_s > now_s and not ending:
                continue
            if not window.more:
                del self._windows[name]
                continue
            reason = f"{window.more} more within {FOLD_S:.0f} s"
            first = window.entry
            rows.append(
                AuditEntry(wall_s, first.who, first.action, first.target, reason, first.outcome)
            )
            window.more, window.until_s = 0, now_s + FOLD_S
        return rows

    def __len__(self) -> int:
        """Return the open windows."""
        return len(self._windows)

    def _hash(self, address: str, wall_s: int) -> str:
        if wall_s // DAY_S != self._day:
            self._day, self._key = wall_s // DAY_S, self.random_bytes(32)
        return hashlib.blake2b(address.encode(), key=self._key, digest_size=HASH_BYTES).hexdigest()


class Refusals:
    """Tells the operator what one service refuses; `write` is called every second."""

    def __init__(
        self, log: _Log, clock: Clock, trusted_proxies: Sequence[IpNetwork], folder: Folder
    ) -> None:
        self._audit_log = log
        self._clock = clock
        self._trusted_proxies = trusted_proxies
        self._folder = folder
        self._waiting: deque[AuditEntry] = deque(maxlen=MAX_WAITING)

    def of_request(self, request: web.Request, error: RefusedError) -> None:
        """Take what an HTTP call was refused with; codes that are no offence are left out."""
        route = route_template(request)
        action = _ACTIONS.get(error.code)
        if route.startswith(_REGISTER) and action != LIMITED:
            action = "relay_refused"
        if action is None:
            return
        if action == "token_refused" and bearer_token(request) is None:
            return  # Who shows nothing tries nothing.
        if action in _ABOUT_TOKENS and route.startswith(_ADMIN):
            action = f"admin_{action}"
        address = address_key(client_address(request, self._trusted_proxies))
        self.note(action, address, error.about or route, error.code)

    def note(self, action: str, address: str, target: str, outcome: str) -> None:
        """Take one refusal; see `Folder.note`."""
        entry = self._folder.note(
            action,
            address,
            target,
            outcome,
            now_s=self._clock.monotonic_s(),
            wall_s=self._clock.now_s(),
        )
        if entry is not None:
            self._tell(entry)

    async def write(self, *, ending: bool = False) -> None:
        """Write what waits, in one transaction; a store that is away gets it later."""
        for entry in self._folder.due(
            now_s=self._clock.monotonic_s(), wall_s=self._clock.now_s(), ending=ending
        ):
            self._tell(entry)
        if not self._waiting:
            return
        entries = tuple(self._waiting)
        try:
            await self._audit_log.record_acts(entries)
        except StoreUnavailableError as error:
            _log.error("refusals_not_written", cause=str(error), next_step="tried again in 1 s")
            return
        for _ in entries:
            if self._waiting:
                self._waiting.popleft()

    def _tell(self, entry: AuditEntry) -> None:
        self._waiting.append(entry)
        _log.warning(
            entry.action,
            source=entry.who,
            target=entry.target,
            outcome=entry.outcome,
            **({"more": entry.reason} if entry.reason else {}),
        )
