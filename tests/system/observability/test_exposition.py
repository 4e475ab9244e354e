"""What running services expose is the catalogue, after traffic and after hostile traffic."""

import asyncio
import contextlib
import random
import secrets
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from support.system.metrics import Series, families, misfits, scrape, series_of
from support.system.real_peers import echo_one, new_user, two_peers
from support.system.services import Services
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.service.metrics import CATALOGUE, OTHER
from wavry_peer.service.settings import parse_address
from wavry_relay.shm.lease_states import TRANSITIONS

SERVICES = ("gateway", "master", "relay")


class Scraped:
    """A running system that one session has crossed."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def url(self, service: str) -> str:
        if service == "relay":
            return self.services.ops_url
        return str(self.services.ready[service]["url"])

    def text(self, service: str) -> str:
        return scrape(self.url(service))

    def value(self, service: str, name: str, **labels: str) -> float:
        found = [s.value for s in families(self.text(service))[name].samples if s.labels == labels]
        assert len(found) == 1, (name, labels)
        return float(found[0])


async def _talk(services: Services, home: Path) -> None:
    pair = new_user(services.gateway_url, home, "ann"), new_user(services.gateway_url, home, "bob")
    async with two_peers(services.gateway_url, *pair) as (ann, bob):
        await echo_one(ann, bob, b"hello")
        reported = 'wavry_gateway_session_paths_total{path="relay"} 1.0'
        await asyncio.to_thread(
            wait_until, lambda: reported in scrape(services.gateway_url), what="the path's report"
        )


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    home = tmp_path_factory.mktemp("observability")
    with Services(home / "services") as running:
        asyncio.run(_talk(running, home))
        yield Scraped(running)


@pytest.mark.parametrize("service", SERVICES)
def test_exposition_is_the_catalogue(system: Scraped, service: str) -> None:
    assert misfits(service, system.text(service)) == []


@pytest.mark.parametrize("service", SERVICES)
def test_every_declared_series_of_few_is_there_from_the_start(
    system: Scraped, service: str
) -> None:
    """A counter that appears with its first event shows no increase; and no declared value is
    one that the service does not know."""
    found = families(system.text(service))
    for spec in CATALOGUE[service]:
        if spec.kind == "histogram" or spec.most_series > 100 or not spec.labels:
            continue
        if not all(label.values for label in spec.labels):
            assert found[spec.name].samples, spec.name
        elif spec.name == "wavry_relay_lease_transitions_total":
            assert len(found[spec.name].samples) == len(TRANSITIONS), "only steps that there are"
        elif spec.name != "wavry_relay_engine_info":
            assert len(found[spec.name].samples) == spec.most_series, spec.name


def test_a_session_shows_in_all_three(system: Scraped) -> None:
    value = system.value
    assert value("gateway", "wavry_gateway_logins_total", result="ok") == 2
    assert value("gateway", "wavry_gateway_binds_total", result="ok") == 2
    assert value("gateway", "wavry_gateway_session_paths_total", path="relay") == 1
    assert value("gateway", "wavry_gateway_session_paths_total", path="direct") == 0
    assert value("gateway", "wavry_gateway_token_checks_total", via="http", result="ok") > 2
    assert value("gateway", "wavry_gateway_ready") == 1
    assert value("gateway", "wavry_gateway_master_reachable") == 1
    assert value("master", "wavry_master_leases_issued_total") == 2
    assert value("master", "wavry_master_ready") == 1
    assert value("master", "wavry_master_sessions") == 1
    assert value("master", "wavry_master_relays", state="ACTIVE") == 1
    age_s = value("master", "wavry_master_relay_heartbeat_age_seconds", state="ACTIVE")
    assert age_s <= 4 * value("master", "wavry_master_heartbeat_interval_seconds")
    end_s = value("master", "wavry_master_key_end_time_seconds", status="active")
    start_s = value("master", "process_start_time_seconds")
    assert end_s - start_s == pytest.approx(90 * 86_400, abs=600)
    assert value("relay", "wavry_relay_ready") == 1
    probes = value("master", "wavry_master_probes_total", result="passed")
    assert probes >= 1
    assert value("relay", "wavry_relay_sessions_activated_total") == 1 + probes
    assert value("relay", "wavry_relay_master_heartbeat_age_seconds") < 10
    workers = [value("relay", "wavry_relay_worker_cpu_seconds_total", worker=n) for n in ("0", "1")]
    assert all(0 < seconds < 100 for seconds in workers)


# -- Strangers ---------------------------------------------------------------------------------


def _raw(url: str, request: bytes) -> None:
    place = urllib.parse.urlsplit(url)
    assert place.hostname is not None
    with (
        socket.create_connection((place.hostname, place.port or 80), timeout=5) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(request)
        while connection.recv(65_536):
            pass


def _strange_http(url: str, word: str) -> None:
    """Requests of every odd kind; `word` is another one each time."""
    host = "Host: x\r\nConnection: close\r\n"
    agent = f"User-Agent: {word}\r\nX-Forwarded-For: {word}\r\nOrigin: http://{word}\r\n"
    methods = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "BREW", word.upper())
    paths = (
        f"/{word}", f"/v1/sessions/{word}", f"/v1/relays/{word}", f"/v1/admin/switches/{word}",
        f"/v1/admin/tokens/{word}/rotate", f"/auth/login?{word}={word}", f"//{word}/../{word}",
        "/auth/login", "/auth/register", "/v1/leases", "/v1/relays/register",
        "/v1/relays/heartbeat", f"/v1/relays/events?relay_id={word}", "/ws", "/metrics",
    )  # fmt: skip
    bodies = (b"", b"{}", f'{{"type":"{word}","relay_id":"{word}"}}'.encode(), b"\xff" * 40)
    for method in methods:
        for path in paths:
            for body in bodies if method == "POST" else bodies[:1]:
                token = f"Authorization: Bearer {word}\r\n" if body else ""
                head = f"{method} {path} HTTP/1.1\r\n{host}{agent}{token}"
                _raw(url, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    for broken in (f"{word}\r\n\r\n", f"GET /{word} HTTP/9.9\r\n\r\n", f"GET / HTTP/1.1\r\n{word}"):
        _raw(url, broken.encode() + b"\r\n\r\n")


async def _strange_messages(url: str, word: str) -> None:
    frames = ("{", "[]", f'{{"type":"{word}"}}', f'{{"type":"BIND","token":"{word}"}}', word)
    async with aiohttp.ClientSession() as http:
        for frame in frames:
            async with http.ws_connect(url + "/ws") as ws:
                await ws.send_str(frame)
                await ws.receive(timeout=10)


def _strange_datagrams(udp: str, order: random.Random) -> None:
    """Every type with every flag, known and unknown sessions, broken bodies."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(parse_address(udp))
        for kind in range(256):
            for flags in (0, 1, order.randrange(2, 256)):
                head = bytes((c.MAGIC, c.VERSION, kind, flags)) + order.randbytes(16)
                with contextlib.suppress(ConnectionRefusedError):
                    sock.send(head + order.randbytes(order.randrange(300)))
        token = b"v4.public." + order.randbytes(300).hex().encode()
        for odd in (
            b"", b"x", order.randbytes(1500), order.randbytes(3000),
            stun.build_binding_request(order.randbytes(12)),
            packets.build_present(order.randbytes(16), c.Role.CLIENT, token),
            packets.build_present(order.randbytes(16), c.Role.SERVER, token, renew=True),
            packets.build_forward(order.randbytes(16), order.randbytes(50)),
        ):  # fmt: skip
            sock.send(odd)


