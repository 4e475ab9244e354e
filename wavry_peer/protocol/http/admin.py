"""HTTP bodies of operators' calls: audit log, admin tokens, kill switches, bans.

Rules of form as in `api`.  Times are unix seconds.
"""

from typing import Annotated, ClassVar, Final, Literal

import msgspec

from .api import Body, Username

__all__ = [
    "AuditPage",
    "AuditRow",
    "BanInfo",
    "BanList",
    "BanRequest",
    "BlockList",
    "CallInfo",
    "CallPage",
    "ClearBlocksRequest",
    "ClearBlocksResponse",
    "LeaseInfo",
    "LeasedInfo",
    "LeasedList",
    "LiftBanRequest",
    "NewToken",
    "NewTokenRequest",
    "Order",
    "RelayBlock",
    "RevokeTokenRequest",
    "RotateTokenRequest",
    "SessionNews",
    "SessionNewsPage",
    "SwitchInfo",
    "SwitchList",
    "SwitchRequest",
    "TokenCheck",
    "TokenCheckRequest",
    "TokenInfo",
    "TokenList",
]

_PLAIN: Final = r"^[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]*\Z"
"""No control character and nothing that turns the direction of text: it is shown in terminals."""
Reason = Annotated[str, msgspec.Meta(max_length=500, pattern=_PLAIN)]
"""In an operator's words."""
GivenReason = Annotated[str, msgspec.Meta(min_length=1, max_length=500, pattern=_PLAIN)]
BanName = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=_PLAIN)]
"""A user as leases name him (`lease.Name`), or a relay id."""
Seconds = Annotated[int, msgspec.Meta(ge=1, le=10 * 366 * 86_400)]
"""At most ten years; leave it out for "for ever"."""
RoleName = Literal["viewer", "operator", "admin"]


class Order(Body, frozen=True, kw_only=True):
    """Body of an order that needs nothing else; may be left out."""

    reason: Reason = ""


# -- Audit ---------------------------------------------------------------------------------


class AuditRow(Body, frozen=True, kw_only=True):
    """One act; `id` grows by the order of writing, `outcome` is ``done`` or an error code."""

    id: int
    at: int
    who: str
    action: str
    target: str
    reason: str
    outcome: str


class AuditPage(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/audit?after=ID&since=TIME&limit=N``, oldest first."""

    entries: tuple[AuditRow, ...]


# -- Sessions and leases -------------------------------------------------------------------


class CallInfo(Body, frozen=True, kw_only=True):
    """One session as the gateway knows it; `number` grows by the order of the calls."""

    number: int
    session_id: str
    caller: str
    callee: str
    state: str
    created_at: int
    expires_at: int
    path: str | None = None
    relay_id: str | None = None
    lease_expires_at: int | None = None
    closed_at: int | None = None


class CallPage(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/sessions?user=NAME&relay=ID&state=STATE&before=NUMBER&limit=N``.

    Newest first; without `state` those that are not closed.
    """

    sessions: tuple[CallInfo, ...]


class SessionNews(Body, frozen=True, kw_only=True):
    """One step of a session; `event` is ``called``, ``accepted``, ``relayed``, ``closed`` or so."""

    number: int
    at: int
    event: str
    session_id: str
    caller: str
    callee: str
    relay_id: str | None = None


class SessionNewsPage(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/session-news?log=ID&after=NUMBER&limit=N``: those behind `after`.

    Numbers begin anew with another `log_id`: the gateway was started again.
    """

    log_id: str
    last: int
    news: tuple[SessionNews, ...]


class LeaseInfo(Body, frozen=True, kw_only=True):
    """The current lease of one role of a session; `request_id` names its cause in the logs."""

    role: Literal["client", "server"]
    sub: str
    jti: str
    kid: str
    issued_at: int
    expires_at: int
    request_id: str = ""


class LeasedInfo(Body, frozen=True, kw_only=True):
    """A session as the master leased it; limits are kbit/s."""

    session_id: str
    relay_id: str
    created_at: int
    soft_kbps: int
    hard_kbps: int
    leases: tuple[LeaseInfo, ...]


class LeasedList(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/leases?session=ID,ID…|lease=ID|user=NAME|relay=ID&limit=N``.

    Newest first; also those of the last hour whose leases have ended.
    """

    sessions: tuple[LeasedInfo, ...]


# -- Tokens --------------------------------------------------------------------------------


class NewTokenRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/tokens``; without `life_s` the token lasts until it is revoked."""

    name: Username
    role: RoleName
    life_s: Seconds | None = None
    reason: Reason = ""


class RotateTokenRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/tokens/{name}/rotate``.

    The token so far stays valid for `overlap_s`; `life_s` is by default what it was.
    """

    overlap_s: Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400)] = 86_400
    life_s: Seconds | None = None
    reason: Reason = ""


class RevokeTokenRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/tokens/{name}/revoke``: every token of the name ends now."""

    reason: GivenReason


class TokenInfo(Body, frozen=True, kw_only=True):
    """One token, without its secret; `expires_at` None is for ever."""

    token_id: str
    name: str
    role: str
    created_at: int
    expires_at: int | None = None
    valid: bool


class TokenList(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/tokens``."""

    tokens: tuple[TokenInfo, ...]


class NewToken(Body, frozen=True, kw_only=True):
    """201: the only time that `token` is told; `previous` is valid until its `expires_at`."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"token"})

    token: str
    info: TokenInfo
    previous: TokenInfo | None = None


class TokenCheckRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/tokens/check`` by a gateway: who is it?  The secret stays with it."""

    token_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{10}\Z")]
    secret_hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class TokenCheck(Body, frozen=True, kw_only=True):
    """200; the other fields only where `valid`."""

    valid: bool
    name: str | None = None
    role: RoleName | None = None


# -- Kill switches -------------------------------------------------------------------------


class SwitchRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/switches/{switch}``."""

    on: bool
    reason: Reason = ""


class SwitchInfo(Body, frozen=True, kw_only=True):
    """Where a switch stands; `at` is 0 where nobody has touched it."""

    switch: str
    on: bool
    at: int = 0
    who: str = ""
    reason: str = ""


class SwitchList(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/switches``."""

    switches: tuple[SwitchInfo, ...]


# -- Bans ----------------------------------------------------------------------------------


class BanRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/bans``; without `life_s` until it is lifted."""

    kind: Literal["user", "relay"]
    value: BanName
    life_s: Seconds | None = None
    reason: GivenReason


class LiftBanRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/bans/lift``."""

    kind: Literal["user", "relay"]
    value: BanName
    reason: Reason = ""


class BanInfo(Body, frozen=True, kw_only=True):
    """One ban; `known` is False where the service knows nobody of this name (yet)."""

    kind: str
    value: str
    at: int
    expires_at: int | None = None
    who: str
    reason: str
    known: bool = True


class BanList(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/bans``: those that hold now."""

    bans: tuple[BanInfo, ...]


# -- Blocks of relays ------------------------------------------------------------------------


class RelayBlock(Body, frozen=True, kw_only=True):
    """A network that a relay has blocked; `clearing` where an order to lift it is on its way."""

    relay_id: str
    subnet: str
    since: int
    until: int
    reason: str
    clearing: bool = False


class BlockList(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/blocks``: what the relays told in their last heartbeats, 64 each at most."""

    blocks: tuple[RelayBlock, ...]


class ClearBlocksRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/relays/{relay_id}/blocks/clear``; without `subnet` all are lifted.

    The answer waits up to `wait_s` for the relay to confirm.
    """

    subnet: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=_PLAIN)] | None = None
    reason: GivenReason
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0


class ClearBlocksResponse(Body, frozen=True, kw_only=True):
    """The order goes out with the answers to the relay's next heartbeats.

    `confirmed` says that the relay told afterwards that it has no such block any more.
    """

    relay_id: str
    subnet: str | None
    reported: int
    confirmed: bool = False
