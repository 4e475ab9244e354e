"""Seeds of the fuzz targets: ``python tests/support/engine/corpus.py`` writes them.

The form of an input and the sessions that exist are those of tests/unit/engine/c/fuzz_TARGET.c; a
target's corpus is tests/unit/engine/c/corpus/TARGET.
"""

import struct

from support.paths import TESTS
from wavry_peer.protocol import packets, stun
from wavry_peer.protocol.crc import crc16_kermit
from wavry_relay.shm.layout import HEAD

CORPUS = TESTS / "unit" / "engine" / "c" / "corpus"


def _sid(number: int) -> bytes:
    return bytes((0x11 + number,)) * 16


def _plain(session: int, sequence: int, payload: int = 0) -> bytes:
    return packets.build_forward(_sid(session), sequence.to_bytes(8, "big") + bytes(payload))


def _rift(session: int, packet_id: int, *, handshake: bool) -> bytes:
    middle = struct.pack("!HI12s", 1, 0, bytes(12)) if handshake else struct.pack("!HI", 1, 9)
    head = b"RI" + middle + packet_id.to_bytes(8, "big")
    body = head + struct.pack("!H", crc16_kermit(head)) + b"payload"
    return packets.build_forward(_sid(session), body)


def _input(source: int, train: list[bytes], *, size: int | None = None, time: int = 0) -> bytes:
    step = len(train[0]) if size is None else size
    return struct.pack("!BBH", source, time, step) + b"".join(train)


def _segments() -> dict[str, bytes]:
    lease = bytes((0x57, 1, 1, 1)) + _sid(0) + struct.pack("!BH", 0, 5) + bytes(85)
    return {
        "client": _input(1, [_plain(0, 1, 20)]),
        "server": _input(2, [_plain(0, 1, 20)]),
        "stranger": _input(9, [_plain(0, 1, 20)]),
        "to-v6": _input(3, [_plain(1, number, 40) for number in range(12)]),
        "from-v6": _input(0x14, [_plain(1, number, 40) for number in range(5)]),
        "waiting": _input(5, [_plain(2, 0)]),
        "peer-limited": _input(7, [_plain(3, number, 1000) for number in range(6)]),
        "mixed-sessions": _input(1, [_plain(number % 4, number, 8) for number in range(16)]),
        "replayed": _input(1, [_plain(0, number // 2, 8) for number in range(16)]),
        "short-tail": _input(1, [_plain(0, 1, 100), _plain(0, 2, 100), _plain(0, 3, 7)]),
        "window": _input(1, [_plain(0, number) for number in (0, 2000, 977, 976, 1 << 40, 5)]),
        "edge": _input(1, [_plain(0, number) for number in ((1 << 64) - 1, (1 << 64) - 2, 3)]),
        "rift-transport": _input(1, [_rift(0, 7, handshake=False)]),
        "rift-handshake": _input(1, [_rift(0, 7, handshake=True)]),
        "rift-train": _input(1, [_rift(0, number, handshake=False) for number in range(5)]),
        "stun": _input(9, [stun.build_binding_request(bytes(12))]),
        "stun-bare": _input(9, [stun.build_binding_request(bytes(12), padding=0)]),
        "lease": _input(1, [lease]),
        "lease-train": _input(1, [lease] * 70),
        "tiny-segments": _input(1, [_plain(0, 1)], size=1),
        "header-only": _input(1, [_plain(0, 1)[:20]]),
        "limits": _input(1, [_plain(0, number, 500) for number in range(10)], time=7),
        "expired": _input(1, [_plain(0, 1)], time=31 << 3),
        "empty": struct.pack("!BBH", 1, 0, 0),
        "oversized": _input(1, [bytes(1501), bytes(1501)]),
    }


def _message(train: list[bytes], *, source: int = 1, kind: int = 0, size: int = 0) -> bytes:
    data = b"".join(train)
    return struct.pack("!BBHH", source, kind, size or len(train[0]), len(data)) + data


def _batches() -> dict[str, bytes]:
    lease = bytes((0x57, 1, 1, 1)) + _sid(0) + struct.pack("!BH", 0, 5) + bytes(15)
    lone = [_message([_plain(0, number, 30)]) for number in range(8)]
    train = [_plain(number % 2, number, 30) for number in range(24)]
    v6 = [_message([_plain(2, number, 30)], source=5) for number in range(6)]
    # To the addresses 2 (IPv4) and 3 (IPv6) of the relay: session 4 is there, session 0 is not.
    second = [_message([_plain(4, n, 30), _plain(4, n + 9, 30)], kind=17) for n in range(4)]
    third = [_message([_plain(4, n, 30)], source=6, kind=24) for n in range(6)]
    elsewhere = [_message([_plain(n, 1, 30)], kind=8 * n) for n in range(4)]
    made = {
        "asked-v4": (0, 0, second),
        "asked-v6": (4, 0, third),
        "asked-refused": (8, 5, second),
        "asked-elsewhere": (0, 0, elsewhere),
        "lone": (0, 0, lone),
        "train": (0, 0, [_message(train, kind=1)]),
        "long-train": (0, 0, [_message([_plain(0, number) for number in range(150)], kind=1)]),
        "train-refused": (8, 3, [_message(train, kind=1)]),
        "short-tail": (0, 0, [_message([_plain(0, 1, 30), _plain(0, 2, 30), b"short"], kind=1)]),
        "growing": (8, 1, [_message([_plain(0, number, number)]) for number in range(20)]),
        "leases": (0, 0, [_message([lease] * 70, kind=1), *lone]),
        "from-v6": (4, 0, v6),
        "negative-size": (0, 0, [_message(train[:3], kind=3), *lone]),
        "huge-size": (0, 0, [_message(train[:3], kind=4), *lone]),
        "other-control": (0, 0, [_message(train, kind=5), *lone]),
        "cut-control": (0, 0, [_message(train[:3], kind=6), *lone]),
        "lying-control": (0, 0, [_message(train[:3], kind=7, size=9), *lone]),
        "one-byte-segments": (0, 0, [_message(train[:2], kind=1, size=1)]),
        "empty": (0, 0, [struct.pack("!BBHH", 1, 1, 1, 0), *lone]),
        "limits": (3, 0, [_message(train, kind=1), *lone]),
        "behind-one-address": (16, 0, [_message([_plain(3, 1, 5)])]),
        "many": (8, 9, [_message([_plain(n % 4, n, n % 3)], kind=n % 2) for n in range(120)]),
    }
    return {
        name: bytes((flags, seed)) + b"".join(messages)
        for name, (flags, seed, messages) in made.items()
    }


def _head() -> dict[str, bytes]:
    word = struct.Struct("!HB")
    made = {"as-it-is": b""}
    for name in ("version", "workers", "max_sessions", "index_slots", "counters"):
        for value in (0, 255):
            made[f"{name}-{value}"] = word.pack(HEAD[name].offset, value & 0xFE)
    for name in ("total_bytes", "at_index", "at_sessions", "at_ip_rates", "at_bitmap"):
        for value in (0, 64, 1 << 62, (1 << 64) - 64):
            content = value.to_bytes(8, "little")
            made[f"{name}-{value}"] = word.pack(HEAD[name].offset, 1) + content
    return {name: b"\0" + content for name, content in made.items()}


def seeds() -> dict[str, dict[str, bytes]]:
    """Name and content of each seed, for each target."""
    return {"segments": _segments(), "batches": _batches(), "head": _head()}


def main() -> None:
    """Write the corpora."""
    for target, content_of in seeds().items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, content in content_of.items():
            (CORPUS / target / name).write_bytes(content)


if __name__ == "__main__":
    main()
