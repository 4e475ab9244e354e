"""Issues and renews leases: the rules of `leases` and `selection` over store and registry."""

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.config import MasterConfig
from wavry_cp.master.keys.live import LiveKeys
from wavry_cp.master.keys.rules import may_sign_for
from wavry_cp.master.relays.registry import RelayRegistry
from wavry_cp.master.relays.strangers import PICK_SHARE
from wavry_cp.master.revocations.service import RevocationIndex
from wavry_cp.operators.bans import BanKind, BanTable
from wavry_cp.operators.switches import SwitchTable
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import LeaseError
from wavry_peer.protocol.http.api import (
    LeasePair,
    LeaseRelay,
    LeaseRequest,
    LeaseResponse,
    RenewRequest,
    RenewResponse,
)
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.lease import MAX_KBPS, sign_lease
from wavry_peer.protocol.relay_terms import RelayState
from wavry_peer.service.clock import Clock
from wavry_peer.service.request_ids import current_request_id

from . import rules as leases
from . import selection
from .rules import LeasedSession, LeaseFilter, LeaseRenewal, LeaseTerms
from .selection import ProbationShare
from .store import LeaseStore
from .tally import LeaseTally

__all__ = ["LeaseService", "Vetoes"]

_RANDOM: Final = random.SystemRandom()  # nobody may foretell the next relay
_LEFT_BY_WHO_ASKS: Final = frozenset({RelayState.DRAINING, RelayState.DEGRADED})
"""A session whose peers ask for a relay goes elsewhere from these, where there is another one."""
_ATTEMPTS: Final = 4
"""Each failed attempt means that another call of the same session succeeded meanwhile."""


@dataclass(frozen=True, slots=True)
class Vetoes:
    """What an operator has put against leases."""

    switches: SwitchTable
    bans: BanTable
    revocations: RevocationIndex


