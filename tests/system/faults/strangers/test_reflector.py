"""A relay as a reflector: a slot at an address that never asked for anything.

The one who puts it there owns both leases and can spoof the address; here he has a socket there and
answers no challenge.
"""

import uuid
from collections.abc import Iterator

import pytest
from support.needs import need_engine
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_relay.shm.control import EngineKind

MINT = Mint()
DATAGRAMS, BYTES = 200, 1000


@pytest.fixture(scope="module", params=list(EngineKind), ids=lambda kind: kind.name.lower())
def relay(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RelayProcess]:
    need_engine(request.param)
    options = {"WAVRY_RELAY_ENGINE": request.param.name.lower(), "WAVRY_RELAY_WORKERS": "1"}
    options["WAVRY_RELAY_LISTEN"] = "127.0.0.1:0,[::1]:0"
    with RelayProcess(tmp_path_factory.mktemp("relay"), MINT, **options) as started:
        yield started


def received_bytes(peer: UdpPeer) -> int:
    """All that came to the peer's socket, answers of the relay included."""
    peer.sock.settimeout(0.2)
    total = 0
    while True:
        try:
            total += len(peer.sock.recv(2048))
        except TimeoutError:
            return total


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("role", c.Role)
def test_who_never_asked_gets_three_times_what_was_spoofed(
    relay: RelayProcess, family: int, role: c.Role
) -> None:
    sid, where = uuid.uuid4(), relay.udp[family]
    with (
        UdpPeer(MINT, relay.relay_id, where, sid, role) as victim,
        UdpPeer(MINT, relay.relay_id, where, sid, c.Role(1 - role)) as sender,
    ):
        spoofed = victim.present_datagram()
        victim.sock.send(spoofed)
        sender.present()
        before = relay.metric("wavry_relay_packets_received_total")
        for _ in range(DATAGRAMS):
            sender.forward(bytes(BYTES))
        wait_until(
            lambda: relay.metric("wavry_relay_packets_received_total") >= before + DATAGRAMS,
            what="that the relay has seen all",
        )
        assert 0 < received_bytes(victim) <= 3 * len(spoofed)
