"""One peer of the demo's media stream, as a process of its own.

``python -m wavry_cp.admin.dev.demo_media send|receive`` with GATEWAY, USER and SECONDS as
options; the last line on stdout is the result as JSON.  Media is bursts: a frame is several
equal datagrams sent at once, 60 times a second, every 60th a key frame of four times the size.

Each datagram says when it was sent; both processes run on one machine, so that their monotonic
clocks are the same and the difference is the one-way latency.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Final

import wavry_peer

__all__ = ["MediaCheck", "media_packets", "percentile_ms"]

FRAMES_PER_S: Final = 60
DELTA_PACKETS: Final = 10
KEY_PACKETS: Final = 40
KEY_EVERY_FRAMES: Final = 60
PAYLOAD_BYTES: Final = 1100
END_COPIES: Final = 20
END_INTERVAL_S: Final = 0.05
RECEIVE_PATIENCE_S: Final = 10.0

_HEAD: Final = struct.Struct("!IQ")
END_NUMBER: Final = 2**32 - 1


def media_payload(number: int) -> bytes:
    """Return the bytes of media datagram `number`: the receiver can make the same to compare."""
    block = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=50).digest()
    return block * (PAYLOAD_BYTES // len(block))


def media_packets(frame: int) -> int:
    """Return how many datagrams a frame has."""
    return KEY_PACKETS if frame % KEY_EVERY_FRAMES == 0 else DELTA_PACKETS


def percentile_ms(latencies_ns: list[int], share: float) -> float:
    """Return the latency (ms) below which `share` (0 to 1) of the values lie; 0.0 of none."""
    if not latencies_ns:
        return 0.0
    ordered = sorted(latencies_ns)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6, 3)


class MediaCheck:
    """Counts what arrived and compares it with what was sent."""

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.corrupt = 0
        self.duplicates = 0
        self.latencies_ns: list[int] = []
        self.sent: int | None = None

    def take(self, datagram: bytes, now_ns: int) -> None:
        """Check one datagram."""
        if len(datagram) < _HEAD.size:
            self.corrupt += 1
            return
        number, stamp = _HEAD.unpack_from(datagram)
        if number == END_NUMBER:
            self.sent = stamp
        elif datagram[_HEAD.size :] != media_payload(number):
            self.corrupt += 1
        elif number in self.received:
            self.duplicates += 1
        else:
            self.received.add(number)
            self.latencies_ns.append(now_ns - stamp)

    def result(self) -> dict[str, object]:
        """Return the summary for the demo."""
        return {
            "sent": self.sent,
            "received": len(self.received),
            "corrupt": self.corrupt,
            "duplicates": self.duplicates,
            "bytes": len(self.received) * (PAYLOAD_BYTES + _HEAD.size),
            "latency_ms": {
                "p50": percentile_ms(self.latencies_ns, 0.50),
                "p99": percentile_ms(self.latencies_ns, 0.99),
                "max": percentile_ms(self.latencies_ns, 1.0),
            },
        }


async def _send_media(session: wavry_peer.Session, seconds: float) -> int:
    number = 0
    start = time.monotonic()
    for frame in range(int(seconds * FRAMES_PER_S)):
        await asyncio.sleep(max(0.0, start + frame / FRAMES_PER_S - time.monotonic()))
        for _ in range(media_packets(frame)):
            await session.send(_HEAD.pack(number, time.monotonic_ns()) + media_payload(number))
            number += 1
    with contextlib.suppress(wavry_peer.SessionClosedError):  # The receiver leaves at the first.
        for _ in range(END_COPIES):
            await session.send(_HEAD.pack(END_NUMBER, number))
            await asyncio.sleep(END_INTERVAL_S)
    return number


async def _receive_media(session: wavry_peer.Session) -> MediaCheck:
    check = MediaCheck()
    while check.sent is None:
        try:
            async with asyncio.timeout(RECEIVE_PATIENCE_S):
                datagram = await session.receive()
        except (TimeoutError, wavry_peer.SessionClosedError):
            break
        check.take(datagram, time.monotonic_ns())
    return check


async def _send(gateway: str, login: tuple[str, str], home: Path, to: str, seconds: float) -> None:
    async with wavry_peer.connect(gateway, to, credentials=login, home=home) as session:
        facts = {"connected": True, "session_id": session.session_id}
        print(json.dumps(facts | {"path": session.statistics().path}), flush=True)
        sent = await _send_media(session, seconds)
        statistics = session.statistics()
        print(json.dumps({"sent": sent, "statistics": dataclasses.asdict(statistics)}))


async def _receive(gateway: str, login: tuple[str, str], home: Path, caller: str) -> None:
    async with wavry_peer.listen(
        gateway, accept={caller}, credentials=login, home=home
    ) as listener:
        print(json.dumps({"listening": True}), flush=True)
        async for session in listener:
            check = await _receive_media(session)
            statistics = session.statistics()
            await session.aclose()
            facts = {"path": statistics.path, "statistics": dataclasses.asdict(statistics)}
            print(json.dumps(check.result() | facts), flush=True)
            return


def main() -> None:
    """Entry point; the password comes from the environment variable WAVRY_PASSWORD."""
    parser = argparse.ArgumentParser(description="One peer of the demo's media stream.")
    parser.add_argument("direction", choices=("send", "receive"))
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    login = (options.user, os.environ["WAVRY_PASSWORD"])
    try:
        if options.direction == "send":
            asyncio.run(_send(options.gateway, login, options.home, options.peer, options.seconds))
        else:
            asyncio.run(_receive(options.gateway, login, options.home, options.peer))
    except wavry_peer.WavryError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
