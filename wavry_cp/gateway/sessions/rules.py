"""Rules of a session: who may do what in which state.  No clock, no store, no network.

    pending ──accept (called user)──▶ accepted ──relay──▶ active ──relay, renew──▶ active
       └──────────────┬──────────────────┴──────────────────┘
                close, or expiry ──▶ closed

`accept` is the called user's consent: before it no lease is asked for.  A pending session expires
when nobody answers; an accepted or active one when neither user asked for a lease for a long time
(two users may talk on a direct path for hours and need a relay only then).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NewType, get_args

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol import base64url
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http.api import SessionInfo
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = [
    "STATES",
    "CallFilter",
    "CallLimits",
    "CallSession",
    "Change",
    "Keys",
    "Path",
    "SessionKey",
    "SessionState",
    "accept",
    "checked_keys",
    "close",
    "describe",
    "expire",
    "grant",
    "new_session",
    "other_user",
    "renew",
    "report_path",
    "require_grantable",
    "require_open",
    "require_renewable",
    "require_same_keys",
    "role_of",
]

SessionKey = NewType("SessionKey", str)
"""The session id as UUID text, made by the gateway."""
SessionState = Literal["pending", "accepted", "active", "closed"]
STATES: Final[tuple[SessionState, ...]] = get_args(SessionState)
Event = Literal["accept", "relay", "renew", "close"]
Path = Literal["direct", "relay"]

TRANSITIONS: Final[dict[tuple[SessionState, Event], SessionState]] = {
    ("pending", "accept"): "accepted",
    ("accepted", "relay"): "active",
    ("active", "relay"): "active",
    ("active", "renew"): "active",
    ("pending", "close"): "closed",
    ("accepted", "close"): "closed",
    ("active", "close"): "closed",
}


@dataclass(frozen=True, slots=True)
class Keys:
    """Public keys that a user brought to a session, base64url.

    Attributes:
        identity: Ed25519; becomes the `cnf` of the user's lease.
        noise: X25519; static key of the end-to-end channel.
    """

    identity: str | None = None
    noise: str | None = None


@dataclass(frozen=True, slots=True)
class CallSession:
    """One call of `caller` to `callee`.  Times are unix seconds.

    Attributes:
        expires_at: when the session is closed unless something happens before.
        lease_expires_at: `exp` of the leases issued last.
        relay_addrs: endpoints of `relay_id`.
        closed_at: when it was closed, else None.
        path: how its users talk, as one of them reported last.
    """

    session_id: SessionKey
    caller: str
    callee: str
    state: SessionState
    created_at: int
    expires_at: int
    caller_keys: Keys = field(default_factory=Keys)
    callee_keys: Keys = field(default_factory=Keys)
    relay_id: str | None = None
    relay_addrs: tuple[str, ...] = ()
    lease_expires_at: int | None = None
    closed_at: int | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which sessions an operator looks for; None asks for any.

    Attributes:
        session_id: this one.
        user: caller or called.
        relay_id: asked last.
        state: None asks for those that are not closed, or for whichever `session_id` names.
        before: only those with a smaller number.
    """

    session_id: SessionKey | None = None
    user: str | None = None
    relay_id: str | None = None
    state: SessionState | None = None
    before: int | None = None


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Bounds of what one caller may keep open.

    Attributes:
        pending_per_caller: calls that wait for an answer.
        pending_per_pair: the same, to one called user.
        open_per_caller: all that are not closed.
    """

    pending_per_caller: int
    pending_per_pair: int
    open_per_caller: int


def checked_keys(identity: str | None, noise: str | None) -> Keys:
    """Return the keys as a client sent them.

    Raises:
        RefusedError: ``invalid_message``: not the canonical base64url of 32 bytes.
    """
    for name, text in (("identity_key", identity), ("noise_key", noise)):
        try:
            if text is not None:
                base64url.decode(text, size=32)
        except ValueError as error:
            raise RefusedError(ErrorCode.INVALID_MESSAGE, f"{name} is {error}") from error
    return Keys(identity, noise)


Change = Callable[[CallSession], CallSession]
"""A rule with its arguments bound; a store applies it inside one transaction."""


def new_session(
    session_id: SessionKey, caller: str, callee: str, keys: Keys, *, now_s: int, pending_s: int
) -> CallSession:
    """Return a pending session that nobody has answered yet; it lasts `pending_s` seconds.

    Raises:
        RefusedError: ``invalid_target``: a user cannot call himself.
    """
    if caller == callee:
        raise RefusedError(ErrorCode.INVALID_TARGET, "you cannot call yourself")
    return CallSession(
        session_id, caller, callee, "pending", now_s, now_s + pending_s, caller_keys=keys
    )


def _unknown() -> RefusedError:
    return RefusedError(ErrorCode.UNKNOWN_SESSION, "you have no such session; make a new call")


def role_of(session: CallSession, username: str) -> c.Role:
    """Return the role of a user: the caller is the client.

    Raises:
        RefusedError: ``unknown_session`` for everybody else, as if it did not exist.
    """
    if username == session.caller:
        return c.Role.CLIENT
    if username == session.callee:
        return c.Role.SERVER
    raise _unknown()


def other_user(session: CallSession, username: str) -> str:
    """Return the other of the two users; errors as in `role_of`."""
    return session.callee if role_of(session, username) is c.Role.CLIENT else session.caller


def require_open(session: CallSession, *, now_s: int) -> None:
    """Refuse a session that is closed, or expired and not swept yet.

    Raises:
        RefusedError: ``session_closed``.
    """
    if session.state == "closed" or session.expires_at <= now_s:
        raise RefusedError(ErrorCode.SESSION_CLOSED, "the session has ended; make a new call")


def _move(session: CallSession, event: Event) -> SessionState:
    return TRANSITIONS[session.state, event]


def accept(
    session: CallSession, username: str, keys: Keys, *, now_s: int, lifetime_s: int
) -> CallSession:
    """Accept as the called user; saying it again with the same keys changes nothing.

    Raises:
        RefusedError: ``unknown_session``, ``not_called_user``, ``session_closed`` or
            ``key_mismatch`` (accepted before with other keys).
    """
    if role_of(session, username) is not c.Role.SERVER:
        raise RefusedError(ErrorCode.NOT_CALLED_USER, "only the called user can accept")
    require_open(session, now_s=now_s)
    if session.state != "pending":
        require_same_keys(session, username, keys)
        return session
    return replace(
        session,
        state=_move(session, "accept"),
        callee_keys=keys,
        expires_at=now_s + lifetime_s,
    )


def require_same_keys(session: CallSession, username: str, keys: Keys) -> None:
    """Refuse other keys than the session was made with; None stands for "the same".

    Raises:
        RefusedError: ``key_mismatch``.
    """
    known = session.caller_keys if username == session.caller else session.callee_keys
    if keys.identity not in (None, known.identity) or keys.noise not in (None, known.noise):
        raise RefusedError(
            ErrorCode.KEY_MISMATCH, "keys of a session cannot change; make a new call"
        )


def lease_keys(session: CallSession) -> tuple[str, str]:
    """Return the keys that the leases of caller and callee are bound to.

    Raises:
        RefusedError: ``identity_key_required``: one of them brought none, as peers of version one.
    """
    caller, callee = session.caller_keys.identity, session.callee_keys.identity
    if caller is None or callee is None:
        raise RefusedError(
            ErrorCode.IDENTITY_KEY_REQUIRED,
            "a relay takes only leases that are bound to a key; make a new call with identity_key",
        )
    return caller, callee


def require_grantable(session: CallSession, *, now_s: int) -> None:
    """Refuse to ask for leases before the called user has accepted.

    Raises:
        RefusedError: ``session_closed`` or ``not_accepted``.
    """
    require_open(session, now_s=now_s)
    if (session.state, "relay") not in TRANSITIONS:
        raise RefusedError(
            ErrorCode.NOT_ACCEPTED, "the called user has not accepted yet; wait for ANSWER"
        )


def grant(
    session: CallSession,
    *,
    relay_id: str,
    relay_addrs: tuple[str, ...],
    lease_expires_at: int,
    now_s: int,
    lifetime_s: int,
) -> CallSession:
    """Note that leases were issued, the first time or for a move to another relay.

    Raises:
        RefusedError: ``session_closed`` or ``not_accepted``.
    """
    require_grantable(session, now_s=now_s)
    return replace(
        session,
        state=_move(session, "relay"),
        relay_id=relay_id,
        relay_addrs=relay_addrs,
        lease_expires_at=lease_expires_at,
        expires_at=max(now_s + lifetime_s, lease_expires_at),
    )


def require_renewable(session: CallSession, *, now_s: int) -> None:
    """Refuse a renewal where no lease was issued.

    Raises:
        RefusedError: ``session_closed`` or ``not_on_relay``.
    """
    require_open(session, now_s=now_s)
    if (session.state, "renew") not in TRANSITIONS:
        raise RefusedError(
            ErrorCode.NOT_ON_RELAY, "the session has no lease yet; ask for a relay first"
        )


def renew(
    session: CallSession, *, lease_expires_at: int, now_s: int, lifetime_s: int
) -> CallSession:
    """Note that a lease of one of the two was renewed.

    Raises:
        RefusedError: ``session_closed`` or ``not_on_relay``.
    """
    require_renewable(session, now_s=now_s)
    return replace(
        session,
        state=_move(session, "renew"),
        lease_expires_at=max(session.lease_expires_at or 0, lease_expires_at),
        expires_at=max(now_s + lifetime_s, lease_expires_at),
    )


def report_path(session: CallSession, path: Path, *, now_s: int) -> CallSession:
    """Note how a user says that they talk: for the statistics, no rule depends on it.

    Raises:
        RefusedError: ``session_closed`` or ``not_accepted``.
    """
    require_grantable(session, now_s=now_s)
    return replace(session, path=path)


def close(session: CallSession, *, now_s: int) -> CallSession:
    """End a session; a closed one stays as it is."""
    if session.state == "closed":
        return session
    return replace(session, state=_move(session, "close"), closed_at=now_s)


def expire(session: CallSession, *, now_s: int) -> CallSession:
    """Close a session whose time is over, leave every other one as it is."""
    return close(session, now_s=now_s) if session.expires_at <= now_s else session


def describe(session: CallSession, username: str) -> SessionInfo:
    """Return what one of the two users may see of a session; errors as in `role_of`."""
    is_caller = role_of(session, username) is c.Role.CLIENT
    peer_keys = session.callee_keys if is_caller else session.caller_keys
    on_relay = session.state == "active" and session.lease_expires_at is not None
    return SessionInfo(
        session_id=session.session_id,
        caller=session.caller,
        callee=session.callee,
        state=session.state,
        relay_id=session.relay_id,
        peer_noise_key=peer_keys.noise,
        created_at=session.created_at,
        expires_at=session.lease_expires_at if on_relay else session.expires_at,
    )
