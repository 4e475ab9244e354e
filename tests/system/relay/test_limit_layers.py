"""Every layer of limits has its rate, its burst and its line in a scrape: a real relay for each."""

import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.relay.world import open_world, reject_reason
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.protocol.constants import RejectReason as R
from wavry_relay.ops.samples import LIMIT_LAYERS
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import Limits

MINT = Mint()
LAYERS = tuple(LIMIT_LAYERS)


def limited(relay: RelayProcess) -> Counter[str]:
    """``wavry_relay_limited_total{layer}`` as scraped."""
    name = "wavry_relay_limited_total"
    return Counter({layer: int(relay.metric(name, layer=layer)) for layer in LAYERS})


@contextmanager
def relay_with(directory: Path, engine: str, **settings: str) -> Iterator[RelayProcess]:
    environ = {f"WAVRY_RELAY_{name.upper()}": value for name, value in settings.items()}
    with RelayProcess(directory, MINT, workers=1, WAVRY_RELAY_ENGINE=engine, **environ) as relay:
        yield relay


def stun_answers(relay: RelayProcess, hosts: list[str]) -> int:
    """How many of one STUN request from each address are answered."""
    host, port = relay.udp[0].rsplit(":", 1)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET

    def counts() -> tuple[float, float]:
        answers = relay.metric("wavry_relay_answers_sent_total", type="stun")
        return relay.metric("wavry_relay_packets_received_total"), answers

    received, answered = counts()
    before = sum(limited(relay).values())
    for source in hosts:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.connect((host.strip("[]"), int(port)))
            sock.send(stun.build_binding_request(bytes(12)))

    def decided() -> bool:
        held_back = sum(limited(relay).values()) - before
        return counts()[1] - answered + held_back == len(hosts)

    wait_until(lambda: counts()[0] - received == len(hosts), what="all requests received")
    wait_until(decided, what="all requests decided")
    return int(counts()[1] - answered)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"], ids=["32", "64"])
def test_layer_host_counts_a_single_address(tmp_path: Path, engine: str, listen: str) -> None:
    with relay_with(tmp_path, engine, listen=listen, ip_per_s="1", ip_burst="5") as relay:
        source = "::1" if "::1" in listen else "127.0.0.1"
        # A burst of five at once, and one for each second that it takes.
        assert 5 <= stun_answers(relay, [source] * 15) <= 9
        found = limited(relay)
        assert found["host"] >= 6
        assert not found["network"]
        if source != "::1":
            assert stun_answers(relay, ["127.0.0.2"]) == 1, "its neighbour has its own"


def test_layer_network_counts_all_addresses_of_a_24(tmp_path: Path, engine: str) -> None:
    settings = {"network_per_s": "1", "network_burst": "5"}
    with relay_with(tmp_path, engine, **settings) as relay:
        assert 5 <= stun_answers(relay, [f"127.0.7.{n}" for n in range(1, 16)]) <= 9
        found = limited(relay)
        assert found["network"] >= 6
        assert not found["host"]
        assert stun_answers(relay, ["127.0.8.1"]) == 1, "another /24 has its own"


@pytest.mark.parametrize("prefix", ["host", "network"])
def test_layers_of_ipv6_are_the_64_and_the_48(prefix: str) -> None:
    """Addresses that no loopback has; the counters are the ones that a scrape reads."""
    limits = Limits(ip_per_s=1, ip_burst=5, network_per_s=1, network_burst=20)
    with open_world(limits=limits) as world:

        def ask(text: str, port: int) -> object:
            source = Address.from_ip(socket.inet_pton(socket.AF_INET6, text), port)
            return world.answer(world.peer().datagram(token=b"x"), source)

        for number in range(100):
            ask(f"2001:db8:7:{number if prefix == 'network' else 0}::{number:x}", number + 1)
        assert world.count("limited_host") == (95 if prefix == "host" else 0)
        assert world.count("limited_network") == (0 if prefix == "host" else 80)
        assert reject_reason(ask("2001:db8:8::1", 1)) == R.INVALID_SIGNATURE  # type: ignore[arg-type]
        assert (ask("2001:db8:7:ffff::1", 1) is None) == (prefix == "network")


def test_layer_identity_counts_the_leases_of_a_user(tmp_path: Path, engine: str) -> None:
    with relay_with(tmp_path, engine, identity_per_s="1", identity_burst="5") as relay:
        answers = [present(relay, "greedy") for _ in range(15)]
        accepted = answers.count(None)
        assert 5 <= accepted <= 8
        assert set(answers) == {None, R.RATE_LIMITED}
        assert +limited(relay) == Counter(identity=15 - accepted)
        assert present(relay, "somebody-else") is None


def present(relay: RelayProcess, sub: str) -> int | None:
    """Present a lease of a user; the reason of the refusal."""
    with UdpPeer(MINT, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT, sub=sub) as peer:
        body = peer.ask(peer.present_datagram()).body
    return body.reason if isinstance(body, packets.LeaseReject) else None


@pytest.mark.parametrize(
    ("layer", "settings", "lease"),
    [
        ("soft", {"peer_burst_ms": "{burst}"}, {"soft_kbps": 800}),
        ("peer", {"peer_burst_ms": "{burst}"}, {"soft_kbps": 800, "hard_kbps": 800}),
        ("session", {"session_kbps": "800", "session_burst_ms": "{burst}"}, {}),
        ("global", {"max_bitrate_kbps": "800", "global_burst_ms": "{burst}"}, {}),
        ("global", {"max_pps": "100", "global_burst_ms": "{burst}"}, {}),
    ],
    ids=["soft", "hard", "session", "global-bits", "global-packets"],
)
def test_layer_of_streams_has_its_rate_and_burst(
    tmp_path: Path, engine: str, layer: str, settings: dict[str, str], lease: dict[str, int]
) -> None:
    """Datagrams of 1000 bytes at 800 kbit/s (or 100 packets/s): one each 10 ms."""
    total = 80
    for burst_ms in (100, 400):
        wanted = {name: value.format(burst=burst_ms) for name, value in settings.items()}
        directory = tmp_path / str(burst_ms)
        with relay_with(directory, engine, **wanted) as relay:
            with active_session(relay, MINT, **lease) as (client, server):
                began_s = time.monotonic()
                for _ in range(total):
                    client.forward(bytes(1000 - 28))

                def seen(relay: RelayProcess = relay) -> bool:
                    passed = relay.metric("wavry_relay_packets_forwarded_total")
                    dropped = 0 if layer == "soft" else limited(relay)[layer]
                    return bool(passed + dropped >= total)

                wait_until(seen, what="all datagrams decided")
                took_s = time.monotonic() - began_s
                found = limited(relay)
                server.drain_socket()
            burst = burst_ms / 10
            # A busy machine takes long: then the rate lets more through, but never less than this.
            assert burst - 1 <= total - found[layer] <= burst + 100 * took_s + 3, "rate and burst"
            others = {"soft"} if layer == "peer" else set()
            assert set(found.elements()) <= {layer} | others, "no other layer holds anything back"


def test_every_layer_is_scraped_from_the_start(tmp_path: Path, engine: str) -> None:
    with relay_with(tmp_path, engine) as relay:
        text = relay.get("/metrics")[1].decode()
    assert LAYERS == ("slot", "host", "network", "identity", "soft", "peer", "session", "global")
    for layer in LAYERS:
        assert f'wavry_relay_limited_total{{layer="{layer}"}} 0.0' in text
