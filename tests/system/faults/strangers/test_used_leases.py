"""What finished calls leave behind fills nobody else's place, at a relay of its full size."""

import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import pytest
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import ed25519, packets
from wavry_relay.shm.layout import MIN_USED_SLOTS
from wavry_relay.shm.leases import FILLED_QUARTERS

MINT = Mint()
SESSIONS = 1000
LIMIT = max(MIN_USED_SLOTS, 4 * SESSIONS) * FILLED_QUARTERS // 4
AT_ONCE = 200
"""Leases under way: what the sockets hold on a busy machine, too."""


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[RelayProcess]:
    options = {
        "WAVRY_RELAY_ENGINE": engine,
        "WAVRY_RELAY_MAX_SESSIONS": str(SESSIONS),
        "WAVRY_RELAY_SHED_AT_PCT": "100",
    }
    with RelayProcess(tmp_path_factory.mktemp("relay"), MINT, **options) as started:
        yield started


@dataclass
class Caller:
    """One side of one call."""

    sub: str
    sid: uuid.UUID
    role: c.Role
    counter: int = 0
    key: ed25519.SigningKey = field(
        default_factory=lambda: ed25519.SigningKey.from_seed(os.urandom(32))
    )
    token: bytes = b""

    def datagram(self, *, renew: bool = False, cookie: bytes = c.NO_COOKIE) -> bytes:
        self.counter += 1
        return packets.build_present(
            self.sid.bytes, self.role, self.token,
            counter=self.counter, cookie=cookie, sign=self.key.sign, renew=renew,
        )  # fmt: skip


