"""The C header of the native engine, generated from the layout and the wire numbers.

``python -m wavry_relay.engine.c_header`` writes it to ``wavry_relay/engine/core/layout.h``.  It is
committed, so that a build needs nothing but a compiler; a test compares it with `render`, and the
extension refuses to start beside a layout that it was not built from.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.crc import crc16_kermit
from wavry_peer.protocol.replay import WINDOW_WORDS
from wavry_relay.shm import address, layout
from wavry_relay.shm.control import DEBUG_LEVEL
from wavry_relay.shm.layout import Record
from wavry_relay.shm.locks import LOCK_WAIT_NS
from wavry_relay.shm.rate_limit import BYTE_KBPS_NS, HEAVY_PART, OVERFLOW_FACTOR, SHORT_PART

from . import cookie, source_limits
from .base import ControlKind, SenderClass

__all__ = ["HEADER_PATH", "header_digest", "main", "render"]

HEADER_PATH: Final = Path(__file__).parent / "core" / "layout.h"

_TYPES: Final = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}

_RECORDS: Final = (
    layout.HEAD,
    layout.CONTROL,
    layout.SHARED,
    layout.WORKER,
    layout.RATE_BUCKET,
    layout.SHARE_BUCKET,
    layout.SLOT,
    layout.SESSION,
    layout.USED_LEASE,
    layout.LEASE_ORIGIN,
    layout.LOCAL_ADDRESS,
)

_NUMBERS: Final = (
    ("LAYOUT_VERSION", layout.LAYOUT_VERSION),
    ("LOG_DEBUG", DEBUG_LEVEL),
    ("LOCK_WAIT_NS", LOCK_WAIT_NS),
    ("RATE_WAYS", layout.RATE_WAYS),
    ("RATE_OVERFLOW_FACTOR", OVERFLOW_FACTOR),
    ("BYTE_KBPS_NS", BYTE_KBPS_NS),
    ("LEASE_HISTORY", layout.LEASE_HISTORY),
    ("SHARE_WAYS", layout.SHARE_WAYS),
    ("SHORT_PART", SHORT_PART),
    ("HEAVY_PART", HEAVY_PART),
    ("FAMILY_SHIFT", address.FAMILY_SHIFT),
    ("FAMILY_MASK", address.FAMILY_MASK),
    ("LISTEN_SHIFT", address.LISTEN_SHIFT),
    ("LISTEN_MASK", address.LISTEN_MASK),
    ("FIRST_LOCAL", address.FIRST_LOCAL),
    ("LOCAL_ADDRESSES", layout.LOCAL_ADDRESSES),
    ("SCOPE_SHIFT", address.SCOPE_SHIFT),
    *((f"CONTROL_{kind.name}", kind) for kind in ControlKind),
    *((f"SOURCE_{sender.name}", sender) for sender in SenderClass),
    *((name, getattr(source_limits, name)) for name in source_limits.__all__ if name.isupper()),
    ("COOKIE_KEY_BYTES", cookie.KEY_BYTES),
    ("COOKIE_FROM_END", cookie.COOKIE_FROM_END),
    ("COOKIE_BYTES", c.COOKIE_BYTES),
    ("COOKIE_SLOT_S", c.COOKIE_SLOT_S),
    ("PROOF_BYTES", c.PROOF_BYTES),
    ("PROOF_FLAG", int(c.Flag.PROOF)),
    ("REFLEXIVE_FLAG", int(c.Flag.REFLEXIVE)),
    ("COUNTER_ROW_BYTES", layout.COUNTER_ROW_BYTES),
    ("COUNTER_COUNT", len(layout.COUNTERS)),
    ("DROP_BYTES_AHEAD", layout.DROP_BYTES_AHEAD),
    ("LIMITED_BYTES_AHEAD", layout.LIMITED_BYTES_AHEAD),
    ("MAX_WORKERS", layout.MAX_WORKERS),
    ("SESSION_SHARE", layout.SESSION_SHARE),
    ("SESSION_FREE", layout.SESSION_FREE),
    ("SESSION_WAITING", layout.SESSION_WAITING),
    ("SESSION_ACTIVE", layout.SESSION_ACTIVE),
    ("WINDOW_WORDS", WINDOW_WORDS),
    ("MAGIC", c.MAGIC),
    ("VERSION", c.VERSION),
    ("HEADER_BYTES", c.HEADER_BYTES),
    ("SESSION_ID_OFFSET", c.SESSION_ID_OFFSET),
    ("MIN_DATAGRAM_BYTES", c.MIN_DATAGRAM_BYTES),
    ("MAX_DATAGRAM_BYTES", c.MAX_DATAGRAM_BYTES),
    ("MAX_FORWARD_PAYLOAD_BYTES", c.MAX_FORWARD_PAYLOAD_BYTES),
    ("FORWARD_SEQUENCE_BYTES", c.FORWARD_SEQUENCE_BYTES),
    ("REPLAY_MAX_JUMP", c.REPLAY_MAX_JUMP),
    ("UNPROVED_FACTOR", c.UNPROVED_FACTOR),
    ("UNPROVED_MOST", layout.UNPROVED_MOST),
    ("ACK_BYTES", c.REFLEXIVE_ACK_BYTES),
    ("CHALLENGE_BYTES", c.PATH_CHALLENGE_BYTES),
    ("RIFT_MAGIC", int.from_bytes(c.RIFT_MAGIC, "big")),
    ("RIFT_VERSION", c.RIFT_VERSION),
    ("RIFT_HANDSHAKE_MIN_BYTES", c.RIFT_HANDSHAKE_MIN_BYTES),
    ("RIFT_TRANSPORT_MIN_BYTES", c.RIFT_TRANSPORT_MIN_BYTES),
    ("RIFT_HANDSHAKE_ID_OFFSET", c.RIFT_HANDSHAKE_ID_OFFSET),
    ("RIFT_TRANSPORT_ID_OFFSET", c.RIFT_TRANSPORT_ID_OFFSET),
    ("STUN_HEADER_BYTES", c.STUN_HEADER_BYTES),
    ("STUN_BINDING_REQUEST", c.STUN_BINDING_REQUEST),
    ("STUN_COOKIE", c.STUN_COOKIE),
)


def _record_lines(record: Record) -> Iterator[str]:
    name = f"wv_{record.name}"
    yield f"struct {name} {{"
    end = 0
    for field in record.fields.values():
        array = f"[{field.count}]" if field.count > 1 else ""
        yield f"    {_TYPES[field.width]} {field.name}{array};"
        end = field.offset + field.bytes
    if end < record.size:
        yield f"    uint8_t unused[{record.size - end}];"
    yield "};"
    for field in record.fields.values():
        yield (
            f'_Static_assert(offsetof(struct {name}, {field.name}) == {field.offset}, "layout");'
        )
    yield f'_Static_assert(sizeof(struct {name}) == {record.size}, "layout");'
    yield ""


def _crc_lines() -> Iterator[str]:
    rows = [f"0x{crc16_kermit(bytes((byte,))):04x}" for byte in range(256)]
    yield "/* CRC-16/KERMIT of one byte. */"
    yield "static const uint16_t WV_CRC16[256] = {"
    for at in range(0, 256, 8):
        yield f"    {', '.join(rows[at : at + 8])},"
    yield "};"


def _lines() -> Iterator[str]:
    yield "/* Generated by `python -m wavry_relay.engine.c_header`: do not edit."
    yield " * Offsets: wavry_relay/shm/layout.py.  Numbers: what c_header.py names. */"
    yield "#ifndef WAVRY_LAYOUT_H"
    yield "#define WAVRY_LAYOUT_H"
    yield ""
    yield "#include <stddef.h>"
    yield "#include <stdint.h>"
    yield ""
    yield f"#define WV_MAGIC_WORD UINT64_C(0x{layout.MAGIC_WORD:016x})"
    yield f"#define WV_INDEX_EMPTY UINT64_C({layout.INDEX_EMPTY})"
    yield f"#define WV_INDEX_DELETED UINT64_C(0x{layout.INDEX_DELETED:016x})"
    yield f"#define WV_COOKIE_PERSON UINT64_C(0x{int.from_bytes(cookie.PERSON, 'little'):016x})"
    for name, value in _NUMBERS:
        yield f"#define WV_{name} {value}u"
    yield ""
    for kind in c.PacketType:
        yield f"#define WV_TYPE_{kind.name} 0x{kind:02x}u"
        yield f"#define WV_FLAGS_{kind.name} 0x{c.ALLOWED_FLAGS[kind]:02x}u"
    yield ""
    yield "/* Places in a counter row. */"
    yield "enum wv_counter {"
    for index, name in enumerate(layout.COUNTERS):
        yield f"    WV_COUNT_{name.upper()} = {index},"
    yield "};"
    yield ""
    for record in _RECORDS:
        yield from _record_lines(record)
    yield from _crc_lines()
    yield ""
    yield "#endif"


def render() -> str:
    """Return the whole text of the header."""
    return "\n".join(_lines()) + "\n"


def header_digest() -> str:
    """Return the hash of the header that belongs to the layout in use, 64 hexadecimal digits."""
    return hashlib.sha256(render().encode()).hexdigest()


def main() -> None:
    """Write the header into the engine's folder."""
    HEADER_PATH.write_text(render())


if __name__ == "__main__":
    main()
