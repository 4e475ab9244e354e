"""Rules of key rotation: a key-set document, a step, and the next document.

The document is the whole state, so a rotation that was interrupted anywhere goes on from what is
published:

    create      → a new key is `pending`: published, verified, not signing
    activate    → it is `active`, the one before `retiring`: still verified, signs no more
    rollback    → before activation the pending key goes; after it the retiring one signs again
    remove      → a retiring or revoked key goes once its last lease has expired
    revoke      → a key is `revoked`; where it was the active one, a successor steps in at once

Two rules together keep every valid lease valid.  A key starts to sign only when the live relays
have reported that they hold it (`check_held`), and a lease for a relay is only signed while that
relay holds the key (`may_sign_for`), which covers relays that were away.  And a key stays in the
document until the last lease that it signed has expired, with the skew that clocks may have.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgspec

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.keyset import MAX_KEYS, PublishedKey

__all__ = [
    "STATUS_AFTER",
    "KeyEvent",
    "KeyStep",
    "RelayKeys",
    "active_key",
    "check_held",
    "check_removable",
    "may_sign_for",
    "next_keys",
    "pick_successor",
    "removable_at_s",
    "rollback_target",
]

REMOVE_MARGIN_S: Final = c.NOT_BEFORE_SKEW_S
"""A relay whose clock is late by as much as leases allow still finds the key."""
_NAMED_RELAYS: Final = 5


class KeyStep(StrEnum):
    """What an operator may do to the document."""

    CREATE = "create"
    ACTIVATE = "activate"
    ROLLBACK = "rollback"
    REMOVE = "remove"
    REVOKE = "revoke"


class KeyEvent(StrEnum):
    """What a step means for one key."""

    PUBLISH = "publish"
    STEP_IN = "step in"
    ACTIVATE = "activate"
    SUPERSEDE = "supersede"
    WITHDRAW = "withdraw"
    REMOVE = "remove"
    REVOKE = "revoke"


STATUS_AFTER: Final[dict[tuple[str | None, KeyEvent], str | None]] = {
    (None, KeyEvent.PUBLISH): "pending",
    # Only in an emergency, when no other key is left: in the document that revokes the active one.
    (None, KeyEvent.STEP_IN): "active",
    ("pending", KeyEvent.ACTIVATE): "active",
    ("pending", KeyEvent.WITHDRAW): None,  # It never signed.
    ("pending", KeyEvent.REVOKE): "revoked",
    ("active", KeyEvent.SUPERSEDE): "retiring",
    ("active", KeyEvent.REVOKE): "revoked",
    ("retiring", KeyEvent.ACTIVATE): "active",
    ("retiring", KeyEvent.REMOVE): None,
    ("retiring", KeyEvent.REVOKE): "revoked",
    ("revoked", KeyEvent.REMOVE): None,
    # Nothing leads out of "revoked" but removal: a stolen key never signs again.
}
"""Status of a key after an event; None is "not in the document".  What is missing is refused."""


@dataclass(frozen=True, slots=True)
class RelayKeys:
    """What the live relays reported that they hold: key ids by relay id, empty before a report."""

    held: Mapping[str, AbstractSet[str]] = field(default_factory=dict)

    def lacking(self, kid: str) -> list[str]:
        """Return the live relays that have not reported a key, sorted."""
        return sorted(relay for relay, kids in self.held.items() if kid not in kids)

    def held_pct(self, kid: str) -> float:
        """Share of the live relays that reported a key; 100 where no relay is live."""
        if not self.held:
            return 100.0
        return 100 * (1 - len(self.lacking(kid)) / len(self.held))


def active_key(keys: Sequence[PublishedKey]) -> PublishedKey:
    """Return the key that signs; every document has exactly one.

    Raises:
        RefusedError: ``wrong_key_status``: it has none, or several.
    """
    active = [key for key in keys if key.status == "active"]
    if len(active) != 1:
        raise RefusedError(
            ErrorCode.WRONG_KEY_STATUS, f"{len(active)} keys are active, it must be one"
        )
    return active[0]


def next_keys(
    keys: Sequence[PublishedKey],
    step: KeyStep,
    *,
    now_s: int,
    kid: str | None = None,
    new_key: PublishedKey | None = None,
    successor: str | None = None,
) -> tuple[PublishedKey, ...]:
    """Return the keys of the next document.

    Args:
        keys: of the document in use.
        step: what is to be done.
        now_s: unix seconds; the `issued_at` of the next document.
        kid: the key to activate, remove or revoke; `rollback` finds its own.
        new_key: for `create`, and for `revoke` of the active key without a `successor`.
        successor: for `revoke` of the active key: a key of the document that signs from now on.

    Raises:
        RefusedError: ``unknown_key``, ``wrong_key_status``, ``pending_exists``,
            ``too_many_keys``, ``no_successor`` or ``nothing_to_roll_back``.
    """
    document = {key.kid: key for key in keys}
    match step:
        case KeyStep.CREATE:
            _create(document, new_key, now_s)
        case KeyStep.ACTIVATE:
            _activate(document, _named(document, kid), now_s)
        case KeyStep.ROLLBACK:
            target = rollback_target(keys)
            if target.status == "pending":
                _change(document, target, KeyEvent.WITHDRAW)
            else:
                _activate(document, target, now_s)
        case KeyStep.REMOVE:
            _change(document, _named(document, kid), KeyEvent.REMOVE)
        case KeyStep.REVOKE:
            _revoke(document, _named(document, kid), now_s, new_key, successor)
    following = tuple(document.values())
    active_key(following)
    return following


def _create(document: dict[str, PublishedKey], new_key: PublishedKey | None, now_s: int) -> None:
    pending = [key.kid for key in document.values() if key.status == "pending"]
    if pending:
        raise RefusedError(
            ErrorCode.PENDING_EXISTS,
            f"key {pending[0]} is pending already: activate it or roll it back",
        )
    _add(document, new_key, KeyEvent.PUBLISH, now_s)


def _activate(document: dict[str, PublishedKey], key: PublishedKey, now_s: int) -> None:
    before = active_key(tuple(document.values()))
    if key.kid == before.kid:
        raise RefusedError(ErrorCode.WRONG_KEY_STATUS, f"key {key.kid} is the active one already")
    first_time = {"not_before": now_s} if key.status == "pending" else {}
    _change(document, key, KeyEvent.ACTIVATE, not_after=0, **first_time)
    last_s = now_s + c.LEASE_TTL_MAX_S + REMOVE_MARGIN_S
    _change(document, before, KeyEvent.SUPERSEDE, not_after=last_s)


def _revoke(
    document: dict[str, PublishedKey],
    key: PublishedKey,
    now_s: int,
    new_key: PublishedKey | None,
    successor: str | None,
) -> None:
    was_active = key.status == "active"
    _change(document, key, KeyEvent.REVOKE, not_after=now_s)
    if not was_active:
        return
    if successor is not None:
        following = _named(document, successor)
        first_time = {"not_before": now_s} if following.status == "pending" else {}
        _change(document, following, KeyEvent.ACTIVATE, not_after=0, **first_time)
    elif new_key is not None:
        _add(document, new_key, KeyEvent.STEP_IN, now_s)
    else:
        raise RefusedError(
            ErrorCode.NO_SUCCESSOR, "the active key can only be revoked with a successor"
        )


def _add(
    document: dict[str, PublishedKey], key: PublishedKey | None, event: KeyEvent, now_s: int
) -> None:
    if key is None or key.kid in document:
        raise RefusedError(ErrorCode.UNKNOWN_KEY, "a new key is needed, with an id of its own")
    if len(document) >= MAX_KEYS:
        raise RefusedError(
            ErrorCode.TOO_MANY_KEYS, f"the document holds {MAX_KEYS} keys: remove old ones"
        )
    status = STATUS_AFTER[None, event]
    document[key.kid] = msgspec.structs.replace(key, status=status, not_before=now_s, not_after=0)


def _named(document: Mapping[str, PublishedKey], kid: str | None) -> PublishedKey:
    key = document.get(kid or "")
    if key is None:
        raise RefusedError(
            ErrorCode.UNKNOWN_KEY, f"no key {kid} is published; see `wavryctl keys status`"
        )
    return key


def _change(
    document: dict[str, PublishedKey], key: PublishedKey, event: KeyEvent, **validity: Any
) -> None:
    if (key.status, event) not in STATUS_AFTER:
        raise RefusedError(
            ErrorCode.WRONG_KEY_STATUS, f"key {key.kid} is {key.status}: cannot {event} it"
        )
    status = STATUS_AFTER[key.status, event]
    if status is None:
        del document[key.kid]
    else:
        document[key.kid] = msgspec.structs.replace(key, status=status, **validity)


def rollback_target(keys: Sequence[PublishedKey]) -> PublishedKey:
    """Return the key that a rollback is about: the pending one, else the one that signed last.

    Raises:
        RefusedError: ``nothing_to_roll_back``.
    """
    for status in ("pending", "retiring"):
        found = [key for key in keys if key.status == status]
        if found:
            return max(found, key=lambda key: key.not_after)
    raise RefusedError(
        ErrorCode.NOTHING_TO_ROLL_BACK,
        "no key is pending or retiring: the key before is gone, so rotate to a new one instead",
    )


def pick_successor(keys: Sequence[PublishedKey], revoked: str, relays: RelayKeys) -> str | None:
    """Return the key that steps in for a revoked one: one that every live relay holds, if any.

    A pending key is preferred, as it never signed; then the one that signed last.
    """
    for status in ("pending", "retiring"):
        found = [
            key
            for key in keys
            if key.status == status and key.kid != revoked and not relays.lacking(key.kid)
        ]
        if found:
            return max(found, key=lambda key: key.not_after).kid
    return None


def check_held(kid: str, relays: RelayKeys, *, quorum_pct: float = 100.0) -> None:
    """Check that enough live relays hold a key before it signs.

    Raises:
        RefusedError: ``relays_lack_key``; the message names them.
    """
    held_pct = relays.held_pct(kid)
    if held_pct >= quorum_pct:
        return
    lacking = relays.lacking(kid)
    names = ", ".join(lacking[:_NAMED_RELAYS])
    more = f" and {len(lacking) - _NAMED_RELAYS} more" if len(lacking) > _NAMED_RELAYS else ""
    raise RefusedError(
        ErrorCode.RELAYS_LACK_KEY,
        f"{len(lacking)} of {len(relays.held)} live relays have not reported key {kid}: {names}"
        f"{more}; see keyset_refused or keyset_refresh_failed in their logs",
    )


def may_sign_for(held: AbstractSet[str] | None, kid: str, *, forced: bool = False) -> bool:
    """Return whether a lease signed by `kid` may be given out for a relay.

    Args:
        held: what the relay reported last; None where it has not reported yet: it was given the
            key set when it registered.
        kid: the active key.
        forced: the operator said that relays which lack the key are to be ignored.
    """
    return held is None or kid in held or forced


def removable_at_s(last_expiry_s: int) -> int:
    """Return when (unix s) a key may go whose last lease expires at `last_expiry_s`."""
    return last_expiry_s + REMOVE_MARGIN_S if last_expiry_s else 0


def check_removable(key: PublishedKey, last_expiry_s: int, *, now_s: int) -> None:
    """Check that no lease of a key can be valid anywhere.

    Raises:
        RefusedError: ``leases_running``.
    """
    wait_s = removable_at_s(last_expiry_s) - now_s
    if wait_s > 0:
        raise RefusedError(
            ErrorCode.LEASES_RUNNING, f"leases of key {key.kid} are valid for another {wait_s} s"
        )