class Callers:
    """All callers behind one socket of each role."""

    def __init__(self, relay: RelayProcess) -> None:
        self._relay = relay
        host, port = relay.udp[0].split(":")
        self._sockets = {role: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for role in c.Role}
        for sock in self._sockets.values():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.connect((host, int(port)))
            sock.settimeout(0.5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets.values():
            sock.close()

    def call(self, client: str, server: str) -> list[Caller]:
        sid = uuid.uuid4()
        return [Caller(client, sid, c.Role.CLIENT), Caller(server, sid, c.Role.SERVER)]

    def present(
        self, callers: list[Caller], *, renew: bool = False, ago_s: int = 0
    ) -> Counter[str]:
        """Show a new lease of each, as fast as it is answered: how many of each answer.

        `ago_s` is how long ago the first was issued, each next one 0.2 s later: nobody is over the
        limit of his identity.
        """
        now_s = int(time.time())
        for number, caller in enumerate(callers):
            issued_s = now_s - max(ago_s - number // 5, 0)
            caller.token = MINT.token(
                caller.sid, caller.role, self._relay.relay_id,
                sub=caller.sub, key=caller.key, now_s=issued_s,
            )  # fmt: skip
        answers: Counter[str] = Counter()
        for first in range(0, len(callers), AT_ONCE):
            waiting = self._waiting(callers[first : first + AT_ONCE])
            while waiting:
                for caller in waiting.values():
                    self._sockets[caller.role].send(caller.datagram(renew=renew))
                answers += self._answers(waiting)
        return answers

    def hang_up(self, callers: list[Caller]) -> None:
        """Give all places back.

        Nobody answers that, so it is said again until the relay has heard it: a busy one drops a
        packet, and refuses the second release of a slot.
        """
        released = "wavry_relay_leases_released_total"
        goal = self._relay.metric(released)
        for first in range(0, len(callers), AT_ONCE):
            waiting = self._waiting(callers[first : first + AT_ONCE])
            goal += len(waiting)
            while waiting:
                for caller in waiting.values():
                    release = caller.datagram(renew=True, cookie=c.RELEASE_COOKIE)
                    self._sockets[caller.role].send(release)
                with suppress(AssertionError):
                    wait_until(lambda goal=goal: self._relay.metric(released) >= goal, timeout_s=1)
                    break
                self._answers(waiting)

    @staticmethod
    def _waiting(callers: list[Caller]) -> dict[tuple[bytes, c.Role], Caller]:
        return {(caller.sid.bytes, caller.role): caller for caller in callers}

    def _answers(self, waiting: dict[tuple[bytes, c.Role], Caller]) -> Counter[str]:
        """Take out who was answered, until no more comes."""
        answers: Counter[str] = Counter()
        for role, sock in self._sockets.items():
            while any(at is role for _, at in waiting):
                try:
                    packet = packets.parse_packet(sock.recv(2048))
                except TimeoutError:
                    break
                if packet.header.type in (c.PacketType.LEASE_ACK, c.PacketType.LEASE_REJECT):
                    known = waiting.pop((packet.header.session_id, role), None)
                    answers[_name(packet)] += known is not None
        return answers


def _name(packet: packets.Packet) -> str:
    if isinstance(packet.body, packets.LeaseReject):
        return c.RejectReason(packet.body.reason).name
    return "ACK"


def used_leases(relay: RelayProcess) -> float:
    return relay.metric("wavry_relay_used_leases")


def refused(relay: RelayProcess) -> float:
    """For want of room."""
    return relay.metric("wavry_relay_lease_rejects_total", reason="session_full")


def test_short_calls_of_two_users_take_nothing_from_others(relay: RelayProcess) -> None:
    """They filled the whole table once, and live sessions could not renew."""
    before = used_leases(relay)
    with Callers(relay) as callers:
        live = callers.call("alice", "bob")
        assert callers.present(live) == {"ACK": 2}
        for ago_s in (120, 60):
            short = [side for _ in range(100) for side in callers.call("busy", "busier")]
            assert callers.present(short, ago_s=ago_s) == {"ACK": len(short)}
            callers.hang_up(short)
        assert used_leases(relay) < before + 200, "of the 400 places that were given back"
        assert callers.present(live, renew=True) == {"ACK": 2}
        other = callers.call("carol", "dave")
        assert callers.present(other) == {"ACK": 2}
        assert relay.health()["status"] == "ok"
        callers.hang_up([*live, *other])
    assert refused(relay) == 0


# The table is the same code for both engines, and three thousand leases take a while.
@pytest.mark.parametrize("engine", ["native"], indirect=True, scope="module")
def test_operator_is_told_before_the_memory_is_full_and_then_nobody_is_refused(
    relay: RelayProcess,
) -> None:
    limit = relay.metric("wavry_relay_used_leases_limit")
    assert limit == LIMIT
    with Callers(relay) as callers:
        live = callers.call("alice", "bob")
        assert callers.present(live) == {"ACK": 2}
        told_at = 0.0
        while used_leases(relay) < limit:
            names = [uuid.uuid4() for _ in range(AT_ONCE // 2)]
            short = [side for name in names for side in callers.call(f"c{name}", f"s{name}")]
            assert callers.present(short, ago_s=200) == {"ACK": len(short)}
            callers.hang_up(short)
            is_told = used_leases(relay) / limit > 0.8  # the expression of the alert
            assert (relay.health()["status"] == "degraded") is is_told
            told_at = told_at or is_told * used_leases(relay)
        assert 0 < told_at < 0.9 * limit
        assert callers.present(live, renew=True) == {"ACK": 2}
        callers.hang_up(live)
    assert refused(relay) == 0


def test_sessions_that_began_together_renew_together_at_a_full_relay(relay: RelayProcess) -> None:
    """928 of 2000 such renewals were refused once, and 464 sessions ended."""
    with Callers(relay) as callers:
        calls = [callers.call(f"client-{n}", f"server-{n}") for n in range(SESSIONS)]
        all_sides = [side for call in calls for side in call]
        assert callers.present(all_sides) == {"ACK": 2 * SESSIONS}
        assert callers.present(callers.call("late", "later")) == {"SESSION_FULL": 2}
        before = relay.metric("wavry_relay_leases_renewed_total")
        assert callers.present(all_sides, renew=True) == {"ACK": 2 * SESSIONS}
        assert relay.metric("wavry_relay_leases_renewed_total") == before + 2 * SESSIONS
        assert relay.metric("wavry_relay_sessions", state="active") == SESSIONS
