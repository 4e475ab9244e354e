"""What a ban does at the master: users lose their leases, relays their place in the registry.

A banned relay is told to drain before its stream ends, so that its sessions move at once; one that
does not obey loses them at their next renewal.
"""

from collections.abc import Callable
from typing import Final, Literal, Protocol

import structlog

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.master.relays.registry import RelayRegistry
from wavry_cp.operators.audit import AuditEntry
from wavry_cp.operators.bans import Ban, BanKind
from wavry_cp.operators.store import AdminStore

__all__ = ["MasterBanEffects", "Revoker"]

NO_END_S: Final = 2**53
"""Unix seconds that never come, for a ban without an end."""

_log = structlog.get_logger(__name__)


class Revoker(Protocol):
    """Tells relays to cut the leases of a user."""

    async def revoke(
        self,
        kind: Literal["sub"],
        value: str,
        *,
        now_s: int,
        who: str,
        reason: str,
        until_s: int | None = None,
    ) -> object:
        """Revoke every lease of `value` issued up to `until_s` (unix seconds)."""
        ...

    async def unban(self, sub: str, *, now_s: int, who: str, reason: str) -> object:
        """Make leases good again that are issued from now on."""
        ...


class MasterBanEffects:
    """`BanEffects` of the master.

    The ban itself already refuses every new lease and renewal.  A revocation that cannot be written
    therefore does not undo it: the log says so, and ordering the ban again tries again.
    """

    def __init__(
        self,
        store: AdminStore,
        registry: RelayRegistry,
        revoker: Revoker,
        wake_relay: Callable[[str], None] = lambda _relay_id: None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._revoker = revoker
        self._wake_relay = wake_relay

    async def put(self, ban: Ban, audit: AuditEntry) -> Ban:
        """See `BanEffects`."""
        if ban.kind is BanKind.RELAY:
            return await self._registry.ban(ban, audit)
        await self._store.save_ban(ban, audit)
        return ban

    async def take_away(self, ban: Ban, audit: AuditEntry) -> None:
        """See `BanEffects`."""
        if ban.kind is BanKind.RELAY:
            await self._registry.unban(ban, audit)
        else:
            await self._store.remove_ban(ban.kind, ban.value, audit)

    async def banned(self, ban: Ban, older: Ban | None = None) -> None:
        """See `BanEffects`."""
        if ban.kind is not BanKind.USER:
            self._wake_relay(ban.value)
            return
        until_s = _end_s(ban)
        try:
            if older is not None and _end_s(older) > until_s:
                # Relays keep the latest end that they were told: take the longer one back first.
                await self._revoker.unban(
                    ban.value, now_s=ban.at_s, who=ban.who, reason="a shorter ban follows"
                )
            await self._revoker.revoke(
                "sub", ban.value, now_s=ban.at_s, who=ban.who, reason=ban.reason, until_s=until_s
            )
        except (RefusedError, StoreUnavailableError) as error:
            _log.error(
                "banned_user_not_revoked",
                cause=str(error),
                next_step="the ban holds, leases run out by themselves; order the ban again",
            )

    async def lifted(self, ban: Ban, *, who: str, now_s: int, reason: str) -> None:
        """See `BanEffects`."""
        if ban.kind is BanKind.USER:
            await self._revoker.unban(ban.value, now_s=now_s, who=who, reason=reason)

    async def knows(self, kind: BanKind, value: str) -> bool:
        """See `BanEffects`; users are the gateways' business."""
        return kind is BanKind.USER or self._registry.record(value) is not None


def _end_s(ban: Ban) -> int:
    """Return the last second in which it holds: a lease of the next one is good again."""
    return NO_END_S if ban.expires_at_s is None else ban.expires_at_s - 1
