"""What a flood of bad datagrams needs around it: its templates, good sessions that must not
notice, and what is measured of a relay before and after.

The sender is loadtest/native/hostile.c.
"""

import json
import mmap
import os
import random
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from loadtest.native_build import compile_program
from support.engine.conformance import rift_handshake, rift_transport
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer
from support.waiting import wait_until
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import ed25519, packets, stun
from wavry_relay.shm.counters import totals
from wavry_relay.shm.layout import COUNTER_ROW_BYTES, COUNTERS, SLOT
from wavry_relay.shm.segment import Segment
from wavry_relay.shm.sessions import SessionTable, session_words
from wavry_relay.shm.tags import Tags

LEASE_S = 3000
"""The longest run takes minutes; a relay takes leases of up to an hour."""
LEDGER_WORDS = 5
_CHANGES = ("window_head", "window", "tat", "soft_tat_us", "received_ms")
"""What forwarding changes in a slot; everything else belongs to the admission alone."""


# -- Templates -------------------------------------------------------------------------------


def _lease_datagrams(mint: Mint, relay_id: str, peer: UdpPeer) -> list[bytes]:
    """Leases of a live session, as somebody on its path could have copied or made them up."""
    captured = [peer.present_datagram(), peer.present_datagram(renew=True)]
    stranger = ed25519.SigningKey.from_seed(os.urandom(32))
    ways: list[dict[str, Any]] = [
        {"rid": "rly-elsewhere"},
        {"exp": "2020-01-01T00:00:00Z"},
        {"nbf": "2099-01-01T00:00:00Z"},
        {"sub": "somebody else"},
        {"sid": uuid.uuid4()},
        {"kid": "unknown"},
    ]
    sign = peer.key.sign if peer.key else None
    tokens = []
    for change in ways:
        claims = {"rid": relay_id, "sid": peer.sid, "key": peer.key, "ttl_s": LEASE_S, **change}
        sid, rid = claims.pop("sid"), claims.pop("rid")
        tokens.append(mint.token(sid, peer.role, rid, **claims))
    tokens.append(mint.token(peer.sid, peer.role, relay_id, key=stranger))
    made = [
        packets.build_present(peer.sid.bytes, peer.role, token, counter=1 << 20, sign=sign)
        for token in tokens
    ]
    renewed = packets.build_present(
        peer.sid.bytes, peer.role, peer.new_token(), counter=7, sign=sign, renew=True
    )
    return [*captured, *made, renewed, packets.build_present(peer.sid.bytes, c.Role.CLIENT, b"x")]


def _own_sessions(mint: Mint, relay_id: str, count: int) -> Iterator[bytes]:
    """Good leases of sessions that the flood opens for itself, and traffic in them."""
    for number in range(count):
        sid = uuid.uuid4()
        for role in c.Role:
            key = ed25519.SigningKey.from_seed(os.urandom(32))
            token = mint.token(sid, role, relay_id, key=key, sub=f"flood-{number}-{role}")
            yield packets.build_present(
                sid.bytes, role, token, counter=1, sign=key.sign if number % 2 else None
            )
        yield packets.build_forward(sid.bytes, bytes(8) + os.urandom(60))


def make_templates(mint: Mint, relay_id: str, peers: list[UdpPeer]) -> list[bytes]:
    """Valid datagrams of every kind."""
    order = random.Random(3)
    made: list[bytes] = []
    for peer in peers:
        sid = peer.sid.bytes
        made += _lease_datagrams(mint, relay_id, peer)
        made.append(bytes((c.MAGIC, c.VERSION, c.PacketType.LEASE_RENEW, 0)) + sid)  # keepalive
        for size in (0, 1, 100, 1200, 1400):
            sequence = order.randrange(1 << 40)
            made.append(packets.build_forward(sid, sequence.to_bytes(8, "big") + bytes(size)))
            rift = (rift_handshake, rift_transport)[size % 2]
            made.append(packets.build_forward(sid, rift(sequence, bytes(size))))
            made.append(packets.build_forward(sid, rift(sequence)[:-9] + bytes(9)))
        made += [
            packets.build_reject(sid, c.RejectReason.EXPIRED),
            packets.build_ack(sid, packets.LeaseAck(1, 2, 3, (bytes(4), 5))),
            packets.build_challenge(sid, bytes(8)),
            packets.build_notice(sid, c.NoticeCode.SHUTDOWN),
        ]
    made += _own_sessions(mint, relay_id, 8)
    for padding in (0, 12):
        made.append(stun.build_binding_request(bytes(12), padding=padding))
    # Most of a real flood is cheap to make: headers with nothing behind them.
    for number in range(len(made)):
        sid = order.randbytes(16)
        made.append(packets.build_forward(sid, order.randbytes(8 + number * 13 % 1400)))
    return made


