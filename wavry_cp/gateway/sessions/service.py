"""Sessions between two users, whichever way they ask (HTTP or WebSocket).

Each method checks a rule of `sessions`, changes the row in the store, and only then tells the other
user.  Leases are the business of `SessionLeases`.
"""

import uuid
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from wavry_cp.app.rate_limit import RateLimiter
from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.core import GatewayCore
from wavry_cp.gateway.signaling.queue import Sender
from wavry_cp.operators.audit import AuditEntry
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.signaling import Answer, AnswerRift, Bye, Candidate, Offer, OfferRift

from . import rules as sessions
from .pending import PendingAllowances
from .rules import CallSession, Keys, SessionKey, checked_keys
from .store import CallStore

__all__ = ["SessionService"]

Addressed = Offer | OfferRift | Answer | AnswerRift | Candidate
LISTED_SESSIONS: Final = 100
ENDED_AT_ONCE: Final = 100


class SessionService:
    """Call, answer, exchange candidates, hang up."""

    def __init__(
        self,
        core: GatewayCore,
        *,
        new_id: Callable[[], SessionKey] = lambda: SessionKey(str(uuid.uuid4())),
    ) -> None:
        config = core.config
        self._config = config
        self._store: CallStore = core.store
        self._hub = core.hub
        self._clock = core.clock
        self._metrics = core.metrics
        self._events = core.events
        self._new_id = new_id
        self._pending = PendingAllowances()
        self._call_limit = RateLimiter.per_minute(config.calls_per_minute, config.calls_burst)

    # -- calling ----------------------------------------------------------------------------

    async def call(
        self, caller: str, target: str, keys: Keys, offer: Offer | OfferRift
    ) -> CallSession:
        """Make a pending session and deliver the offer.

        Raises:
            RefusedError: ``invalid_target``, ``rate_limited``, or ``user_offline`` for users
                who are offline and users who do not exist alike.
        """
        wait_s = self._call_limit.check(caller, self._clock.monotonic_s())
        if wait_s:
            raise self._limited("too many calls; wait", wait_s)
        session = sessions.new_session(
            self._new_id(),
            caller,
            target,
            keys,
            now_s=self._clock.now_s(),
            pending_s=self._config.pending_s,
        )
        if not self._hub.is_online(target):
            raise _offline()
        if not await self._store.add_session(session, self._config.call_limits):
            raise self._limited("too many calls wait for an answer; end one first", 5.0)
        self._events.note("called", session)
        try:
            self._pass_on(session, caller, offer)
        except RefusedError:
            await self._close(session.session_id)
            raise
        return session

    async def offer_again(self, username: str, message: Offer) -> None:
        """Deliver a further OFFER inside an open session (new candidates, another network).

        Raises:
            RefusedError: ``unknown_session``, ``session_closed``, ``not_accepted``,
                ``key_mismatch`` or ``user_offline``.
        """
        session = await self._common(username, message.target_username, message.session_id)
        if session.state == "pending" and username != session.caller:
            raise RefusedError(ErrorCode.NOT_ACCEPTED, "answer the call first")
        keys = checked_keys(message.identity_key, message.noise_key)
        sessions.require_same_keys(session, username, keys)
        self._pass_on(session, username, message)

    # -- answering --------------------------------------------------------------------------

    async def accept(self, username: str, session_id: SessionKey, keys: Keys) -> CallSession:
        """Accept a call over HTTP; the caller gets an ANSWER if he is online.

        Raises:
            RefusedError: as `sessions.accept`.
        """
        answer = Answer(identity_key=keys.identity, noise_key=keys.noise)
        return await self._accept(username, session_id, keys, answer)

    async def answer(self, username: str, message: Answer | AnswerRift) -> None:
        """Take an ANSWER: consent, refusal, or the reply to a further OFFER.

        Raises:
            RefusedError: as `sessions.accept`, and ``unknown_session``.
        """
        session_id = message.session_id if isinstance(message, Answer) else None
        session = await self._answered(username, message.target_username, session_id)
        keys = Keys()
        if isinstance(message, Answer):
            keys = checked_keys(message.identity_key, message.noise_key)
            if not message.accept:
                await self._refuse(username, session, message)
                return
        if session.state != "pending":
            sessions.require_same_keys(session, username, keys)
            self._pass_on(session, username, message)
            return
        await self._accept(username, session.session_id, keys, message)

    async def candidate(self, username: str, message: Candidate) -> None:
        """Deliver an ICE candidate to the other user of a common session.

        Raises:
            RefusedError: ``unknown_session``, ``session_closed`` or ``user_offline``.
        """
        session = await self._common(username, message.target_username, message.session_id)
        self._pass_on(session, username, message)

    async def report_path(self, username: str, session_id: SessionKey, path: sessions.Path) -> None:
        """Note how the two talk; counted where that is another path than before.

        Raises:
            RefusedError: ``unknown_session``, or as `sessions.report_path`.
        """
        now_s = self._clock.now_s()

        def rule(session: CallSession) -> CallSession:
            sessions.role_of(session, username)
            return sessions.report_path(session, path, now_s=now_s)

        changed = await self._store.change_session(session_id, rule)
        if changed is None:
            raise _unknown()
        if changed[0].path != path:
            self._metrics.session_paths.labels(path).inc()

    # -- ending -----------------------------------------------------------------------------

    async def bye(self, username: str, message: Bye) -> None:
        """End a session (without an id: the newest with that user).

        Raises:
            RefusedError: ``unknown_session`` or ``invalid_message``.
        """
        if message.session_id is not None:
            await self.end(username, SessionKey(message.session_id))
            return
        session = await self._common(username, message.target_username, None)
        await self._end(session.session_id, username)

    async def end(self, username: str, session_id: SessionKey) -> None:
        """End a session and tell the other user; ending a closed one does nothing.

        Raises:
            RefusedError: ``unknown_session``.
        """
        await self.own(username, session_id)
        await self._end(session_id, username)

    async def end_by_operator(self, session_id: SessionKey, audit: AuditEntry) -> CallSession:
        """End a session and tell both users, as for a ban; ending a closed one does nothing.

        Raises:
            RefusedError: ``unknown_session``.
        """
        changed = await self._store.change_session(
            session_id, lambda session: sessions.close(session, now_s=audit.at_s), audit
        )
        if changed is None:
            raise _unknown()
        before, after = changed
        if before.state != "closed":
            self._events.note("closed", after)
            for username in (after.caller, after.callee):
                self._hub.deliver(username, Bye(session_id=session_id))
        return after

    async def end_all_of(self, username: str) -> None:
        """End every session of a user and tell the others; for a ban.

        Their BYE names nobody: it was no user who ended the session.
        """
        closed: tuple[CallSession, ...] | None = None
        while closed is None or len(closed) == ENDED_AT_ONCE:
            closed = await self._store.close_sessions_of(
                username, now_s=self._clock.now_s(), limit=ENDED_AT_ONCE
            )
            for session in closed:
                self._events.note("closed", session)
                other = sessions.other_user(session, username)
                self._hub.deliver(other, Bye(session_id=session.session_id))

    async def expire(self) -> int:
        """Close sessions whose time is over and tell both users, as for a ban; return how many."""
        closed = await self._store.expire_sessions(now_s=self._clock.now_s(), limit=1000)
        for session in closed:
            self._events.note("expired", session)
            for username in (session.caller, session.callee):
                self._hub.deliver(username, Bye(session_id=session.session_id))
        return len(closed)

    # -- looking ----------------------------------------------------------------------------

    async def own(self, username: str, session_id: str) -> CallSession:
        """Return a session of `username`, open or not.

        Raises:
            RefusedError: ``unknown_session``: none, or of other users.
        """
        session = await self._store.session(SessionKey(session_id))
        if session is None:
            raise _unknown()
        sessions.role_of(session, username)
        return sessions.expire(session, now_s=self._clock.now_s())

    async def listed(self, username: str) -> tuple[CallSession, ...]:
        """Return the newest 100 sessions of `username`."""
        now_s = self._clock.now_s()
        found = await self._store.sessions_of(username, limit=LISTED_SESSIONS)
        return tuple(sessions.expire(session, now_s=now_s) for session in found)

    async def found(
        self, wanted: sessions.CallFilter, *, limit: int
    ) -> tuple[tuple[int, CallSession], ...]:
        """Return sessions of all users with their numbers, newest first."""
        return await self._store.find_sessions(wanted, limit=limit)

    async def numbered(self, session_id: SessionKey) -> tuple[int, CallSession]:
        """Return a session of any users with its number.

        Raises:
            RefusedError: ``unknown_session``.
        """
        found = await self.found(sessions.CallFilter(session_id=session_id), limit=1)
        if not found:
            raise _unknown()
        return found[0]

    async def granted_with(self, username: str, target: str, session_id: str | None) -> CallSession:
        """Return the session that REQUEST_RELAY means: the named one, or the newest accepted one.

        Raises:
            RefusedError: ``unknown_session``, ``session_closed`` or ``not_accepted``.
        """
        if session_id is not None:
            return await self._common(username, target, session_id)
        found = await self._between(username, target)
        return next((session for session in found if session.state != "pending"), found[0])

    # -- inside -----------------------------------------------------------------------------

    async def _accept(
        self, username: str, session_id: SessionKey, keys: Keys, answer: Answer | AnswerRift
    ) -> CallSession:
        now_s = self._clock.now_s()

        def rule(session: CallSession) -> CallSession:
            return sessions.accept(
                session, username, keys, now_s=now_s, lifetime_s=self._config.session_idle_s
            )

        changed = await self._store.change_session(session_id, rule)
        if changed is None:
            raise _unknown()
        before, after = changed
        if before.state == "pending":
            self._pending.forget(session_id)
            self._events.note("accepted", after)
            # A caller who came over HTTP need not be online: he reads the state of the session.
            self._hub.deliver(after.caller, _signed(answer, username, after))
        return after

    async def _refuse(self, username: str, session: CallSession, message: Answer) -> None:
        if username != session.callee:
            raise RefusedError(
                ErrorCode.NOT_CALLED_USER, "only the called user can refuse; send BYE"
            )
        if await self._close(session.session_id):
            self._events.note("refused", session)
            self._hub.deliver(session.caller, _signed(message, username, session))

    async def _end(self, session_id: SessionKey, username: str) -> None:
        session = await self._close(session_id)
        if session is not None:
            self._events.note("closed", session)
            other = sessions.other_user(session, username)
            self._hub.deliver(other, Bye(from_username=username, session_id=session_id))

    async def _close(self, session_id: SessionKey) -> CallSession | None:
        now_s = self._clock.now_s()
        changed = await self._store.change_session(
            session_id, lambda session: sessions.close(session, now_s=now_s)
        )
        self._pending.forget(session_id)
        if changed is None or changed[0].state == "closed":
            return None
        return changed[1]

    async def _answered(
        self, username: str, target: str | None, session_id: str | None
    ) -> CallSession:
        if session_id is not None:
            return await self._common(username, target, session_id)
        found = await self._between(username, target)
        waiting = (s for s in found if s.state == "pending" and s.callee == username)
        return next(waiting, found[0])

    async def _between(self, username: str, target: str | None) -> tuple[CallSession, ...]:
        if target is None:
            raise RefusedError(ErrorCode.INVALID_MESSAGE, "target_username is missing")
        found = await self._store.open_sessions_between(username, target, now_s=self._clock.now_s())
        if not found:
            raise _unknown()
        return found

    async def _common(
        self, username: str, target: str | None, session_id: str | None
    ) -> CallSession:
        if session_id is None:
            return (await self._between(username, target))[0]
        session = await self.own(username, session_id)
        if target is not None and target != sessions.other_user(session, username):
            raise _unknown()
        sessions.require_open(session, now_s=self._clock.now_s())
        return session

    def _pass_on(self, session: CallSession, username: str, message: Addressed) -> None:
        """Deliver a message of one user of a session to the other.

        Raises:
            RefusedError: ``user_offline``, or ``rate_limited``: too much for him now.
        """
        other, signed = sessions.other_user(session, username), _signed(message, username, session)
        is_stranger = session.state == "pending" and username == session.caller
        try:
            if is_stranger:
                self._pending.take(session.session_id, signed)
            self._hub.pass_on(other, signed, Sender(username, is_stranger))
        except RefusedError as error:
            if error.code == ErrorCode.RATE_LIMITED:
                self._metrics.limited.labels("message").inc()
            raise

    def _limited(self, text: str, wait_s: float) -> RefusedError:
        self._metrics.limited.labels("call").inc()
        return RefusedError(ErrorCode.RATE_LIMITED, text, retry_after_s=wait_s)


def _signed(message: Addressed, username: str, session: CallSession) -> Addressed:
    """Return the message as the other user gets it, with the true sender and session."""
    if isinstance(message, OfferRift | AnswerRift):
        return replace(message, target_username=None, from_username=username)
    return replace(
        message,
        target_username=None,
        from_username=username,
        session_id=session.session_id,
    )


def _unknown() -> RefusedError:
    return RefusedError(ErrorCode.UNKNOWN_SESSION, "you have no such session; make a new call")


def _offline() -> RefusedError:
    return RefusedError(ErrorCode.USER_OFFLINE, "this user is not online or does not exist")
