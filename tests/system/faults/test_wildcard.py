"""A relay that listens at the wildcard address of a host with several addresses.

Peers have connected sockets, as NATs have mappings: an answer from another address than the one
that was asked never reaches them.
"""

import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.machines.namespaces import Namespace, need_namespaces
from support.needs import need_engine
from support.relay.mint import Mint
from support.relay.namespaced import NamespacedRelay
from support.relay.udp_peer import UdpPeer

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_relay.shm.control import EngineKind

MINT = Mint()
PORT = 4500
HOSTS = ("10.9.0.1", "10.9.0.2", "[fd09::1]", "[fd09::2]", "[fe80::9%net]")


class Host:
    """A host of several addresses with a relay on it, and one of the peers beside it."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.host = stack.enter_context(Namespace())
        self.beside = stack.enter_context(Namespace())
        self.host.join("net", self.beside, "net")
        self.host.ip(
            "addr add 10.9.0.1/24 dev net", "addr add 10.9.0.2/24 dev net",
            "addr add fd09::1/64 dev net nodad", "addr add fd09::2/64 dev net nodad",
            "addr add fe80::9/64 dev net nodad",
        )  # fmt: skip
        self.beside.ip("addr add 10.9.0.9/24 dev net", "addr add fd09::9/64 dev net nodad")
        self.relay: NamespacedRelay

    def peer(self, host: str, sid: uuid.UUID, role: c.Role) -> UdpPeer:
        with self.beside.entered():
            made = UdpPeer(MINT, self.relay.relay_id, f"{host}:{PORT}", sid, role)
        return self.stack.enter_context(made)

    def pair(self, client: str, server: str) -> tuple[UdpPeer, UdpPeer]:
        sid = uuid.uuid4()
        made = self.peer(client, sid, c.Role.CLIENT), self.peer(server, sid, c.Role.SERVER)
        for peer in made:
            peer.present()
        return made


@pytest.fixture(scope="module", params=list(EngineKind), ids=lambda kind: kind.name.lower())
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    need_namespaces()
    engine = need_engine(request.param).name.lower()
    with ExitStack() as stack:
        made = Host(stack)
        made.relay = NamespacedRelay(
            made.host, tmp_path_factory.mktemp("relay"), MINT,
            WAVRY_RELAY_ENGINE=engine,
            WAVRY_RELAY_ALLOW_PUBLIC_BIND="1",
            WAVRY_RELAY_LISTEN=f"0.0.0.0:{PORT},[::]:{PORT}",
            WAVRY_RELAY_ADVERTISE=f"10.9.0.1:{PORT}",
        )  # fmt: skip
        stack.enter_context(made.relay)
        yield made


@pytest.mark.parametrize("asked", HOSTS)
def test_every_answer_comes_from_the_address_that_was_asked(host: Host, asked: str) -> None:
    sid = uuid.uuid4()
    peer = host.peer(asked, sid, c.Role.CLIENT)
    peer.sock.send(stun.build_binding_request(bytes(12)))
    assert stun.parse_mapped_address(peer.sock.recv(2048), bytes(12))
    peer.present()
    with host.beside.entered():
        peer.move()
    peer.forward()
    challenge = packets.parse_packet(peer.sock.recv(2048))
    assert isinstance(challenge.body, packets.PathChallenge)
    peer.present(cookie=challenge.body.cookie)
    peer.token = peer.new_token()
    peer.present(renew=True)


@pytest.mark.parametrize("client", HOSTS)
def test_what_is_forwarded_leaves_from_the_receivers_address(host: Host, client: str) -> None:
    for server in HOSTS:
        pair = host.pair(client, server)
        for number in range(40):  # neighbours leave as one train
            for peer in pair:
                peer.forward(bytes((number,)) * 100)
        for peer in pair:
            assert [peer.receive() for _ in range(40)] == [
                (number + 1, bytes((number,)) * 100) for number in range(40)
            ]


def test_a_peer_that_goes_to_another_address_of_the_relay_is_answered_there(host: Host) -> None:
    client, server = host.pair(HOSTS[0], HOSTS[0])
    local = client.sock.getsockname()
    client.sock.close()
    with host.beside.entered():
        client.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.sock.settimeout(client.timeout_s)
        client.sock.bind(local)
        client.sock.connect((HOSTS[1], PORT))
    client.forward()
    challenge = packets.parse_packet(client.sock.recv(2048))
    assert isinstance(challenge.body, packets.PathChallenge)
    client.present(cookie=challenge.body.cookie)
    server.forward(b"to the new address")
    assert client.receive()[1] == b"to the new address"