# -- Good sessions -----------------------------------------------------------------------------


class Ledger:
    """Words that the sender of the flood shares with the good sessions; see hostile.c."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(LEDGER_WORDS * 8))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), LEDGER_WORDS * 8)
        self._words = memoryview(self._map).cast("Q")

    def count_other(self, size: int) -> None:
        """Before a datagram that is not of the flood is sent."""
        self._words[1] += size
        self._words[0] += 1

    @property
    def others(self) -> int:
        return self._words[0]

    @property
    def given_up(self) -> int:
        return self._words[4]

    def close(self) -> None:
        self._words.release()
        self._map.close()


@dataclass
class Flow:
    """One direction of a good session."""

    sender: UdpPeer
    receiver: UdpPeer
    sent: dict[int, bytes] = field(default_factory=dict)
    heard: Counter[int] = field(default_factory=Counter)
    last: int = -1


class GoodSessions:
    """Paced streams in both directions of every session, each datagram accounted for.

    Args:
        pairs: accepted peers of each session.
        ledger: told of each datagram.
        interval_s: between two datagrams of one flow.
    """

    def __init__(
        self, pairs: list[tuple[UdpPeer, UdpPeer]], ledger: Ledger, *, interval_s: float = 0.01
    ) -> None:
        self.flows = [Flow(a, b) for one, two in pairs for a, b in ((one, two), (two, one))]
        self.faults: list[str] = []
        self.control: Counter[int] = Counter()
        self._ledger = ledger
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._random = random.Random(4)

    def __enter__(self) -> Self:
        for flow in self.flows:
            flow.sender.sock.setblocking(False)
            flow.sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop sending, and wait until everything has arrived or is not on its way any more."""
        self._stop.set()
        self._thread.join()
        end = time.monotonic() + 15
        while self.missing and time.monotonic() < end:
            self._receive_all()
            time.sleep(0.01)

    @property
    def sent(self) -> int:
        return sum(len(flow.sent) for flow in self.flows)

    @property
    def missing(self) -> int:
        return sum(len(flow.sent) - len(flow.heard) for flow in self.flows)

    def _run(self) -> None:
        at = time.monotonic()
        while not self._stop.is_set():
            for flow in self.flows:
                self._send(flow)
            self._receive_all()
            at = max(at + self._interval_s, time.monotonic() - self._interval_s)
            time.sleep(max(0.0, at - time.monotonic()))

    def _send(self, flow: Flow) -> None:
        peer = flow.sender
        sequence = peer.sequence = peer.sequence + 1
        payload = self._random.randbytes(self._random.choice((1, 60, 60, 200, 1400)))
        datagram = packets.build_forward(peer.sid.bytes, sequence.to_bytes(8, "big") + payload)
        flow.sent[sequence] = payload
        self._ledger.count_other(len(datagram))
        peer.sock.send(datagram)

    def _receive_all(self) -> None:
        for flow in self.flows:
            while True:
                try:
                    datagram = flow.receiver.sock.recv(4096)
                except BlockingIOError:
                    break
                self._hear(flow, datagram)

    def _hear(self, flow: Flow, datagram: bytes) -> None:
        packet = packets.parse_packet(datagram)
        if packet.header.type != c.PacketType.FORWARD:
            self.control[packet.header.type] += 1
            return
        assert isinstance(packet.body, bytes)
        sequence = int.from_bytes(packet.body[:8], "big")
        if flow.sent.get(sequence) != packet.body[8:]:
            self.faults.append(f"sequence {sequence}: {datagram[:40].hex()} was never sent")
        elif flow.heard[sequence]:
            self.faults.append(f"sequence {sequence} came twice")
        elif sequence <= flow.last:
            self.faults.append(f"sequence {sequence} came behind {flow.last}")
        flow.heard[sequence] += 1
        flow.last = max(flow.last, sequence)


@contextmanager
def good_pairs(relay: RelayProcess, mint: Mint) -> Iterator[list[tuple[UdpPeer, UdpPeer]]]:
    """Accepted sessions over both families."""
    v4, v6 = relay.udp
    with ExitStack() as stack:
        pairs = []
        for udp in (v4, v4, v4, v6):
            sid = uuid.uuid4()
            client, server = (
                stack.enter_context(UdpPeer(mint, relay.relay_id, udp, sid, role, ttl_s=LEASE_S))
                for role in (c.Role.CLIENT, c.Role.SERVER)
            )
            client.present()
            server.present()
            pairs.append((client, server))
        yield pairs


# -- What a relay looks like -------------------------------------------------------------------


