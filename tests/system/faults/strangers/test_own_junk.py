"""A user who sends junk with a cookie of his own is blocked himself at most: never his network,
and not even he where a live slot is at his address.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets

MINT = Mint()
STRIKES = 120
"""More than WAVRY_RELAY_BLOCK_AFTER (100) and the few that are forgiven meanwhile."""


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[RelayProcess]:
    directory = tmp_path_factory.mktemp("relay")
    with RelayProcess(directory, MINT, WAVRY_RELAY_ENGINE=engine) as started:
        yield started


def peer_at(relay: RelayProcess, host: str, role: c.Role, sid: uuid.UUID) -> UdpPeer:
    return UdpPeer(MINT, relay.relay_id, relay.udp[0], sid, role, local=host)


def send_junk(peer: UdpPeer, cookie: bytes, until: Callable[[], bool]) -> None:
    """Leases with a wrong proof and the good cookie of the peer's own path."""

    def is_enough() -> bool:
        for _ in range(20):
            peer.counter += 1
            peer.sock.send(
                packets.build_present(
                    peer.sid.bytes, peer.role, peer.token,
                    counter=peer.counter, cookie=cookie, sign=lambda _: bytes(64),
                )
            )  # fmt: skip
        return until()

    wait_until(is_enough, what="that the junk was taken for what it is")


def is_renewed(peer: UdpPeer) -> bool:
    peer.sock.send(peer.present_datagram(renew=True))
    with suppress(TimeoutError):
        while packets.parse_packet(peer.sock.recv(2048)).header.type != c.PacketType.LEASE_ACK:
            pass
        return True
    return False


def test_who_is_blocked_is_blocked_alone(relay: RelayProcess) -> None:
    """It was his whole /24 once."""
    blocked = relay.metric("wavry_relay_hosts_blocked_total")
    with peer_at(relay, "127.0.7.1", c.Role.CLIENT, uuid.uuid4()) as user:
        user.ask(user.present_datagram())
        cookie = user.challenge
        assert cookie is not None
        release = user.present_datagram(renew=True, cookie=c.RELEASE_COOKIE)

        def is_released() -> bool:
            user.sock.send(release)
            return relay.metric("wavry_relay_leases_released_total") > 0

        wait_until(is_released, what="the release")
        send_junk(user, cookie, lambda: relay.metric("wavry_relay_hosts_blocked_total") > blocked)
    assert relay.metric("wavry_relay_hosts_blocked_total") == blocked + 1
    with peer_at(relay, "127.0.7.1", c.Role.CLIENT, uuid.uuid4()) as again:
        refused = again.ask(again.present_datagram())
        assert isinstance(refused.body, packets.LeaseReject)
        assert refused.body.reason == c.RejectReason.BANNED
    sid = uuid.uuid4()
    with (
        peer_at(relay, "127.0.7.2", c.Role.CLIENT, sid) as neighbour,
        peer_at(relay, "127.0.7.3", c.Role.SERVER, sid) as other,
    ):
        neighbour.present()
        other.present()
        neighbour.forward(b"not blocked")
        assert other.receive()[1] == b"not blocked"


def test_live_slot_goes_on_and_so_does_who_shares_its_address(relay: RelayProcess) -> None:
    blocked = relay.metric("wavry_relay_hosts_blocked_total")
    sid = uuid.uuid4()
    with (
        peer_at(relay, "127.0.8.1", c.Role.CLIENT, sid) as user,
        peer_at(relay, "127.0.9.1", c.Role.SERVER, sid) as other,
        peer_at(relay, "127.0.8.1", c.Role.CLIENT, uuid.uuid4()) as behind_the_same_nat,
    ):
        user.ask(user.present_datagram())
        cookie = user.challenge
        assert cookie is not None
        user.present(cookie=cookie)
        other.present()
        goal = relay.metric("wavry_relay_block_strikes_total") + STRIKES
        send_junk(user, cookie, lambda: relay.metric("wavry_relay_block_strikes_total") >= goal)
        user.token = user.new_token()
        wait_until(lambda: is_renewed(user), what="an ACK among the refusals")
        user.forward(b"still here")
        assert other.receive()[1] == b"still here"
        behind_the_same_nat.present()
    assert relay.metric("wavry_relay_hosts_blocked_total") == blocked
