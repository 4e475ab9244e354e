"""Makes, lists and rejects enrolment tokens: one change at a time, written before believed."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.relays.pool import RelayPool
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.relays import EnrolmentInfo, EnrolmentRequest, NewEnrolment
from wavry_peer.service.clock import Clock

from .store import EnrolmentStore
from .tokens import EnrolmentToken, is_secret_of, new_enrolment, token_id_of

__all__ = ["EnrolmentService"]

MAX_OPEN: Final = 1000
KEEP_ENDED_S: Final = 7 * 86_400
"""Used and ended tokens are kept for a week, so that who shows one is told which of both it is."""


class EnrolmentService:
    """The tokens of one master; the store has the same."""

    def __init__(
        self,
        store: EnrolmentStore,
        relays: RelayPool,
        clock: Clock,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._relays = relays
        self._clock = clock
        self._random_bytes = random_bytes
        self._tokens: dict[str, EnrolmentToken] = {}
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Read the tokens; called once, before anything else."""
        self._tokens = {token.name: token for token in await self._store.enrolments()}

    def shown(self, text: str | None) -> EnrolmentToken | None:
        """Return the token that a relay shows, whatever has become of it; None for none of ours."""
        token_id = None if text is None else token_id_of(text)
        if text is None or token_id is None:
            return None
        token = next((t for t in self._tokens.values() if t.token_id == token_id), None)
        return token if token is not None and is_secret_of(token, text) else None

    def listed(self) -> tuple[EnrolmentInfo, ...]:
        """Return the tokens that a relay may still use, without their secrets."""
        now_s = self._clock.now_s()
        return tuple(
            _info(token) for _, token in sorted(self._tokens.items()) if token.is_open(now_s)
        )

    @property
    def open_count(self) -> int:
        """How many of them there are."""
        now_s = self._clock.now_s()
        return sum(token.is_open(now_s) for token in self._tokens.values())

    def has_open(self, name: str) -> bool:
        """Return whether a token waits for a relay of this name."""
        token = self._tokens.get(name)
        return token is not None and token.is_open(self._clock.now_s())

    def require_free(self, name: str | None) -> None:
        """Refuse a name that an open token will give to a relay.

        Raises:
            RefusedError: ``name_taken``.
        """
        if name is not None and self.has_open(name):
            raise RefusedError(
                ErrorCode.NAME_TAKEN,
                f"a token for {name} waits for its relay: `wavryctl relays reject {name}` ends it",
            )

    async def create(self, request: EnrolmentRequest, *, who: str) -> NewEnrolment:
        """Make a token for a name that no relay has, in place of an open one for it.

        Raises:
            RefusedError: ``name_taken`` or ``too_many_enrolments``.
        """
        now_s = self._clock.now_s()
        target = request.name if request.region is None else f"{request.name} in {request.region}"
        audit = AuditEntry(now_s, who, "enrol", target, request.reason)
        async with self._changing, attempted(self._store, audit):
            other = self._relays.named(request.name)
            if other is not None:
                raise RefusedError(
                    ErrorCode.NAME_TAKEN,
                    f"{request.name} is the name of {other.relay_id}: `wavryctl relays remove` it "
                    "first, if this is to be its successor",
                )
            if not self.has_open(request.name) and self.open_count >= MAX_OPEN:
                raise RefusedError(
                    ErrorCode.TOO_MANY_ENROLMENTS, f"{MAX_OPEN} tokens wait for their relays"
                )
            replaces = self.has_open(request.name)
            token, text = new_enrolment(
                request.name,
                request.region,
                now_s=now_s,
                life_s=request.life_s,
                random_bytes=self._random_bytes,
            )
            await self._store.save_enrolment(token, audit)
            self._tokens[token.name] = token
        return NewEnrolment(token=text, info=_info(token), replaces=replaces)

    async def reject(self, name: str, *, who: str, reason: str) -> EnrolmentInfo:
        """End a token before a relay used it.

        Raises:
            RefusedError: ``unknown_relay``: no token waits for this name.
        """
        audit = AuditEntry(self._clock.now_s(), who, "reject", f"token for {name}", reason)
        async with self._changing:
            token = self._tokens.get(name)
            if token is None or not self.has_open(name):
                raise RefusedError(ErrorCode.UNKNOWN_RELAY, f"no token waits for {name}")
            await self._store.remove_enrolments((name,), audit)
            del self._tokens[name]
        return _info(token)

    def note_used(self, token: EnrolmentToken, relay_id: str) -> None:
        """Take over that the store has just spent a token."""
        held = self._tokens.get(token.name)
        if held is not None and held.token_id == token.token_id:
            self._tokens[token.name] = replace(held, used_by=relay_id)

    async def forget_ended(self) -> None:
        """Forget tokens that ended a week ago."""
        before_s = self._clock.now_s() - KEEP_ENDED_S
        async with self._changing:
            names = [t.name for t in self._tokens.values() if t.expires_at_s < before_s]
            if names:
                await self._store.remove_enrolments(names, None)
                for name in names:
                    del self._tokens[name]


def _info(token: EnrolmentToken) -> EnrolmentInfo:
    return EnrolmentInfo(
        name=token.name,
        region=token.region,
        created_at=token.created_at_s,
        expires_at=token.expires_at_s,
    )
