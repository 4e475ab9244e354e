"""Carries out the steps of `rotation`: one at a time, checked, audited, written, then in use.

A step has three parts: what the next document is (`rotation.next_keys`), whether the relays and the
leases allow it now, and the root's signature.  The root key may lie beside the other keys, then
the master signs; or with the operator, then the answer is the plan, and the same step comes again
with the signed document, which must be exactly what the plan is by then.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.metrics import MasterMetrics
from wavry_cp.master.relays.registry import RelayRegistry
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_peer.protocol import base64url, ed25519
from wavry_peer.protocol.errors import KeySetError
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.keys import (
    KeyPlan,
    KeysStatus,
    KeyStatusRow,
    KeyStepRequest,
    KeyStepResponse,
    RelayKeyState,
    RootStepRequest,
)
from wavry_peer.protocol.keyset import (
    MAX_ROOT_LINKS,
    KeySet,
    PublishedKey,
    decode_keyset,
    encode_keyset,
    link_root,
    sign_keyset,
)
from wavry_peer.service.clock import Clock

from . import rules as rotation
from .files import KeyFileError
from .live import LiveKeys
from .rules import KeyStep
from .store import KeyStore

__all__ = ["KeyService"]

PLAN_MAX_AGE_S: Final = 600
"""Time to fetch a root key from its safe place; the leases of a key that retires are counted from
the step itself, so an old plan is only unclear, not unsafe."""

_log = structlog.get_logger(__name__)


class KeyService:
    """Answers ``/v1/admin/keys/*``.

    Args:
        keys: what the master signs with; changed here only.
        store: audit log, and what was signed until when.
        registry: what relays hold.
        clock: time.
        metrics: counters.
    """

    def __init__(
        self,
        keys: LiveKeys,
        store: KeyStore,
        registry: RelayRegistry,
        clock: Clock,
        metrics: MasterMetrics,
    ) -> None:
        self._keys = keys
        self._store = store
        self._registry = registry
        self._clock = clock
        self._metrics = metrics
        self._changing = asyncio.Lock()
        self.on_change: list[Callable[[KeySet], None]] = []
        """Called with each new document once it is in use: the push to relays."""

    async def load(self) -> None:
        """Remember which keys were forced; called once, before anything else."""
        uses = await self._store.key_uses()
        self._keys.forced_kids = {kid for kid, use in uses.items() if use.forced}

    async def status(self) -> KeysStatus:
        """Return the keys, leases and relays as they are now."""
        keyset, now_s = self._keys.keyset, self._clock.now_s()
        uses = await self._store.key_uses()
        relays = self._relays()
        rows = []
        for key in keyset.keys:
            use = uses.get(key.kid)
            last_s = use.last_expiry_s if use else 0
            lacking = relays.lacking(key.kid)
            rows.append(
                KeyStatusRow(
                    kid=key.kid,
                    status=key.status,
                    not_before=key.not_before,
                    last_lease_expires_at=last_s,
                    removable_at=rotation.removable_at_s(last_s),
                    signable=key.kid in self._keys.signing_keys,
                    forced=bool(use and use.forced),
                    held_by=len(relays.held) - len(lacking),
                    lacking_relays=tuple(lacking),
                )
            )
        serials = self._registry.keyset_serials(self._clock.monotonic_s())
        return KeysStatus(
            now=now_s,
            serial=keyset.serial,
            issued_at=keyset.issued_at,
            active_kid=self._keys.active_kid,
            active_age_s=self._keys.active_age_s(now_s),
            root_public_key=keyset.root_public_key,
            root_key_here=self._root() is not None,
            root_chain=keyset.root_chain,
            keys=tuple(rows),
            relays=tuple(
                RelayKeyState(
                    relay_id=relay_id,
                    keyset_serial=serials.get(relay_id, 0),
                    held_kids=tuple(sorted(held)),
                )
                for relay_id, held in sorted(relays.held.items())
            ),
        )

    async def take_step(
        self, step: KeyStep, request: KeyStepRequest, *, who: str
    ) -> KeyStepResponse:
        """Take one step of a rotation.

        Raises:
            RefusedError: what `rotation` raises, or ``plan_changed``, ``invalid_document``,
                ``root_key_here``, ``keys_not_written``.
        """
        entry = AuditEntry(
            self._clock.now_s(), who, f"keys {step}", request.kid or "", request.reason
        )
        async with self._changing, attempted(self._store, entry):
            before = self._keys.keyset
            signed = request.signed
            now_s = self._clock.now_s() if signed is None else self._signed_at_s(signed)
            subject = self._subject(step, request.kid)
            following = self._following(step, subject, now_s, signed)
            await self._check_allowed(step, subject, following, request)
            kid = _subject_kid(step, subject, before.keys, following)
            plan = KeyPlan(
                serial=before.serial + 1,
                issued_at=now_s,
                keys=following,
                root_chain=before.root_chain,
            )
            root = self._root()
            if signed is None and root is None:
                return KeyStepResponse(result="needs_signature", plan=plan, kid=kid)
            if signed is None and root is not None:
                signed = sign_keyset(
                    following,
                    serial=plan.serial,
                    issued_at=now_s,
                    root=root,
                    root_chain=before.root_chain,
                )
            elif root is not None:
                raise _root_is_here()
            if signed is None:  # pragma: no cover  # for the type checker: one branch has signed it
                raise _root_is_here()
            self._check_signed(signed, plan)
            forced = request.force and step in (KeyStep.ACTIVATE, KeyStep.ROLLBACK)
            await self._record(f"keys {step}", kid, who, request.reason, forced=forced)
            await self._publish(signed, step.value)
            if forced:
                self._keys.forced_kids.add(kid)
            else:
                self._keys.forced_kids.discard(kid)
            return KeyStepResponse(result="done", plan=plan, kid=kid)

    async def change_root(self, request: RootStepRequest, *, who: str) -> KeyStepResponse:
        """Let the root sign its successor.

        Raises:
            RefusedError: ``stale_root`` where the root is not the expected one (any more),
                ``invalid_document``, ``plan_changed``, ``root_key_here``, ``keys_not_written``.
        """
        entry = AuditEntry(self._clock.now_s(), who, "keys root", "", request.reason)
        async with self._changing, attempted(self._store, entry):
            before = self._keys.keyset
            if request.expected_root != before.root_public_key:
                raise RefusedError(
                    ErrorCode.STALE_ROOT, f"the root is {before.root_public_key} now"
                )
            signed = request.signed
            now_s = self._clock.now_s() if signed is None else self._signed_at_s(signed)
            plan = KeyPlan(
                serial=before.serial + 1,
                issued_at=now_s,
                keys=before.keys,
                root_chain=before.root_chain,
            )
            root = self._root()
            if signed is None and root is None:
                return KeyStepResponse(result="needs_signature", plan=plan)
            if signed is None and root is not None:
                signed = self._with_next_root(root, plan)
            elif root is not None:
                raise _root_is_here()
            if signed is None:  # pragma: no cover  # for the type checker: one branch has signed it
                raise _root_is_here()
            if signed.root_public_key == before.root_public_key:
                raise RefusedError(
                    ErrorCode.INVALID_DOCUMENT, "the document is signed by the same root"
                )
            self._check_signed(signed, plan)
            await self._record("keys root", signed.root_public_key, who, request.reason)
            await self._publish(signed, "root")
            return KeyStepResponse(result="done", plan=plan)

    # -- Inside ----------------------------------------------------------------------------

    def _relays(self) -> rotation.RelayKeys:
        return rotation.RelayKeys(self._registry.held_by_live(self._clock.monotonic_s()))

    def _root(self) -> ed25519.SigningKey | None:
        try:
            return self._keys.root()
        except KeyFileError as error:
            raise _not_written(error) from error

    def _subject(self, step: KeyStep, kid: str | None) -> str | None:
        if step is KeyStep.ROLLBACK:
            return rotation.rollback_target(self._keys.keyset.keys).kid
        return kid

    def _following(
        self, step: KeyStep, kid: str | None, now_s: int, signed: KeySet | None
    ) -> tuple[PublishedKey, ...]:
        keys = self._keys.keyset.keys
        successor = None
        is_active = kid == self._keys.active_kid
        if step is KeyStep.REVOKE and is_active and kid is not None:
            successor = rotation.pick_successor(keys, kid, self._relays())
            if signed is not None:  # What relays hold may have changed since the plan.
                known = {key.kid for key in keys}
                chosen = [key.kid for key in signed.keys if key.status == "active"]
                successor = chosen[0] if chosen and chosen[0] in known else None
        needs_key = step is KeyStep.CREATE or (
            step is KeyStep.REVOKE and is_active and successor is None
        )
        try:
            new_key = self._keys.next_key() if needs_key else None
        except KeyFileError as error:
            raise _not_written(error) from error
        return rotation.next_keys(
            keys, step, now_s=now_s, kid=kid, new_key=new_key, successor=successor
        )

    async def _check_allowed(
        self,
        step: KeyStep,
        kid: str | None,
        following: tuple[PublishedKey, ...],
        request: KeyStepRequest,
    ) -> None:
        begins = rotation.active_key(following).kid
        if step in (KeyStep.ACTIVATE, KeyStep.ROLLBACK) and begins != self._keys.active_kid:
            if begins not in self._keys.signing_keys:
                raise RefusedError(
                    ErrorCode.PRIVATE_KEY_MISSING, f"the private half of key {begins} is not here"
                )
            if not request.force:
                rotation.check_held(begins, self._relays(), quorum_pct=request.quorum_pct)
        if step is KeyStep.REMOVE:
            removed = next(key for key in self._keys.keyset.keys if key.kid == kid)
            use = (await self._store.key_uses()).get(removed.kid)
            rotation.check_removable(
                removed, use.last_expiry_s if use else 0, now_s=self._clock.now_s()
            )

    def _signed_at_s(self, signed: KeySet) -> int:
        if abs(self._clock.now_s() - signed.issued_at) > PLAN_MAX_AGE_S:
            raise RefusedError(
                ErrorCode.PLAN_CHANGED,
                "the signed document is too old or too new; ask for the plan again",
            )
        return signed.issued_at

    def _check_signed(self, signed: KeySet, plan: KeyPlan) -> None:
        """Require that the document is the plan, signed by the root that relays trust."""
        before = self._keys.keyset
        root_public_key = base64url.decode(before.root_public_key)
        try:
            decode_keyset(encode_keyset(signed), root_public_key=root_public_key)
        except KeySetError as error:
            raise RefusedError(ErrorCode.INVALID_DOCUMENT, str(error)) from error
        chain = plan.root_chain
        if signed.root_public_key != before.root_public_key:
            chain = (*chain, signed.root_chain[-1])[-MAX_ROOT_LINKS:]
        if (signed.serial, signed.keys, signed.root_chain) != (plan.serial, plan.keys, chain):
            raise RefusedError(
                ErrorCode.PLAN_CHANGED, "the keys changed meanwhile; ask for the plan again"
            )

    def _with_next_root(self, root: ed25519.SigningKey, plan: KeyPlan) -> KeySet:
        try:
            following = self._keys.next_root()
        except KeyFileError as error:
            raise _not_written(error) from error
        link = link_root(root, following.public_key, issued_at=plan.issued_at)
        return sign_keyset(
            plan.keys,
            serial=plan.serial,
            issued_at=plan.issued_at,
            root=following,
            root_chain=(*plan.root_chain, link)[-MAX_ROOT_LINKS:],
        )

    async def _record(
        self, action: str, target: str, who: str, reason: str, *, forced: bool = False
    ) -> None:
        """Write the act before its effect: an act without effect is made again, not lost."""
        shown = f"{target} (forced)" if forced else target
        entry = AuditEntry(self._clock.now_s(), who, action, shown, reason)
        await self._store.record_key_step(entry, target, forced=forced)

    async def _publish(self, signed: KeySet, step: str) -> None:
        try:
            await self._keys.publish(signed)
        except KeyFileError as error:
            raise _not_written(error) from error
        self._metrics.key_steps.labels(step).inc()
        _log.info(
            "keyset_published", step=step, serial=signed.serial, active_kid=self._keys.active_kid
        )
        for notify in self.on_change:
            notify(signed)


def _subject_kid(
    step: KeyStep,
    subject: str | None,
    before: tuple[PublishedKey, ...],
    following: tuple[PublishedKey, ...],
) -> str:
    if step is KeyStep.CREATE:
        known = {key.kid for key in before}
        return next(key.kid for key in following if key.kid not in known)
    return subject or ""


def _root_is_here() -> RefusedError:
    return RefusedError(
        ErrorCode.ROOT_KEY_HERE, "root.key lies on the master, which signs itself: send no document"
    )


def _not_written(error: KeyFileError) -> RefusedError:
    _log.error(
        "keys_not_written",
        cause=str(error),
        next_step="the keys in use stay; repair the key directory and repeat the step",
    )
    return RefusedError(
        ErrorCode.KEYS_NOT_WRITTEN, "the key files cannot be read or written; see the log"
    )
