"""A whole system whose UDP port gets random and mutated datagrams, with a live session beside it.

The long flood, and the one under sanitizers, are those of test_hostile_flood.py.
"""

import asyncio
import random
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.system.real_peers import echo_one, new_user, two_peers
from support.system.services import Services
from support.system.system import get_json, get_text

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.service.settings import parse_address

DATAGRAMS = 20_000
ROUND = 200
SEED = 20261123


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with Services(tmp_path_factory.mktemp("fuzz") / "services") as running:
        yield running


class Garbage:
    """An endless, repeatable supply of bad datagrams."""

    def __init__(self, session_id: bytes) -> None:
        self._random = random.Random(SEED)
        self._session_id = session_id
        bodies = [bytes(8) + b"x" * 100, b"RI\x00\x01" + bytes(30), b""]
        token = b"v4.public." + b"A" * 200
        sign = b"s" * c.SIGNATURE_BYTES
        self._good = [
            *(packets.build_forward(session_id, body) for body in bodies),
            packets.build_present(session_id, c.Role.CLIENT, token),
            packets.build_present(session_id, c.Role.SERVER, token, sign=lambda _signed: sign),
            packets.build_present(session_id, c.Role.CLIENT, token, renew=True),
            packets.build_reject(session_id, c.RejectReason.EXPIRED),
            packets.build_ack(session_id, packets.LeaseAck(1, 2, 3, (bytes(4), 5))),
            packets.build_challenge(session_id, bytes(8)),
            packets.build_notice(session_id, c.NoticeCode.SHUTDOWN),
            stun.build_binding_request(bytes(12)),
        ]

    def next(self) -> bytes:
        kind = self._random.random()
        if kind < 0.2:
            return self._random.randbytes(self._random.choice((0, 1, 19, 20, 21, 1500, 1501, 3000)))
        if kind < 0.3:
            return self._random.randbytes(self._random.randrange(2000))
        data = bytearray(self._random.choice(self._good))
        if kind < 0.5:
            data[c.SESSION_ID_OFFSET : c.HEADER_BYTES] = self._random.randbytes(16)
        for _ in range(self._random.randrange(4)):
            if data:
                data[self._random.randrange(len(data))] = self._random.randrange(256)
        cut = self._random.random()
        if cut < 0.2:
            del data[self._random.randrange(len(data) + 1) :]
        elif cut < 0.3:
            data += self._random.randbytes(self._random.randrange(1600))
        return bytes(data)


def resident_bytes(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def counters(services: Services) -> dict[str, float]:
    lines = get_text(services.ops_url + "/metrics").splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def test_garbage_is_dropped_by_reason_and_touches_no_good_session(
    services: Services, tmp_path: Path
) -> None:
    users = [
        await asyncio.to_thread(new_user, services.gateway_url, tmp_path, name)
        for name in ("alice", "bob")
    ]
    async with two_peers(services.gateway_url, *users) as (alice, bob):
        await echo_one(alice, bob, b"before")
        health = get_json(services.ops_url + "/health")
        workers = health["workers"]["pids"]
        before = counters(services)
        target = parse_address(services.ready["relay"]["udp"][0])
        garbage = Garbage(uuid.UUID(alice.session_id).bytes)
        memory: list[int] = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(0, DATAGRAMS, ROUND):
                for _ in range(ROUND):
                    sender.sendto(garbage.next(), target)
                await asyncio.sleep(0)
                if number % (10 * ROUND) == 0:
                    await echo_one(alice, bob, f"meanwhile {number}".encode())
                    memory.append(sum(resident_bytes(pid) for pid in workers))
        await echo_one(alice, bob, b"after")

        after = counters(services)
        assert get_json(services.ops_url + "/health")["workers"]["pids"] == workers, "no restart"
        dropped = {
            name: after[name] - before.get(name, 0)
            for name in after
            if name.startswith("wavry_relay_packets_dropped_total{")
        }
        for reason in ("too_short", "too_long", "bad_magic", "unknown_session"):
            assert any(reason in name and count > 0 for name, count in dropped.items()), reason
        assert after["wavry_relay_internal_errors_total"] == 0
        assert alice.statistics().handshakes == bob.statistics().handshakes == 1
        half = len(memory) // 2
        assert max(memory[half:]) <= max(memory[:half]) + 4 * 1024 * 1024, "memory is flat"
    assert "Traceback" not in services.log("relay")
    assert "unexpected" not in services.log("relay")
