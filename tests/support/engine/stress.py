"""What the processes of the native stress tests do; arguments: job, segment, worker, …"""

import random
import struct
import sys
import time

from wavry_peer.protocol import packets
from wavry_peer.service.clock import Clock
from wavry_relay.engine import open_engine
from wavry_relay.engine.base import Drop, Engine, Forward
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import EngineKind
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.segment import Segment


def attach(fd: int, worker: int) -> tuple[Segment, Engine]:
    segment = Segment.attach(fd)
    row = CounterRow(segment, worker)
    return segment, open_engine(EngineKind.NATIVE, segment, (), row, Clock())


def wait_for_start() -> int:
    """Wait for all the others; the common moment of the start, CLOCK_MONOTONIC."""
    print("ready", flush=True)
    return int(sys.stdin.readline())


def report(values: list[int]) -> None:
    sys.stdout.buffer.write(struct.pack(f"<{len(values)}Q", *values))
    sys.stdout.buffer.flush()


BLOCK_NS = 5_000_000


def same_sequences(fd: int, worker: int, session: bytes, source: Address, blocks: int) -> None:
    """Offer the same 64 sequences as everybody else, for 5 ms each; report what passed."""
    _, engine = attach(fd, worker)
    clock = Clock()
    order = random.Random(worker)
    start_ns = wait_for_start()
    passed = []
    while (block := (clock.now().mono_ns - start_ns) // BLOCK_NS) < blocks:
        sequences = list(range(block * 64, block * 64 + 64))
        order.shuffle(sequences)
        for sequence in sequences:
            datagram = packets.build_forward(session, sequence.to_bytes(8, "big"))
            decision = engine.decide(datagram, source, clock.now())
            if isinstance(decision, Forward):
                passed.append(sequence)
            else:
                assert isinstance(decision, Drop), decision
                assert decision.reason in ("duplicate", "too_old"), decision
    report(passed)


def flood(fd: int, worker: int, session: bytes, source: Address, seconds: int) -> None:
    """Send as fast as possible with sequences of its own; report how many passed, and when."""
    _, engine = attach(fd, worker)
    clock = Clock()
    wait_for_start()
    first_ns = clock.now().mono_ns
    end_ns = first_ns + seconds * 1_000_000_000
    passed, sequence = 0, worker
    while True:
        now = clock.now()
        if now.mono_ns >= end_ns:
            break
        datagram = packets.build_forward(session, sequence.to_bytes(8, "big") + bytes(972))
        decision = engine.decide(datagram, source, now)
        if isinstance(decision, Forward):
            passed += 1
            sequence += 8
        elif isinstance(decision, Drop) and decision.reason in ("too_old", "jump_too_far"):
            sequence += 8
    report([passed, first_ns, end_ns])


def count_under_locks(fd: int, worker: int, word: int, count: int) -> None:
    """Add to words with a plain read and write, which only a lock makes safe."""
    segment, engine = attach(fd, worker)
    locks = engine.locks
    bucket = segment.geometry.regions["ip_rates"].offset
    wait_for_start()
    for number in range(count):
        lock = (locks.table(), locks.session(1), locks.rate(bucket))[number % 3]
        with lock:
            at = word + number % 3
            value = segment.u64[at]
            if number % 16 < 3:
                time.sleep(0)
            segment.u64[at] = value + 1
    report([count])


def hold(fd: int, worker: int, kind: str, number: int) -> None:
    """Take a lock and never give it back."""
    _, engine = attach(fd, worker)
    locks = engine.locks
    lock = locks.table() if kind == "table" else getattr(locks, kind)(number)
    with lock:
        print("locked", flush=True)
        time.sleep(600)


def main() -> None:
    job, fd, worker = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rest = sys.argv[4:]
    if job in ("same_sequences", "flood"):
        source = Address(*map(int, rest[1].split(",")))
        jobs = {"same_sequences": same_sequences, "flood": flood}
        jobs[job](fd, worker, bytes.fromhex(rest[0]), source, int(rest[2]))
    elif job == "count_under_locks":
        count_under_locks(fd, worker, int(rest[0]), int(rest[1]))
    else:
        hold(fd, worker, rest[0], int(rest[1]))


if __name__ == "__main__":
    main()
