"""A relay without sockets, as a probe of the master sees it: honest, or with one fault."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from wavry_cp.master.health.probe_outcome import ProbeOutcome
from wavry_cp.master.health.probe_session import ProbePeer, ProbeSession
from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.protocol.ed25519 import SigningKey

MS: Final = 1_000_000
ENDPOINT: Final = "192.0.2.7:4500"
KEYS: Final = tuple(SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2))
OTHER: Final = {c.Role.CLIENT: c.Role.SERVER, c.Role.SERVER: c.Role.CLIENT}

Passes = Callable[[c.Role, bytes], bool]


def all_pass(_sender: c.Role, _datagram: bytes) -> bool:
    return True


@dataclass
class SimulatedRelay:
    """Answers as a relay; `passes` says which FORWARD of whom goes on.

    Attributes:
        answers_stun: something is there at all.
        acks: takes leases.
        rejects: what it says instead.
        got: datagrams that came, with their sender.
    """

    answers_stun: bool = True
    acks: bool = True
    rejects: c.RejectReason | None = None
    passes: Passes = all_pass
    alters: bool = False
    got: list[tuple[c.Role, bytes]] = field(default_factory=list)
    released: set[c.Role] = field(default_factory=set)

    def answer(self, role: c.Role, datagram: bytes) -> list[tuple[c.Role, bytes]]:
        self.got.append((role, datagram))
        if stun.is_stun(datagram):
            response = stun.build_binding_response(datagram, b"\xc0\x00\x02\x01", 9)
            return [(role, response)] if self.answers_stun and response else []
        packet = packets.parse_packet(datagram)
        session_id = packet.header.session_id
        if isinstance(packet.body, packets.LeasePresent):
            proof = packet.body.proof
            assert proof is not None
            if proof.cookie == c.RELEASE_COOKIE:
                self.released.add(role)
                return []
            if self.rejects is not None:
                return [(role, packets.build_reject(session_id, self.rejects))]
            if not self.acks:
                return []
            answers = [packets.build_ack(session_id, packets.LeaseAck(2**40, 1, 2))]
            if proof.cookie == c.NO_COOKIE:
                answers.append(packets.build_challenge(session_id, b"cookie!!"))
            return [(role, answer) for answer in answers]
        if not self.passes(role, datagram):
            return []
        if self.alters:
            datagram = datagram[:-1] + bytes([datagram[-1] ^ 1])
        return [(OTHER[role], datagram)]


def made_session(now_ns: int = 0, endpoint: str = ENDPOINT) -> ProbeSession:
    client, server = (
        ProbePeer(key, OwnLease(b"v4.public." + b"t" * 500, "jti", "rly", 0, 60_000, now_ns))
        for key in KEYS
    )
    return ProbeSession(
        endpoint,
        b"s" * 16,
        (client, server),
        stun_id=b"i" * 12,
        filler=random.Random(1).randbytes(1500),
        now_ns=now_ns,
    )


def probed(relay: SimulatedRelay, *, late_ns: int = 0, way_ns: int = 5 * MS) -> ProbeOutcome:
    """Run a probe by a clock of its own; every timer fires `late_ns` late."""
    now_ns = 0
    session = made_session(now_ns)
    under_way: list[tuple[int, c.Role, bytes]] = []
    for _ in range(1000):
        for role, datagram in session.datagrams_to_send():
            under_way += [
                (now_ns + 2 * way_ns, to, back) for to, back in relay.answer(role, datagram)
            ]
        if session.outcome is not None:
            return session.outcome
        due_ns = session.get_timer()
        assert due_ns is not None
        under_way.sort(key=lambda item: item[0])
        if under_way and under_way[0][0] <= due_ns:
            now_ns, role, datagram = under_way.pop(0)
            session.receive_datagram(role, datagram, now_ns)
        else:
            now_ns = max(now_ns, due_ns + late_ns)
            session.handle_timer(now_ns)
    raise AssertionError("the probe does not end")
