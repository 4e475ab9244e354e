"""Registration in two steps: a challenge for who may come in, then the record.

Nobody gets a challenge whom the second step would refuse: a stranger costs a refusal and nothing
more.  Between the two steps all may change, so the second one asks again.
"""

import secrets
import uuid
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.config import MasterConfig
from wavry_cp.master.keys.live import LiveKeys
from wavry_cp.master.relays import rules
from wavry_cp.master.relays.registry import Registered, RelayRegistry
from wavry_cp.master.relays.rules import RelayRecord
from wavry_cp.master.relays.strangers import MAX_ENDPOINTS
from wavry_cp.operators.bans import BanKind, BanTable
from wavry_peer.protocol import base64url
from wavry_peer.protocol.http.api import (
    RegisterRequest,
    RegisterResponse,
    VerifyRequest,
    VerifyResponse,
)
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.registration import verify_registration
from wavry_peer.protocol.relay_terms import Enrolment, RelayState
from wavry_peer.service.clock import Clock

from .challenges import CHALLENGE_BYTES, Challenges, PendingChallenge
from .endpoints import check_endpoints
from .service import EnrolmentService
from .tokens import EnrolmentCredentials, Entry, entry_of

__all__ = ["Registrar"]

RELAY_TOKEN_BYTES: Final = 32


class Registrar:
    """Answers ``/v1/relays/register`` and ``/v1/relays/register/verify``."""

    def __init__(
        self,
        config: MasterConfig,
        registry: RelayRegistry,
        enrolments: EnrolmentService,
        keys: LiveKeys,
        bans: BanTable,
        clock: Clock,
    ) -> None:
        self._config = config
        self._registry = registry
        self._enrolments = enrolments
        self._keys = keys
        self._bans = bans
        self._clock = clock
        self._challenges = Challenges()

    def challenge(self, body: RegisterRequest, *, is_managed: bool) -> RegisterResponse:
        """Return the challenge of a relay that may come in.

        Args:
            body: of the registration.
            is_managed: it showed the service token.

        Raises:
            RefusedError: why it may not.
        """
        rules.check_identity(body)
        self._check_ban(body.relay_id)
        known = self._registry.record(body.relay_id)
        if known is not None and known.state is RelayState.BANNED:
            raise _banned()
        pending = PendingChallenge(secrets.token_bytes(CHALLENGE_BYTES), body, is_managed)
        self._endpoints(body, self._entry(pending, known))
        challenge_id = str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))
        self._challenges.add(challenge_id, pending, now_s=self._clock.monotonic_s())
        return RegisterResponse(
            challenge_id=challenge_id,
            challenge=base64url.encode(pending.challenge),
            master_id=self._keys.keyset.root_public_key,
        )

    def take(self, challenge_id: str) -> PendingChallenge:
        """Return the registration of a challenge, which is used up, however this ends.

        Raises:
            RefusedError: ``unknown_challenge``.
        """
        return self._challenges.take(challenge_id, now_s=self._clock.monotonic_s())

    def check_signature(self, pending: PendingChallenge, body: VerifyRequest) -> None:
        """Check that the relay signed what was asked, for this master and with its endpoints.

        Raises:
            RefusedError: ``invalid_body`` or ``invalid_signature``.
        """
        try:
            signature = base64url.decode(body.signature, size=64)
        except ValueError as error:
            raise RefusedError(ErrorCode.INVALID_BODY, f"signature is {error}") from error
        public_key = base64url.decode(pending.body.public_key)
        if not any(
            verify_registration(
                public_key, signature, pending.challenge, master_id, pending.body.endpoints
            )
            for master_id in self._master_ids()
        ):
            raise RefusedError(
                ErrorCode.INVALID_SIGNATURE,
                "challenge, endpoints and this master's root key are not signed by public_key: "
                "compare WAVRY_RELAY_ROOT_KEY with `wavryctl keys status`",
            )

    async def register(
        self, pending: PendingChallenge, *, network: str
    ) -> tuple[VerifyResponse, Registered]:
        """Write the record of a relay that proved its key, which called from `network`.

        Raises:
            RefusedError: why it may not come in, after all.
        """
        body = pending.body
        self._check_ban(body.relay_id)
        token = base64url.encode(secrets.token_bytes(RELAY_TOKEN_BYTES))

        def decide(known: RelayRecord | None) -> tuple[Entry, tuple[str, ...]]:
            entry = self._entry(pending, known)
            return entry, self._endpoints(body, entry)

        registered = await self._registry.register(
            body,
            decide,
            token_hash=rules.token_digest(token),
            network=network,
            now_s=self._clock.now_s(),
            monotonic_s=self._clock.monotonic_s(),
        )
        if registered.spent is not None:
            self._enrolments.note_used(registered.spent, body.relay_id)
        answer = VerifyResponse(
            relay_token=token,
            heartbeat_interval_ms=self._config.heartbeat_interval_ms,
            keyset=self._keys.keyset,
            master_public_key=base64url.encode(self._keys.active.public_key),
            master_key_id=self._keys.active_kid,
        )
        return answer, registered

    def _entry(self, pending: PendingChallenge, known: RelayRecord | None) -> Entry:
        body = pending.body
        credentials = EnrolmentCredentials(
            is_listed=body.relay_id in self._config.allowed_relays,
            is_managed=pending.is_managed,
            token=self._enrolments.shown(body.enrolment_token),
            is_door_open=self._config.open_enrolment,
        )
        entry = entry_of(body, known, credentials, now_s=self._clock.now_s())
        if entry.token is None and known is None:
            self._enrolments.require_free(entry.name)
        return entry

    def _endpoints(self, body: RegisterRequest, entry: Entry) -> tuple[str, ...]:
        is_stranger = entry.kind is Enrolment.OPEN
        endpoints = check_endpoints(
            body.endpoints, private=self._config.private_endpoints, stranger=is_stranger
        )
        if is_stranger and len(endpoints) > MAX_ENDPOINTS:
            raise RefusedError(
                ErrorCode.INVALID_ENDPOINT,
                f"a relay that is not enrolled may have {MAX_ENDPOINTS} endpoints",
            )
        return endpoints

    def _master_ids(self) -> tuple[bytes, ...]:
        """Return the roots that a relay may have pinned: ours, and those that led to it."""
        keyset = self._keys.keyset
        older = (link.previous for link in reversed(keyset.root_chain))
        return tuple(base64url.decode(text) for text in (keyset.root_public_key, *older))

    def _check_ban(self, relay_id: str) -> None:
        # A relay may be banned before the master has ever seen it.
        if self._bans.is_banned(BanKind.RELAY, relay_id, self._clock.now_s()):
            raise _banned()


def _banned() -> RefusedError:
    return RefusedError(ErrorCode.BANNED, "this relay is banned; ask the operator")
