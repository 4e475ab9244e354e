"""HTTP bodies of gateway and master (protocol: HTTP and signaling surface).

Every body refuses unknown fields and oversized values.  `decode_body` turns whatever does not fit
into one clear `MessageError`; its text names the field and never repeats the value.
"""

from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar

import msgspec

from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.keyset import KeySet
from wavry_peer.protocol.lease import Kbps, Name, PublicKeyText, Uuid
from wavry_peer.protocol.redaction import RedactedStruct, fault_text
from wavry_peer.protocol.relay_terms import ReportedState

__all__ = [
    "MAX_BLOCKS_TOLD",
    "MAX_BODY_BYTES",
    "AcceptSessionRequest",
    "BlockedHost",
    "Command",
    "CreateSessionRequest",
    "Credentials",
    "ErrorBody",
    "HeartbeatRequest",
    "HeartbeatResponse",
    "LeasePair",
    "LeaseParty",
    "LeaseRelay",
    "LeaseRequest",
    "LeaseResponse",
    "LoginResponse",
    "PathReport",
    "RegisterRequest",
    "RegisterResponse",
    "RelayFault",
    "RelayInfo",
    "RelayList",
    "RelaySessionRequest",
    "RenewRequest",
    "RenewResponse",
    "RenewSessionRequest",
    "SessionInfo",
    "SessionList",
    "UserCredentials",
    "UserInfo",
    "UserList",
    "VerifyRequest",
    "VerifyResponse",
    "decode_body",
]

MAX_BODY_BYTES: Final = 64 * 1024

Username = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?\Z")]
"""1 to 32 of a-z 0-9 . _ -, beginning and ending with a letter or digit."""
Password = Annotated[str, msgspec.Meta(min_length=10, max_length=256)]
Endpoint = Annotated[str, msgspec.Meta(min_length=3, max_length=64)]
"""``203.0.113.7:4500`` or ``[2001:db8::7]:4500``."""
Region = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,32}\Z")]
RelayName = Annotated[
    str, msgspec.Meta(pattern=r"^(?!rly-)[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?\Z")
]
"""1 to 32 of a-z 0-9 . _ -, beginning and ending with a letter or digit; never like an id."""
RejectName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,32}\Z")]
EnrolmentSecret = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
SoftwareName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")]
"""A version or a feature: 1 to 64 characters that are safe in logs, metrics and terminals."""
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
SignatureText = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{86}\Z")]
ChallengeText = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]
RelayIds = Annotated[tuple[Name, ...], msgspec.Meta(max_length=32)]
TtlSeconds = Annotated[int, msgspec.Meta(ge=60, le=900)]


class Body(
    RedactedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Base of every body."""


class ErrorBody(msgspec.Struct, frozen=True):
    """What every failed call answers; `message` says what to do next."""

    error: str
    message: str


# -- Master: relays ------------------------------------------------------------------------


class RegisterRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/relays/register``.  `relay_id` must be the one derived from `public_key`.

    `enrolment_token` is needed the first time, and then no more: a token of `wavryctl relays
    enrol`, or the service token of a managed pool.  `name` is a wish of a relay of a pool or of
    the list of keys; a token brings its own name.
    """

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"enrolment_token"})

    relay_id: Name
    public_key: PublicKeyText
    endpoints: Annotated[tuple[Endpoint, ...], msgspec.Meta(min_length=1, max_length=8)]
    region: Region | None = None
    asn: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    max_sessions: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    max_bitrate_kbps: Kbps
    features: Annotated[tuple[SoftwareName, ...], msgspec.Meta(max_length=32)] = ()
    version: SoftwareName
    name: RelayName | None = None
    enrolment_token: EnrolmentSecret | None = None


class RegisterResponse(Body, frozen=True, kw_only=True):
    """200: sign the 32 bytes of `challenge` (see `wavry_peer.protocol.registration`).

    `master_id` is the root public key of the master; a relay signs for the root that it has pinned
    and looks at this one only where it has none.
    """

    challenge_id: Uuid
    challenge: ChallengeText
    master_id: PublicKeyText


class VerifyRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/relays/register/verify``."""

    challenge_id: Uuid
    signature: SignatureText


class VerifyResponse(Body, frozen=True, kw_only=True):
    """201.  `master_public_key` and `master_key_id` name the active signing key (v1 relays)."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"relay_token"})

    relay_token: str
    heartbeat_interval_ms: Count
    keyset: KeySet
    master_public_key: PublicKeyText
    master_key_id: Name


