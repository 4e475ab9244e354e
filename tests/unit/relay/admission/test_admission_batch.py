"""A batch of control packets is answered as its packets would be, one after the other."""

import uuid

import pytest
from support.relay.world import Peer, World, reject_reason, v4

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.protocol.constants import RejectReason as R
from wavry_relay.engine.base import Answer, ControlKind, ControlPacket


def lease(peer: Peer, datagram: bytes) -> ControlPacket:
    return ControlPacket(ControlKind.LEASE, datagram, peer.address)


def answer_all(world: World, batch: list[ControlPacket]) -> list[Answer]:
    def fail(error: Exception) -> None:
        raise error

    return world.admission.handle_all(batch, world.now, fail)


def test_batch_of_every_kind_is_answered_in_its_order(world: World) -> None:
    client, other = world.peer(), world.peer(address=v4(3))
    server = world.peer(c.Role.SERVER, sid=client.sid, address=v4(2))
    once, stranger = client.datagram(), world.peer(address=v4(4))
    forged = bytearray(stranger.datagram())
    forged[-1] ^= 1
    answers = answer_all(
        world,
        [
            lease(client, once),
            lease(server, server.datagram()),
            ControlPacket(ControlKind.STUN, stun.build_binding_request(bytes(12)), v4(9)),
            lease(client, once),
            lease(stranger, bytes(forged)),
            lease(other, other.datagram()),
            lease(other, other.datagram(proof=False)),
            lease(client, once[:30]),
            lease(client, client.datagram()),
        ],
    )
    seen = [answer[0] if answer else None for answer in answers]
    bodies = [
        packets.parse_packet(datagram).body if datagram and number != 2 else datagram
        for number, datagram in enumerate(seen)
    ]
    for number in (0, 1, 5, 8):
        assert isinstance(bodies[number], packets.LeaseAck), number
    assert bodies[3] == packets.LeaseReject(R.REPLAYED)
    assert bodies[4] == bodies[6] == packets.LeaseReject(R.PROOF_REQUIRED)
    assert seen[2] is not None
    assert bodies[7] is None
    assert world.count("session_activated") == 1
    assert world.count("drop_bad_body") == 1
    assert not world.has(stranger.sid)


def test_two_leases_for_one_slot_in_one_batch(world: World) -> None:
    """The first in the batch has the slot; the other identity finds it taken."""
    first = world.peer()
    other = world.peer(sid=first.sid, address=v4(5), sub="mallory")
    answers = answer_all(world, [lease(first, first.datagram()), lease(other, other.datagram())])
    parsed = [packets.parse_packet(answer[0]) for answer in answers if answer]
    assert isinstance(parsed[0].body, packets.LeaseAck)
    assert reject_reason(parsed[1]) == R.INVALID_SIGNATURE
    assert first.slot.is_at(first.address)


def test_key_set_that_changes_while_signatures_are_checked(world: World) -> None:
    """The lease is refused, and nothing of it is remembered under the new keys."""
    peer = world.peer()
    steps = world.admission._steps(lease(peer, peer.datagram()), world.now)
    verdict = next(steps).holds()
    world.control.write_keys({}, 2)
    other = world.peer(sid=uuid.uuid4(), address=v4(6))
    assert reject_reason(other.present()) == R.UNKNOWN_KEY
    with pytest.raises(StopIteration) as end:
        steps.send(verdict)
    assert reject_reason(packets.parse_packet(end.value.value[0])) == R.REVOKED
    assert not world.admission._verifier._good


def test_defect_costs_its_own_packet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = world.peer(), world.peer(address=v4(7))
    place = world.admission._slots.place

    def broken(header: packets.Header, *rest: object) -> tuple[bytes, ...]:
        if header.session_id == bad.sid.bytes:
            raise RuntimeError("defect")
        return place(header, *rest)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(world.admission._slots, "place", broken)
    defects: list[Exception] = []
    batch = [lease(bad, bad.datagram()), lease(good, good.datagram())]
    answers = world.admission.handle_all(batch, world.now, defects.append)
    assert answers[0] == ()
    assert answers[1]
    assert [str(error) for error in defects] == ["defect"]
