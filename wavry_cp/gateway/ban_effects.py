"""What a ban does at the gateway: the user's connection and sessions end."""

from wavry_cp.gateway.sessions.service import SessionService
from wavry_cp.gateway.signaling.hub import Hub
from wavry_cp.operators.audit import AuditEntry
from wavry_cp.operators.bans import Ban, BanKind

from .store import GatewayStore

__all__ = ["GatewayBanEffects"]


class GatewayBanEffects:
    """`BanEffects` of the gateway, which bans users."""

    def __init__(self, store: GatewayStore, hub: Hub, sessions: SessionService) -> None:
        self._store = store
        self._hub = hub
        self._sessions = sessions

    async def put(self, ban: Ban, audit: AuditEntry) -> Ban:
        """See `BanEffects`."""
        await self._store.save_ban(ban, audit)
        return ban

    async def take_away(self, ban: Ban, audit: AuditEntry) -> None:
        """See `BanEffects`."""
        await self._store.remove_ban(ban.kind, ban.value, audit)

    async def banned(self, ban: Ban, older: Ban | None = None) -> None:  # noqa: ARG002  # of the seam
        """See `BanEffects`."""
        self._hub.end_user(ban.value)
        await self._sessions.end_all_of(ban.value)

    async def lifted(self, ban: Ban, *, who: str, now_s: int, reason: str) -> None:
        """See `BanEffects`: he logs in and calls again by himself."""

    async def knows(self, kind: BanKind, value: str) -> bool:
        """See `BanEffects`."""
        return kind is BanKind.USER and await self._store.user(value) is not None
