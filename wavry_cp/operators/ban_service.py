"""Bans and lifts: one change at a time, written with its audit row before it is believed.

The table is what every call asks, so a ban is in force as soon as it is in there; what else a ban
does (connections, sessions, relays) is the service's `BanEffects`, and follows.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Annotated, Final, Protocol

import msgspec
import structlog

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.admin import BanInfo, BanList, BanRequest, LiftBanRequest
from wavry_peer.protocol.http.api import Username
from wavry_peer.protocol.http.codes import ErrorCode

from .audit import SYSTEM, AuditEntry, AuditLog, attempted
from .bans import Ban, BanKind, BanTable

__all__ = ["BanEffects", "BanService"]

MAX_BANS: Final = 10_000
"""They are kept in memory; a need of more is another problem than bans."""

_NAMES: Final = {
    BanKind.USER: Username,
    BanKind.RELAY: Annotated[str, msgspec.Meta(pattern=r"^rly-[0-9a-f]{24}\Z")],
}
_HOW_NAMED: Final = {
    BanKind.USER: "`wavryctl users list` shows names",
    BanKind.RELAY: "`wavryctl relays list` shows ids",
}

_log = structlog.get_logger(__name__)


class BanEffects(Protocol):
    """What a ban does in a service."""

    async def put(self, ban: Ban, audit: AuditEntry) -> Ban:
        """Write the ban and the act in one transaction; gives the ban as it was written."""
        ...

    async def take_away(self, ban: Ban, audit: AuditEntry) -> None:
        """Remove the ban and write the act in one transaction."""
        ...

    async def banned(self, ban: Ban, older: Ban | None = None) -> None:
        """End what the banned one has; the ban is in force already, in place of `older`."""
        ...

    async def lifted(self, ban: Ban, *, who: str, now_s: int, reason: str) -> None:
        """End a ban before its time, as an operator ordered."""
        ...

    async def knows(self, kind: BanKind, value: str) -> bool:
        """Return whether the service knows somebody of this name."""
        ...


class BanService:
    """Answers ``/v1/admin/bans``."""

    def __init__(
        self,
        log: AuditLog,
        table: BanTable,
        effects: BanEffects,
        *,
        kinds: Collection[BanKind],
        now_s: Callable[[], int],
    ) -> None:
        self._audit_log = log
        self._table = table
        self._effects = effects
        self._kinds = frozenset(kinds)
        self._now_s = now_s
        self._changing = asyncio.Lock()

    def listed(self) -> BanList:
        """Return the bans that hold now."""
        return BanList(bans=tuple(_info(ban) for ban in self._table.holding(self._now_s())))

    async def ban(self, order: BanRequest, *, who: str) -> BanInfo:
        """Ban somebody, or change the end and the reason of a ban.

        Raises:
            RefusedError: 400 ``not_banned_here``: this service has no such kind;
                400 ``invalid_body``: nobody can have this name; 409 ``too_many_bans``.
        """
        now_s = self._now_s()
        kind = BanKind(order.kind)
        audit = AuditEntry(now_s, who, f"ban_{kind.value}", order.value, _why(order))
        async with self._changing:
            async with attempted(self._audit_log, audit):
                self._check_kind(kind)
                _check_name(kind, order.value)
                older = self._table.find(kind, order.value)
                if older is None and len(self._table) >= MAX_BANS:
                    raise RefusedError(
                        ErrorCode.TOO_MANY_BANS, f"there are {MAX_BANS} bans; lift some first"
                    )
                ban = Ban(
                    kind=kind,
                    value=order.value,
                    at_s=now_s,
                    expires_at_s=None if order.life_s is None else now_s + order.life_s,
                    who=who,
                    reason=order.reason,
                    was_draining=older is not None and older.was_draining,
                )
                ban = await self._effects.put(ban, audit)
                self._table.put(ban)
            _log.warning(
                "banned", kind=kind.value, value=order.value, by=who, cause=order.reason,
                next_step=f"`wavryctl bans lift {kind.value} {order.value}` reverts it",
            )  # fmt: skip
            # Inside the lock: a lift that overtook it would leave the relays with the ban.
            await self._effects.banned(ban, older)
        return _info(ban, known=await self._effects.knows(kind, order.value))

    async def lift(self, order: LiftBanRequest, *, who: str) -> BanInfo:
        """End a ban now.

        Raises:
            RefusedError: 404 ``unknown_ban``, 400 ``not_banned_here``.
        """
        now_s = self._now_s()
        kind = BanKind(order.kind)
        audit = AuditEntry(now_s, who, f"unban_{kind.value}", order.value, order.reason)
        async with self._changing:
            async with attempted(self._audit_log, audit):
                self._check_kind(kind)
                ban = self._table.find(kind, order.value)
                if ban is None:
                    raise RefusedError(
                        ErrorCode.UNKNOWN_BAN, "there is no such ban; see `wavryctl bans list`"
                    )
                await self._effects.take_away(ban, audit)
                self._table.remove(kind, order.value)
            _log.info("ban_lifted", kind=kind.value, value=order.value, by=who)
            await self._effects.lifted(ban, who=who, now_s=now_s, reason=order.reason)
        return _info(ban)

    async def lift_ended(self) -> None:
        """Remove bans whose time is over; they have not held since."""
        async with self._changing:
            now_s = self._now_s()
            for ban in self._table.over(now_s):
                audit = AuditEntry(
                    now_s, SYSTEM, f"unban_{ban.kind.value}", ban.value, "its time is over"
                )
                await self._effects.take_away(ban, audit)
                self._table.remove(ban.kind, ban.value)
                _log.info("ban_lifted", kind=ban.kind.value, value=ban.value, by=SYSTEM)

    def _check_kind(self, kind: BanKind) -> None:
        if kind not in self._kinds:
            raise RefusedError(
                ErrorCode.NOT_BANNED_HERE,
                f"this service does not ban a {kind.value}: ask the master",
            )


def _check_name(kind: BanKind, value: str) -> None:
    """Refuse a ban that would hit nobody: its operator believes that it holds."""
    try:
        msgspec.convert(value, _NAMES[kind])
    except msgspec.ValidationError:
        raise RefusedError(
            ErrorCode.INVALID_BODY,
            f"no {kind.value} can have this name; {_HOW_NAMED[kind]}",
        ) from None


def _why(order: BanRequest) -> str:
    return order.reason if order.life_s is None else f"{order.reason} (for {order.life_s} s)"


def _info(ban: Ban, *, known: bool = True) -> BanInfo:
    return BanInfo(
        kind=ban.kind.value,
        value=ban.value,
        at=ban.at_s,
        expires_at=ban.expires_at_s,
        who=ban.who,
        reason=ban.reason,
        known=known,
    )