class LeaseService:
    """Answers ``/v1/leases`` and ``/v1/leases/renew``."""

    def __init__(
        self,
        config: MasterConfig,
        store: LeaseStore,
        registry: RelayRegistry,
        keys: LiveKeys,
        clock: Clock,
        vetoes: Vetoes,
        *,
        pick: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._config = config
        self._store = store
        self._registry = registry
        self._keys = keys
        self._clock = clock
        self._vetoes = vetoes
        self._pick = pick
        self._probation = ProbationShare(PICK_SHARE)
        self._tally = LeaseTally(now_s=clock.now_s())

    async def load(self) -> None:
        """Read how many sessions each relay has; called once, before anything else."""
        now_s = self._clock.now_s()
        self._tally = LeaseTally(await self._store.live_leases(now_s), now_s=now_s)

    async def found(self, wanted: LeaseFilter, *, limit: int) -> Sequence[LeasedSession]:
        """Return sessions for an operator, newest first."""
        return await self._store.find_sessions(wanted, limit=limit)

    async def issue(self, request: LeaseRequest) -> LeaseResponse:
        """Return a pair of leases for a new session, or for a live one (which may move).

        A live session stays at its relay while that is well and not excluded.

        Raises:
            RefusedError: ``invalid_session``, ``same_party``, ``invalid_cnf``,
                ``session_conflict``, ``no_relay_available``, ``lease_too_large``,
                ``revoked`` or ``busy_session``; ``relay_mode_off`` while the kill switch says
                so; ``banned`` where one of the two users is.
        """
        leases.check_parties(request)
        session_id = request.session_id or _new_uuid()
        for _ in range(_ATTEMPTS):
            known = await self._store.session(session_id)
            # After the wait: nothing is signed once the operator has been told that it is off.
            if not self._vetoes.switches.relay_mode:
                raise RefusedError(
                    ErrorCode.RELAY_MODE_OFF,
                    "the operator has switched relays off; try again later",
                )
            self._check_bans(request.client.sub, request.server.sub)
            now_s = self._clock.now_s()
            if self._vetoes.revocations.hits_session_id(session_id):
                raise _revoked()
            if known is not None and leases.is_live(known, now_s):
                self._require_good(known)
                relay_id, standby_id = self._relay_for(request, stay_at=known.relay_id)
            else:
                relay_id, standby_id = self._relay_for(request, stay_at=None)
                relay_id = self._stranger_for(request) or relay_id
            session = leases.issue(
                request,
                known,
                self._terms(relay_id, request.ttl_s),
                session_id=session_id,
                now_s=now_s,
                new_jti=_new_uuid,
                request_id=current_request_id(),
            )
            pair = LeasePair(
                client=self._sign(session, c.Role.CLIENT), server=self._sign(session, c.Role.SERVER)
            )
            answer = LeaseResponse(
                session_id=session_id,
                relay=self._relay(relay_id),
                standby=self._relay(standby_id) if standby_id else None,
                leases=pair,
                expires_at=session.expires_at_s,
            )
            if await self._store.swap_session(None if known is None else known.revision, session):
                self._tally.change(known, session, now_s)
                self._require_good(session)
                self._registry.note_pick(relay_id)
                if known is None:
                    self._probation.note_given(to_stranger=self._registry.is_stranger(relay_id))
                return answer
        raise _busy()

    async def renew(self, request: RenewRequest) -> tuple[RenewResponse, LeaseRenewal]:
        """Return a new lease in place of one that runs.

        Raises:
            RefusedError: ``unknown_session``, ``relay_unavailable``, ``relay_lacks_key``,
                ``lease_expired``, ``stale_jti``, ``busy_session``, ``revoked`` or ``banned``.
        """
        role = leases.ROLES[request.role]
        for _ in range(_ATTEMPTS):
            session = await self._store.session(request.session_id)
            if session is None:
                raise RefusedError(
                    ErrorCode.UNKNOWN_SESSION, "no session with this id; ask for new leases"
                )
            self._check_bans(session.slot(role).sub)
            self._require_good(session)
            renewal = leases.renew(
                session,
                role,
                request.jti,
                now_s=self._clock.now_s(),
                kid=self._keys.active_kid,
                new_jti=_new_uuid(),
                request_id=current_request_id(),
            )
            if not self._registry.serves_sessions(session.relay_id, self._clock.monotonic_s()):
                raise RefusedError(
                    ErrorCode.RELAY_UNAVAILABLE,
                    "the session's relay is gone; ask for another relay",
                    status=409,  # The gateway asks for another one; waiting does not help.
                )
            if not self._relay_holds_key(session.relay_id):
                raise RefusedError(
                    ErrorCode.RELAY_LACKS_KEY,
                    "the session's relay has not fetched the signing key yet; try again",
                )
            token = self._sign(renewal.session, role)
            if renewal.repeated or await self._swap_renewed(session, renewal.session):
                self._require_good(renewal.session)
                expires_at_s = renewal.session.slot(role).expires_at_s
                return RenewResponse(lease=token, expires_at=expires_at_s), renewal
        raise _busy()

    async def _swap_renewed(self, session: LeasedSession, renewed: LeasedSession) -> bool:
        if not await self._store.swap_session(session.revision, renewed):
            return False
        self._tally.change(session, renewed, self._clock.now_s())
        return True

    def _check_bans(self, *subs: str) -> None:
        now_s = self._clock.now_s()
        if any(self._vetoes.bans.is_banned(BanKind.USER, sub, now_s) for sub in subs):
            raise RefusedError(ErrorCode.BANNED, "this user is banned; ask the operator")

    def _require_good(self, session: LeasedSession) -> None:
        """Refuse a session of which a lease is revoked.

        Asked before a lease is made and once more after it is stored: whatever was revoked in
        between names this lease too, for it was issued before.
        """
        if self._vetoes.revocations.hits(session):
            raise _revoked()

    def _relay_for(self, request: LeaseRequest, *, stay_at: str | None) -> tuple[str, str | None]:
        monotonic_s = self._clock.monotonic_s()
        stays = (
            stay_at is not None
            and stay_at not in request.exclude_relays
            and self._registry.serves_sessions(stay_at, monotonic_s)
            and self._relay_holds_key(stay_at)
        )
        exclude = set(request.exclude_relays)
        if stay_at is not None:
            exclude.add(stay_at)  # staying takes no new place there, and moving means elsewhere
        choice = selection.choose(
            self._registry.candidates(
                monotonic_s,
                active_kid=self._keys.active_kid,
                live=partial(self._tally.live, now_s=self._clock.now_s()),
            ),
            region=request.region,
            exclude=exclude,
            random=self._pick,
        )
        if stays and stay_at is not None:
            leaves = self._registry.state(stay_at, monotonic_s) in _LEFT_BY_WHO_ASKS
            if choice is None or not leaves:
                return stay_at, None if choice is None else choice.relay_id
        if choice is None:
            raise RefusedError(
                ErrorCode.NO_RELAY_AVAILABLE,
                "no healthy relay has room now; try again in a few seconds",
            )
        return choice.relay_id, choice.standby_id

    def _stranger_for(self, request: LeaseRequest) -> str | None:
        """Return the relay in PROBATION that gets this new session, for once in a while one does.

        Asked only where an enrolled relay would do as well: strangers are no way out of a shortage,
        or who brings one about would have all sessions.
        """
        if not self._probation.is_due:
            return None
        return selection.choose_stranger(
            self._registry.on_probation(
                self._clock.monotonic_s(), active_kid=self._keys.active_kid
            ),
            region=request.region,
            exclude=request.exclude_relays,
            random=self._pick,
        )

    def _relay_holds_key(self, relay_id: str) -> bool:
        held = self._registry.held_kids(relay_id)
        return may_sign_for(held, self._keys.active_kid, forced=self._keys.is_forced)

    def _terms(self, relay_id: str, ttl_s: int | None) -> LeaseTerms:
        record = self._registry.record(relay_id)
        cap_kbps = (record.max_bitrate_kbps if record else 0) or MAX_KBPS
        return LeaseTerms(
            relay_id=relay_id,
            kid=self._keys.active_kid,
            ttl_s=ttl_s or self._config.lease_ttl_s,
            soft_kbps=min(self._config.soft_limit_kbps, cap_kbps),
            hard_kbps=min(self._config.hard_limit_kbps, cap_kbps),
        )

    def _relay(self, relay_id: str) -> LeaseRelay:
        return LeaseRelay(relay_id=relay_id, endpoints=self._registry.usable_endpoints(relay_id))

    def _sign(self, session: LeasedSession, role: c.Role) -> str:
        claims = leases.claims_of(session, role)
        try:
            return sign_lease(claims, self._keys.signing_keys[claims.kid])
        except LeaseError as error:
            raise RefusedError(ErrorCode.LEASE_TOO_LARGE, "sub is too long for a lease") from error


def _revoked() -> RefusedError:
    return RefusedError(
        ErrorCode.REVOKED, "this session was revoked by the operator; it gets no lease"
    )


def _busy() -> RefusedError:
    return RefusedError(
        ErrorCode.BUSY_SESSION, "the session is being changed by other calls; try again"
    )


def _new_uuid() -> str:
    return str(uuid.uuid4())
