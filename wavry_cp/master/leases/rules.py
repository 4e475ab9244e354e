"""Rules of leases: issue for a session, renew for one of its roles.

A session is durable: its relay and, for each role, who holds the current lease.  So a master that
was killed renews what it issued before.  Renewing is safe to repeat: where the answer was lost, the
same question within `REPEAT_S` gets the very same lease again (Ed25519 is deterministic), for
a `jti` that nobody has could otherwise end a healthy session.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol import base64url
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http.api import LeaseParty, LeaseRequest
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.lease import LeaseClaims, make_claims

__all__ = [
    "LeaseFilter",
    "LeaseRenewal",
    "LeaseSlot",
    "LeaseTerms",
    "LeasedSession",
    "check_parties",
    "claims_of",
    "is_live",
    "issue",
    "renew",
]

NIL_SESSION_ID: Final = "00000000-0000-0000-0000-000000000000"
"""What an unset id looks like: two calls that both forgot theirs would share one session."""

REPEAT_S: Final = 60
"""How long the replaced `jti` still gets its successor.  Longer than any retry of a gateway, and
shorter than the shortest lease."""

ROLES: Final = {"client": c.Role.CLIENT, "server": c.Role.SERVER}


@dataclass(frozen=True, slots=True)
class LeaseSlot:
    """The current lease of one role.

    Attributes:
        sub: who may present it.
        cnf: base64url key that it is bound to.
        jti: its id.
        previous_jti: the lease that it replaced by renewal, or None.
        kid: key that signs it.
        issued_at_s: unix seconds.
        ttl_s: seconds.
        request_id: of the request that it was issued for; empty where that had none.
    """

    sub: str
    cnf: str
    jti: str
    previous_jti: str | None
    kid: str
    issued_at_s: int
    ttl_s: int
    request_id: str = ""

    @property
    def expires_at_s(self) -> int:
        """Unix seconds."""
        return self.issued_at_s + self.ttl_s


@dataclass(frozen=True, slots=True)
class LeasedSession:
    """A session at one relay.

    Attributes:
        session_id: UUID text.
        relay_id: the relay that both leases name.
        soft_kbps: `slimit` of its leases.
        hard_kbps: `hlimit` of its leases.
        client: lease of the caller.
        server: lease of the called.
        created_at_s: unix seconds.
        revision: grows with each change, so that two changes at once cannot both win.
    """

    session_id: str
    relay_id: str
    soft_kbps: int
    hard_kbps: int
    client: LeaseSlot
    server: LeaseSlot
    created_at_s: int
    revision: int = 0

    @property
    def expires_at_s(self) -> int:
        """Unix seconds at which the last lease ends."""
        return max(self.client.expires_at_s, self.server.expires_at_s)

    def slot(self, role: c.Role) -> LeaseSlot:
        """Return the lease of a role."""
        return self.client if role is c.Role.CLIENT else self.server


@dataclass(frozen=True, slots=True)
class LeaseFilter:
    """Which sessions an operator looks for; None asks for any.

    Attributes:
        session_ids: only these.
        jti: whose lease this is, or was before its last renewal.
        sub: who holds one of the leases.
        relay_id: at this relay.
    """

    session_ids: tuple[str, ...] | None = None
    jti: str | None = None
    sub: str | None = None
    relay_id: str | None = None


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What a new pair of leases says: relay, signing key, seconds and kbit/s."""

    relay_id: str
    kid: str
    ttl_s: int
    soft_kbps: int
    hard_kbps: int


@dataclass(frozen=True, slots=True)
class LeaseRenewal:
    """Outcome of `renew`; where `repeated`, the session did not change."""

    session: LeasedSession
    repeated: bool


def is_live(session: LeasedSession | None, now_s: int) -> bool:
    """Return whether a lease of the session still runs."""
    return session is not None and session.expires_at_s > now_s


def check_parties(request: LeaseRequest) -> None:
    """Check the two users and the session of a request.

    Raises:
        RefusedError: ``invalid_session``, ``same_party`` or ``invalid_cnf``.
    """
    if request.session_id == NIL_SESSION_ID:
        raise RefusedError(ErrorCode.INVALID_SESSION, "session_id must not be the nil UUID")
    if request.client.sub == request.server.sub:
        raise RefusedError(ErrorCode.SAME_PARTY, "client and server must be two different users")
    for party in (request.client, request.server):
        try:
            base64url.decode(party.cnf, size=32)
        except ValueError as error:
            raise RefusedError(ErrorCode.INVALID_CNF, f"cnf is {error}") from error


