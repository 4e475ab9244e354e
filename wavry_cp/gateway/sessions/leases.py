"""Relay leases for sessions: issue, move, renew; each user gets only the lease of his own role.

One request at a time per session.  When both users ask at the same moment (the direct path
broke for both), the second gets the lease that the first request brought for him, so that they meet
at one relay instead of at two.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from wavry_cp.app.rate_limit import RateLimiter
from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.core import GatewayCore
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http.api import Credentials, LeaseResponse, RelaySessionRequest
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.signaling import RelayCredentials

from . import rules as sessions
from .broker import Broker, unavailable
from .keyed_lock import KeyedLock
from .rules import CallSession, SessionKey
from .store import CallStore

__all__ = ["SessionLeases", "credentials_message"]

SHARE_S: Final = 10.0
"""How long a lease that the other user's request brought is handed out instead of a new one."""
MAX_SHARED: Final = 4096


@dataclass(frozen=True, slots=True)
class _Fresh:
    """Leases issued a moment ago; `waiting` is the role that did not ask for them."""

    answer: LeaseResponse
    waiting: c.Role
    issued_s: float


class SessionLeases:
    """The broker's work for users."""

    def __init__(self, core: GatewayCore, broker: Broker) -> None:
        config = core.config
        self._config = config
        self._store: CallStore = core.store
        self._hub = core.hub
        self._access = core.access
        self._clock = core.clock
        self._metrics = core.metrics
        self._events = core.events
        self._broker = broker
        self._limit = RateLimiter.per_minute(
            config.relay_requests_per_minute, config.relay_requests_burst
        )
        self._locks: KeyedLock[SessionKey] = KeyedLock()
        self._fresh: dict[SessionKey, _Fresh] = {}

    async def request(
        self, username: str, session_id: SessionKey, wanted: RelaySessionRequest
    ) -> Credentials:
        """Get leases for both users; the other one's goes to his WebSocket.

        Raises:
            RefusedError: ``unknown_session``, ``session_closed``, ``not_accepted``,
                ``identity_key_required``, ``rate_limited``, ``relay_unavailable`` within the
                time-out, or what else `Broker.issue` raises.
        """
        deadline_s = self._clock.monotonic_s() + self._config.master_timeout_s
        try:
            async with self._locks.hold(session_id, timeout_s=self._config.master_timeout_s):
                session = await self._session(session_id)
                role = sessions.role_of(session, username)
                # A ban may have come while the session was being made.
                self._access.require(session.caller, session.callee)
                # After the look-up: the key of a limit must not be a client's to invent.
                self._check_limit(username, session_id)
                sessions.require_grantable(session, now_s=self._clock.now_s())
                answer = self._shared(session_id, role, wanted)
                if answer is None:
                    left_s = deadline_s - self._clock.monotonic_s()
                    async with asyncio.timeout(max(0.0, left_s)):
                        answer = await self._broker.issue(session, wanted)
                    await self._granted(session, answer, username)
        except TimeoutError:
            raise unavailable() from None
        return _credentials(session, answer, role)

    async def renew(self, username: str, session_id: SessionKey, jti: str) -> Credentials:
        """Renew the caller's own lease.

        Raises:
            RefusedError: ``unknown_session``, ``session_closed``, ``not_on_relay``, ``stale_jti``,
                ``relay_gone``, ``rate_limited`` or ``relay_unavailable``.
        """
        deadline_s = self._clock.monotonic_s() + self._config.master_timeout_s
        try:
            async with self._locks.hold(session_id, timeout_s=self._config.master_timeout_s):
                session = await self._session(session_id)
                role = sessions.role_of(session, username)
                # A ban may have come while the session was being made.
                self._access.require(session.caller, session.callee)
                # After the look-up: the key of a limit must not be a client's to invent.
                self._check_limit(username, session_id)
                sessions.require_renewable(session, now_s=self._clock.now_s())
                left_s = deadline_s - self._clock.monotonic_s()
                async with asyncio.timeout(max(0.0, left_s)):
                    answer = await self._broker.renew(session, role, jti)
                session = await self._renewed(session_id, answer.expires_at)
        except TimeoutError:
            raise unavailable() from None
        return Credentials(
            session_id=session_id,
            relay_id=session.relay_id or "",
            token=answer.lease,
            addr=session.relay_addrs[0],
            addrs=session.relay_addrs,
            role="client" if role is c.Role.CLIENT else "server",
            expires_at=answer.expires_at,
        )

    def forget_fresh(self) -> None:
        """Drop leases that are not handed out any more."""
        now_s = self._clock.monotonic_s()
        for session_id, fresh in tuple(self._fresh.items()):
            if now_s - fresh.issued_s > SHARE_S:
                del self._fresh[session_id]

    async def _session(self, session_id: SessionKey) -> CallSession:
        session = await self._store.session(session_id)
        if session is None:
            raise RefusedError(
                ErrorCode.UNKNOWN_SESSION, "you have no such session; make a new call"
            )
        return session

    def _shared(
        self, session_id: SessionKey, role: c.Role, wanted: RelaySessionRequest
    ) -> LeaseResponse | None:
        fresh = self._fresh.get(session_id)
        if fresh is None or fresh.waiting is not role:
            return None
        # Once only: whoever asks again wants another lease.
        del self._fresh[session_id]
        too_old = self._clock.monotonic_s() - fresh.issued_s > SHARE_S
        if too_old or fresh.answer.relay.relay_id in wanted.exclude_relays:
            return None
        return fresh.answer

    async def _granted(self, session: CallSession, answer: LeaseResponse, username: str) -> None:
        now_s = self._clock.now_s()

        def rule(row: CallSession) -> CallSession:
            return sessions.grant(
                row,
                relay_id=answer.relay.relay_id,
                relay_addrs=answer.relay.endpoints,
                lease_expires_at=answer.expires_at,
                now_s=now_s,
                lifetime_s=self._config.session_idle_s,
            )

        # Refused here where a user has hung up in the meantime: then nobody gets a lease.
        changed = await self._store.change_session(session.session_id, rule)
        if changed is None:
            raise RefusedError(
                ErrorCode.UNKNOWN_SESSION, "you have no such session; make a new call"
            )
        self._events.note("moved" if changed[0].relay_id else "relayed", changed[1])
        other = sessions.other_user(session, username)
        other_role = sessions.role_of(session, other)
        if len(self._fresh) < MAX_SHARED:
            self._fresh[session.session_id] = _Fresh(answer, other_role, self._clock.monotonic_s())
        message = credentials_message(
            _credentials(session, answer, other_role), with_username=username
        )
        self._hub.deliver(other, message)

    async def _renewed(self, session_id: SessionKey, lease_expires_at: int) -> CallSession:
        now_s = self._clock.now_s()

        def rule(row: CallSession) -> CallSession:
            return sessions.renew(
                row,
                lease_expires_at=lease_expires_at,
                now_s=now_s,
                lifetime_s=self._config.session_idle_s,
            )

        changed = await self._store.change_session(session_id, rule)
        if changed is None:
            raise RefusedError(
                ErrorCode.UNKNOWN_SESSION, "you have no such session; make a new call"
            )
        self._events.note("renewed", changed[1])
        return changed[1]

    def _check_limit(self, username: str, session_id: SessionKey) -> None:
        wait_s = self._limit.check(f"{username}\n{session_id}", self._clock.monotonic_s())
        if wait_s:
            self._metrics.limited.labels("relay").inc()
            raise RefusedError(
                ErrorCode.RATE_LIMITED, "too many relay requests; wait", retry_after_s=wait_s
            )


def credentials_message(own: Credentials, *, with_username: str) -> RelayCredentials:
    """Return the credentials as the WebSocket brings them."""
    return RelayCredentials(
        relay_id=own.relay_id,
        token=own.token,
        addr=own.addr,
        addrs=own.addrs,
        session_id=own.session_id,
        expires_at=own.expires_at,
        role=own.role,
        with_username=with_username,
    )


def _credentials(session: CallSession, answer: LeaseResponse, role: c.Role) -> Credentials:
    client = role is c.Role.CLIENT
    return Credentials(
        session_id=session.session_id,
        relay_id=answer.relay.relay_id,
        token=answer.leases.client if client else answer.leases.server,
        addr=answer.relay.endpoints[0],
        addrs=answer.relay.endpoints,
        role="client" if client else "server",
        expires_at=answer.expires_at,
    )
