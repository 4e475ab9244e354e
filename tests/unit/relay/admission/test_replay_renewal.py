"""Replay and renewal as protocol.md section 2 wants them, on both engines."""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.relay.world import Peer, World, open_world, reject_reason, v4
from support.waiting import wait_until
from typer.testing import CliRunner

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import ed25519, packets
from wavry_peer.protocol.constants import RejectReason as R
from wavry_relay.admission.admission import Admission
from wavry_relay.cli import app
from wavry_relay.engine.base import Drop, Forward
from wavry_relay.shm.control import EngineKind
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.leases import KEEP_MS

OTHER_KEY = ed25519.SigningKey.from_seed(b"o" * 32)


@pytest.fixture
def world(engine_kind: EngineKind) -> Iterator[World]:
    with open_world(kind=engine_kind, workers=2, max_sessions=64) as world:
        yield world


@pytest.fixture
def engine(engine_kind: EngineKind) -> str:
    return engine_kind.name.lower()


# -- Replay ------------------------------------------------------------------------------------


def test_replay_across_workers(world: World) -> None:
    """The same bytes at the other worker."""
    other = Admission(
        world.tables, world.engine, CounterRow(world.segment, 1), world.policy, world.transitions
    )
    peer = world.peer()
    datagram = peer.datagram()
    assert world.answer(datagram, peer.address) is not None
    decided: Any = world.decide(datagram, peer.address)
    answer = other.handle(decided, world.now)
    assert packets.parse_packet(answer[0]).body == packets.LeaseReject(R.REPLAYED)


def answers(peer: UdpPeer, datagram: bytes) -> object:
    return peer.ask(datagram).body


def test_replay_across_workers_kill_9_and_upgrade(tmp_path: Path, engine: str) -> None:
    """Real processes: two workers killed one after the other, then a successor of them all."""
    mint = Mint()
    refused = packets.LeaseReject(R.REPLAYED)
    with (
        RelayProcess(tmp_path, mint, workers=2, WAVRY_RELAY_ENGINE=engine) as relay,
        active_session(relay, mint) as (client, server),
    ):
        held = client.present_datagram()
        assert isinstance(answers(client, held), packets.LeaseAck)
        old_token, renewed = client.token, client.new_token()
        client.token = renewed
        client.present(renew=True)
        client.token = old_token
        denied = client.present_datagram(renew=True)
        client.token = renewed

        def still_refused() -> None:
            assert answers(client, held) == refused
            assert answers(client, denied) == refused, "replaced by the renewal, fresh proof or not"
            sent = client.forward()
            assert server.receive()[0] == sent

        still_refused()
        for number in range(2):
            before = relay.worker_pids()
            os.kill(before[number], signal.SIGKILL)
            wait_until(
                lambda was=before: (
                    relay.health()["workers"]["running"] == 2 and relay.worker_pids() != was
                ),
                timeout_s=30,
                what="replacement",
            )
            still_refused()
        done = CliRunner().invoke(app, ["upgrade", "--state-dir", str(relay.state_dir)])
        assert done.exit_code == 0, done.output
        relay.follow()
        still_refused()
        assert relay.metric("wavry_relay_lease_rejects_total", reason="replayed") == 8