def check_owner(session: LeasedSession, request: LeaseRequest) -> None:
    """Check that a live session belongs to the two users of a request, with the same keys.

    Raises:
        RefusedError: ``session_conflict``: it would hand the session to somebody else.
    """
    for slot, party in ((session.client, request.client), (session.server, request.server)):
        if (slot.sub, slot.cnf) != (party.sub, party.cnf):
            raise RefusedError(
                ErrorCode.SESSION_CONFLICT,
                "session_id is a live session of other users or other keys",
            )


def issue(
    request: LeaseRequest,
    session: LeasedSession | None,
    terms: LeaseTerms,
    *,
    session_id: str,
    now_s: int,
    new_jti: Callable[[], str],
    request_id: str = "",
) -> LeasedSession:
    """Return the session after a new pair of leases: a new session, or a live one that moves.

    Args:
        request: who it is for; passed `check_parties`.
        session: what is stored under the id, if anything.
        terms: relay and limits.
        session_id: of the request, or a new one.
        now_s: unix seconds.
        new_jti: makes a UUID.
        request_id: for the logs.

    Raises:
        RefusedError: see `check_owner`.
    """

    def slot(party: LeaseParty) -> LeaseSlot:
        return LeaseSlot(
            sub=party.sub,
            cnf=party.cnf,
            jti=new_jti(),
            previous_jti=None,
            kid=terms.kid,
            issued_at_s=now_s,
            ttl_s=terms.ttl_s,
            request_id=request_id,
        )

    live = session is not None and is_live(session, now_s)
    if session is not None and live:
        check_owner(session, request)
    return LeasedSession(
        session_id=session_id,
        relay_id=terms.relay_id,
        soft_kbps=terms.soft_kbps,
        hard_kbps=terms.hard_kbps,
        client=slot(request.client),
        server=slot(request.server),
        created_at_s=session.created_at_s if session is not None and live else now_s,
        revision=0 if session is None else session.revision + 1,
    )


def renew(
    session: LeasedSession,
    role: c.Role,
    jti: str,
    *,
    now_s: int,
    kid: str,
    new_jti: str,
    request_id: str = "",
) -> LeaseRenewal:
    """Replace the lease of one role: new `jti` and expiry, everything else as it was.

    Args:
        session: stored.
        role: whose lease.
        jti: the lease that the caller holds.
        now_s: unix seconds.
        kid: active signing key.
        new_jti: id of the new lease.
        request_id: for the logs.

    Raises:
        RefusedError: ``lease_expired``, or ``stale_jti`` where `jti` is neither the current
            lease nor the one that it replaced within the last `REPEAT_S`.
    """
    slot = session.slot(role)
    if slot.expires_at_s <= now_s:
        raise RefusedError(ErrorCode.LEASE_EXPIRED, "the lease has expired; ask for new leases")
    if jti == slot.previous_jti and slot.kid == kid and now_s - slot.issued_at_s <= REPEAT_S:
        return LeaseRenewal(session, repeated=True)
    if jti != slot.jti:
        raise RefusedError(ErrorCode.STALE_JTI, "jti is not the current lease of this role")
    renewed = replace(
        slot,
        jti=new_jti,
        previous_jti=slot.jti,
        kid=kid,
        issued_at_s=now_s,
        request_id=request_id,
    )
    revision = session.revision + 1
    if role is c.Role.CLIENT:
        return LeaseRenewal(replace(session, client=renewed, revision=revision), repeated=False)
    return LeaseRenewal(replace(session, server=renewed, revision=revision), repeated=False)


def claims_of(session: LeasedSession, role: c.Role) -> LeaseClaims:
    """Return the claims of a role's current lease; the same record always gives the same claims."""
    slot = session.slot(role)
    return make_claims(
        jti=slot.jti,
        sub=slot.sub,
        sid=session.session_id,
        role=role,
        rid=session.relay_id,
        kid=slot.kid,
        now_s=slot.issued_at_s,
        ttl_s=slot.ttl_s,
        soft_kbps=session.soft_kbps,
        hard_kbps=session.hard_kbps,
        cnf=slot.cnf,
        request_id=slot.request_id,
    )
