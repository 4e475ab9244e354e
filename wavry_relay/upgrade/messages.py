"""Hot upgrade, what is said: the messages between an old relay and its successor, and who fits.

The successor connects to the control socket and says `UpgradeHello`.  The old relay answers
`Refused`, or `UpgradeFacts` and its descriptors in `Descriptors` messages (each acknowledged by
`Got`, because the kernel bounds the descriptors in flight).  Then, for each worker in turn, the
successor starts its own one *parked* and says `Release`; the old relay ends its worker and says
`Released`; the successor lets its worker begin and says `Begun`.  When all have moved the
successor says `Commit`; the old relay stops everything that is its own and says `Committed`; when
the successor serves it confirms with `Got`.  Before that either side may say
why it ends the upgrade (`GiveUp`, `Refused`), and the old relay goes on as if nothing had been.
A connection that ends without a word means that the other process is gone.

One message is one JSON line; unknown fields are ignored, so that two versions understand each
other.  Nothing here does I/O.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.settings import parse_address
from wavry_relay.engine.c_header import header_digest
from wavry_relay.shm.layout import LAYOUT_VERSION

__all__ = [
    "COMMAND",
    "MAX_LINE_BYTES",
    "Begun",
    "Commit",
    "Committed",
    "Counts",
    "Descriptors",
    "GiveUp",
    "Got",
    "GroupFacts",
    "Message",
    "Refused",
    "Release",
    "Released",
    "TakeOverError",
    "UpgradeFacts",
    "UpgradeHello",
    "decode",
    "decode_hello",
    "encode",
    "layout_name",
    "why_unfit",
]

COMMAND: Final = "take-over"
MAX_LINE_BYTES: Final = 65_536
"""Facts of eight listen addresses take about 2 KB."""


class TakeOverError(LocalError):
    """An upgrade cannot be done, or ended; the message says why and what to do."""


class UpgradeHello(msgspec.Struct, frozen=True, tag_field="command", tag=COMMAND):
    """What a successor is; a command of the control socket.

    Attributes:
        version: of the software.
        layout: from `layout_name`.
        engine: ``native`` or ``reference``.
        relay_id: from the identity in its state directory.
        listen: its listen addresses, as configured.
        ops_listen: its ops address, as configured.
        root_key: the root public key that it pins (base64url), empty in development mode.
        pid: its process, as itself sees it.
    """

    version: str
    layout: str
    engine: str
    relay_id: str
    listen: tuple[str, ...]
    ops_listen: str
    root_key: str
    pid: int


class Counts(msgspec.Struct, frozen=True):
    """Counters that live in the supervisor, by label: the successor goes on from them."""

    upgrades: dict[str, int] = {}
    restarts: dict[str, int] = {}
    registrations: dict[str, int] = {}
    heartbeats: dict[str, int] = {}


class GroupFacts(msgspec.Struct, frozen=True):
    """A `ReuseportGroup` without its sockets."""

    host: str
    port: int
    sockets: int
    steering_error: str | None
    receive_buffer_bytes: int
    send_buffer_bytes: int
    sharing_error: str | None = None


class UpgradeFacts(msgspec.Struct, frozen=True, tag="facts"):
    """What the successor takes over.

    The descriptors that follow are: segment, lock of the state directory, ops listening socket,
    then the sockets of all groups in order.
    """

    version: str
    pid: int
    descriptors: int
    groups: tuple[GroupFacts, ...]
    counts: Counts


class Descriptors(msgspec.Struct, frozen=True, tag="descriptors"):
    """A batch of descriptors, sent along with this line."""

    count: int


class Got(msgspec.Struct, frozen=True, tag="got"):
    """The batch has arrived; after `Committed`: the successor serves."""


class Release(msgspec.Struct, frozen=True, tag="release"):
    """End this worker now: its successor waits."""

    worker: int


class Released(msgspec.Struct, frozen=True, tag="released"):
    """The worker touches neither sockets nor tables any more."""

    worker: int


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """The successor's worker forwards."""

    worker: int


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """All workers have moved; the rest may go."""


class Committed(msgspec.Struct, frozen=True, tag="committed"):
    """The old relay ends when the successor confirms; these are its last counts."""

    counts: Counts


class GiveUp(msgspec.Struct, frozen=True, tag="give_up"):
    """The successor ends and holds nothing any more."""

    reason: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The old relay stays; the successor must end."""

    reason: str


Message = (
    UpgradeFacts
    | Descriptors
    | Got
    | Release
    | Released
    | Begun
    | Commit
    | Committed
    | GiveUp
    | Refused
)

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[Message]] = msgspec.json.Decoder(Message)
_HELLO: Final = msgspec.json.Decoder(UpgradeHello)


def encode(message: Message | UpgradeHello) -> bytes:
    """Encode a message as a line."""
    return _ENCODER.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """Read a line.

    Raises:
        TakeOverError: it is no message of these.
    """
    try:
        return _DECODER.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise TakeOverError(f"the other relay says something unknown: {error}") from error


def decode_hello(line: bytes) -> UpgradeHello:
    """Read the first line of a successor.

    Raises:
        TakeOverError: a field is missing or of another type.
    """
    try:
        return _HELLO.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise TakeOverError(f"take-over does not fit: {error}") from error


def layout_name() -> str:
    """Name the shared memory's layout: version, and a digest in case one forgot to raise it."""
    return f"{LAYOUT_VERSION}-{header_digest()[:16]}"


def why_unfit(
    hello: UpgradeHello, *, own: UpgradeHello, groups: Sequence[GroupFacts], ops: tuple[str, int]
) -> str | None:
    """Tell why a successor cannot take over, or None.

    Args:
        hello: of the successor.
        own: what the old relay would say of itself.
        groups: the old relay's listen addresses with their real ports.
        ops: host and real port of its ops server.
    """
    kept = "the running relay goes on"
    if hello.relay_id != own.relay_id:
        return f"the new relay has another identity ({hello.relay_id}); {kept}"
    restart = f"{kept}; drain it, stop it and start the new version"
    if hello.layout != own.layout:
        return (
            f"version {hello.version} has another layout of the shared memory ({hello.layout}, the"
            f" running {own.version} has {own.layout}): {restart}"
        )
    if hello.engine != own.engine:
        return (
            f"the new relay uses the {hello.engine} engine, the running one {own.engine}: {restart}"
        )
    if hello.root_key != own.root_key:  # The keys in the tables are signed by the old root.
        return f"the new relay pins another root key (WAVRY_RELAY_ROOT_KEY): {restart}"
    # Equal settings fit also where passed sockets stand in their place: those are handed over.
    here = [(group.host, group.port) for group in groups]
    if hello.listen != own.listen and not _same_addresses(hello.listen, here):
        return f"the new relay has other listen addresses (WAVRY_RELAY_LISTEN): {restart}"
    if hello.ops_listen != own.ops_listen and not _same_addresses([hello.ops_listen], [ops]):
        return f"the new relay has another ops address (WAVRY_RELAY_OPS_LISTEN): {restart}"
    return None


def _same_addresses(texts: Sequence[str], here: Sequence[tuple[str, int]]) -> bool:
    """Compare addresses; port 0 asks for any port, so the one in use will do."""
    try:
        wanted = [parse_address(text) for text in texts]
    except ValueError:
        return False
    return len(wanted) == len(here) and all(
        host == at_host and port in (0, at_port)
        for (host, port), (at_host, at_port) in zip(wanted, here, strict=True)
    )