def test_replay_memory_cannot_be_flushed_and_is_bounded(world: World) -> None:
    """A flood of good renewals takes no room of others, and none of its leases comes back."""
    victim = world.peer(address=v4(9))
    victim.accept()
    first = victim.token
    victim.accept(token=victim.new_token(), renew=True)
    flooder = world.peer(address=v4(10))
    flooder.accept()
    spent = []
    for number in range(20):
        spent.append((number // 5, flooder.token, flooder.datagram(token=flooder.token)))
        flooder.token = flooder.new_token()
        flooder.accept(renew=True)
        world.advance(0.2)
    assert world.used.count == 0
    for second, token, datagram in spent:
        captured = world.answer(datagram, flooder.address)
        assert reject_reason(captured) == R.REPLAYED, second
        if second < 3:  # Of the last second, the three that came last are known one by one.
            assert reject_reason(flooder.present(token=token, renew=True)) == R.REPLAYED
    assert reject_reason(victim.present(token=first, renew=True)) == R.REPLAYED
    flooder.accept(token=flooder.new_token(), renew=True)


def test_lease_of_a_session_that_ended_comes_back_with_a_higher_counter_only(world: World) -> None:
    client, _ = world.session()
    captured = client.datagram()
    client.accept()
    world.sweep(61.5)
    assert not world.has(client.sid)
    assert reject_reason(world.answer(captured, client.address)) == R.REPLAYED
    client.accept()
    old = client.token
    client.accept(token=client.new_token(), renew=True)
    assert reject_reason(client.present(token=old)) == R.REPLAYED
    world.sweep(31.5)
    assert not world.has(client.sid)
    assert reject_reason(client.present(token=old)) == R.REPLAYED, "also after the end"


def test_slot_taken_and_given_back_again_and_again_costs_one_place(world: World) -> None:
    client = world.peer()
    spent = []
    for _ in range(12):
        client.accept()
        spent.append(client.token)
        client.world.answer(client.datagram(cookie=c.RELEASE_COOKIE), client.address)
        assert not world.has(client.sid)
        assert reject_reason(client.present()) == R.REPLAYED
        client.token = client.new_token()
    assert world.used.count == 1
    world.advance(1)
    client.accept(token=client.new_token())
    for token in spent[-3:]:
        assert reject_reason(client.present(token=token)) == R.REPLAYED
    world.sweep(300 + KEEP_MS / 1000 + 65)
    assert world.used.count == 0


# -- Renewal -----------------------------------------------------------------------------------


def test_renewal_takes_a_fresh_jti_and_denies_the_old(world: World) -> None:
    client, server = world.session(ttl_s=60)
    old = client.token
    world.advance(48)
    client.token = client.new_token()
    assert client.accept(renew=True).expires_ms == world.now.wall_ms + 60_000
    for renew in (False, True):
        assert reject_reason(client.present(token=old, renew=renew)) == R.REPLAYED
    world.advance(59)
    assert client.forward(1) == Forward(server.address)


def test_renewal_bare_never_extends(world: World) -> None:
    client, _ = world.session(ttl_s=60)
    expires_ms = client.slot.expires_ms
    for _ in range(11):
        answer = world.answer(b"W\x01\x04\0" + client.sid.bytes, client.address)
        assert answer is not None
        assert isinstance(answer.body, packets.LeaseAck)
        assert answer.body.expires_ms == expires_ms
        world.advance(5)
    world.advance(5)
    assert world.answer(b"W\x01\x04\0" + client.sid.bytes, client.address) is None
    assert client.forward(1) == Drop("lease_expired")


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"sub": "mallory"}, R.INVALID_SIGNATURE),
        ({"role": c.Role.SERVER}, R.INVALID_SIGNATURE),
        ({"rid": "rly-other"}, R.WRONG_RELAY),
        ({"key": OTHER_KEY}, R.PROOF_REQUIRED),
        ({"sid": uuid.UUID(int=7)}, R.INVALID_SIGNATURE),
    ],
    ids=["sub", "role", "relay", "key", "session"],
)
def test_renewal_for_another_is_refused_and_the_session_goes_on(
    world: World, claims: dict[str, Any], reason: R
) -> None:
    client, server = world.session(ttl_s=60)
    expires_ms = client.slot.expires_ms
    assert reject_reason(client.present(token=client.new_token(**claims), renew=True)) == reason
    assert client.slot.expires_ms == expires_ms
    assert client.forward(1) == Forward(server.address)


def test_renewal_signed_by_another_key_takes_no_slot(world: World) -> None:
    client, server = world.session()
    thief = Peer(
        world, client.sid, c.Role.CLIENT, client.address, OTHER_KEY, {"sub": "user-client"}
    )
    assert reject_reason(thief.present(renew=True)) == R.INVALID_SIGNATURE
    assert client.forward(1) == Forward(server.address)


def test_renewal_that_fails_forwards_until_the_signed_expiry_and_stops_at_that_packet(
    world: World,
) -> None:
    client, server = world.session(ttl_s=60)
    server.accept(token=server.new_token(ttl_s=300), renew=True)
    world.advance(48)
    assert reject_reason(client.present(token=b"x", renew=True)) == R.INVALID_SIGNATURE
    world.advance(11.998)
    assert client.forward(1) == Forward(server.address)
    world.advance(0.001)
    assert client.forward(2) == Forward(server.address)
    world.advance(0.001)
    assert client.forward(3) == Drop("lease_expired")
    assert server.forward(1) == Forward(client.address), "it is the sender's lease that counts"
    client.accept(token=client.new_token(), renew=True)
    assert client.forward(3) == Forward(server.address)