def _round(system: Scraped) -> dict[str, set[Series]]:
    word = "w" + secrets.token_hex(8)
    for service in ("gateway", "master", "relay"):
        _strange_http(system.url(service), word)
    asyncio.run(_strange_messages(system.url("gateway"), word))
    before = system.value("relay", "wavry_relay_packets_received_total")
    _strange_datagrams(system.services.ready["relay"]["udp"][0], random.Random(word))
    wait_until(
        lambda: system.value("relay", "wavry_relay_packets_received_total") >= before + 700,
        what="the relay has received the datagrams",
    )
    texts = {service: system.text(service) for service in SERVICES}
    assert not [text for text in texts.values() if word in text.lower()]
    return {service: series_of(text) for service, text in texts.items()}


def test_pitfall_strangers_mint_no_series(system: Scraped) -> None:
    first = _round(system)
    for service in SERVICES:
        assert misfits(service, system.text(service)) == []
    again = _round(system)
    for service in SERVICES:
        # What the relay itself asks now and then is no stranger's: he gets no 200 of these routes.
        new = {
            (name, labels)
            for name, labels in again[service] - first[service]
            if not (("status", "200") in labels and service == "master")
        }
        assert new == set(), "other words made other series"
    assert system.value("gateway", "wavry_gateway_binds_total", result="invalid_token") == 2
    unfit = [
        (name, labels)
        for service in SERVICES
        for family in families(system.text(service)).values()
        for sample in family.samples
        for name, labels in ((sample.name, sample.labels),)
        if OTHER in labels.values() and sample.value and "method" not in labels
    ]
    assert unfit == [], "the catalogue lacks a value that a service counts"
