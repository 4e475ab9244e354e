"""What a master tells its relays besides leases: revocations, key-set changes, drain.

Strategy: revocations are a log of numbered rows.  A relay says up to which number it has kept them
(`EventAck`, or ``?after=N``) and gets what follows, so nothing is lost by a broken connection, and
everything that is not a revocation is a *present state* that is simply told again.  Frames travel
as JSON text over a WebSocket; `EventPage` is the same for a relay that asks without one.

A revocation hits every lease of its value with ``iat <= issued_until``.  After `expires_at` no such
lease can be valid any more, so everybody may forget the row.  ``unban`` takes the future part off
earlier ``sub`` rows of the same value: leases issued after its `issued_until` are good again.
"""

from typing import Annotated, Any, Final, Literal

import msgspec

from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.lease import Name, Uuid
from wavry_peer.protocol.redaction import fault_text

from .api import Body, Count

__all__ = [
    "FOREVER_S",
    "MAX_MASTER_FRAME_BYTES",
    "MAX_RELAY_FRAME_BYTES",
    "MAX_REVOCATIONS",
    "PAGE_ROWS",
    "DrainFrame",
    "EventAck",
    "EventPage",
    "KeysFrame",
    "MasterFrame",
    "RelayEventState",
    "Revocation",
    "RevocationInfo",
    "RevocationKind",
    "RevocationList",
    "RevokeRequest",
    "RevokeResponse",
    "StreamHello",
    "decode_master_frame",
    "decode_relay_frame",
]

MAX_REVOCATIONS: Final = 10_000
"""Rows that may be in force at once; a relay has room for all of them in shared memory.  Whoever
needs more wants to revoke a user or a key."""

PAGE_ROWS: Final = 100
"""Rows of one page: 400 bytes each at most, so that a page stays under 64 KiB."""

MAX_MASTER_FRAME_BYTES: Final = 4096
MAX_RELAY_FRAME_BYTES: Final = 256
FOREVER_S: Final = 2**53
"""`issued_until` of a value that is never used again (a lease id, a session id)."""

RevocationKind = Literal["jti", "session", "sub", "kid", "unban"]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
LogId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Reason = Annotated[str, msgspec.Meta(max_length=256)]


class StreamHello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """First frame: which log this is, its last number, and the present state."""

    log: LogId
    number: Count
    keyset_serial: Count
    drain: bool


class Revocation(msgspec.Struct, frozen=True, kw_only=True, tag="revocation"):
    """One row of the log; instants in unix seconds."""

    number: Number
    kind: RevocationKind
    value: Name
    issued_until: Count
    expires_at: Count

    def __post_init__(self) -> None:
        """Refuse a lease or session id that is no UUID: it could never hit anything."""
        if self.kind in ("jti", "session"):
            msgspec.convert(self.value, Uuid)


class KeysFrame(msgspec.Struct, frozen=True, kw_only=True, tag="keys"):
    """The key-set document has this serial now; fetch it."""

    serial: Count


class DrainFrame(msgspec.Struct, frozen=True, kw_only=True, tag="drain"):
    """Take no new sessions, or take them again."""

    drain: bool


class EventAck(msgspec.Struct, frozen=True, kw_only=True, tag="ack", forbid_unknown_fields=True):
    """Relay → master: every row up to this number is on the relay's disk."""

    number: Number


MasterFrame = StreamHello | Revocation | KeysFrame | DrainFrame


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/relays/events`` without a WebSocket: the rows behind `after`, and the key set.

    A drain is not in it: the net under the stream's drain is the answer to the heartbeat.
    Where `more` is set, the relay asks again behind the last row.
    """

    log: LogId
    number: Count
    keyset_serial: Count
    revocations: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=PAGE_ROWS)] = ()
    more: bool = False


class _Typed(msgspec.Struct, frozen=True):
    type: str


_TYPES: Final = frozenset({"hello", "revocation", "keys", "drain"})
_TYPED: Final = msgspec.json.Decoder(_Typed)
_MASTER: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(MasterFrame)
_RELAY: Final = msgspec.json.Decoder(EventAck)


def decode_master_frame(raw: str | bytes) -> MasterFrame | None:
    """Read a frame of the master; None for a type of a later version.

    Raises:
        MessageError: ``invalid_frame``; the text names the field and never repeats the value.
    """
    try:
        if _TYPED.decode(raw).type not in _TYPES:
            return None
        frame: MasterFrame = _MASTER.decode(raw)
    except msgspec.ValidationError as error:
        raise MessageError(ErrorCode.INVALID_FRAME, fault_text(error)) from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise MessageError(ErrorCode.INVALID_FRAME, "frame is not valid JSON") from None
    return frame


def decode_relay_frame(raw: str | bytes) -> EventAck:
    """Read a frame of a relay.

    Raises:
        MessageError: ``invalid_frame``; the text never repeats the value.
    """
    try:
        return _RELAY.decode(raw)
    except msgspec.ValidationError as error:
        raise MessageError(ErrorCode.INVALID_FRAME, fault_text(error)) from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise MessageError(ErrorCode.INVALID_FRAME, "frame is not valid JSON") from None


# -- What operators ask --------------------------------------------------------------------


class RevokeRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/leases/revoke``: exactly one of the four, and why."""

    jti: Uuid | None = None
    session_id: Uuid | None = None
    sub: Name | None = None
    kid: Name | None = None
    reason: Reason = ""
    force: bool = False
    """Also a key id that the master has never seen."""

    def target(self) -> tuple[RevocationKind, str]:
        """Return what is revoked.

        Raises:
            MessageError: ``invalid_body`` where none or several are named.
        """
        fields: tuple[tuple[RevocationKind, str | None], ...] = (
            ("jti", self.jti),
            ("session", self.session_id),
            ("sub", self.sub),
            ("kid", self.kid),
        )
        named = [(kind, value) for kind, value in fields if value is not None]
        if len(named) != 1:
            raise MessageError(
                ErrorCode.INVALID_BODY, "name exactly one of jti, session_id, sub and kid"
            )
        return named[0]


class RevocationInfo(Body, frozen=True, kw_only=True):
    """A row as operators see it; instants in unix seconds, `issued_until` None for every lease."""

    number: int
    kind: str
    value: str
    issued_until: int | None = None
    expires_at: int
    at: int
    who: str
    reason: str = ""


class RevokeResponse(Body, frozen=True, kw_only=True):
    """200.  `live_sessions` is how many sessions with a running lease were hit.

    `known` is False where the master has no session (or key) with the value: it is revoked all
    the same, for the master forgets a session an hour after its last lease.
    """

    revocation: RevocationInfo
    live_sessions: int
    known: bool = True


class RelayEventState(Body, frozen=True, kw_only=True):
    """How far a relay has come: `acked` is the last number that it kept on disk."""

    relay_id: str
    connected: bool
    acked: int


class RevocationList(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/revocations``: rows in force, oldest first, and each relay's progress."""

    number: int
    revocations: tuple[RevocationInfo, ...]
    relays: tuple[RelayEventState, ...]