@contextmanager
def tables_of(relay: RelayProcess) -> Iterator[Segment]:
    """The relay's shared memory, to look at."""
    segment = Segment.attach(os.open(relay.shm_path, os.O_RDWR))
    try:
        yield segment
    finally:
        segment.close()


def identities(segment: Segment, pairs: list[tuple[UdpPeer, UdpPeer]]) -> list[bytes]:
    """All that the admission wrote about some sessions: addresses, leases, keys, limits."""
    table = SessionTable(segment, Tags(segment))
    kept = []
    for client, _ in pairs:
        record = table.find(*session_words(client.sid.bytes))
        assert record is not None
        for slot in record.slots():
            for name, part in SLOT.fields.items():
                if name not in _CHANGES:
                    at = slot.base + part.offset
                    kept.append(bytes(segment.u8[at : at + part.bytes]))
    return kept


def kernel_drops(ports: set[int]) -> int:
    """Datagrams that the kernel threw away at full sockets of these ports."""
    total = 0
    for name in ("udp", "udp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) in ports:
                total += int(fields[-1])
    return total


@dataclass(frozen=True)
class Footprint:
    """Memory and descriptors of the processes of a relay, in bytes and numbers."""

    pids: tuple[int, ...]
    private: tuple[int, ...]
    shared: tuple[int, ...]
    segment: int
    descriptors: tuple[int, ...]

    @classmethod
    def of(cls, relay: RelayProcess) -> Self:
        assert relay.process is not None
        workers = relay.worker_pids()
        pids = (relay.process.pid, *workers)
        return cls(
            pids=pids,
            private=tuple(_status_bytes(pid, "RssAnon") for pid in pids),
            shared=tuple(_status_bytes(pid, "RssShmem") for pid in pids),
            segment=relay.shm_path.stat().st_blocks * 512,
            descriptors=tuple(_descriptors(pid) for pid in pids),
        )


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name} of process {pid}")


def _descriptors(pid: int) -> int:
    """Open descriptors but those of HTTP connections, which come and go with our questions."""
    rows = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    connections = {f"socket:[{row.split()[9]}]" for row in rows if row.split()[3] != "0A"}
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            count += str(path.readlink()) not in connections
    return count


def accounted(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[int, int, int]:
    """Datagrams received, those with a counted fate, and how many may have two.

    A received datagram is forwarded, dropped, or is a lease, a keepalive or a STUN request that
    was answered.  Two fates have: an answer that could not be sent, and a lease that met a busy
    lock (both are counted as drops as well).
    """
    grown = {name: after[name] - before[name] for name in COUNTERS}
    drops = sum(count for name, count in grown.items() if name.startswith("drop_"))
    fates = (
        grown["forwarded_packets"] + drops + grown["lease_presented"]
        + grown["keepalives"] + grown["stun_answers"]
    )  # fmt: skip
    twice = grown["drop_lock_busy"] + grown["drop_send_blocked"] + grown["drop_send_failed"]
    return grown["received_packets"], fates, twice


def settled_totals(segment: Segment) -> dict[str, int]:
    """Counters, once they stand still."""
    seen = totals(segment)

    def still() -> bool:
        nonlocal seen
        time.sleep(0.05)
        last, seen = seen, totals(segment)
        return last == seen

    wait_until(still, timeout_s=20, what="an idle relay")
    return seen


# -- The flood ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FloodResult:
    """What the sender of the flood says; times in ns."""

    sent: int
    sent_bytes: int
    trains: int
    errors: int
    stalls: int
    elapsed_ns: int

    @property
    def per_s(self) -> float:
        return self.sent * 1e9 / self.elapsed_ns


def flood(
    relay: RelayProcess,
    segment: Segment,
    templates: Path,
    ledger: Ledger,
    *,
    count: int,
    seed: int,
    timeout_s: float,
) -> FloodResult:
    """Send `count` bad datagrams at both ports of a relay."""
    v4, v6 = relay.udp
    region = segment.geometry.regions["counters"]
    numbers = {
        "rows-at": region.offset,
        "row-bytes": COUNTER_ROW_BYTES,
        "rows": region.count,
        "packets-word": COUNTERS.index("received_packets"),
        "bytes-word": COUNTERS.index("received_bytes"),
        "target6-port": int(v6.rpartition(":")[2]),
        "count": count,
        "seed": seed,
    }
    command = [str(compile_program("hostile")), "--target", v4, "--segment", str(relay.shm_path)]
    command += ["--templates", str(templates), "--ledger", str(ledger.path)]
    for name, number in numbers.items():
        command += [f"--{name}", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    return FloodResult(**json.loads(done.stdout))


def write_templates(path: Path, templates: list[bytes]) -> Path:
    """In the form that hostile.c reads."""
    path.write_bytes(b"".join(struct.pack("=H", len(one)) + one for one in templates))
    return path