class BlockedHost(Body, frozen=True, kw_only=True):
    """A host that a relay has blocked: an IPv4 /32 or an IPv6 /64.  Times are unix seconds."""

    subnet: Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[0-9A-Fa-f.:/]+\Z")]
    since: Count
    until: Count
    reason: Annotated[str, msgspec.Meta(max_length=32, pattern=r"^[a-z_]*\Z")]


MAX_BLOCKS_TOLD: Final = 64


class HeartbeatRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/relays/heartbeat`` with the relay token as bearer."""

    relay_id: Name
    load_pct: Percent
    active_sessions: Count
    bandwidth_in_kbps: Count
    bandwidth_out_kbps: Count
    packet_loss_pct: Percent
    held_kids: Annotated[tuple[Name, ...], msgspec.Meta(max_length=32)]
    keyset_serial: Count
    state: ReportedState
    workers_wanted: Count = 0
    workers_missing: Count = 0
    """Of those wanted: the master gives a relay that lacks any nothing new."""
    clock_ms: Count = 0
    """Unix milliseconds by the relay's clock as it sent this; 0 of a relay that does not tell."""
    disk_failing: bool = False
    """Its state directory does not take what must outlast a restart."""
    rejects: Annotated[dict[RejectName, Count], msgspec.Meta(max_length=32)] = msgspec.field(
        default_factory=dict
    )
    """Leases refused since the relay began, by reason."""
    blocks: Annotated[tuple[BlockedHost, ...], msgspec.Meta(max_length=MAX_BLOCKS_TOLD)] = ()
    """Those that last longest.  Absent where there are none, so that a master which does not know
    the field takes the heartbeat."""


class Command(Body, frozen=True, kw_only=True):
    """One order of the master; a relay ignores a `type` that it does not know."""

    type: str
    subnet: str | None = None
    """Of ``clear_blocks``; None means all."""


class HeartbeatResponse(Body, frozen=True, kw_only=True):
    """200.  Command types: ``drain``, ``undrain``, ``refresh_keys``, ``clear_blocks``."""

    commands: tuple[Command, ...] = ()


class RelayFault(Body, frozen=True, kw_only=True):
    """Why a relay is DEGRADED, or NEW for longer than a moment.

    `cause` is ``workers``, ``probes``, ``loss``, ``clock`` or ``disk``; `text` is for people.
    """

    cause: str
    text: str


class RelayInfo(Body, frozen=True, kw_only=True):
    """One row of ``GET /v1/relays``.  Times are unix seconds.

    ``state`` is the master's word, ``reported`` the relay's own of its last heartbeat: a drain has
    reached the relay when it reports ``draining``.
    """

    relay_id: str
    name: str = ""
    enrolment: str = ""
    endpoints: tuple[str, ...]
    region: str | None = None
    state: str
    load_pct: float
    active_sessions: int
    max_sessions: int
    version: str
    held_kids: tuple[str, ...] = ()
    keyset_serial: int = 0
    registered_at: int
    last_heartbeat_at: int
    reported: str = ""
    workers_wanted: int = 0
    workers_missing: int = 0
    faults: tuple[RelayFault, ...] = ()
    probe_loss_pct: float | None = None
    """Of the master's own sessions in the last minutes; None where too few datagrams were sent."""
    probe_rtt_ms: float | None = None
    """From the master through the relay and back."""
    clock_ahead_s: float | None = None
    """Seconds that its clock is ahead of the master's; None of a relay that does not tell."""
    rejects_last_minute: dict[str, int] = msgspec.field(default_factory=dict)


class RelayList(Body, frozen=True, kw_only=True):
    """``GET /v1/relays``."""

    relays: tuple[RelayInfo, ...]


# -- Master: leases ------------------------------------------------------------------------


class LeaseParty(Body, frozen=True, kw_only=True):
    """One of the two users of a session and the key that its lease is bound to."""

    sub: Name
    cnf: PublicKeyText


class LeaseRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/leases``.  `session_id` names a live session that moves to another relay."""

    client: LeaseParty
    server: LeaseParty
    session_id: Uuid | None = None
    region: Region | None = None
    exclude_relays: RelayIds = ()
    ttl_s: TtlSeconds | None = None


class LeaseRelay(Body, frozen=True, kw_only=True):
    """Where to present a lease."""

    relay_id: str
    endpoints: tuple[str, ...]


class LeasePair(Body, frozen=True, kw_only=True):
    """One token per role."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"client", "server"})

    client: str
    server: str


