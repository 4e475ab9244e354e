"""HTTP bodies of key administration: steps of a rotation, change of root, status.

Where the root key is not on the master, a step is answered with what the root has to sign; the
caller signs it and sends the same step again with the signed document.
"""

from typing import Annotated, Literal

import msgspec

from wavry_peer.protocol.keyset import KeySet, PublishedKey, RootLink
from wavry_peer.protocol.lease import Name

from .api import Body, Count, Percent

__all__ = [
    "KeyPlan",
    "KeyStatusRow",
    "KeyStepRequest",
    "KeyStepResponse",
    "KeysStatus",
    "RelayKeyState",
    "RootStepRequest",
]

Reason = Annotated[str, msgspec.Meta(max_length=500)]


class KeyStepRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/keys/{create,activate,rollback,remove,revoke}``.

    `kid` is needed for activate, remove and revoke.  `quorum_pct` of the live relays must hold a
    key before it signs; `force` asks none, and signs also for relays that lack it.  `signed` is the
    next document, where the master has no root key.
    """

    kid: Name | None = None
    quorum_pct: Percent = 100.0
    force: bool = False
    reason: Reason = ""
    signed: KeySet | None = None


class RootStepRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/keys/root``; `expected_root` makes asking twice harmless."""

    expected_root: str
    reason: Reason = ""
    signed: KeySet | None = None


class KeyPlan(Body, frozen=True, kw_only=True):
    """The next document without its signature."""

    serial: Count
    issued_at: Count
    keys: tuple[PublishedKey, ...]
    root_chain: tuple[RootLink, ...] = ()


class KeyStepResponse(Body, frozen=True, kw_only=True):
    """200.  ``needs_signature``: sign `plan` and ask again.  `kid` is what the step was about."""

    result: Literal["done", "needs_signature"]
    plan: KeyPlan
    kid: str = ""


class KeyStatusRow(Body, frozen=True, kw_only=True):
    """One key.  Times are unix seconds; `removable_at` is 0 where no lease was signed."""

    kid: str
    status: str
    not_before: int
    last_lease_expires_at: int
    removable_at: int
    signable: bool
    """The master has its private half."""
    forced: bool
    held_by: int
    lacking_relays: tuple[str, ...]


class RelayKeyState(Body, frozen=True, kw_only=True):
    """What a live relay reported; `keyset_serial` 0 before its first report."""

    relay_id: str
    keyset_serial: int
    held_kids: tuple[str, ...]


class KeysStatus(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/keys/status``; `now` is the master's clock."""

    now: int
    serial: int
    issued_at: int
    active_kid: str
    active_age_s: int
    root_public_key: str
    root_key_here: bool
    root_chain: tuple[RootLink, ...]
    keys: tuple[KeyStatusRow, ...]
    relays: tuple[RelayKeyState, ...]
