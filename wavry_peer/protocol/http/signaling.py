"""Messages of the signaling WebSocket (``/ws``): JSON text frames, `type` inside the object.

A message that names `target_username` is delivered to that user with `from_username` in its place.
An ANSWER to a pending OFFER is the called user's consent: only then will the gateway
ask the master for leases.
"""

from typing import Annotated, Any, ClassVar, Final

import msgspec

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.lease import PublicKeyText, Uuid
from wavry_peer.protocol.redaction import RedactedStruct, fault_text

from .api import Endpoint, Region, RelayIds, Username

__all__ = [
    "Answer",
    "AnswerRift",
    "Bind",
    "Bound",
    "Bye",
    "Candidate",
    "ClientMessage",
    "Error",
    "Offer",
    "OfferRift",
    "Ping",
    "Pong",
    "RelayCredentials",
    "RequestRelay",
    "ServerMessage",
    "decode_client_message",
    "decode_server_message",
    "encode_message",
]

Token = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=16 * 1024)]
Blob = Annotated[str, msgspec.Meta(max_length=48 * 1024)]

SESSION_DESCRIPTION: Final = frozenset({"sdp", "candidate"})
"""Not for logs: an SDP holds the ICE password, and both hold full addresses."""


class Message(
    RedactedStruct,
    frozen=True,
    kw_only=True,
    tag_field="type",
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """Base of every message."""


class Addressed(Message, frozen=True, kw_only=True):
    """A message between two users: a client sets the target, the gateway names the sender."""

    target_username: Username | None = None
    from_username: Username | None = None


class Bind(Message, frozen=True, kw_only=True, tag="BIND"):
    """First message of a connection, within 10 s."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"token"})

    token: Token


class Bound(Message, frozen=True, kw_only=True, tag="BOUND"):
    """Answer to BIND."""

    username: str


class Offer(Addressed, frozen=True, kw_only=True, tag="OFFER"):
    """Call a user.  The gateway fills `session_id`; keys as in `api.CreateSessionRequest`."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = SESSION_DESCRIPTION

    session_id: Uuid | None = None
    identity_key: PublicKeyText | None = None
    noise_key: PublicKeyText | None = None
    sdp: Text | None = None


class Answer(Addressed, frozen=True, kw_only=True, tag="ANSWER"):
    """Accept a call (or, with `accept` false, refuse it)."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = SESSION_DESCRIPTION

    session_id: Uuid | None = None
    identity_key: PublicKeyText | None = None
    noise_key: PublicKeyText | None = None
    sdp: Text | None = None
    accept: bool = True


class Candidate(Addressed, frozen=True, kw_only=True, tag="CANDIDATE"):
    """One ICE candidate."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = SESSION_DESCRIPTION

    session_id: Uuid | None = None
    candidate: Annotated[str, msgspec.Meta(max_length=1024)]


class OfferRift(Addressed, frozen=True, kw_only=True, tag="OFFER_RIFT"):
    """RIFT hello of a v1 peer, opaque here."""

    hello_base64: Blob


class AnswerRift(Addressed, frozen=True, kw_only=True, tag="ANSWER_RIFT"):
    """RIFT acknowledgement of a v1 peer, opaque here."""

    ack_base64: Blob


class RequestRelay(Message, frozen=True, kw_only=True, tag="REQUEST_RELAY"):
    """Ask for a relay for the accepted session with a user (again: to move to another)."""

    target_username: Username
    session_id: Uuid | None = None
    region: Region | None = None
    exclude_relays: RelayIds = ()


class RelayCredentials(Message, frozen=True, kw_only=True, tag="RELAY_CREDENTIALS"):
    """Each side's own lease.  `expires_at` in unix seconds; `addr` is the first of `addrs`."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"token"})

    relay_id: str
    token: str
    addr: Endpoint
    session_id: Uuid
    expires_at: int
    addrs: tuple[str, ...] = ()
    role: str | None = None
    with_username: str | None = None


class Bye(Addressed, frozen=True, kw_only=True, tag="BYE"):
    """End a session.  Without `from_username` the gateway ended it: a ban, or its time was over."""

    session_id: Uuid | None = None


class Ping(Message, frozen=True, kw_only=True, tag="PING"):
    """Keep the connection alive."""


class Pong(Message, frozen=True, kw_only=True, tag="PONG"):
    """Answer to PING."""


class Error(Message, frozen=True, kw_only=True, tag="ERROR"):
    """What went wrong, and what to do next."""

    code: str
    message: str


ClientMessage = (
    Bind | Offer | Answer | Candidate | OfferRift | AnswerRift | RequestRelay | Bye | Ping | Pong
)
ServerMessage = (
    Bound
    | Offer
    | Answer
    | Candidate
    | OfferRift
    | AnswerRift
    | RelayCredentials
    | Bye
    | Ping
    | Pong
    | Error
)

_CLIENT: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(ClientMessage)
_SERVER: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(ServerMessage)


def _decode(decoder: msgspec.json.Decoder[Any], frame: str | bytes) -> Any:
    try:
        raw = frame.encode() if isinstance(frame, str) else frame
        if len(raw) > c.MAX_SIGNALING_FRAME_BYTES:
            raise MessageError(ErrorCode.FRAME_TOO_LARGE, "frame is over 64 KiB")
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        # Without the cause: it repeats what the client sent, and causes are logged.
        raise MessageError(ErrorCode.INVALID_MESSAGE, fault_text(error)) from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise MessageError(ErrorCode.INVALID_JSON, "frame is not valid JSON") from None


def decode_client_message(frame: str | bytes) -> ClientMessage:
    """Read what a client sent.

    Raises:
        MessageError: ``frame_too_large``, ``invalid_json`` or ``invalid_message``.
    """
    message: ClientMessage = _decode(_CLIENT, frame)
    return message


def decode_server_message(frame: str | bytes) -> ServerMessage:
    """Read what the gateway sent; errors as in `decode_client_message`."""
    message: ServerMessage = _decode(_SERVER, frame)
    return message


def encode_message(message: Message) -> str:
    """Return the JSON text of a message."""
    return msgspec.json.encode(message).decode()