class LeaseResponse(Body, frozen=True, kw_only=True):
    """201.  `expires_at` in unix seconds."""

    session_id: Uuid
    relay: LeaseRelay
    standby: LeaseRelay | None = None
    leases: LeasePair
    expires_at: int


class RenewRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/leases/renew``: `jti` is the lease that is replaced."""

    session_id: Uuid
    role: Literal["client", "server"]
    jti: Uuid


class RenewResponse(Body, frozen=True, kw_only=True):
    """200.  `expires_at` in unix seconds."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"lease"})

    lease: str
    expires_at: int


# -- Gateway -------------------------------------------------------------------------------


class UserCredentials(Body, frozen=True, kw_only=True):
    """``POST /auth/register`` and ``POST /auth/login``."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"password"})

    username: Username
    password: Password


class LoginResponse(Body, frozen=True, kw_only=True):
    """200 (login) or 201 (register, without a token).  `expires_at` in unix seconds."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"token"})

    username: str
    token: str | None = None
    expires_at: int | None = None


class CreateSessionRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/sessions``: call a user.

    Keys are base64url: `identity_key` Ed25519 (the lease's `cnf`), `noise_key` X25519 (static key
    of the end-to-end channel).
    """

    target_username: Username
    identity_key: PublicKeyText | None = None
    noise_key: PublicKeyText | None = None


class AcceptSessionRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/sessions/{id}/accept`` by the called user."""

    identity_key: PublicKeyText | None = None
    noise_key: PublicKeyText | None = None


class RelaySessionRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/sessions/{id}/relay``: ask for a relay (again: to move to another)."""

    region: Region | None = None
    exclude_relays: RelayIds = ()


class RenewSessionRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/sessions/{id}/renew``: `jti` of the caller's own lease."""

    jti: Uuid


class PathReport(Body, frozen=True, kw_only=True):
    """``POST /v1/sessions/{id}/path``: how the two peers reach each other now."""

    path: Literal["direct", "relay"]


class Credentials(Body, frozen=True, kw_only=True):
    """The caller's own lease and where to present it (RELAY_CREDENTIALS, `/relay`, `/renew`)."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"token"})

    session_id: Uuid
    relay_id: str
    token: str
    addr: str
    addrs: tuple[str, ...] = ()
    role: Literal["client", "server"]
    expires_at: int


class SessionInfo(Body, frozen=True, kw_only=True):
    """One session as one of its two users sees it.  Times are unix seconds."""

    session_id: Uuid
    caller: str
    callee: str
    state: Literal["pending", "accepted", "active", "closed"]
    relay_id: str | None = None
    peer_noise_key: str | None = None
    created_at: int
    expires_at: int | None = None


class SessionList(Body, frozen=True, kw_only=True):
    """``GET /v1/sessions``: the caller's own."""

    sessions: tuple[SessionInfo, ...]


class UserInfo(Body, frozen=True, kw_only=True):
    """One row of ``GET /v1/admin/users``."""

    username: str
    created_at: int
    last_login_at: int | None = None
    online: bool = False


class UserList(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/users``."""

    users: tuple[UserInfo, ...]


BodyType = TypeVar("BodyType", bound=msgspec.Struct)
_DECODERS: Final[dict[type[Any], msgspec.json.Decoder[Any]]] = {}


def decode_body(kind: type[BodyType], raw: bytes, *, max_bytes: int = MAX_BODY_BYTES) -> BodyType:
    """Read a JSON body.

    Raises:
        MessageError: ``body_too_large``, ``invalid_json`` or ``invalid_body``; the message names
            the field that does not fit.
    """
    if len(raw) > max_bytes:
        raise MessageError(ErrorCode.BODY_TOO_LARGE, f"body is over {max_bytes} bytes")
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        decoded: BodyType = decoder.decode(raw)
    except msgspec.ValidationError as error:
        # Without the cause: it repeats what the client sent, and causes are logged.
        raise MessageError(ErrorCode.INVALID_BODY, fault_text(error)) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise MessageError(ErrorCode.INVALID_JSON, "body is not valid JSON") from None
    return decoded
